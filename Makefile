# make demo | test | test-fast | check | bench | docs: each sets up .venv by itself on first use.
# make bench-llamacpp | test-llamacpp build llama.cpp first, into $(LLAMACPP): about 10 minutes on two cores.
PYTHON ?= python3
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
LLAMACPP ?= .cache/llamacpp
LLAMACPP_PACKAGE := llama-cpp-python==0.3.36

.PHONY: setup demo test test-fast check bench docs llamacpp bench-llamacpp test-llamacpp

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(RUN) bash runs/demo.sh

test: setup
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal

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

llamacpp: $(LLAMACPP)/.installed

# The source is kept: llama.cpp's converter comes in it alone. Not built: what its own programs and images need.
$(LLAMACPP)/.installed:
	$(PYTHON) -m venv $(LLAMACPP)
	mkdir -p $(LLAMACPP)/source
	cd $(LLAMACPP) && bin/python -m pip download -q --no-deps --no-binary llama-cpp-python $(LLAMACPP_PACKAGE)
	tar -xzf $(LLAMACPP)/llama_cpp_python-*.tar.gz --strip-components 1 -C $(LLAMACPP)/source
	sed -i 's/set(LLAMA_BUILD_COMMON ON/set(LLAMA_BUILD_COMMON OFF/' $(LLAMACPP)/source/CMakeLists.txt
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(LLAMACPP)/bin/python -m pip install --disable-pip-version-check -q $(LLAMACPP)/source
	touch $@

bench-llamacpp: setup llamacpp
	mkdir -p results/bench
	$(RUN) python benchmarks/llamacpp.py --llamacpp $(LLAMACPP) --json results/bench/llamacpp.json

test-llamacpp: setup llamacpp
	$(RUN) LLAMACPP=$(abspath $(LLAMACPP)) OMP_NUM_THREADS=1 python -m pytest tests/export/test_llamacpp.py

docs: setup
	$(RUN) python docs/generate_options.py
