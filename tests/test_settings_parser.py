"""Every option has a help text and declares what it takes; a mistake is one line before torch is imported."""

import argparse
import dataclasses
import re
import subprocess
import sys
import typing

import pytest
from transformers import TrainingArguments

from dwellmoe.cli.simulate_options import simulate_parser
from dwellmoe.data.command_line import data_parser
from dwellmoe.errors import UserError
from dwellmoe.evaluation.command_line import evaluation_parser
from dwellmoe.locality.command_line import training_parser
from dwellmoe.options import Settings, option
from dwellmoe.settings.library_options import library_options
from dwellmoe.settings.trainer import TrainerSettings
from dwellmoe.settings_parser import SettingsParser
from tests.conftest import ROOT

PARSERS = {"main.py": training_parser, "inference.py": evaluation_parser}
HOSTILE = ("nan", "inf", "-inf", "-1", "-1e9", "1e308", "9" * 40)
KINDS = dict.fromkeys(kind for parser in PARSERS.values() for kind in parser()._kinds)
NUMBERS = [
    (kind, name)
    for kind in KINDS
    for name, annotation in typing.get_type_hints(kind).items()
    if {int, float} & {annotation, *typing.get_args(annotation)}
]
OTHER_COMMANDS = {"dwellmoe simulate": simulate_parser, "data_preparer.py": data_parser}


@dataclasses.dataclass
class Example(Settings):
    """An example."""

    count: int = option(1, "a count", least=0, most=10)
    share: float | None = option(None, "a share", above=0, most=1, aliases=["--part"])
    on: bool = option(True, "a switch")
    kind: str = option("a", "a kind of 100 %", choices=("a", "b"))
    names: str = option("", "names")


def parse(*words: str) -> tuple[Example, SettingsParser]:
    parser = SettingsParser((Example,), "example [options]")
    (found,) = parser.parse([*words])
    return found, parser


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("option_of_help", ["--help", "--help_all"])
def test_help_lists_every_option_the_own_ones_in_120_lines(name, option_of_help, capsys):
    parser = PARSERS[name]()
    with pytest.raises(SystemExit) as left:
        parser.parse(["--batch_size", "0", option_of_help])
    assert left.value.code == 0
    page = capsys.readouterr().out
    listed = {*re.findall(r"^  (--\w+)", page, re.MULTILINE)}
    every = {f"--{entry.name}" for kind in parser._kinds for entry in dataclasses.fields(kind)}
    if option_of_help == "--help_all":
        assert listed == every
    else:
        assert len(page.splitlines()) <= 120 and listed == every - {f"--{rare}" for rare in parser._rarely}


def test_evaluation_lists_its_own_options_first(capsys):
    with pytest.raises(SystemExit):
        evaluation_parser().parse(["--help"])
    page = capsys.readouterr().out
    assert page.index("\n  --control_path") < page.index("\n  --model_name") and "--lora_rank" not in page


STARTED = """
import runpy, sys
sys.argv = {words!r}
try:
    runpy.{run}({words[0]!r}, run_name="__main__")
finally:
    heavy = {{"torch", "transformers", "numba", "pyarrow"}} & {{*sys.modules}}
    print("imported", *heavy)
"""


@pytest.mark.parametrize("command", ["main.py", "inference.py", "data_preparer.py", "dwellmoe simulate"])
@pytest.mark.parametrize("words", ["--help", "--no_such_option 1"])
def test_help_and_unknown_options_import_nothing_slow(command, words):
    run = "run_path" if command.endswith(".py") else "run_module"
    code = STARTED.format(words=[*command.split(), *words.split()], run=run)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "imported"
    if words == "--help":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", PARSERS)
def test_without_options_nothing_begins(name):
    for words in ([], ["--local_rank=0"]):
        with pytest.raises(UserError, match=f"python {re.escape(name)} --model_name"):
            PARSERS[name]().parse(words)


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_a_number_is_in_its_declared_range_or_refused(kind, name):
    entry = next(entry for entry in dataclasses.fields(kind) if entry.name == name)
    allowed = entry.metadata["range"]
    if entry.default is not None:
        assert entry.default in allowed
    for text in HOSTILE:
        try:
            (found,) = SettingsParser((kind,)).parse([f"--{name}", text])
        except UserError as error:
            spellings = [f"--{name}", *entry.metadata.get("aliases", ())]
            assert "\n" not in str(error) and any(spelling in str(error) for spelling in spellings)
        else:
            value = getattr(found, name)
            assert value is None or (value in allowed and abs(value) < float("inf"))


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_numbers_of_the_other_commands_are_in_a_range_or_refused(name):
    subparsers = next(
        action for action in OTHER_COMMANDS[name]()._actions if isinstance(action, argparse._SubParsersAction)
    )
    seen = 0
    for command in subparsers.choices.values():
        for action in command._actions:
            assert action.type not in (int, float), f"{action.option_strings}: no range"
            if action.metavar in ("N", "X", "SHARE"):
                seen += 1
                for text in ("nan", "inf", "-1", "9" * 40):
                    with pytest.raises(argparse.ArgumentTypeError):
                        typing.cast(typing.Any, action.type)(text)
    assert seen > 0


