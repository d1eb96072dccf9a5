"""The command line fetches, lists and shows, and tells a mistake in one line."""

import pytest

import data_preparer
from dwellmoe.data.task import task_names
from dwellmoe.errors import run_command
from tests.data.stand_ins import word_tokenizer


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line with arguments; gives exit code, standard output and standard error."""
    monkeypatch.setattr("dwellmoe.data.remote.hub_answers", lambda: False)
    monkeypatch.setattr("data_preparer.hub_answers", lambda: False)
    monkeypatch.setenv("COLUMNS", "150")

    def run_it(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["data_preparer.py", *map(str, arguments)])
        code = 0
        try:
            run_command(data_preparer.main)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run_it


def test_list_names_every_data_set(run):
    code, out, _ = run("list")
    assert code == 0 and all(name in out for name in task_names())


def test_show_marks_the_answer_and_counts_words(run, own_task):
    code, out, _ = run("show", own_task, "--count", "2")
    assert code == 0 and "w0 w1⟦ w50 w51⟧" in out and "2 of 4" in out and "3 of 4" not in out
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["words", "mean", "p50", "p95", "max"],
        ["prompt", "3.5", "4", "5", "5"],
        ["answer", "2.0", "2", "2", "2"],
    ]


def test_show_counts_a_tokenizer_s_tokens(run, own_task, tmp_path):
    word_tokenizer(with_bos=True).save_pretrained(tmp_path / "tokenizer")
    code, out, _ = run("show", own_task, "--split", "test", "--tokenizer", tmp_path / "tokenizer")
    assert code == 0 and out.split()[-15:-10] == ["tokens", "mean", "p50", "p95", "max"]


def test_show_prints_the_tokens_that_a_model_reads(run, own_task, tmp_path):
    word_tokenizer(with_bos=True).save_pretrained(tmp_path / "tokenizer")
    code, out, _ = run("show", own_task, "--count", "1", "--tokenizer", tmp_path / "tokenizer")
    assert code == 0 and "6 tokens, 3 of them learned" in out
    assert "<bos>¦w0¦w1¦w50¦w51¦<eos>¦" in out and "0 4 5 54 55 1" in out


def test_show_goes_through_the_chat_template_where_the_task_does(run, own_task, tmp_path):
    own_task.write_text("chat = true\n" + own_task.read_text())
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w90 {{ m['content'] }} w91 {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    code, out, _ = run("show", own_task, "--count", "1", "--tokenizer", tmp_path / "tokenizer")
    assert code == 0 and "w90¦w0¦w1¦w91¦w50¦w51¦<eos>¦" in out


def test_fetch_tells_where_each_split_came_from(run, own_task):
    code, out, _ = run("fetch", own_task)
    assert code == 0 and out.count("file a.jsonl") == 3


def test_fetch_goes_on_past_what_is_out_of_reach(run, own_task):
    code, out, err = run("fetch", "samsum", own_task)
    assert code == 2 and "test: file" in out
    assert err.strip() == "error: out of reach: samsum, train; samsum, validation; samsum, test"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "nope"], "unknown data set 'nope': choose from alpaca"),
        (["show", "nope.toml"], "no task file at 'nope.toml'"),
        (["show", "boolq", "--split", "dev"], "choose from"),
        (["show", "boolq", "--count", "0"], "option --count: '0' must be at least 1"),
        (["show", "boolq", "--tokenizer", "no/where"], "no tokenizer at 'no/where'"),
        (["fetch"], "NAME"),
        ([], "fetch,list,show"),
    ],
)
def test_a_mistake_is_reported_with_exit_code_2(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err
