"""`trimtab locate`: every method by its own options, what it costs, and the files it leaves."""

from __future__ import annotations

import json
import shlex
from importlib import metadata

import numpy as np
import pytest

from tests.commands.calls import call, document, said
from tests.locate.tinytasks import pairs, twins
from trimtab.locate.methods import methods
from trimtab.locate.patching import patching
from trimtab.model.load import load
from trimtab.tasks.files import load_task, save_task
from trimtab.values.scores import Scores

SOME = ("--sites", "L*.head", "--spans", "subject")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A counterfactual and a contrast task in files."""
    where = tmp_path_factory.mktemp("tasks")
    save_task(twins(), where / "twins.jsonl")
    save_task(pairs(), where / "pairs.jsonl")
    return where


@pytest.fixture
def run(files, folder):
    """Call a method on the twins and the tiny model."""
    return lambda name, *words: call("locate", name, "--task", files / "twins.jsonl", "--model", folder, *words)


def test_it_is_the_method_called_from_python(run, files, folder, tmp_path):
    done = run("patching", *SOME, "--direction", "noise", "--out", tmp_path / "a.safetensors")
    assert done.exit_code == 0, done.output
    kept = Scores.load(tmp_path / "a.safetensors")
    task = load_task(files / "twins.jsonl")
    own = patching(load(str(folder)), task.take(6), "L*.head", spans=("subject",), direction="noise")
    assert np.array_equal(kept.array, own.array)
    assert (kept.site, kept.coords, kept.direction, kept.method) == (own.site, own.coords, "noise", "patching")
    assert str(kept.top(1)[0]) in done.stdout
    assert f"wrote {tmp_path / 'a.safetensors'}" in said(done)


def test_the_command_that_is_kept_makes_the_same_scores(run, tmp_path):
    run("ablation", *SOME, "--kind", "noise", "--seed", "3", "--examples", "4", "--out", tmp_path / "a.safetensors")
    kept = Scores.load(tmp_path / "a.safetensors")
    line = shlex.split(kept.provenance.options["command"])
    assert line[:3] == ["trimtab", "locate", "ablation"]
    assert call(*line[1:], "--out", tmp_path / "b.safetensors").exit_code == 0
    assert np.array_equal(Scores.load(tmp_path / "b.safetensors").array, kept.array)


def test_a_methods_own_option_comes_before_the_shared_one(run, tmp_path):
    """Causal tracing has a metric of its own: what is kept says which, and makes the same scores again."""
    words = ("--samples", "2", "--known", "all", "--noise", "1")
    found = {}
    for metric in ("prob", "log_prob"):
        file = tmp_path / f"{metric}.safetensors"
        done = run("causal_tracing", *words, "--metric", metric, "--out", file)
        assert done.exit_code == 0, done.output
        found[metric] = Scores.load(file)
    assert found["prob"].unit != found["log_prob"].unit
    line = shlex.split(found["log_prob"].provenance.options["command"])
    assert call(*line[1:], "--out", tmp_path / "again.safetensors").exit_code == 0
    np.testing.assert_array_equal(Scores.load(tmp_path / "again.safetensors").array, found["log_prob"].array)


def test_a_method_with_prompts_of_its_own_needs_no_task(folder, tmp_path):
    done = call("locate", "previous_token_score", "--model", folder, "--out", tmp_path / "a.safetensors")
    assert done.exit_code == 0, done.output
    kept = Scores.load(tmp_path / "a.safetensors")
    assert "--task" not in kept.provenance.options["command"]
    assert np.isfinite(kept.array).all()
    assert call("locate", "previous_token_score", "--model", folder, "--dry-run").exit_code == 2
    assert call("locate", "patching", "--model", folder).exit_code == 2


def test_one_document(run, tmp_path):
    found = document(run("patching", *SOME, "--top", "2", "--json", "--html", tmp_path / "a.html"))
    assert (found["method"], found["examples"], found["axes"]) == ("patching", 6, {"layer": 2, "head": 4, "span": 1})
    assert len(found["top"]) == 2
    assert found["top"][0]["low"] < found["top"][0]["mean"] < found["top"][0]["high"]
    assert "patching" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert found["html"] == str(tmp_path / "a.html")


def test_several_sites_are_candidates(run):
    found = document(run("patching", "--sites", "L0.head[1]@subject", "--sites", "L1.mlp_out@end", "--json"))
    assert {place["site"] for place in found["top"]} == {"L0.head[1]@subject", "L1.mlp_out@end"}


def test_parts_and_examples(run):
    assert document(run("patching", *SOME, "--json", "--examples", "2"))["examples"] == 2
    parts = [document(run("patching", *SOME, "--json", "--part", part))["examples"] for part in ("train", "test")]
    assert all(0 < n < 6 for n in parts)


def test_a_task_may_be_an_option(files, folder):
    words = (
        "locate",
        "shift",
        "--task",
        files / "pairs.jsonl",
        "--model",
        folder,
        "--sites",
        "L*.resid_post",
        "--json",
    )
    own = document(call(*words, "--part", "test"))
    other = document(call(*words, "--part", "test", "--source", "train"))
    third = document(call(*words, "--part", "test", "--source", files / "pairs.jsonl"))
    assert own["top"] != other["top"] != third["top"]


def test_the_plan_runs_nothing(run, monkeypatch):
    monkeypatch.setattr("trimtab.model.lm.LM.run", None)
    done = run("patching", "--sites", "L*.head", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "16 places" in done.stdout
    assert "at most 96 variants" in done.stdout
    assert "Nothing was run" in done.stdout
    plan = document(run("attribution-patching", "--dry-run", "--json"))["plan"]
    assert (plan["places"], plan["variants"], plan["examples"]) == (16, None, 6)
    assert plan["tokens"] > 0


PLANS = [
    ("ablation", ("--sites", "L*.head"), 8, 48),
    ("causal-tracing", ("--samples", "3"), 2 * 6, 2 * 6 * 6 * 3),
    ("path-patching", ("--receivers", "L*.head"), 8 * 24, 4 * 12 * 6),
    ("knowledge-neurons", (), 80, None),
    ("integrated-gradients", ("--sites", "L*.mlp_out"), 4, None),
]


@pytest.mark.parametrize(("name", "words", "places", "variants"), PLANS)
def test_plans_count_what_the_method_computes(run, monkeypatch, name, words, places, variants):
    """Of two layers of four heads: path patching has 24 inputs to receive at, 12 of them after the first layer."""
    monkeypatch.setattr("trimtab.model.lm.LM.run", None)
    plan = document(run(name, *words, "--dry-run", "--json"))["plan"]
    assert (plan["places"], plan["variants"]) == (places, variants)
    assert plan["memory"] > 0
    more = {"causal-tracing": ("--samples", "6"), "path-patching": ("--senders", "L0.head[1]")}
    other = more.get(name, ("--steps", "40") if "steps" in plan or variants is None else ("--examples", "3"))
    again = document(run(name, *words, *other, "--dry-run", "--json"))["plan"]
    smaller = name in ("path-patching", "ablation")
    assert (again["passes"] < plan["passes"]) is smaller


def test_the_places_that_are_planned_are_those_that_are_computed(run):
    for name, words in (("ablation", SOME), ("causal-tracing", ("--known", "all", "--samples", "1"))):
        plan = document(run(name, *words, "--dry-run", "--json"))["plan"]
        axes = document(run(name, *words, "--json"))["axes"]
        assert plan["places"] == int(np.prod(list(axes.values())))


def test_every_method_explains_itself_and_plans(run):
    for name in methods():
        shown = call("locate", name, "--help")
        assert shown.exit_code == 0, name
        assert "--task" in shown.stdout
    assert all(name in call("locate", "--help").stdout for name in methods())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--direction", "nois"), 'did you mean "noise"'),
        (("--batch-size", "few"), 'batch_size is a whole number, got "few"'),
        (("--part", "half"), "a part is train, validation, test, all"),
        (("--out", "no/where.safetensors"), 'there is no folder "no"'),
        (("--spam", "1"), "--spam"),
    ],
)
def test_mistakes_are_usage_before_anything_is_loaded(run, monkeypatch, words, message):
    monkeypatch.setattr("trimtab.model.load.load", None)
    done = run("patching", *SOME, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())


def test_an_unknown_method_names_the_nearest():
    done = call("locate", "patchin", "--task", "ioi")
    assert done.exit_code == 2
    assert 'did you mean "patching"' in done.stderr


def test_an_error_of_ours_is_one_message(run):
    done = run("patching", "--sites", "L9.head", "--json")
    assert done.exit_code == 1
    assert "out of range" in json.loads(done.stdout)["error"]


def counting(lm, task, sites="L*.mlp_out", *, base: int = 1) -> Scores:
    """Counts the layers."""
    layers = lm.anatomy.n_layers
    array = np.broadcast_to(np.arange(base, base + layers), (len(task), layers))
    return Scores(array, ("example", "layer"), {}, "L{layer}.mlp_out", method="counting")


def test_a_method_of_another_package(run, monkeypatch):
    points = [metadata.EntryPoint("counting", f"{__name__}:counting", "trimtab.locate")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "trimtab.locate" else [])
    found = document(run("counting", "--base", "5", "--json"))
    assert [place["mean"] for place in found["top"]] == [6.0, 5.0]
    assert "Counts the layers." in call("locate", "--help").stdout
