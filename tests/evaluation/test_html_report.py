"""The page of a report: its numbers are those of report.json, and what it quotes from data stays text."""

import csv
import json
from html.parser import HTMLParser
from shutil import copytree

import pytest
from safetensors.torch import load_file, save_file

from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.report.html_report import METRICS, write_html
from dwellmoe.evaluation.report.summary import readable_bytes, summary_rows, three_digits
from inference import evaluate, parse
from tests.evaluation.workspace import options

pytestmark = pytest.mark.slow
HOSTILE = """<script>alert('1')</script> & "quotes" <img src=x onerror=alert(1)>"""


class Tables(HTMLParser):
    """`tables`: of each table its rows, of each row the texts of its cells, of each cell its lines."""

    def __init__(self, page: str):
        super().__init__()
        self.tables: list[list[list[list[str]]]] = []
        self.tags: list[str] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in_cell = self._in_cell or tag in ("td", "th")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append([])

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell and data.strip():
            self.tables[-1][-1][-1].append(data.strip())


@pytest.fixture(scope="module")
def tables(run):
    return Tables((run / "report.html").read_text()).tables


def shown(value, interval=None) -> list[str]:
    """The lines of a cell with this value and interval."""
    return [
        three_digits(value),
        *([f"{three_digits(interval[0])} \u2026 {three_digits(interval[1])}"] if interval else []),
    ]


def test_the_summary_is_that_of_the_numbers(tables, report):
    _, *rows = tables[0]
    for row, wanted in zip(rows, summary_rows(report), strict=True):
        assert row[0] == [wanted["variant"]]
        for cell, name in zip(row[1:4], ("perplexity", "ecr", "hit_rate"), strict=True):
            assert cell[:2] == shown(wanted[name], wanted[f"{name}_ci95"])
        assert row[4] == [readable_bytes(wanted["miss_bytes_per_token"])]


def test_the_ratios_are_those_of_the_numbers(tables, report):
    columns = {
        "switch rate": "switch_rate",
        "LRU misses at 25 %": "lru_misses_25",
        "perplexity": "perplexity",
    }
    head, *rows = tables[1]
    for row, (name, wanted) in zip(rows, report["comparison"].items(), strict=True):
        cells = {heading[0]: cell for heading, cell in zip(head, row, strict=True)}
        assert cells["comparison"] == [name.replace("_", " ")]
        for heading, ratio in columns.items():
            assert cells[heading] == shown(wanted[f"{ratio}_ratio"], wanted[f"{ratio}_ratio_ci95"])


def test_the_metrics_are_those_of_the_numbers(tables, report):
    _, *rows = tables[2]
    metrics = [metric for metric in METRICS if metric in report["quality"][0]]
    for row, metric in zip(rows, metrics, strict=True):
        assert row == [
            [METRICS[metric]],
            *(shown(quality[metric], quality[f"{metric}_ci95"]) for quality in report["quality"]),
        ]


def test_the_hit_rates_are_those_of_the_numbers(tables, report):
    (title, *rows) = next(table for table in tables if table[0][0] == ["policy"])
    assert [cell[0] for cell in title[2:]] == [
        "\u2264 12.5 %",
        "\u2264 25.0 %",
        "\u2264 50.0 %",
        "\u2264 75.0 %",
    ]
    for policy, variant, *cells in rows:
        for cell, capacity in zip(cells[1:], (2, 4, 6), strict=True):
            (wanted,) = (
                row
                for row in report["cache"]
                if (row["policy"], row["variant"], row["capacity"]) == (policy[0], variant[0], capacity)
                and (row["text"], row["phase"], row["scope"]) == ("teacher_forced", "decode", "layer")
            )
            rate = shown(wanted["hit_rate"], wanted["hit_rate_ci95"])
            assert cell == [*rate, f"{readable_bytes(wanted['miss_bytes_per_token'])} a token"]


def test_what_data_says_stays_text(tmp_path, report):
    hostile = json.loads(json.dumps(report))
    hostile["data"]["dataset"] = hostile["data"]["split"] = hostile["model"]["name"] = HOSTILE
    hostile["made"]["command"] = f"{HOSTILE} caf\udce9"  # as a path in Latin-1 reaches Python
    hostile["settings"]["model_name"] = HOSTILE
    for row in hostile["quality"]:
        row["by_task"] = {HOSTILE: {"accuracy": 0.5}}
    with open(tmp_path / "samples.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["Input", "Output_Baseline", "ECR_Baseline"], [HOSTILE, HOSTILE, 0.29166]]
        )
    write_html(tmp_path, hostile, {})
    page = (tmp_path / "report.html").read_text()
    tags = Tables(page).tags
    assert "img" not in tags and tags.count("script") == 2  # the page's own script and its numbers
    assert Tables(page).tables[-1][-1] == [[HOSTILE], [HOSTILE], ["0.292"]]


def test_a_perplexity_beyond_numbers_is_named_and_loses_no_report(tmp_path, workspace, one_thread):
    copytree(workspace / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1e5
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    settings = {"model_name": tmp_path / "model", "results_dir": tmp_path / "results", "choice_limit": 0}
    evaluate(parse(options(workspace, **settings, limit_evaluation=2, generate_limit=0)), Ranks())
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    assert report["quality"][0]["perplexity"] is None
    assert "not a finite number" in (tmp_path / "results" / "report.html").read_text()
