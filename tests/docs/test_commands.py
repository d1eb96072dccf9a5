"""Every command in README and docs is one that the real parsers take; no model is loaded."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import data_preparer
import dwellmoe
import inference
from dwellmoe.cli import main as cli
from dwellmoe.cli.apply import apply_parser
from dwellmoe.cli.chat import parse_options as parse_chat
from dwellmoe.cli.export_options import export_parser
from dwellmoe.cli.pack import pack_parser
from dwellmoe.cli.record import record_parser
from dwellmoe.cli.serve import parse_options as parse_serving
from dwellmoe.cli.simulate_options import parse_arguments
from dwellmoe.errors import UserError
from dwellmoe.harness.command_line import parse_harness
from dwellmoe.locality.command_line import training_parser
from tests.docs.pages import HISTORY, PAGES, ROOT, blocks, code_spans, name_of

OTHER_PROGRAMS = {"git", "cd", "source", "tensorboard", "curl", "export"}
PARSERS = {
    "pack": pack_parser,
    "export": export_parser,
    "apply": apply_parser,
    "record": record_parser,
}
LAUNCHERS = {"python", "torchrun", "deepspeed", "accelerate"}
PROGRAMS = LAUNCHERS | {"dwellmoe", "make", "bash", "pip"} | OTHER_PROGRAMS
SHELL = {"", "bash", "sh", "console"}
SCRIPTS = ("benchmarks", "models", "runs")
MIGRATING = "migrating.md"
"""It names the options of other programs."""
CURRENT = [page for page in PAGES if page != HISTORY]


def _commands(page: Path) -> Iterator[tuple[str, bool]]:
    """The command lines of a page, and whether each stands in the text: code spans that hold options do."""
    for block in blocks(page):
        if block.language in SHELL:
            for line in block.text.replace("\\\n", " ").splitlines():
                if _program(line) in PROGRAMS:
                    yield line, False
    for span in code_spans(page):
        if _program(span) in PROGRAMS and " --" in span:
            yield span, True


def _program(line: str) -> str:
    words = [word for word in line.removeprefix("$ ").split() if not re.match(r"[A-Z_]+=", word)]
    return words[0] if words else ""


CASES = [
    pytest.param(line, in_text, id=f"{name_of(page)}: {line[:60]}")
    for page in CURRENT
    for line, in_text in _commands(page)
]


@pytest.mark.parametrize(("line", "in_text"), CASES)
def test_a_command_is_one_that_exists(line: str, in_text: bool, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "FILE.yaml").write_text("seed: 1\n", encoding="utf-8")
    words = shlex.split(line.removeprefix("$ "), comments=True)
    words = [word.replace("FILE.yaml", str(tmp_path / "FILE.yaml")) for word in words]
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if any(word.startswith("my_") for word in words):
        return  # a file of docs/extending.md, which test_extending.py runs
    try:
        _check(words)
    except SystemExit as end:  # argparse ends so after --help (0) and for a mistake (2)
        assert not end.code
    except UserError as error:  # a code span may be the part of a command that matters
        if not (in_text and "arguments are required" in str(error)):
            raise


def _check(words: list[str]) -> None:
    program, *arguments = words
    if program in LAUNCHERS:
        _check_launched(arguments)
    elif program == "dwellmoe":
        _check_dwellmoe(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {*arguments} <= {*targets}
    elif program == "bash":
        assert (ROOT / arguments[0]).is_file()
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = {extra for word in arguments for extra in re.findall(r"\[([\w,]+)\]", word)}
        assert {name for extra in extras for name in extra.split(",")} <= {*project["optional-dependencies"]}


def _check_launched(arguments: list[str]) -> None:
    """What follows `python`, `torchrun`, ...: the launcher's options, a script, and the script's options."""
    if arguments[0] == "-m":
        assert arguments[1] in ("pytest", "dwellmoe", "pip", "venv")
        return
    i = next(i for i, word in enumerate(arguments) if word.endswith(".py"))
    script, options = arguments[i], arguments[i + 1 :]
    if script == "main.py":
        training_parser().parse(options)
    elif script == "inference.py":
        inference.parse(options)
    elif script == "data_preparer.py":
        data_preparer.parse_options(options)
    else:
        source = _with_siblings(ROOT / script)
        names = {word.split("=")[0] for word in options if word.startswith("--")}
        known = {*re.findall(r"\"(--\w+)\"", source)}
        if "parse_known_args" in source:  # the rest goes to inference.py
            known |= {*re.findall(r"--\w+", (ROOT / "docs" / "options.md").read_text(encoding="utf-8"))}
        assert names <= known


def _with_siblings(script: Path) -> str:
    """The source of a script and of the modules beside it that it imports."""
    source = script.read_text(encoding="utf-8")
    siblings = [path for path in script.parent.glob("*.py") if re.search(rf"\b{path.stem}\b import", source)]
    return source + "".join(path.read_text(encoding="utf-8") for path in siblings)


def _check_dwellmoe(arguments: list[str]) -> None:
    command, *options = arguments
    if command.startswith("-"):
        return
    assert command in cli.COMMANDS
    if command == "simulate":
        parse_arguments(options)
    elif command in ("serve", "chat"):
        (parse_serving if command == "serve" else parse_chat)(options)
    elif command == "lm-eval":
        parse_harness(options)
    elif command in PARSERS:
        PARSERS[command]().parse_args(options)


@pytest.mark.parametrize("page", [page for page in CURRENT if page.name != MIGRATING], ids=name_of)
def test_an_option_named_in_passing_exists(page: Path):
    stored = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    scripts = (path for folder in SCRIPTS for path in (ROOT / folder).rglob("*.py"))
    parsers = stored + "".join(path.read_text(encoding="utf-8") for path in scripts)
    known = {*training_parser().options, *re.findall(r"--\w+", parsers)}
    spans = [span for span in code_spans(page) if _program(span) not in PROGRAMS - {"dwellmoe"}]
    named = [name for span in spans for name in re.findall(r"(?<!\S)--\w+", span)]
    assert sorted({*named} - known) == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_examples_in_python_and_toml_can_be_read(page: Path):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, name_of(page), "exec")
            assert {*re.findall(r"\bdm\.(\w+)", block.text)} <= {*dwellmoe.__all__}
        if block.language == "toml":
            tomllib.loads(block.text)


def test_a_wrong_command_is_found():
    with pytest.raises(UserError):
        _check(["python", "main.py", "--no_such_option", "1"])
    with pytest.raises(UserError):
        _check(["dwellmoe", "simulate", "replay", "--no_such_option", "1"])
    with pytest.raises(AssertionError):
        _check(["make", "no-such-target"])
