"""A headless chromium for the tests of pages, what every page must hold, and where screenshots go.

Screenshots are kept in results/screenshots/, for whoever wants to see what the tests saw.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).resolve().parent.parent / "results" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCHEMES = ("light", "dark")
WIDTHS = (360, 800, 1600)
FOCUSED = """(() => {
  const element = document.activeElement;
  if (!element || element === document.body) return null;
  const place = [...document.querySelectorAll("*")].indexOf(element), style = getComputedStyle(element);
  const name = element.id || `${element.closest("[id]")?.id} ${element.tagName}`;
  return [place, name, style.outlineStyle + style.outlineWidth];
})()"""
"""Place, name and outline of the element that has the focus."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. The test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    program = next(filter(None, map(which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser to test the page in: none of {', '.join(NAMES)} is installed")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=as_root)
        yield browser
        browser.close()


@contextmanager
def visiting(
    browser: Any, url: str, *, expected_errors: str = "", script: bool = True, **options: Any
) -> Iterator[Any]:
    """A page in a context of its own. When the block ends, nothing may have been requested from another
    origin, and the console holds no error but those that are expected (a pattern).
    """
    context = browser.new_context(java_script_enabled=script, **options)
    page, errors, requested = context.new_page(), [], []
    page.set_default_timeout(20_000)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    context.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    yield page
    context.close()
    assert all(each.startswith((_origin(url), "data:")) for each in requested), requested
    unexpected = [each for each in errors if not (expected_errors and re.search(expected_errors, each))]
    assert not unexpected, unexpected


def _origin(url: str) -> str:
    return url if url.startswith("file:") else "/".join(url.split("/")[:3]) + "/"


def view(scheme: str, width: int, height: int = 1000) -> dict[str, Any]:
    """The options of a page in these colours, of this size."""
    return {"color_scheme": scheme, "viewport": {"width": width, "height": height}}


def check_page(page: Any, name: str) -> None:
    """Keeps a screenshot; the page fits the window's width, and axe finds nothing to improve."""
    from axe_playwright_python.sync_playwright import Axe

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def focus_walk(page: Any, most: int = 80) -> list[str]:
    """Where the Tab key leads, from the page's beginning until it leaves the page: ids, else tags. Each place
    must show that it has the focus.
    """
    found, places = [], []
    for _ in range(most):
        page.keyboard.press("Tab")
        where = page.evaluate(FOCUSED)
        if where is None or where[0] in places:
            return found
        place, name, outline = where
        assert "none" not in outline and "0px" not in outline, f"{name} does not show the focus"
        places.append(place)
        found.append(name)
    raise AssertionError(f"the Tab key does not leave the page: {found}")
