"""The table of methods and tasks: its file of cells, its Markdown, and the random directions beside a cell; nothing is
run on the bundled model."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.steering import cells
from benchmarks.steering import table as module
from benchmarks.steering.cells import PROMPT_ONLY, QUICK, ROWS
from tests.evaluate.tinies import passages, questions
from tests.model.tinies import lm_of
from trimtab.evaluate.effect import effects
from trimtab.evaluate.side_effects import side_effects
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Parts
from trimtab.values.edit import Edit, Intervention

CELL = {
    "site": "L8.resid_post",
    "scope": "all",
    "coefficient": 1.5,
    "effect": [2.5, 2.0, 3.0],
    "unit": "nat",
    "anti_steerable": [0.05, 0.0, 0.1],
    "kl": [0.2, 0.1, 0.3],
    "perplexity": [31.0, 30.0, 32.0],
    "base_perplexity": 30.0,
    "random": [0.25, -0.5, 0.75],
    "beyond_random": [2.25, 1.5, 3.0],
    "random_kl": [0.2, 0.1],
    "wanted_kl": 0.2,
    "missed": 1,
    "seconds": 1.0,
}


def parts(task, n=4):
    made = questions(n).with_(instruction=task)
    return Parts(made, made, made)


@pytest.fixture
def measured(monkeypatch):
    """Cells that are measured, by method; each is the one above."""
    asked = []
    monkeypatch.setattr(module.trimtab, "load", lambda name: SimpleNamespace(hash="weights"))
    monkeypatch.setattr(module, "parts_of", lambda lm, task, sizes: parts(task))
    monkeypatch.setattr(module, "cell", lambda lm, parts, row, sizes: asked.append((row, parts)) or dict(CELL))
    monkeypatch.setattr(module, "prompt_only", lambda lm, parts, sizes: {"left_out": "no instruction"})
    return asked


METHODS = ["difference of means", "K-steering", PROMPT_ONLY]


def test_cells_that_are_kept_are_not_measured_again(measured, tmp_path):
    one = module.table(METHODS[:1], ["truth"], QUICK, tmp_path)
    assert len(measured) == 1
    with (tmp_path / module.FILE).open("a") as file:
        file.write('{"key": "cut o')
    both = module.table(METHODS, ["truth", "language"], QUICK, tmp_path)
    assert len(measured) == 4
    assert both["difference of means", "truth"] == one["difference of means", "truth"]
    assert module.table(METHODS, ["truth", "language"], QUICK, tmp_path) == both
    assert len(measured) == 4
    rows = module.read(tmp_path / module.FILE)
    assert len(rows) == 6


def test_other_sizes_are_other_cells(measured, tmp_path):
    module.table(METHODS[:1], ["truth"], QUICK, tmp_path)
    module.table(METHODS[:1], ["truth"], module.Sizes(), tmp_path)
    assert len(measured) == 2


@pytest.mark.parametrize("what", ["model", "task", "version", "method", "cells"])
def test_what_was_measured_of_something_else_is_measured_again(measured, tmp_path, monkeypatch, what):
    module.table(METHODS[:1], ["truth"], QUICK, tmp_path)
    changed = {
        "model": (module.trimtab, "load", lambda name: SimpleNamespace(hash="trained further")),
        "task": (module, "parts_of", lambda lm, task, sizes: parts(task, 5)),
        "version": (module.trimtab, "__version__", "0.1.1"),
        "method": (module.inspect, "getsource", lambda of: "cells" if of is cells else "another method"),
        "cells": (module.inspect, "getsource", lambda of: "other cells" if of is cells else "method"),
    }
    monkeypatch.setattr(*changed[what])
    module.table(METHODS[:1], ["truth"], QUICK, tmp_path)
    assert len(measured) == 2


def test_a_row_is_known_by_its_own_methods_code(monkeypatch):
    lm = SimpleNamespace(hash="weights")

    def keys():
        return {method: module._key(lm, parts("truth"), method, "truth", QUICK) for method in (*ROWS, PROMPT_ONLY)}

    before, source = keys(), module.inspect.getsource
    own = module.inspect.getmodule(ROWS["LoReFT"].load())
    monkeypatch.setattr(module.inspect, "getsource", lambda of: source(of) + "#" * (of is own))
    after = keys()
    assert {method for method in before if before[method] != after[method]} == {"LoReFT", "ReFT-r1"}
    assert len(set(before.values())) == len(before)


def _appends(path, name, times):
    for i in range(times):
        module.append(path, {"key": f"{name} {i}", "cell": {"left_out": name * 3000}})


def test_processes_add_whole_lines_to_one_file(tmp_path):
    path, context = tmp_path / module.FILE, multiprocessing.get_context("spawn")
    workers = [context.Process(target=_appends, args=(path, name, 40)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    found = module.read(path)
    assert set(found) == {f"{name} {i}" for name in "abc" for i in range(40)}
    assert all(cell["left_out"] == key[0] * 3000 for key, cell in found.items())


def test_what_another_process_has_measured_meanwhile_is_taken_over(measured, tmp_path, monkeypatch):
    other = tmp_path / "other"
    module.table(METHODS[1:2], ["truth"], QUICK, other)
    line = (other / module.FILE).read_text()

    def slow(lm, parts, row, sizes):
        with (tmp_path / module.FILE).open("a") as file:
            file.write(line)
        return dict(CELL)

    monkeypatch.setattr(module, "cell", slow)
    module.table(METHODS[:2], ["truth"], QUICK, tmp_path)
    assert (tmp_path / module.FILE).read_text().count("\n") == 2


def test_markdown_has_every_cell(measured, tmp_path):
    text = module.markdown(module.table(METHODS, ["truth", "language"], QUICK, tmp_path))
    assert "| difference of means | +2.50 [2.00, 3.00] | +2.50 [2.00, 3.00] |" in text
    assert "| prompt only | – | – |" in text
    assert "| prompt only | no instruction |" in text
    widths = {line.count("|") for line in text.split("###")[1].splitlines() if line.startswith("|")}
    assert widths == {11}
    row = next(line for line in text.splitlines() if "`L8.resid_post`" in line)
    for shown in (
        "| 5.0\xa0% [0\xa0%, 10\xa0%] |",
        "| 31.0 [30.0, 32.0] (unsteered 30.0) |",
        "| +2.25 [1.50, 3.00] |",
        "| +0.250 (−0.500 to +0.750), 1 of 2 not at that KL |",
    ):
        assert shown in row


def test_what_was_not_run_and_what_had_no_effect_are_told_apart(measured, tmp_path, monkeypatch):
    module.table(METHODS[:1], ["truth"], QUICK, tmp_path)
    monkeypatch.setattr(module, "cell", lambda lm, parts, row, sizes: {"left_out": cells.NO_EFFECT})
    module.table(METHODS[1:2], ["truth"], QUICK, tmp_path)
    before = (tmp_path / module.FILE).read_text()
    text = module.markdown(module.table(METHODS[:2], ["truth", "language"], QUICK, tmp_path, kept=True))
    assert "| difference of means | +2.50 [2.00, 3.00] | not run |" in text
    assert "| K-steering | none | not run |" in text
    assert "| K-steering | no effect above zero within 0.3 nats of KL |" in text
    assert "| K-steering | not run |" in text
    assert (tmp_path / module.FILE).read_text() == before


def test_what_amplifies_a_direction_goes_by_another_name_than_its_ablation():
    ablated, amplified = (ROWS[f"directional {name}"] for name in ("ablation", "amplification (λ < 0)"))
    assert min(ablated.coefficients) > 0 > max(amplified.coefficients)
    assert ablated.load() is amplified.load()


def test_cases_have_no_targets(measured, tmp_path):
    found = module.cases(True, tmp_path)
    assert [case.name for case in found] == ["difference_of_means_sentiment", "angular_steering_sentiment"]
    assert all(case.target is None for case in found)
    assert "anti-steerable 5.0\xa0% [0\xa0%, 10\xa0%]" in found[0].note
    assert "perplexity 31.0 [30.0, 32.0], beyond random +2.25 [1.50, 3.00]" in found[0].note


@pytest.mark.parametrize("strength", [1.0, 0.001])
def test_random_directions_of_a_cell_have_the_kl_of_the_pick(strength, monkeypatch):
    """Whatever the pick does, and however little: 1 would be a thousand times too strong for the second."""
    lm, texts = lm_of("llama", torch.float64), passages(6)
    sizes = replace(QUICK, validation=6, test=8, draws=3, length=24)
    made = questions(21).split(0)
    picked = Intervention.of(Edit("L0.resid_post", "scale", 0.2, strength=strength))
    test = measure(lm, made.test, on="gap")
    change = effects(lm, test, [picked]).changes[0]
    drawn = []
    monkeypatch.setattr(cells, "effects", lambda lm, on, variants: drawn.append(variants) or effects(lm, on, variants))
    found = cells._random(lm, made, picked, test, change, texts, sizes)
    target = side_effects(lm, [picked], texts[: cells.MATCHED], length=24).kl.mean()
    assert found["wanted_kl"] == pytest.approx(target)
    assert found["missed"] == 0
    np.testing.assert_allclose(found["random_kl"], target, rtol=0.11)
    tried, chosen = drawn
    assert len(tried) == 6
    cost = side_effects(lm, chosen, texts[: cells.MATCHED], length=24).kl.mean(1)
    np.testing.assert_allclose(cost, found["random_kl"], rtol=1e-3)
    moved = effects(lm, test, chosen).changes
    means = moved.mean(1)
    assert found["random"] == pytest.approx([means.mean(), means.min(), means.max()])
    assert found["beyond_random"][0] == pytest.approx(change.mean() - means.mean())
    assert cells._random(lm, made, Intervention(), test, change, texts, sizes) == {"random": None}


def test_it_prints_one_document(measured, tmp_path, monkeypatch, capsys):
    words = ["table", "--json", "--methods", METHODS[0], "--tasks", "truth", "--out", str(tmp_path), "--quick"]
    monkeypatch.setattr("sys.argv", words)
    assert module.main() == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["method"] == METHODS[0]


def test_there_are_a_dozen_methods_whose_functions_exist():
    assert len(ROWS) >= 12
    for row in ROWS.values():
        assert callable(row.load())
