"""A page as one file: its styles and scripts are put inside, and its policy lets it load nothing else."""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

SHARED = Path(__file__).parent
NOTHING = "'none'"


def page_template(path: Path, **filters: Callable[..., str]) -> Template:
    """The template of a page, which may use `filters` by their names; what it is given is escaped.

    `inlined(styles, scripts, connect) | safe` in its head puts files inside, of the page's own folder or of
    this one; the script runs when the page is read. `connect`: what it may request.
    """
    loader = FileSystemLoader([path.parent, SHARED])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters |= filters
    environment.globals["inlined"] = partial(_inlined, (path.parent, SHARED))
    return environment.get_template(path.name)


def _inlined(
    folders: Sequence[Path], styles: Sequence[str], scripts: Sequence[str], connect: str = NOTHING
) -> str:
    style, script = (_joined(folders, names) for names in (styles, scripts))
    policy = _policy(script, connect)
    return (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<style>{style}</style>\n<script type="module">{script}</script>'
    )


def _joined(folders: Sequence[Path], names: Sequence[str]) -> str:
    files = (next(folder / name for folder in folders if (folder / name).is_file()) for name in names)
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert "</" not in text, "a tag would end the page's style or script"
    return text


def _policy(script: str, connect: str) -> str:
    """No address but its own, and no script but this one: what a model writes cannot become one."""
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src {NOTHING}; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {connect}; form-action {NOTHING}; base-uri {NOTHING}"
    )