def test_options_of_the_trainer_are_those_that_transformers_has():
    """What is read off the source, against the class itself."""
    library = {entry.name: entry for entry in dataclasses.fields(library_options())}
    theirs = {entry.name: entry for entry in dataclasses.fields(TrainingArguments) if entry.init}
    own = {entry.name for entry in dataclasses.fields(TrainerSettings)}
    assert own <= {*theirs}
    assert {*theirs} - {*library} - own == {"parallelism_config"}
    for name, entry in library.items():
        if isinstance(theirs[name].default, int | float) and "range" in entry.metadata:
            assert theirs[name].default in entry.metadata["range"], name


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("--count 11", r"--count 11: must be at least 0 and at most 10"),
        ("--count eight", "option --count: 'eight' is not a whole number"),
        ("--count", "option --count: expected one argument"),
        ("--part 0", r"--part 0.0: must be above 0 and at most 1"),
        ("--share -0.5", r"--part -0.5: "),
        ("--on perhaps", "option --on: 'perhaps' is neither True nor False"),
        ("--kind c", "--kind c: choose from a, b"),
        ("--cuont 1", "unknown option '--cuont': did you mean --count"),
        ("-count 1", "unknown option '-count': did you mean --count"),
        ("--count 1 more", "stray word 'more'"),
        ("more --count 1", "stray word 'more'"),
        ("--names --", "stray word '--'"),
        ("--config none.yaml", "--config none.yaml: No such file"),
        ("--config", "option --config: a path"),
    ],
)
def test_a_mistake_names_the_option(words, fault):
    with pytest.raises(UserError, match=fault) as told:
        parse(*words.split())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--count 3 --on --kind b", Example(3, None, True, "b")),
        ("--count=3 --on=no", Example(3, None, False)),
        ("--no_on --names -", Example(1, None, False, "a", "-")),
        ("--part 1e-3 --names -5", Example(1, 1e-3, names="-5")),
    ],
)
def test_options_are_understood(words, expected):
    found, _ = parse(*words.split())
    assert found == expected


def test_a_text_may_begin_with_a_dash():
    assert parse("--names", "- a list, with --dashes")[0].names == "- a list, with --dashes"


def test_dashes_in_a_name_are_underscores_and_what_was_given_is_known():
    _, parser = parse("--part=1", "--count", "2")
    assert parser.given == {"part", "count"}
    assert training_parser().parse(["--lora-rank", "4"])[2].lora_rank == 4


@pytest.mark.parametrize(
    ("words", "kept", "said"),
    [
        (["--count", "2", "--count=3"], {"count": 3}, "--count 2, --count 3"),
        (["--part", "0.5", "--share=1"], {"share": 1.0}, "--part 0.5, --share 1"),
        (["--on", "--no_on"], {"on": False}, "--on, --no_on"),
        (["--names", "a", "--names", "- b"], {"names": "- b"}, "--names a, --names - b"),
        (["--config", "FILE", "--count", "3"], {"count": 3}, "--count 7 (--config), --count 3"),
        (["--count", "3", "--config=FILE"], {"count": 3}, "--count 7 (--config), --count 3"),
        (
            ["--config", "FILE", "--config", "FILE"],
            {"count": 7},
            "--count 7 (--config), --count 7 (--config)",
        ),
    ],
)
def test_an_option_given_twice_is_said_with_both_values(words, kept, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("dwellmoe.log._warned", set())
    (tmp_path / "o.yaml").write_text("count: 7\n")
    found, _ = parse(*(word.replace("FILE", str(tmp_path / "o.yaml")) for word in words))
    assert dataclasses.asdict(found).items() >= kept.items()
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_an_option_given_twice_is_said_in_the_other_commands(capsys, monkeypatch):
    monkeypatch.setattr("dwellmoe.log._warned", set())
    assert data_parser().parse_args(["show", "boolq", "--count", "2", "--count=3"]).count == 3
    words = ["curve", "--trace", "t", "--policies", "lru", "lfu", "--policies", "opt"]
    assert simulate_parser().parse_args(words).policies == ["opt"]
    first, second = capsys.readouterr().err.splitlines()
    assert "--count 2, --count 3:" in first and "--policies lru lfu, --policies opt:" in second
