"""The conversion: exact, killed and taken up again, never half-written under its final name."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.ggufs import llama, sha256, write_gguf
from trimtab.errors import ModelFileError
from trimtab.model import convert as module
from trimtab.model.convert import MANIFEST, WEIGHTS, convert
from trimtab.model.gguf import Weight


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(path, weights expected) of a tiny Llama."""
    path = tmp_path_factory.mktemp("convert") / "tiny.gguf"
    return path, write_gguf(path, llama())


def run(tiny, folder, **options):
    convert(tiny[0], folder, source_sha256="abc", **options)


def test_the_folder_holds_the_dequantised_weights_exactly(tiny, tmp_path):
    run(tiny, tmp_path / "out")
    weights = load_file(tmp_path / "out" / WEIGHTS)
    assert {name: weight.dtype for name, weight in weights.items()} == dict.fromkeys(tiny[1], torch.float32)
    assert all(torch.equal(weights[name], tiny[1][name]) for name in weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_model_is_the_one_that_transformers_reads_from_the_gguf(tiny, tmp_path):
    run(tiny, tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    theirs = AutoModelForCausalLM.from_pretrained(tiny[0].parent, gguf_file=tiny[0].name, dtype=torch.float32)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in ours.state_dict().items())
    ids = torch.arange(40).reshape(2, 20)
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert ours.generation_config.eos_token_id == 2


def test_quantised_values_need_float32(tiny):
    weight = tiny[1]["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(weight.bfloat16().float(), weight)
    assert not torch.equal(weight.half().float(), weight)


def test_the_manifest_has_the_size_and_hash_of_every_file(tiny, tmp_path):
    run(tiny, tmp_path / "out")
    files = json.loads((tmp_path / "out" / MANIFEST).read_text())["files"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*files, MANIFEST}
    for name, entry in files.items():
        assert entry == {"size": (tmp_path / "out" / name).stat().st_size, "sha256": sha256(tmp_path / "out" / name)}


def test_progress_goes_from_the_first_weight_to_the_last(tiny, tmp_path):
    told = []
    run(tiny, tmp_path / "out", progress=lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"convert"}
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert len(told) == len(tiny[1])
    assert told[-1][1] == told[-1][2] == sum(4 * weight.numel() for weight in tiny[1].values())


def killed_after(tiny, folder, weights):
    """Convert in another process, and kill it when so many weights are finished."""
    script = f"""
        import time
        from pathlib import Path
        from trimtab.model.convert import convert

        steps = []

        def progress(stage, done, total):
            steps.append(done)
            if len(steps) == {weights}:
                print("now", flush=True)
                time.sleep(60)

        convert(Path({str(tiny[0])!r}), Path({str(folder)!r}), source_sha256="abc", progress=progress)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.fixture
def computed(monkeypatch):
    """Names of the weights that are dequantised from here on."""
    names, values = [], Weight.values
    monkeypatch.setattr(Weight, "values", lambda self: names.append(self.name) or values(self))
    return names


def test_killed_half_way_it_goes_on_where_it_was(tiny, tmp_path, computed):
    killed_after(tiny, tmp_path / "out", 7)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / WEIGHTS).exists()
    run(tiny, tmp_path / "out")
    assert computed == sorted(tiny[1])[7:]
    run(tiny, tmp_path / "whole")
    assert sha256(tmp_path / "out" / WEIGHTS) == sha256(tmp_path / "whole" / WEIGHTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_what_the_journal_says_is_checked_against_the_bytes(tiny, tmp_path, computed):
    killed_after(tiny, tmp_path / "out", 7)
    with (tmp_path / "out.partial" / WEIGHTS).open("r+b") as file:
        file.seek(-tiny[1]["model.norm.weight"].numel() * 4 - 10, 2)
        end = file.tell()
        start = end - sum(4 * tiny[1][name].numel() for name in sorted(tiny[1])[1:-1]) + 10
        file.seek(start)
        file.write(b"damaged!")
    run(tiny, tmp_path / "out")
    assert len(computed) == len(tiny[1]) - 7 + 1
    weights = load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(weights[name], tiny[1][name]) for name in weights)


@pytest.mark.parametrize("torn", ['{"name": "model.emb', "[]\n", '{"name": 3}\n', "\x00\x00"])
def test_a_torn_journal_is_no_obstacle(tiny, tmp_path, torn):
    killed_after(tiny, tmp_path / "out", 3)
    with (tmp_path / "out.partial" / "finished.jsonl").open("a") as journal:
        journal.write(torn)
    run(tiny, tmp_path / "out")
    weights = load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(weights[name], tiny[1][name]) for name in weights)


def test_a_partial_conversion_of_another_source_is_not_continued(tiny, tmp_path, computed):
    killed_after(tiny, tmp_path / "out", 7)
    convert(tiny[0], tmp_path / "out", source_sha256="another")
    assert computed == sorted(tiny[1])


def test_other_weights_than_expected_leave_nothing(tiny, tmp_path):
    with pytest.raises(ModelFileError, match="where 123 is expected"):
        run(tiny, tmp_path / "out", expect="123")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: module.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ModelFileError, match=r"not enough room .*TRIMTAB_CACHE"):
        run(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial" / WEIGHTS).exists()
