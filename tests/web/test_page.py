"""A page is one file, may load nothing, and what it is given stays text."""

import hashlib
import re
from base64 import b64encode

import pytest

from dwellmoe.web import page_template

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture
def page(tmp_path):
    (tmp_path / "own.js").write_text("const a = 1;\n")
    (tmp_path / "page.jinja").write_text(
        '{{ inlined(["theme.css"], ["own.js", "format.js"], "\'self\'") | safe }}'
        '<p title="{{ text }}">{{ text }}</p>'
        '<script type="application/json">{{ {"text": text} | tojson }}</script>'
    )
    return page_template(tmp_path / "page.jinja").render(text=HOSTILE)


def test_files_stand_inside_in_their_order(page):
    script = re.search('<script type="module">(.*?)</script>', page, re.DOTALL)[1]
    assert script.startswith("const a = 1;") and "function threeDigits" in script
    assert "--ink" in re.search("<style>(.*?)</style>", page, re.DOTALL)[1]


def test_the_policy_allows_this_script_and_no_other_source(page):
    policy = re.search('Content-Security-Policy" content="(.*?)"', page)[1]
    script = re.search('<script type="module">(.*?)</script>', page, re.DOTALL)[1]
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy


def test_what_is_given_stays_text(page):
    assert HOSTILE not in page and page.count("<script") == 2


def test_a_file_that_would_end_the_script_is_no_page(tmp_path):
    (tmp_path / "own.js").write_text('const end = "</script>";')
    (tmp_path / "page.jinja").write_text('{{ inlined([], ["own.js"]) | safe }}')
    with pytest.raises(AssertionError):
        page_template(tmp_path / "page.jinja").render()
