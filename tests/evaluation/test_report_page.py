"""The report's page in a real browser: its charts, its choices, and that it is whole without a script."""

import json
from shutil import copy

import pytest

from dwellmoe.evaluation.report.html_report import write_html
from dwellmoe.evaluation.report.summary import readable_bytes, three_digits
from tests.browser import SCHEMES, WIDTHS, check_page, focus_walk, view, visiting

pytestmark = pytest.mark.slow
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
CHARTS = ("hit_rate.png", "memory_throughput.png", "ecr_per_layer.png")


@pytest.fixture(scope="module")
def made(report, run, tmp_path_factory):
    """A report with a re-routed variant and a policy of a hostile name, and the address of its page."""
    folder = tmp_path_factory.mktemp("page")
    for name in (*CHARTS, "routing_over_time.png", "samples.csv"):
        copy(run / name, folder)
    found = json.loads(json.dumps(report))
    tuned = [row for row in found["cache"] if row["variant"] == "tuned"]
    found["cache"] += [
        row | {"variant": "tuned-rerouted", "hit_rate": row["hit_rate"] ** 0.5} for row in tuned
    ]
    found["cache"] += [row | {"policy": HOSTILE} for row in found["cache"] if row["policy"] == "lru"]
    found["variants"].append("tuned-rerouted")
    write_html(folder, found, {name: f"caption of {name}" for name in (*CHARTS, "routing_over_time.png")})
    return found, (folder / "report.html").as_uri()


def wanted(report, variant, policy="lru", capacity=2, **changes) -> dict:
    setup = {"text": "teacher_forced", "phase": "decode", "scope": "layer"} | changes
    setup |= {"variant": variant, "policy": policy, "capacity": capacity}
    (found,) = (row for row in report["cache"] if all(row[key] == value for key, value in setup.items()))
    return found


def choose(page, **choices) -> None:
    for name, value in choices.items():
        page.select_option(f"#choose-{name}", value)


def table(page) -> dict[str, list[str]]:
    """Variant -> its cells."""
    rows = page.locator("#hit-rows tr").all()
    cells = [[cell.text_content().strip() for cell in row.locator("td").all()] for row in rows]
    return {name: rest for name, *rest in cells}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_readable_at_every_width_in_both_colours(browser, made, scheme, width):
    with visiting(browser, made[1], **view(scheme, width)) as page:
        choose(page, phase="decode")
        assert page.locator("#hit-chart svg path.curve").count() == 5
        page.locator("#hit-chart .plot").hover()
        assert page.locator("#hit-chart .tip").is_visible()
        check_page(page, f"report-{scheme}-{width}")


def test_its_numbers_are_those_of_the_report(browser, made):
    report, address = made
    with visiting(browser, address) as page:
        choose(page, phase="decode", text="teacher_forced", scope="layer", policy="lru", against="base")
        page.locator("#choose-capacity").focus()
        page.keyboard.press("Home")
        for capacity in (2, 3, 4):
            base = wanted(report, "base", capacity=capacity)
            for variant, cells in table(page).items():
                row = wanted(report, variant, capacity=capacity)
                assert cells[0].startswith(three_digits(row["hit_rate"]))
                assert cells[1] == readable_bytes(row["miss_bytes_per_token"])
                ratio = (1 - row["hit_rate"]) / (1 - base["hit_rate"])
                assert cells[2] == ("1" if variant == "base" else three_digits(ratio))
            page.keyboard.press("ArrowRight")
        choose(page, policy="opt", phase="prefill")
        page.keyboard.press("Home")
        row = wanted(report, "tuned", "opt", 1, phase="prefill")
        assert table(page)["tuned"][0].startswith(three_digits(row["hit_rate"]))


def test_the_chart_is_read_off_by_keys_and_a_click_chooses(browser, made):
    report, address = made
    with visiting(browser, address, **view("light", 1000)) as page:
        choose(page, phase="decode", policy="lru")
        plot = page.locator("#hit-chart .plot")
        plot.focus()
        page.keyboard.press("Home")
        said = plot.get_attribute("aria-valuetext")
        for variant in report["variants"]:
            assert f"{variant} {three_digits(wanted(report, variant)['hit_rate'])}" in said
        box = plot.bounding_box()
        page.mouse.click(box["x"] + box["width"] - 14, box["y"] + 40)
        assert "8 experts in each layer, 100 %" in page.locator("#capacity-text").text_content()


def test_variants_leave_all_charts_and_tables(browser, made):
    with visiting(browser, made[1]) as page:
        choose(page, phase="decode")
        page.uncheck("#choose-variants input[value=control]")
        assert [*table(page)] == ["base", "tuned", "tuned-rerouted"]
        for name in CHARTS[1:]:
            legend = page.locator(f'figure[data-name="{name}"] .legend').text_content()
            assert "tuned" in legend and "control" not in legend


def test_what_the_report_names_stays_text(browser, made):
    with visiting(browser, made[1]) as page:
        choose(page, policy=HOSTILE, phase="decode")
        assert page.locator("#choose-policy option:checked").text_content() == HOSTILE.replace("_", " ")
        assert page.locator("#explorer script").count() == 0
        assert page.locator("script").count() == 2


def test_without_a_script_the_figures_are_pictures(browser, made):
    with visiting(browser, made[1], script=False, **view("light", 800)) as page:
        assert not page.locator("#explorer").is_visible()
        for name in (*CHARTS, "routing_over_time.png"):
            assert page.locator(f'figure[data-name="{name}"] img').is_visible()


def test_all_of_it_is_in_reach_of_the_keyboard(browser, made):
    with visiting(browser, made[1]) as page:
        found = focus_walk(page)
        choices = ["choose-policy", "choose-text", "choose-phase", "choose-scope", "choose-measure"]
        assert [place for place in found if place in (*choices, "choose-capacity", "choose-against")] == [
            *choices,
            "choose-capacity",
            "choose-against",
        ]
        assert page.locator("figure .plot[tabindex='0']").count() == 2


def test_a_report_without_hit_rates_keeps_its_pictures(browser, report, run, tmp_path):
    copy(run / "hit_rate.png", tmp_path)
    copy(run / "samples.csv", tmp_path)
    write_html(tmp_path, report | {"cache": [], "speed": []}, {"hit_rate.png": "Hit rate"})
    with visiting(browser, (tmp_path / "report.html").as_uri()) as page:
        assert page.locator('figure[data-name="hit_rate.png"] img').is_visible()
        assert not page.locator("#explorer").is_visible()
