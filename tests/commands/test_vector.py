"""`trimtab vector`: files shown, converted, checked and merged as a user does."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.commands.calls import document, saved
from tests.model.tinies import IDS, off
from tests.report.findings import made as study
from tests.steer.formats.vectors import added, arrays, made
from trimtab.cli import Commands
from trimtab.commands import vector
from trimtab.model.load import load
from trimtab.steer.directional import ablate_direction
from trimtab.steer.formats import load_vector, save_vector
from trimtab.studies.store import Store
from trimtab.values.edit import Edit, Intervention, WeightPatch

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
app.add_typer(vector.app, name="vector")


def call(*words):
    return CliRunner().invoke(app, ["vector", *map(str, words)], env={"COLUMNS": "200"})


@pytest.fixture
def file(tmp_path):
    save_vector(added(1, strength=2.0, name="honest", provenance=made()), tmp_path / "v.safetensors")
    return tmp_path / "v.safetensors"


def test_show(file, tmp_path):
    done = call("show", file)
    assert done.exit_code == 0, done.output
    norm = float(np.linalg.norm(arrays(added(1))[1]))
    for part in ("honest (trimtab)", "L1.resid_post", "add", f"{norm:.4g}", "difference_of_means", "abababababab"):
        assert part in done.stdout
    found = document(call("show", file, "--json"))
    (edit,) = found["edits"]
    assert (edit["site"], edit["strength"], edit["width"], found["form"]) == ("L1.resid_post", 2.0, 32, "trimtab")
    assert edit["norm"] == pytest.approx(norm)
    patch = Intervention.of([WeightPatch("w", delta=np.ones(3)), Edit("L1.mlp_out", "scale", 0.0)])
    save_vector(patch, tmp_path / "p")
    shown = call("show", tmp_path / "p").stdout
    assert "w += array(3,)" in shown
    assert "does not say where it comes from" in shown


@pytest.mark.parametrize(("name", "words", "form"), [
    ("v.gguf", (), "gguf"), ("v.json", (), "easysteer"), ("v.bin", ("--as", "repeng"), "gguf"),
    ("w.safetensors", (), "trimtab"),
])  # fmt: skip
def test_convert(file, tmp_path, name, words, form):
    done = call("convert", file, "--out", tmp_path / name, *words, "--hint", "llama")
    assert done.exit_code == 0, done.output
    after = load_vector(tmp_path / name, form=form)
    assert np.array_equal(arrays(after)[1] * after.edits[0].strength, 2 * arrays(added(1))[1])
    if form == "gguf":
        assert gguf.GGUFReader(tmp_path / name).get_field("controlvector.model_hint").contents() == "llama"
    again = call("convert", file, "--out", tmp_path / name, *words)
    assert again.exit_code == 2
    assert "--force" in again.output
    assert call("convert", file, "--out", tmp_path / name, *words, "--force").exit_code == 0


def test_convert_refuses_with_the_reason(file, tmp_path):
    assert "--as" in call("convert", file, "--out", tmp_path / "v.bin").output
    assert call("convert", file, "--out", tmp_path / "v.gguf", "--as", "gguff").exit_code == 2
    save_vector(Intervention.of("L1.mlp_out add 1"), tmp_path / "m")
    done = call("convert", tmp_path / "m", "--out", tmp_path / "v.gguf")
    assert done.exit_code == 1
    assert "it is at L1.mlp_out" in done.output
    assert not (tmp_path / "v.gguf").exists()


def test_check(file, folder, tmp_path):
    save_vector(added(1), tmp_path / "fits", "gguf")
    done = call("check", tmp_path / "fits", "--model", folder)
    assert (done.exit_code, done.stdout.strip()) == (0, f"{tmp_path / 'fits'}: fits")
    save_vector(added(7), tmp_path / "deep", "easysteer")
    (tmp_path / "broken").write_bytes(b"GGUF")
    several = call(
        "check", tmp_path / "fits", tmp_path / "deep", file, tmp_path / "broken", "--model", folder, "--json"
    )
    assert several.exit_code == 1
    rows = json.loads(several.stdout)["files"]
    assert [row["fits"] for row in rows] == [True, False, False, False]
    assert "layer 7" in rows[1]["problem"]
    assert "--any-model" in rows[2]["problem"]
    assert call("check", file, "--model", folder, "--any-model").exit_code == 0


def test_merge(folder, tmp_path):
    save_vector(added(1), tmp_path / "a")
    save_vector(added(0), tmp_path / "b", "easysteer")
    done = call(
        "merge", tmp_path / "a", tmp_path / "b", "--model", folder, "--out", tmp_path / "m", "--strength", "0.5"
    )
    assert done.exit_code == 0, done.output
    assert "logits within" in done.stdout
    lm = load(str(folder))
    both = 0.5 * Intervention.of([added(1), added(0)])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        assert off(merged(torch.tensor(IDS)).logits, lm.run(IDS, edit=both).logits) < 1e-5
    assert "mlp_bias" in (tmp_path / "m" / "README.md").read_text()
    assert call("merge", tmp_path / "a", "--model", folder, "--out", tmp_path / "m").exit_code == 2


def ablation(path, folder, k=2, **options):
    """A file of what takes k directions out of a model."""
    lm = load(str(folder))
    made = ablate_direction(lm, np.random.default_rng(0).standard_normal((k, 32)), **options)
    save_vector(made, path)
    return lm, made


def test_merge_takes_an_ablated_direction_out_of_the_weights(folder, tmp_path):
    lm, hooks = ablation(tmp_path / "a", folder)
    told = ("merge", tmp_path / "a", "--model", folder, "--out")
    refused = call(*told, tmp_path / "m")
    assert refused.exit_code == 1
    assert "--orthogonalise" in refused.output
    tied = call(*told, tmp_path / "m", "--orthogonalise")
    assert tied.exit_code == 1
    assert "--untie" in tied.output
    done = call(*told, tmp_path / "m", "--orthogonalise", "--untie")
    assert done.exit_code == 0, done.output
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        assert off(merged(torch.tensor(IDS)).logits, lm.run(IDS, edit=hooks).logits) < 1e-5
    assert off(lm.run(IDS, edit=hooks).logits, lm.run(IDS).logits) > 1e-3
    card = (tmp_path / "m" / "README.md").read_text()
    assert "rank 2 at most" in card
    assert "`ablate_direction`" in card
    adapter = call(*told, tmp_path / "l", "--orthogonalise", "--as", "lora")
    assert adapter.exit_code == 0, adapter.output


def test_an_unembedding_of_its_own_needs_no_untying(tmp_path):
    lm, hooks = ablation(tmp_path / "a", saved(tmp_path / "neox", "gpt_neox"))
    assert not lm.anatomy.tied
    told = ("merge", tmp_path / "a", "--model", tmp_path / "neox", "--out", tmp_path / "m", "--orthogonalise")
    done = call(*told)
    assert done.exit_code == 0, done.output
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        assert off(merged(torch.tensor(IDS)).logits, lm.run(IDS, edit=hooks).logits) < 1e-5


def test_only_a_whole_ablation_is_taken_out_of_weights(folder, tmp_path):
    told = ("merge", tmp_path / "a", "--model", folder, "--out", tmp_path / "m", "--orthogonalise")
    ablation(tmp_path / "a", folder, strength=0.5)
    assert "its strength is 0.5" in call(*told).output
    assert call(*told, "--strength", "0.5").exit_code == 2
    save_vector(added(1), tmp_path / "a")
    refused = call(*told)
    assert refused.exit_code == 1
    assert 'it is "add"' in refused.output
    assert not (tmp_path / "m").exists()


def test_what_a_run_measured_goes_on_the_card(folder, tmp_path):
    store, evaluation = Store(tmp_path / "runs"), study().evaluation
    run = store.create("praise", {"task": "sentiment"})
    with run.lock():
        run.begin(model_hash="0" * 64)
        run.write("evaluate", evaluation, "i", 1.0)
        found = run.write_intervention(added(1))
        run.finish("finished")
    store.update(run)
    done = call("merge", found, "--model", folder, "--out", tmp_path / "m", "--study", run.path)
    assert done.exit_code == 0, done.output
    card = (tmp_path / "m" / "README.md").read_text()
    assert "Not measured" not in card
    assert "7.5\xa0% [1.5\xa0%, 31\xa0%] of the examples moved against the aim" in card
    save_vector(added(0), tmp_path / "other")
    other = call("merge", tmp_path / "other", "--model", folder, "--out", tmp_path / "n", "--study", run.path)
    assert other.exit_code == 2
    assert "measured another intervention" in other.output
    twice = call("merge", found, "--model", folder, "--out", tmp_path / "n", "--study", run.path, "--strength", 2)
    assert twice.exit_code == 2


def test_vectors_of_several_weights_are_merged_when_any_model_will_do(folder, tmp_path):
    for name in ("ab", "cd"):
        save_vector(added(1, provenance=made(name * 32)), tmp_path / name)
    told = ("merge", tmp_path / "ab", tmp_path / "cd", "--model", folder, "--out", tmp_path / "m")
    assert call(*told).exit_code == 1
    done = call(*told, "--any-model")
    assert done.exit_code == 0, done.output


def test_merge_as_an_adapter(folder, tmp_path):
    lm = load(str(folder))
    rng = np.random.default_rng(0)
    patch = WeightPatch(
        "model.layers.1.mlp.down_proj.weight", left=rng.normal(size=(32, 1)), right=rng.normal(size=(1, 40))
    )
    save_vector(Intervention.of(patch), tmp_path / "p")
    found = document(
        call("merge", tmp_path / "p", "--model", folder, "--out", tmp_path / "a", "--as", "lora", "--json")
    )
    assert found["deviation"] <= found["tolerance"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    save_vector(added(1), tmp_path / "v")
    refused = call("merge", tmp_path / "v", "--model", folder, "--out", tmp_path / "b", "--as", "lora")
    assert refused.exit_code == 1
    assert "write_model" in refused.output
    assert not (tmp_path / "b").exists()
    assert lm.name
