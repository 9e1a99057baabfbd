"""Interventions put on a hub and got again, by huggingface_hub, from one on this machine."""

from __future__ import annotations

import socket

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants

from tests.fakehub import TOKEN, FakeHub, running
from tests.model.tinies import lm_of
from tests.steer.formats.vectors import added, made
from trimtab.errors import EditError, FileError
from trimtab.model.hub import download, upload
from trimtab.steer.formats import load_vector
from trimtab.steer.hub import from_pretrained, push_to_hub, write_files
from trimtab.values.edit import Edit, Intervention

LM = lm_of("llama", torch.float64)


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    """huggingface_hub may ask this machine, and no proxy is asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub():
    with running(FakeHub()) as found:
        yield found


@pytest.fixture
def at(hub, tmp_path):
    """Options of both calls."""
    return {"endpoint": hub.endpoint, "token": TOKEN}


def test_there_and_back(hub, at, tmp_path):
    before = added(1, name="honest", provenance=made(LM.hash))
    url = push_to_hub(before, "me/honest", **at, base_model="owner/base", licence="mit", message="First")
    assert url == f"{hub.endpoint}/me/honest"
    assert hub.private == {"me/honest": True}
    assert hub.commits == [("me/honest", "First")]
    after = from_pretrained("me/honest", LM, **at, cache_dir=tmp_path)
    assert (after, after.name, after.provenance) == (before, "honest", before.provenance)
    files = hub.repos["me/honest"]
    assert set(files) == {"intervention.safetensors", "README.md", "controlvector.gguf"}
    read = ModelCard(files["README.md"].decode()).data
    assert (read.base_model, read.license) == ("owner/base", "mit")
    (tmp_path / "v").write_bytes(files["controlvector.gguf"])
    assert load_vector(tmp_path / "v") == before


def test_a_second_commit_and_a_public_repository(hub, at, tmp_path):
    push_to_hub(added(1), "me/v", **at, private=False)
    push_to_hub(added(1, strength=2.0), "me/v", **at)
    assert hub.private == {"me/v": False}
    assert from_pretrained("me/v", endpoint=hub.endpoint, cache_dir=tmp_path) == added(1, strength=2.0)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_by_large_file_storage(monkeypatch, tmp_path):
    """As the real hub stores binary files."""
    for module in ("_commit_api", "hf_api"):
        monkeypatch.setattr(f"huggingface_hub.{module}.is_xet_available", lambda: False)
    with running(FakeHub(lfs=(".safetensors", ".gguf"))) as hub:
        push_to_hub(added(1), "me/v", endpoint=hub.endpoint, token=TOKEN)
        assert len(hub.blobs) == 2
        assert from_pretrained("me/v", endpoint=hub.endpoint, token=TOKEN, cache_dir=tmp_path) == added(1)


def test_what_no_control_vector_can_hold_goes_up_too(hub, at, tmp_path):
    before = Intervention.of("L1.head[2] scale 0")
    push_to_hub(before, "me/v", **at, card="---\nlicense: mit\n---\n# Mine\n")
    assert set(hub.repos["me/v"]) == {"intervention.safetensors", "README.md"}
    assert hub.repos["me/v"]["README.md"].endswith(b"# Mine\n")
    assert from_pretrained("me/v", **at, cache_dir=tmp_path) == before


def test_a_folder_comes_first(tmp_path, monkeypatch):
    (tmp_path / "me" / "v").mkdir(parents=True)
    write_files(added(1), tmp_path / "me" / "v", "card")
    monkeypatch.chdir(tmp_path)
    assert from_pretrained("me/v", LM) == added(1)


def test_it_is_held_against_the_model(hub, at, tmp_path):
    push_to_hub(Intervention.of(Edit("L1.resid_post", "add", np.ones(48))), "me/wide", **at)
    with pytest.raises(EditError, match=r"\(48\)"):
        from_pretrained("me/wide", LM, **at, cache_dir=tmp_path)
    push_to_hub(added(1, provenance=made()), "me/other", **at)
    with pytest.raises(FileError, match="hash"):
        from_pretrained("me/other", LM, **at, cache_dir=tmp_path)
    assert from_pretrained("me/other", LM, **at, cache_dir=tmp_path, any_model=True) == added(1)


def test_what_was_fetched_is_found_without_the_hub(hub, at, tmp_path, monkeypatch):
    push_to_hub(added(1), "me/v", **at)
    from_pretrained("me/v", **at, cache_dir=tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert from_pretrained("me/v", **at, cache_dir=tmp_path) == added(1)
    with pytest.raises(FileError, match="offline"):
        from_pretrained("me/w", **at, cache_dir=tmp_path)


class TestRefused:
    def test_no_such_repository_or_file(self, hub, at, tmp_path):
        with pytest.raises(FileError, match=r'cannot get intervention.safetensors of "me/none"'):
            from_pretrained("me/none", **at, cache_dir=tmp_path)
        hub.repos["me/empty"] = {}
        with pytest.raises(FileError, match=r"intervention\.safetensors"):
            from_pretrained("me/empty", **at, cache_dir=tmp_path)

    def test_a_wrong_login(self, hub, tmp_path):
        with pytest.raises(FileError, match="login"):
            push_to_hub(added(1), "me/v", endpoint=hub.endpoint, token="hf_wrong")
        assert hub.repos == {}
        push_to_hub(added(1), "me/v", endpoint=hub.endpoint, token=TOKEN)
        with pytest.raises(FileError, match="me/v"):
            from_pretrained("me/v", endpoint=hub.endpoint, token="hf_wrong", cache_dir=tmp_path)

    def test_a_huge_file_is_not_fetched(self, tmp_path):
        with running(FakeHub(declared=1 << 50)) as hub:
            hub.repos["me/v"] = {"intervention.safetensors": b"x"}
            with pytest.raises(FileError, match="at most"):
                from_pretrained("me/v", endpoint=hub.endpoint, token=TOKEN, cache_dir=tmp_path)
            assert [method for method, _ in hub.requests] == ["HEAD"]

    def test_what_is_no_intervention(self, hub, at, tmp_path):
        hub.repos["me/v"] = {"intervention.safetensors": b"\x80pickle"}
        with pytest.raises(FileError, match="pickle"):
            from_pretrained("me/v", **at, cache_dir=tmp_path)

    @pytest.mark.parametrize(
        "name", ["honest", "a/b/c", "../v", "me/..", "/etc/v", "me/v w", "", "http://x/y", "me/a--b"]
    )
    def test_names_that_no_repository_has(self, name, hub, at, tmp_path, monkeypatch):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")  # where no folder has such a name: that would be read as one
        with pytest.raises(FileError, match="repository"):
            push_to_hub(added(1), name, **at)
        with pytest.raises(FileError, match="repository"):
            from_pretrained(name, **at)
        assert hub.requests == []

    def test_nobody_answers(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        for call in (
            lambda: push_to_hub(added(1), "me/v", endpoint=endpoint, token=TOKEN),
            lambda: from_pretrained("me/v", endpoint=endpoint, token=TOKEN, cache_dir=tmp_path),
        ):
            with pytest.raises(FileError, match="connection"):
                call()

    def test_a_hub_that_is_out_of_order(self, tmp_path):
        with running(FakeHub(broken=True)) as hub, pytest.raises(FileError, match="500"):
            from_pretrained("me/v", endpoint=hub.endpoint, token=TOKEN, cache_dir=tmp_path)


def test_files_of_any_kind(hub, at, tmp_path):
    """The two calls of the model room, by themselves."""
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a.txt").write_text("hello")
    assert upload(tmp_path / "up", "me/files", **at) == f"{hub.endpoint}/me/files"
    assert download("me/files", "a.txt", **at, cache_dir=tmp_path / "cache").read_text() == "hello"
