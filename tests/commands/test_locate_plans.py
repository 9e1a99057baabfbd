"""`trimtab locate FUNCTION --dry-run`: what every function is run on, and how many passes that takes."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

from tests.commands.calls import call, document
from tests.locate.tinytasks import pairs, twins
from trimtab.locate.methods import functions, subject
from trimtab.model.load import load
from trimtab.tasks.files import save_task
from trimtab.tasks.signatures import options
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.monitor import Calibration, Monitor
from trimtab.values.roles import RoleTable
from trimtab.values.scores import Scores

SUBJECTS = {
    "task": ("--task", "twins.jsonl"),
    "train": ("--task", "pairs.jsonl"),
    "prompt": ("w5 w6",),
    "prompts": ("w5 w6", "w7"),
    "texts": ("--texts", "texts.jsonl"),
    "": (),
}
"""What a function is run on, by the parameter that takes it."""
REQUIRED = {
    "sites": "L*.head",
    "heads": "L0.head[1]",
    "neuron": "L1.neuron[3]",
    "scores": "scores",
    "table": "table",
    "monitor": "monitor",
}
"""Options that some functions have to be given."""
SITES = {
    "fit_monitor": "L1.resid_post",
    "fit_probe": "L1.resid_post",
    "ov_circuit": "L0.head[1]",
    "qk_circuit": "L0.head[1]",
}
"""The one `site` of others, which is a stream here and a head there."""
PLANNED = sorted(functions().keys() - {"watch"})
"""Functions that say how many passes they take: all but `watch`, which tells the tokens it generates."""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder with tasks, texts and what some functions read from others."""
    files = tmp_path_factory.mktemp("material")
    save_task(twins(), files / "twins.jsonl")
    save_task(pairs(), files / "pairs.jsonl")
    scores = Scores(np.arange(8.0).reshape(1, 2, 4), ("example", "layer", "head"), {}, "L{layer}.head[{head}]")
    scores.save(files / "scores")
    numbers = [[0.9], [0.1]]
    table = RoleTable(
        ("L0.head[0]", "L1.head[1]"), ("sink",), numbers, numbers, numbers, {"sink": 0.5}, {"sink": ""}, 4
    )
    table.save(files / "table")
    probe = LinearProbe("L1.resid_post", np.ones(32), 0.0, 1.0, task="m")
    Monitor(probe, Calibration("platt"), 0.5, 0.05).save(files / "monitor")
    rows = [{"text": " ".join(f"w{5 + i + j}" for j in range(6))} for i in range(12)]
    (files / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return files


@pytest.fixture
def held(folder, monkeypatch):
    """The tiny model, loaded once for all."""
    lm = _loaded(str(folder))
    monkeypatch.setattr("trimtab.model.load.load", lambda *_, **__: lm)
    return lm


@cache
def _loaded(folder):
    return load(folder)


@pytest.mark.parametrize("name", PLANNED)
def test_every_function_of_ours_knows_its_passes(name, material, held, monkeypatch):
    monkeypatch.chdir(material)
    function = functions()[name]
    parameter, _ = subject(function)
    words = [*SUBJECTS[parameter]]
    for option in options(function, given=("lm", parameter)):
        if option.required:
            words += [f"--{option.name}", REQUIRED.get(option.name) or SITES[name]]
    plan = document(call("locate", name, *words, "--dry-run", "--json"))["plan"]
    assert isinstance(plan["passes"], float)
    assert plan["passes"] >= 0
    assert (plan["seconds"] is None) == (plan["passes"] == 0)


def test_a_batch_of_the_methods_own_size_is_timed(material, held, monkeypatch):
    """A tuned lens reads 8 rows at a time unless it is told otherwise."""
    monkeypatch.chdir(material)
    words = ("locate", "train_tuned_lens", "--texts", "texts.jsonl", "--dry-run", "--json")
    assert document(call(*words))["plan"]["timed"] == 8
    assert document(call(*words, "--batch-size", "3"))["plan"]["timed"] == 3
    assert document(call(*words, "--context", "3", "--batch-size", "30"))["plan"]["timed"] == 24
