"""--push_to_hub: what is uploaded, and that it is found out first whether it can be."""

from types import SimpleNamespace

import pytest

from dwellmoe import publishing
from dwellmoe.errors import UserError
from dwellmoe.publishing import HubRepository


class Hub:
    """A stand-in for the client of the hub."""

    def __init__(self, fault=None):
        self.fault, self.calls = fault, []

    def __call__(self, token):
        self.token = token
        return self

    def create_repo(self, name, private, exist_ok):
        self._called(("create", name, private))
        return SimpleNamespace(repo_id=f"someone/{name}")

    def upload_folder(self, repo_id, folder_path, ignore_patterns, **_):
        self._called(("upload", repo_id, folder_path))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    def _called(self, call):
        if self.fault:
            raise self.fault
        self.calls.append(call)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    return hub


def test_a_folder_goes_to_the_repository_under_its_whole_name(hub, tmp_path):
    repository = HubRepository("tuned", token="t", private=True).make()
    assert repository.upload(tmp_path) == "https://hub/someone/tuned"
    assert (
        hub.calls == [("create", "tuned", True), ("upload", "someone/tuned", tmp_path)] and hub.token == "t"
    )


def test_what_cannot_be_written_to_is_refused_first(hub):
    hub.fault = ConnectionError("no route")
    with pytest.raises(UserError, match=r"--push_to_hub.*'tuned'.*no route"):
        HubRepository("tuned", None, None).make()


def test_a_failed_upload_loses_nothing_and_is_said(hub, tmp_path, capsys):
    hub.fault = OSError("quota")
    assert HubRepository("a/b", None, None).upload(tmp_path) is None
    assert "hf upload a/b" in capsys.readouterr().err


def test_a_hub_that_is_offline_ends_a_run_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    import main

    words = "--model_name models/tiny-olmoe --dataset_name hellaswag --push_to_hub True --lora_save_path"
    monkeypatch.setattr("sys.argv", ["main.py", *words.split(), str(tmp_path / "run")])
    monkeypatch.setattr(publishing, "HfApi", Hub(ConnectionError("offline mode")))
    monkeypatch.setattr(main, "train", lambda run: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"'run'.*offline mode"):
        main.main()
