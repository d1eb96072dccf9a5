"""A file of chats is trained on every answer, and measured by the last one."""

import shutil
from pathlib import Path

import pytest

from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.data.task import load_task
from dwellmoe.data.wording import as_asked, as_conversation, saved_wording
from dwellmoe.evaluation.requests import SampleSpec, load_requests
from tests.conftest import ROOT, quick_training
from tests.data import chats
from tests.data.chats import byte_tokenizer, turns, write_chats
from tests.data.stand_ins import word_tokenizer

TALK = turns("w1", "w2 w3", "w4 w5", "w6 w7")


def test_the_last_answer_is_asked_and_judged(tmp_path, monkeypatch):
    monkeypatch.setenv("DWELLMOE_CACHE", str(tmp_path / "cache"))
    tokenizer = byte_tokenizer(chats.PLAIN)
    task = as_asked(load_task(write_chats(tmp_path, TALK, name="test.jsonl")), tokenizer)
    (request,) = load_requests(task, "test", tokenizer, SampleSpec(0, 1, 8, 1000), 0)
    assert tokenizer.decode(request.prompt_ids) == as_conversation(TALK[:-1], tokenizer)
    assert request.example.answer == "w6 w7"
    learned = [token for token in request.row["labels"] if token != IGNORED_LABEL]
    assert tokenizer.decode(learned) == "w6 w7<|im_end|>"
    (request,) = load_requests(task, "test", tokenizer, SampleSpec(0, 1, 8, 20), 0)
    assert len(request.prompt_ids) == 20 and request.cut_prompt_tokens > 0


@pytest.mark.slow
def test_an_adapter_of_chats_keeps_that_it_goes_through_the_template(run_command, tmp_path, tiny_checkpoint):
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(model)
    path = write_chats(tmp_path, *(turns(f"w{n}", f"w{n + 1}", "w3", f"w{n + 2}") for n in range(50)))
    trained = run_command("python", ROOT / "main.py", *quick_training(model, Path(path)), "--packing", "True")
    assert trained.returncode == 0, trained.stderr
    assert "recognised as" in trained.stderr
    wording = saved_wording(tmp_path / "out")
    assert wording and wording.chat_template and wording.of_conversations
