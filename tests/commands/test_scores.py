"""`trimtab scores`: what files of scores hold, and how they agree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.commands.calls import call, document
from trimtab.values import (
    Audit,
    MassiveActivations,
    Provenance,
    RoleTable,
    Scores,
    TokenScores,
    TunedLens,
    Verification,
)
from trimtab.values.findings import Candidate, Check, Estimate
from trimtab.values.saved import load

R = np.random.default_rng(0)


@pytest.fixture
def file(tmp_path):
    """Scores of two heads in three layers."""
    made = Provenance.now("tiny", options={"command": "trimtab locate patching --task twins"})
    scores = Scores(R.normal(size=(5, 3, 2)), ("example", "layer", "head"), {}, "L{layer}.head[{head}]", "logits",
                    "patching", {"task": "twins"}, "denoise", provenance=made)  # fmt: skip
    scores.save(tmp_path / "a.safetensors")
    scores.with_(array=scores.array[:, ::-1], method="ablation").save(tmp_path / "b.safetensors")
    return tmp_path / "a.safetensors"


def test_show(file):
    scores = Scores.load(file)
    done = call("scores", "show", file, "--top", "2")
    assert done.exit_code == 0
    assert "patching: L*.head[*]" in done.stdout
    assert "clean values put into the corrupt run" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("L")] == list(
        map(str, scores.top(2))
    )
    assert "again: trimtab locate patching --task twins" in done.stdout
    found = document(call("scores", "show", file, "--json", "--top", "1"))
    assert found["top"][0]["site"] == str(scores.top(1)[0])
    assert found["provenance"]["model"] == "tiny"


def test_compare(file, tmp_path):
    other = tmp_path / "b.safetensors"
    expected = Scores.load(file).compare(Scores.load(other), 2)
    (row,) = document(call("scores", "compare", file, other, "--top", "2", "--json"))["compared"]
    assert row["rank_correlation"] == pytest.approx(expected.rank_correlation)
    assert (row["first"], row["overlap"], row["cells"]) == (str(file), expected.overlap, 6)
    same = call("scores", "compare", file, file, "--html", tmp_path / "c.html", env={"COLUMNS": "300"})
    assert "1.00" in same.stdout
    assert "How the rankings agree" in (tmp_path / "c.html").read_text(encoding="utf-8")
    assert call("scores", "compare", file).exit_code == 2


def test_plot(file, tmp_path):
    assert call("scores", "plot", file, "--out", tmp_path / "a.svg").exit_code == 0
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == Scores.load(file).plot().svg
    assert call("scores", "plot", file, "--out", tmp_path / "l.svg", "--kind", "lines").exit_code == 0
    for words in (("a.png",), ("a.svg", "--kind", "pie")):
        done = call("scores", "plot", file, "--out", *words)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")


def _tokens():
    return TokenScores.of([[1.0, -2.0]], [["a", " <b>"]], method="saliency", unit="nats")


def _values():
    """A value of every kind that a locating method gives."""
    scores = Scores(R.normal(size=(4, 2)), ("example", "site"), {"site": ("L0.head[0]", "L1.head[1]")}, "{site}")
    heads = ("L0.head[0]", "L1.head[1]")
    table = RoleTable(
        heads, ("sink",), [[0.9], [0.1]], [[0.1], [0.1]], [[0.7], [-1.0]], {"sink": 0.5}, {"sink": "…"}, 4
    )
    effect = Estimate(1.0, 0.5, 1.5, 4)
    check = Check(Candidate("L0.head[0]", "head", "patching", 1.0, 1), effect, effect, effect, True)
    return [
        MassiveActivations(("L1.resid_post",), [3], [0], [0], ("<s>",), [900.0], [2000.0], 1, 100.0, 1000.0, scores),
        table,
        Audit(scores, None, np.ones(2), np.ones(0), 5),
        Verification("ioi", "patching", "patching", "denoise", "nats", (check,), 3, float("nan"), 4),
        _tokens(),
        TunedLens.identity(["L0.resid_post", "L1.resid_post"], 3),
    ]


@pytest.mark.parametrize("value", _values(), ids=lambda value: value.KIND)
def test_any_result_is_shown(tmp_path, value):
    path = tmp_path / "x.safetensors"
    value.save(path)
    assert load(path) == value
    done = call("scores", "show", path, "--html", tmp_path / "x.html", env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.stderr
    assert str(value) in done.stdout
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert value.KIND.capitalize() in page
    assert "<script" not in page
    found = document(call("scores", "show", path, "--json"))
    assert found["kind"] == value.KIND
    if hasattr(value, "to_frame"):
        assert len(found["rows"]) == len(value.to_frame())
        assert str(next(iter(found["rows"][0].values()))) in done.stdout
        assert str(value.to_frame().iloc[0, 0]) in page
    else:
        assert {"is", *(f.name for f in dataclasses.fields(value))} == set(found["content"])


def test_places_are_folded_and_not_cut(tmp_path):
    """A table of many columns, and a long place, in the 80 columns of a plain terminal."""
    places = tuple(f"L{i}.neuron[{','.join(map(str, range(1000, 1030)))}]@subject_last" for i in range(2))
    Scores(R.normal(size=(4, 2)), ("example", "site"), {"site": places}, "{site}").save(tmp_path / "s")
    heads = ("L10.head[10]", "L11.head[11]")
    role, numbers = "a_role_of_a_name_that_is_longer_than_a_line_of_a_plain_terminal_can_be", [[0.9], [0.1]]
    RoleTable(heads, (role,), numbers, numbers, numbers, {role: 0.5}, {role: ""}, 4).save(tmp_path / "t")
    for name, whole in (("s", places), ("t", heads)):
        done = call("scores", "show", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        assert "…" not in done.stdout
        first = "".join(line.split()[0] for line in done.stdout.splitlines() if line.strip())
        assert all(place in first for place in whole)
    assert "…" not in call("scores", "compare", tmp_path / "s", tmp_path / "s").stdout


def test_a_page_writes_no_token_as_markup_and_json_keeps_the_numbers(tmp_path):
    _tokens().save(tmp_path / "x")
    assert call("scores", "show", tmp_path / "x", "--html", tmp_path / "x.html").exit_code == 0
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page.replace("<b>saliency</b>", "")
    content = document(call("scores", "show", tmp_path / "x", "--json"))["content"]
    assert content["array"] == [[1.0, -2.0]]
    assert content["tokens"] == [["a", " <b>"]]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("x", encoding="utf-8")
    done = call("scores", "show", tmp_path / "x")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
