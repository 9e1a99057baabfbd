"""What the stages of a study found: estimates, files, digests."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from trimtab.errors import FileError, TrimtabError
from trimtab.values import Edit, Intervention, Outcome, Provenance, Scores
from trimtab.values.content import Content, decode, encode
from trimtab.values.findings import (
    STAGES,
    Candidate,
    Check,
    Control,
    Entangled,
    Estimate,
    Evaluation,
    Findings,
    Point,
    Sample,
    Screening,
    Search,
    Validation,
    Verdict,
)

RNG = np.random.default_rng(0)
NAN = float("nan")


def scores(name):
    return Scores(
        RNG.normal(size=(3, 2, 4)), ("example", "layer", "head"), {}, "L{layer}.head[{head}]", unit="nat", method=name
    )


def outcome(n=5):
    return Outcome("log_prob_diff", "nat", RNG.normal(size=n), RNG.normal(size=n), tuple(f"g{i % 3}" for i in range(n)))


ESTIMATE = Estimate(0.1 + 0.2, -1 / 3, 1e-9, 12)
EDIT = Edit("L1.resid_post", "add", RNG.normal(size=8).astype(np.float32), where="-1:", strength=1.5)
INTERVENTION = Intervention((EDIT, "L0.head[1] scale 0"), name="found", provenance=Provenance("tiny"))
CANDIDATE = Candidate("L1.head[2]@-1", "head", "magnitude", 0.25, 1)
CONTROL = Control("random", "about", RNG.normal(size=(4, 5)), RNG.uniform(size=4), ESTIMATE, 0.05, True)
CHECKS = tuple(
    Check(CANDIDATE, Estimate(mean, mean - 1, mean + 1, 9), ESTIMATE, ESTIMATE, works)
    for mean, works in ((1.0, True), (-4.0, True), (9.0, False), (2.0, True))
)
SCREENING = Screening((scores("one"), scores("two")), (CANDIDATE, CANDIDATE.with_(rank=2)), 3)
VALIDATION = Validation(CHECKS, "patched", "nat", 9)
POINTS = (
    Point("vector", "L1.resid_post", "-1:", 1.5, ESTIMATE, 0.01, True, True),
    Point("scale", "L0.head[1]", "all", 0.0, Estimate(NAN, NAN, NAN, 0), float("inf"), False, False),
)
SEARCH = Search(POINTS, "the largest", 0.3, "nat", 0, INTERVENTION, 9)
EVALUATION = Evaluation(
    outcome(),
    ESTIMATE,
    0.25,
    ESTIMATE,
    4096,
    20,
    (12.5, 13.25),
    outcome(7),
    (CONTROL, CONTROL.with_(name="shuffled", p=NAN)),
    (Entangled("other", outcome(), ESTIMATE),),
    (Sample("prompt", "before", "after ‘ü’ \x00\n"),),
    outcome(),
    {"probe at L1": ESTIMATE},
)
VERDICT = Verdict("found", ("Found it.", "It costs 0.01 nats."))
SAVED = {v.KIND: v for v in (SCREENING, VALIDATION, SEARCH, EVALUATION, VERDICT)}
EMPTY = {
    "screening": Screening((), (), 0),
    "validation": Validation((), "patched", "nat", 0),
    "search": Search((), "none", 0.3, "nat", None, Intervention(), 0),
    "verdict": Verdict("not found", ("Nothing.",)),
    "evaluation": EVALUATION.with_(controls=(), entangled=(), samples=(), prompt_only=None, figures={}),
}
FINDINGS = Findings(
    name="sentiment",
    about="about",
    task="sentiment",
    poles=("good", "bad"),
    examples={"train": 9},
    model="tiny",
    settings={"scopes": ("all", "-1:"), "seed": 0, "limit": 0.3, "dtype": None, "quick": False},
    command="trimtab run",
    python="import trimtab",
    reuse="lm.generate()",
    created="2026-01-01",
    seconds=dict.fromkeys(STAGES, 1.5),
    provenance=Provenance("tiny"),
    screening=SCREENING,
    validation=VALIDATION,
    search=SEARCH,
    evaluation=EVALUATION,
    verdict=VERDICT,
    notes=("a note",),
)


# Estimates
# ---------------------------------------------------------------------------------------------------------------------


def test_an_estimate_is_a_mean_with_its_interval():
    values = np.random.default_rng(1).normal(3, 2, 400)
    made = Estimate.of(values)
    assert made.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (made.low, made.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert made.n == 400
    assert {type(x) for x in (made.mean, made.low, made.high)} == {float}
    assert Estimate.of(values) == made
    assert Estimate.of(values, seed=1) != made


def test_groups_count_as_one():
    values = [0.0, 0.0, 4.0, 4.0, 4.0]
    apart, together = Estimate.of(values), Estimate.of(values, ["a", "a", "b", "b", "b"])
    assert apart.mean == together.mean == pytest.approx(2.4)
    assert together.high - together.low > 3 * (apart.high - apart.low)
    assert together.n == 5
    assert math.isnan(Estimate.of(values, ["a"] * 5).low)


def test_missing_values_are_left_out():
    made = Estimate.of(np.array([1.0, NAN, 3.0, NAN]), ["a", "b", "c", "c"])
    assert (made.mean, made.n) == (2.0, 2)
    assert (made.low, made.high) == pytest.approx((2 - 12.706204736, 2 + 12.706204736))
    nothing = Estimate.of(np.array([NAN, NAN]))
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()
    assert nothing.n == 0
    one = Estimate.of([2.0])
    assert (one.mean, one.n) == (2.0, 1)
    assert math.isnan(one.low)


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 1, True), (-1, -0.1, True), (-1, 1, False), (0, 1, False), (NAN, NAN, False)]
)
def test_an_interval_excludes_zero(low, high, excludes):
    assert Estimate(0.5, low, high, 3).excludes_zero is excludes


def test_an_estimate_prints():
    assert str(Estimate(0.12345, -1.0, 2.0, 4)) == "+0.123 [-1, 2]"


# Files and digests
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*SAVED.values(), *EMPTY.values()], ids=lambda v: v.KIND)
def test_what_is_saved_comes_back(value, tmp_path):
    value.save(tmp_path / "it")
    again = type(value).load(tmp_path / "it")
    assert again == value
    assert again.digest == value.digest
    assert type(again) is type(value)
    assert hash(again) == hash(value)


def test_arrays_come_back_bit_for_bit(tmp_path):
    EVALUATION.save(tmp_path / "it")
    again = Evaluation.load(tmp_path / "it")
    assert again.controls[0].effects.tobytes() == CONTROL.effects.tobytes()
    assert again.controls[0].kl.tobytes() == CONTROL.kl.tobytes()
    assert again.outcome.after.tobytes() == EVALUATION.outcome.after.tobytes()
    assert isinstance(again.figures["probe at L1"], Estimate)
    assert isinstance(again.entangled[0].outcome, Outcome)
    assert math.isnan(again.controls[1].p)
    assert again.samples == EVALUATION.samples
    SEARCH.save(tmp_path / "search")
    found = Search.load(tmp_path / "search").intervention
    assert found.edits[0].value.tobytes() == EDIT.value.tobytes()
    assert (found.name, found.provenance) == (INTERVENTION.name, INTERVENTION.provenance)


def test_a_whole_study_is_content():
    arrays = {}
    text = json.dumps(encode(FINDINGS, arrays))
    again = decode(json.loads(text), arrays, Findings)
    assert again == FINDINGS
    assert again.settings["scopes"] == ("all", "-1:")
    bare = FINDINGS.with_(**dict.fromkeys(("screening", "validation", "search", "evaluation", "verdict")))
    assert bare != FINDINGS


def numbers(value, path=()):
    """The paths to all numbers and arrays in a value."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float | np.ndarray):
        yield path
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from numbers(part, (*path, i))
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, (*path, key))
    elif isinstance(value, Content) and not isinstance(value, Scores | Intervention):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name), (*path, field.name))


