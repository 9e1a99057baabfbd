"""`trimtab serve`: what is refused before anything is served, and that a real process serves."""

from __future__ import annotations

import builtins

import pytest

from tests.commands import calls
from tests.serve.running import VECTORS
from trimtab.values.edit import Intervention
from trimtab.values.provenance import Provenance


def call(*words, **options):
    return calls.call("serve", *words, **options)


@pytest.fixture
def joy(tmp_path):
    VECTORS["joy"].save(tmp_path / "joy.safetensors")
    return tmp_path / "joy.safetensors"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("TRIMTAB_API_KEY", raising=False)


@pytest.fixture
def started(monkeypatch):
    """What would have been served."""
    found = []
    monkeypatch.setattr("trimtab.serve.run.serve", lambda *args: found.append(args))
    return found


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_beyond_this_machine_only_with_a_key(folder, host):
    done = call(folder, "--host", host)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "can be reached from other machines: give an --api-key" in " ".join(done.stderr.replace("│", " ").split())


def test_with_a_key_it_may(folder, started):
    assert call(folder, "--host", "0.0.0.0", "--port", 0, "--api-key", "k").exit_code == 0
    assert call(folder, "--host", "0.0.0.0", "--port", 0, env={"TRIMTAB_API_KEY": "k2"}).exit_code == 0
    assert [service.key for service, *_ in started] == ["k", "k2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--api-key", ""], "the API key is empty"),
        (["--api-key", "a b"], "has spaces"),
        (["--vector", "joy"], "--vector is written joy=joy.safetensors"),
        (["--vector", "=x"], "--vector is written"),
        (["--alias", "happy="], "--alias is written"),
        (["--port", "70000"], "--port"),
        (["--max-rows", "0"], "--max-rows"),
    ],
)
def test_usage(folder, options, message):
    done = call(folder, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_a_name_twice(folder, joy):
    done = call(folder, "--vector", f"joy={joy}", "--vector", f"joy={joy}")
    assert done.exit_code == 2
    assert 'names "joy" twice' in done.stderr


def test_what_is_served(folder, joy, started):
    options = ["--vector", f"joy={joy}", "--alias", "happy=joy:0.8", "--name", "mine", "--max-rows", 4]
    done = call(folder, *options, "--max-tokens", 40, "--max-waiting", 3, "--port", 0, "--grace", 2.5)
    assert done.exit_code == 0, done.output
    ((service, taken, grace, ready),) = started
    assert service.registry.models == ["mine", "mine+joy", "happy"]
    assert service.registry.vectors["joy"] == VECTORS["joy"]
    assert [(part.vector, part.coefficient) for part in service.registry.steering("happy")] == [("joy", 0.8)]
    assert (service.window, service.gate.room, service.batcher.max_rows, grace) == (40, 7, 4, 2.5)
    assert taken.fileno() == -1  # given back
    assert callable(ready)


def test_no_more_connections_than_files_may_be_open(folder, started, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    done = call(folder, "--port", 0, "--max-unread", 5_000_000)
    assert done.exit_code == 0, done.output
    ((service, *_),) = started
    assert (service.limits.connections, service.unread.most) == (160, 5_000_000)
    assert "--max-connections is 160 here" in done.stderr


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (Intervention.of("L9.resid_post add 1"), 'the vector "bad"'),
        (Intervention.of("L0.head[1] set from clean"), "takes values from another run"),
        (Intervention(VECTORS["joy"].edits, provenance=Provenance("another", model_hash="ab" * 32)), "any-model"),
    ],
)
def test_vectors_that_are_not_for_this_model(folder, tmp_path, started, intervention, message):
    intervention.save(tmp_path / "bad.safetensors")
    done = call(folder, "--vector", f"bad={tmp_path / 'bad.safetensors'}", "--port", 0)
    assert (done.exit_code, started) == (1, [])
    assert message in done.stderr


def test_another_model_may_be_tried(folder, tmp_path, started):
    made = Intervention(VECTORS["joy"].edits, provenance=Provenance("another", model_hash="ab" * 32))
    made.save(tmp_path / "v.safetensors")
    assert call(folder, "--vector", f"v={tmp_path / 'v.safetensors'}", "--port", 0, "--any-model").exit_code == 0
    assert len(started) == 1


def test_files_that_are_none(folder, tmp_path):
    (tmp_path / "noise").write_bytes(b"\x00" * 100)
    for path in (tmp_path / "noise", tmp_path / "missing", tmp_path):
        done = call(folder, "--vector", f"v={path}", "--port", 0)
        assert done.exit_code == 1
        assert str(path) in done.stderr


def test_without_the_extra(folder, monkeypatch):
    import sys

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "fastapi":
            raise ModuleNotFoundError("no fastapi", name="fastapi")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("trimtab.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    done = call(folder)
    assert done.exit_code == 3
    assert 'pip install "trimtab[serve]"' in done.stderr
