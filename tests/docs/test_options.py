"""docs/options.md says what the code says."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_options_page_is_fresh():
    spec = importlib.util.spec_from_file_location("generate_options", DOCS / "generate_options.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    stored = (DOCS / "options.md").read_text(encoding="utf-8")
    assert stored == generator.page(), "run `make docs`"
