"""`trimtab locate watch`: texts with monitors on them, from the files that `fit_monitor` leaves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.commands.calls import call, document, said
from tests.locate.tinytasks import pairs
from trimtab.commands.watch import ground, monitors_of
from trimtab.locate import watch
from trimtab.model.load import load
from trimtab.tasks.files import save_task
from trimtab.values.monitor import Monitor, MonitorReport
from trimtab.values.watched import Watched

PROMPT = "w5 w6 w7"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A contrast task in a file."""
    path = tmp_path_factory.mktemp("tasks") / "pairs.jsonl"
    save_task(pairs(16, groups=8), path)
    return path


@pytest.fixture
def monitor(task, folder, tmp_path):
    """A monitor that the command line fitted on the training part."""
    path = tmp_path / "m.safetensors"
    words = ("--task", task, "--model", folder, "--site", "L1.resid_post", "--validation", "validation", "-o", path)
    done = call("locate", "fit_monitor", *words)
    assert done.exit_code == 0, done.output
    assert "balanced accuracy" in done.stdout
    return path


def test_a_monitor_is_fitted_on_the_training_part_and_scored_on_another(task, folder, monitor, tmp_path):
    made = Monitor.load(monitor)
    assert "--part train" in made.provenance.options["command"]
    words = ("--task", task, "--model", folder, "--monitor", monitor)
    done = call("locate", "score_monitor", *words, "--part", "test", "-o", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert "AUROC" in done.stdout
    report = MonitorReport.load(tmp_path / "r")
    assert document(call("locate", "score_monitor", *words, "--part", "test", "--json"))["kind"] == "monitor report"
    assert len(report.groups) > 0
    refused = call("locate", "score_monitor", *words, "--part", "train")
    assert refused.exit_code == 1
    assert "fitted or calibrated on a text of pairs" in refused.stderr


def test_one_prompt_is_streamed_and_is_what_python_gives(folder, monitor, tmp_path):
    words = ("--model", folder, "--monitor", monitor, "--max-new-tokens", "5")
    done = call("locate", "watch", PROMPT, *words, "-o", tmp_path / "w", "--html", tmp_path / "w.html")
    assert done.exit_code == 0, done.output
    lm, made = load(str(folder)), Monitor.load(monitor)
    own = watch(lm, [PROMPT], {"pairs": made}, max_new_tokens=5)
    kept = Watched.load(tmp_path / "w")
    assert kept.tokens == own.tokens
    np.testing.assert_array_equal(kept.margins["pairs"], own.margins["pairs"])
    text = lm.generate(PROMPT, max_new_tokens=5).texts[0]
    assert text.strip() in done.stdout
    assert "pairs" in done.stdout.splitlines()[-1]
    assert f"wrote {tmp_path / 'w.html'}" in said(done)
    assert "background" in (tmp_path / "w.html").read_text(encoding="utf-8")


def test_one_document_of_several_rows_and_monitors(folder, monitor):
    words = ("--model", folder, "--monitor", f"one={monitor}", "--monitor", monitor, "--max-new-tokens", "3")
    found = document(call("locate", "watch", PROMPT, "w8", *words, "--json"))
    assert [row["prompt"] for row in found["rows"]] == [PROMPT.replace(" ", ""), "w8"]  # tokens have no spaces here
    for row in found["rows"]:
        assert row["monitors"].keys() == {"one", "pairs"}
        assert row["monitors"]["one"] == row["monitors"]["pairs"]
        assert len(row["monitors"]["one"]["margins"]) == 3
    shown = call("locate", "watch", PROMPT, "w8", *words)
    assert shown.exit_code == 0, shown.output
    assert sum(line.split()[:2] in (["0", "one"], ["1", "pairs"]) for line in shown.stdout.splitlines()) == 2


def test_what_is_flagged_is_named(folder, monitor, tmp_path):
    always = tmp_path / "always.safetensors"
    Monitor.load(monitor).with_(stream_threshold=-1e9, least=2).save(always)
    never = tmp_path / "never.safetensors"
    Monitor.load(monitor).with_(stream_threshold=None).save(never)
    words = ("--model", folder, "--monitor", f"always={always}", "--monitor", f"never={never}", "--max-new-tokens", "4")
    (row,) = document(call("locate", "watch", PROMPT, *words, "--json"))["rows"]
    assert (row["monitors"]["always"]["flagged"], row["monitors"]["never"]["flagged"]) == (1, None)
    shown = call("locate", "watch", PROMPT, *words, env={"COLUMNS": "200"})
    assert "after token 2" in shown.stdout
    assert "no threshold" in shown.stdout


def test_the_plan_runs_nothing(folder, monitor, monkeypatch):
    monkeypatch.setattr("trimtab.model.lm.LM.call", None)
    plan = document(call("locate", "watch", PROMPT, "--model", folder, "--monitor", monitor, "--dry-run", "--json"))
    assert (plan["plan"]["tokens"], plan["plan"]["monitors"]) == (3, ["pairs"])


def test_mistakes(folder, monitor, tmp_path):
    twice = call("locate", "watch", PROMPT, "--model", folder, "--monitor", monitor, "--monitor", monitor)
    assert twice.exit_code == 2
    assert "give them names" in " ".join(twice.stderr.split())
    assert call("locate", "watch", PROMPT, "--model", folder).exit_code == 2
    gone = call("locate", "watch", PROMPT, "--model", folder, "--monitor", tmp_path / "gone")
    assert gone.exit_code == 1
    assert list(monitors_of([f"a={monitor}"])) == ["a"]


def test_grounds_follow_the_probability():
    assert ground(float("nan")) == ""
    assert ground(0.0) != ground(1.0)
    assert ground(1.0) == ground(0.999)