def moved(value, path):
    """The value with the number at a path a little larger."""
    if not path:
        if isinstance(value, np.ndarray):
            value = value.copy()
            value.flat[-1] += 1e-9
            return value
        return 0.5 if not math.isfinite(value) else value + 1 if isinstance(value, int) else np.nextafter(value, 9e99)
    head, *rest = path
    if isinstance(value, tuple):
        return tuple(moved(part, rest) if i == head else part for i, part in enumerate(value))
    if isinstance(value, dict):
        return {key: moved(part, rest) if key == head else part for key, part in value.items()}
    return dataclasses.replace(value, **{head: moved(getattr(value, head), rest)})


@pytest.mark.parametrize("value", SAVED.values(), ids=SAVED)
def test_the_digest_covers_every_number(value):
    paths = list(numbers(value))
    assert len(paths) >= {"verdict": 0, "screening": 3}.get(value.KIND, 10)
    digests = {moved(value, path).digest for path in paths}
    assert len(digests | {value.digest}) == len(paths) + 1


def test_the_digest_covers_words_arrays_and_interventions():
    assert SCREENING.with_(scores=(scores("one"), scores("two"))) != SCREENING
    assert SEARCH.with_(intervention=2 * INTERVENTION) != SEARCH
    assert SEARCH.with_(picked=None) != SEARCH
    assert VERDICT.with_(sentences=("Found it.",)) != VERDICT
    assert EVALUATION.with_(prompt_only=None) != EVALUATION
    assert CONTROL.with_(beaten=False) != CONTROL


