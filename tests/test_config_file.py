"""Options from YAML files are read as YAML means them; a file that cannot be is named."""

import dataclasses

import pytest

from dwellmoe.errors import UserError
from dwellmoe.options import Settings, option
from dwellmoe.settings_parser import SettingsParser


@dataclasses.dataclass
class Example(Settings):
    """An example."""

    count: int | None = option(1, "a count", least=0, most=10)
    rate: float = option(0.5, "a rate", least=0, most=1)
    active: bool = option(True, "a switch")
    names: str = option("", "names")


@pytest.fixture
def parse(tmp_path):
    def of(text: str | bytes, *words: str) -> Example:
        (tmp_path / "o.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return SettingsParser((Example,)).parse([f"--config={tmp_path / 'o.yaml'}", *words])[0]

    return of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Example()),
        ("count: 3\nrate: 1e-3\n", Example(3, 1e-3)),
        ("active: no", Example(active=False)),
        ("active: false\nnames: no", Example(active=False, names="no")),
        ("count: null\nnames: ~", Example()),
        ("names: [a, b]\n", Example(names="a,b")),
        ("names: [1, 2.5]\n", Example(names="1,2.5")),
        ("names: '--x'", Example(names="--x")),
        ("\ufeffcount: 2", Example(2)),
        ("names: é", Example(names="é")),
        ("names: off\nactive: off", Example(active=False, names="off")),
        ("names: on\nactive: on", Example(names="on")),
        ("names: 1.10", Example(names="1.10")),
        ("names: 2020-01-01", Example(names="2020-01-01")),
        ("names: [off, 1.10, 007]", Example(names="off,1.10,7")),
        ("names: &x off\nactive: *x", Example(active=False, names="off")),
        ("<<: {names: a, active: off}\ncount: 2", Example(2, active=False, names="a")),
        ("count: 0x7\nrate: '1e-3'", Example(7, 1e-3)),
    ],
)
def test_values(parse, text, expected):
    assert parse(text, "--rate", str(expected.rate)) == expected


def test_the_command_line_overrides_the_file_wherever_it_stands(parse, tmp_path):
    parse("count: 3")
    words = ["--count", "4", "--config", str(tmp_path / "o.yaml")]
    assert SettingsParser((Example,)).parse(words)[0].count == 4


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- count", "expected options and values, found list"),
        ("count: 3\ncount: 4", "'count' is given twice"),
        ("count: 3\ncount: 4", r"o\.yaml: 'count' is given twice"),
        ("count: 3\n--count: 4", "'count' is given twice"),
        ("top_k: 3\ntop-k: 4", "'top_k' is given twice"),
        ("'': 3", "'' is not the name of an option"),
        ("count: [", "not YAML"),
        (b"# caf\xe9\ncount: 1", "not UTF-8 text: byte 5"),
        ("names: [[a]]", "names: a list of texts and numbers"),
        ("lora:\n  count: 8", "unknown option '--lora'"),
        ("1: 2", "'1' is not the name of an option"),
        ("count: .inf", "'inf' is not a whole number"),
        ("rate: .nan", "--rate nan: must be"),
        ("[" * 3000, "not YAML"),
    ],
)
def test_mistakes(parse, text, fault):
    with pytest.raises(UserError, match=fault) as told:
        parse(text)
    assert "\n" not in str(told.value)
