"""`trimtab locate`: every method by its own options, what it costs, and the files it leaves."""

from __future__ import annotations

import json
import shlex
from importlib import metadata

import numpy as np
import pytest

from tests.commands.calls import call, document, said
from tests.locate.tinytasks import pairs, twins
from trimtab.evaluate.verify import verify
from trimtab.locate.circuits_qk_ov import composition
from trimtab.locate.layer_contrast import dola
from trimtab.locate.methods import functions, methods
from trimtab.locate.patching import patching
from trimtab.locate.patchscopes import patchscope
from trimtab.model.lm import LM
from trimtab.model.load import load
from trimtab.tasks.files import load_task, save_task
from trimtab.values.dola import Dola
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.patchscope import Patchscope
from trimtab.values.roles import RoleGraph, RoleTable
from trimtab.values.scores import Scores
from trimtab.values.tuned_lens import TunedLens
from trimtab.values.verification import Verification

SOME = ("--sites", "L*.head", "--spans", "subject")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A counterfactual and a contrast task in files."""
    where = tmp_path_factory.mktemp("tasks")
    save_task(twins(), where / "twins.jsonl")
    save_task(pairs(), where / "pairs.jsonl")
    return where


@pytest.fixture
def plain(monkeypatch):
    """The rows of every pass that is run, all of them without edits and readouts."""
    rows, whole = [], LM.run

    def run(lm, prompts, read=(), edit=None, *, logits=True, **options):
        assert (read, edit, logits, options) == ("final@last", None, False, {})
        rows.append(len(prompts))
        return whole(lm, prompts, read, logits=False)

    monkeypatch.setattr(LM, "run", run)
    return rows


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


def test_twins_of_another_length_are_left_out_where_they_are_compared_alone(folder, tmp_path):
    """By methods that read one prompt of each example none is left out, of the task's own and of another's named; nor
    where the other prompt has no such span."""
    task = twins()
    odd = [e.with_(corrupt=f"{e.corrupt} w99", corrupt_spans={}) for e in task.examples]
    ragged = [odd[i] if i % 2 else e for i, e in enumerate(task.examples)]
    save_task(task.of(ragged), tmp_path / "ragged.jsonl")
    named = ("--task", tmp_path / "ragged.jsonl", "--model", folder)
    for method, left in (
        (("ablation", *SOME), 6),
        (("ablation", *SOME, "--kind", "mean", "--reference", tmp_path / "ragged.jsonl"), 6),
        (("integrated_gradients", "--steps", "2", "--baseline", "zero"), 6),
        (("integrated_gradients", "--steps", "2"), 3),
        (("patching", *SOME), 3),
    ):
        done = call("locate", *method, *named, "--out", tmp_path / "a.safetensors")
        assert done.exit_code == 0, done.output
        assert len(Scores.load(tmp_path / "a.safetensors")) == left
        assert document(call("locate", *method, *named, "--dry-run", "--json"))["plan"]["examples"] == left


@pytest.mark.parametrize("method", ["shift", "attribution_patching"])
def test_twins_of_a_source_are_compared_and_those_that_are_measured_are_not(folder, tmp_path, method):
    """The source leaves out ragged examples, as a part of the task too, and the task keeps its own."""
    task = twins()
    longer = [e.with_(clean=f"{e.clean} w99") if i % 2 else e for i, e in enumerate(task.examples)]
    save_task(task.of(longer), tmp_path / "ragged.jsonl")
    named = ("--task", tmp_path / "ragged.jsonl", "--model", folder, "--sites", "L*.resid_post")
    for source in (tmp_path / "ragged.jsonl", "all", "train"):
        words = ("locate", method, *named, "--source", source)
        done = call(*words, "--out", tmp_path / "a.safetensors")
        assert done.exit_code == 0, done.output
        assert len(Scores.load(tmp_path / "a.safetensors")) == 6
        plan = call(*words, "--dry-run", "--json")
        assert document(plan)["plan"]["examples"] == 6
    done = call("locate", method, *named, "--out", tmp_path / "a.safetensors")
    assert done.exit_code == 0, done.output
    assert len(Scores.load(tmp_path / "a.safetensors")) == 3


def test_a_method_with_prompts_of_its_own_needs_no_task(folder, tmp_path):
    done = call("locate", "previous_token_score", "--model", folder, "--out", tmp_path / "a.safetensors")
    assert done.exit_code == 0, done.output
    kept = Scores.load(tmp_path / "a.safetensors")
    assert "--task" not in kept.provenance.options["command"]
    assert np.isfinite(kept.array).all()
    plan = document(call("locate", "previous_token_score", "--model", folder, "--dry-run", "--json"))["plan"]
    assert (plan["task"], plan["examples"], plan["passes"]) == (None, 16, 16.0)
    assert call("locate", "patching", "--model", folder).exit_code == 2
    empty = call("locate", "previous_token_score", "--task", "", "--model", folder)
    assert (empty.exit_code, empty.stdout) == (2, "")


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


def test_the_plan_runs_one_plain_batch_and_tells_the_time_from_it(run, plain):
    done = run("patching", "--sites", "L*.head", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "16 places" in done.stdout
    assert "at most 96 variants" in done.stdout
    assert "estimated from one plain pass of 6 prompts" in " ".join(done.stdout.split())
    assert "Nothing else was run" in done.stdout
    assert plain == [1, 6]
    plan = document(run("attribution-patching", "--dry-run", "--json", "--batch-size", "4"))["plan"]
    assert plain[2:] == [1, 4]
    assert (plan["places"], plan["variants"], plan["examples"], plan["passes"]) == (16, None, 6, 6 * 4)
    assert plan["tokens"] > 0
    assert plan["seconds"] > 0
    assert plan["timed"] == 4


def test_what_is_not_known_is_not_timed(run, plain, monkeypatch):
    points = [metadata.EntryPoint("counting", f"{__name__}:counting", "trimtab.locate")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "trimtab.locate" else [])
    done = run("counting", "--dry-run")
    assert "how many passes it takes, and how long, is not known beforehand" in done.stdout
    assert "Nothing was run" in done.stdout
    assert plain == []
    assert document(run("counting", "--dry-run", "--json"))["plan"]["seconds"] is None


def test_weights_alone_are_not_timed(folder, plain):
    done = call("locate", "composition", "--model", folder, "--dry-run")
    assert done.stdout.splitlines() == [
        "composition on tiny-llama: weights alone",
        "no forward pass over a prompt",
        "Nothing was run",
    ]
    assert plain == []


PLANS = [
    ("ablation", ("--sites", "L*.head"), 8, 48),
    ("causal-tracing", ("--samples", "3"), 2 * 6, 2 * 6 * 6 * 3),
    ("path-patching", ("--receivers", "L*.head"), 8 * 24, 4 * 12 * 6),
    ("knowledge-neurons", (), 80, None),
    ("integrated-gradients", ("--sites", "L*.mlp_out"), 4, None),
]


@pytest.mark.parametrize(("name", "words", "places", "variants"), PLANS)
def test_plans_count_what_the_method_computes(run, plain, name, words, places, variants):
    """Of two layers of four heads: path patching has 24 inputs to receive at, 12 of them after the first layer."""
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


def test_every_function_explains_itself():
    listed = call("locate", "--help").stdout
    for name in functions():
        shown = call("locate", name, "--help")
        assert shown.exit_code == 0, name
        assert ("--task" in shown.stdout) or name not in methods()
        assert all(option in shown.stdout for option in ("--model", "--out", "--json", "--dry-run")), name
        assert name in listed


# Functions that are run on something else than a task
# ---------------------------------------------------------------------------------------------------------------------


def test_weights_alone(folder, tmp_path):
    file = tmp_path / "c"
    words = ("--model", folder, "--kind", "q", "--receivers", "L1.head[0,2]", "--receivers", "L1.head[3]")
    done = call("locate", "composition", *words, "--out", file)
    assert done.exit_code == 0, done.output
    kept, own = Scores.load(file), composition(load(str(folder)), kind="q", receivers=["L1.head[0,2]", "L1.head[3]"])
    np.testing.assert_array_equal(kept.array, own.array)
    assert str(kept.top(1)[0]) in done.stdout
    line = shlex.split(kept.provenance.options["command"])
    assert call(*line[1:], "--out", tmp_path / "again").exit_code == 0
    assert Scores.load(tmp_path / "again").coords == own.coords
    assert "top" in document(call("locate", "composition", *words, "--json"))


def test_roles_and_their_graph(folder, tmp_path):
    table, graph = tmp_path / "roles", tmp_path / "graph"
    done = call("locate", "head_roles", "--model", folder, "--attention", "-1", "--sink", "-1", "--out", table)
    assert done.exit_code == 0, done.output
    assert all(role in done.stdout for role in RoleTable.load(table).roles)
    words = ("--model", folder, "--table", table, "--least", "-9", "--roles", "induction,sink,previous_token")
    done = call("locate", "role_graph", *words, "--out", graph, "--html", tmp_path / "g.html")
    assert done.exit_code == 0, done.output
    kept = RoleGraph.load(graph)
    assert kept.roles == ("induction", "sink", "previous_token")
    assert kept.table == RoleTable.load(table)
    assert "edges that stand out" in done.stdout
    assert "Role graph" in (tmp_path / "g.html").read_text(encoding="utf-8")
    edges = tmp_path / "edges"
    call("locate", "composition", "--model", folder, "--out", edges)
    assert call("locate", "role_graph", *words, "--edges", edges).exit_code == 0


def test_prompts(folder, tmp_path):
    lm = load(str(folder))
    done = call("locate", "patchscope", "w5 w6", "--model", folder, "--target", "w7 w8", "-o", tmp_path / "p")
    assert done.exit_code == 0, done.output
    kept, own = Patchscope.load(tmp_path / "p"), patchscope(lm, "w5 w6", target="w7 w8")
    assert (kept.texts, kept.target, kept.tokens) == (own.texts, own.target, own.tokens)
    assert all(site in done.stdout for site in own.sites)
    done = call("locate", "dola", "w5 w6", "w7", "--model", folder, "--top", "2", "-o", tmp_path / "d")
    assert done.exit_code == 0, done.output
    kept, own = Dola.load(tmp_path / "d"), dola(lm, ["w5 w6", "w7"], top=2)
    np.testing.assert_array_equal(kept.log_probs, own.log_probs)
    assert own.top(1)[0].token in done.stdout
    line = shlex.split(kept.provenance.options["command"])
    assert call(*line[1:], "-o", tmp_path / "again").exit_code == 0
    assert Dola.load(tmp_path / "again").chosen == own.chosen
    rows = document(call("locate", "dola", "w5 w6", "--chat", "--system", "w9", "--model", folder, "--json"))["rows"]
    assert rows[0]["prompt"] == "w90w9w91w5w6w92"  # the words of the template are tokens without spaces
    assert call("locate", "dola", "w5", "--system", "w9", "--model", folder).exit_code == 2
    plan = document(call("locate", "dola", "w5 w6", "w7", "--model", folder, "--dry-run", "--json"))["plan"]
    assert (plan["task"], plan["examples"], plan["tokens"], plan["timed"]) == (None, 2, 3, 2)
    assert plan["passes"] > 2


def test_a_tuned_lens_is_trained_on_texts_and_read_by_others(folder, files, tmp_path):
    file, texts = tmp_path / "lens", tmp_path / "texts.jsonl"
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(f"w{n}" for n in rng.integers(3, 97, 12))} for _ in range(6)]
    texts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ("--texts", texts, "--model", folder, "--steps", "4", "--tokens", "40", "--check", "8")
    done = call("locate", "train_tuned_lens", *words, "--out", file)
    assert done.exit_code == 0, done.output
    assert "tuned lens" in done.stdout
    assert TunedLens.load(file).sites == ("L0.resid_post", "L1.resid_post")
    assert call("lens", "w5 w6", "--model", folder, "--tuned", file).exit_code == 0
    read = ("--task", files / "twins.jsonl", "--model", folder, "--lens", file)
    assert document(call("locate", "logit_lens_scores", *read, "--json"))["options"]["lens"]
    plan = document(call("locate", "train_tuned_lens", *words, "--dry-run", "--json"))["plan"]
    assert plan["passes"] > 0
    assert (plan["examples"], plan["task"]) == (6, None)
    one = tmp_path / "one.txt"
    one.write_text("w5 w6 w7", encoding="utf-8")
    for more in ((), ("--dry-run",)):
        refused = call("locate", "train_tuned_lens", "--texts", one, "--model", folder, *more)
        assert "give two texts or more" in refused.stderr
        assert "Traceback" not in call("locate", "train_tuned_lens", *words[:4], "--steps", "0", *more).stderr
    one.write_text("\n\n", encoding="utf-8")
    empty = call("locate", "train_tuned_lens", "--texts", one, "--model", folder, "--dry-run")
    assert "holds no text" in empty.stderr


def test_something_fitted_takes_the_training_part(files, folder, tmp_path):
    words = ("--task", files / "pairs.jsonl", "--model", folder, "--site", "L1.resid_post", "--test", "test")
    done = call("locate", "fit_probe", *words, "--out", tmp_path / "p")
    assert done.exit_code == 0, done.output
    kept = LinearProbe.load(tmp_path / "p")
    assert "--part train --data-seed 0" in kept.provenance.options["command"]
    assert "--examples 0" in kept.provenance.options["command"]
    whole = load_task(files / "pairs.jsonl")
    assert kept.metrics["balanced accuracy"].n == len(whole.split(0).test)
    assert "balanced accuracy" in done.stdout
    plan = document(call("locate", "fit_probe", *words, "--dry-run", "--json"))["plan"]
    assert plan["passes"] == 2 * (len(whole.split(0).train) + len(whole.split(0).test))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--direction", "nois"), 'did you mean "noise"'),
        (("--batch-size", "few"), 'batch_size is a whole number, got "few"'),
        (("--part", "half"), "a part is train, validation, test, all"),
        (("--task", ""), "the name of a task is empty"),
        (("--task", "", "--dry-run"), "the name of a task is empty"),
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


def test_what_was_proposed_is_put_to_the_test(run, files, folder, tmp_path):
    assert run("attribution_patching", *SOME, "--part", "all", "--out", tmp_path / "s.safetensors").exit_code == 0
    again = ("--scores", tmp_path / "s.safetensors", "--k", "2", "--audit", "2", "--seed", "3")
    done = run("verify", *again, "--out", tmp_path / "v.safetensors", "--html", tmp_path / "v.html")
    assert done.exit_code == 0, done.output
    found, lm = Verification.load(tmp_path / "v.safetensors"), load(folder)
    asked = verify(lm, load_task(files / "twins.jsonl"), Scores.load(tmp_path / "s.safetensors"),
                   k=2, audit=2, seed=3)  # fmt: skip
    assert [str(check.candidate.site) for check in found.checks] == [str(c.candidate.site) for c in asked.checks]
    assert [check.works for check in found.checks] == [check.works for check in asked.checks]
    assert found.audit is not None
    assert "verify" in call("locate", "--help").output
    assert "figure" in (tmp_path / "v.html").read_text()
    shown = document(call("scores", "show", tmp_path / "v.safetensors", "--json"))
    assert shown["kind"] == "verification"
    assert run("verify", *again, "--dry-run").exit_code == 0