@pytest.mark.parametrize("value", SAVED.values(), ids=SAVED)
def test_a_damaged_file_is_noticed(value, tmp_path):
    value.save(tmp_path / "it")
    data = (tmp_path / "it").read_bytes()
    for end in (0, 7, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:end])
        with pytest.raises(FileError):
            type(value).load(tmp_path / "cut")
    if value is not VALIDATION and value is not VERDICT:  # those hold no arrays
        (tmp_path / "turned").write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        with pytest.raises(FileError, match="was altered"):
            type(value).load(tmp_path / "turned")
    with pytest.raises(FileError, match="there is no file"):
        type(value).load(tmp_path / "nowhere")
    other = next(kind for kind in SAVED if kind != value.KIND)
    with pytest.raises(FileError, match=f"'{other}' was expected"):
        type(SAVED[other]).load(tmp_path / "it")


def test_an_altered_number_is_noticed(tmp_path):
    VALIDATION.save(tmp_path / "it")
    data = (tmp_path / "it").read_bytes()
    assert data.count(b'\\"examples\\":9') == 1
    (tmp_path / "it").write_bytes(data.replace(b'\\"examples\\":9', b'\\"examples\\":8'))
    with pytest.raises(FileError, match="was altered"):
        Validation.load(tmp_path / "it")


# What they say of themselves
# ---------------------------------------------------------------------------------------------------------------------


def test_what_works_comes_largest_first():
    assert [check.effect.mean for check in VALIDATION.working] == [-4.0, 2.0, 1.0]
    assert VALIDATION.false_positives == 0.25
    assert math.isnan(EMPTY["validation"].false_positives)
    assert VALIDATION.with_(checks=CHECKS[2:3]).false_positives == 1.0


def test_a_verdict_has_one_of_three_outcomes():
    assert VERDICT.found
    assert str(VERDICT) == "Found. Found it. It costs 0.01 nats."
    assert not Verdict("not beaten", ("No.",)).found
    assert Verdict("not found", ["No."]).sentences == ("No.",)
    with pytest.raises(TrimtabError, match="got 'maybe'"):
        Verdict("maybe", ())


def test_a_control_keeps_its_numbers():
    source = np.zeros((2, 3))
    made = Control("n", "a", source, [0.1, 0.2], ESTIMATE, 0.5, False)
    digest = made.digest
    source[0] = 9
    assert made.with_(name="n").digest == digest
    with pytest.raises(ValueError, match="read-only"):
        made.effects[0] = 1
    with pytest.raises(TrimtabError, match=r"effects of a control must have shape \(draw example\), got \(3,\)"):
        Control("n", "a", np.zeros(3), np.zeros(3), ESTIMATE, 0.5, False)
    with pytest.raises(TrimtabError, match=r"kl of a control must have shape \(draw\), got \(3,\)"):
        Control("n", "a", np.zeros((2, 3)), np.zeros(3), ESTIMATE, 0.5, False)
