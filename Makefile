# make demo | test | test-fast | check | bench | docs: each sets up .venv by itself on first use.
PYTHON ?= python3
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.PHONY: setup demo test test-fast check bench docs

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(RUN) bash runs/demo.sh

test: setup
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2

test-fast: setup
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -m "not slow" -n 2

check: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright

bench: setup
	mkdir -p results/bench
	$(RUN) python benchmarks/simulator.py --json results/bench/simulator.json
	$(RUN) python benchmarks/training_overhead.py --json results/bench/training_overhead.json
	$(RUN) python benchmarks/offload.py --json results/bench/offload.json

docs: setup
	$(RUN) python docs/generate_options.py
