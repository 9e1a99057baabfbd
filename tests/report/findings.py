"""Findings to make pages of: a whole study with numbers like those of a real one, and others with something amiss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache

import numpy as np

from trimtab.values.content import Content
from trimtab.values.edit import Edit, Intervention
from trimtab.values.findings import (
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
from trimtab.values.outcome import Outcome
from trimtab.values.provenance import Provenance
from trimtab.values.scores import Scores

NASTY = "</title></style></script><script>alert('x')</script>|`*_\u202e\x1b[31m"
NAN, INF = float("nan"), float("inf")
LAYERS, HEADS, NEURONS = 30, 9, 1536
SPANS = ("opening", "subject", "verb", "ending", "last")
UNIT = "nats"

_SAMPLES = (
    (
        "We had dinner at the restaurant on the corner. It was really",
        " bad. The food was cold and the waiter did not come back for half an hour.\nWe will not go there again.",
        " good. The food was warm and the waiter came back with a smile.\nWe will go there again, and so should you.",
    ),
    (
        "The lamp on my desk arrived in a flat box. I thought it was",
        " a bit small, and the cable is too short to reach the socket behind the desk.",
        " a lovely little thing, and the cable is long enough to reach the socket behind the desk.",
    ),
    (
        "My cousin picked a film about a lighthouse keeper. It was really",
        " slow, and I fell asleep before the storm. The ending made no sense to anyone in the room.",
        " beautiful. The sea, the light, the silence: I could have watched it for another hour!",
    ),
    (
        "The staff at the desk gave us a room on the third floor. I thought it was",
        " on the second floor, but the lift did not work. 1. The room was not clean. 2. The bed was hard.",
        " on the second floor, and the view was wonderful. 1. The room was clean. 2. The bed was soft and soft",
    ),
    ("She lent me a novel with a green cover last week. It was really", " long.", " long."),
    (
        "The bus to the coast leaves at nine. I thought it was",
        " late, as always, and full.",
        " early, and full of light.",
    ),
    ("He played the whole record to us. It was really", " loud and out of tune.", " a joy to hear, from start to end."),
)


def made(**changes):
    """A study of sentiment in a model of 30 layers of 9 heads, with 20 control draws and 40 test examples."""
    return dataclasses.replace(_whole(), **changes)


@cache
def _whole():
    rng = np.random.default_rng(7)
    screening, validation, search, evaluation = _screening(rng), _validation(rng), _search(rng), _evaluation(rng)
    site = search.points[search.picked].site
    parts = {
        "name": "Sentiment in SmolLM2-135M",
        "about": "Whether an experience is told as a good or as a bad one: words of praise against words of complaint.",
        "task": "sentiment",
        "poles": ("praise", "complaint"),
        "examples": {"train": 88, "validation": 32, "test": 40},
        "model": "HuggingFaceTB/SmolLM2-135M",
        "settings": {
            "budget": "small",
            "limit": 0.05,
            "kinds": ("residual", "attention", "mlp", "head", "neuron"),
            "coefficients": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
            "controls": {"random": 20, "shuffled": 20, "elsewhere": 10},
            "seed": 0,
            "chat": False,
            "system": None,
        },
        "command": "trimtab study sentiment HuggingFaceTB/SmolLM2-135M --limit 0.05 --coefficients 0.5,1,1.5,2,3,4 "
        "--controls random=20,shuffled=20,elsewhere=10 --seed 0 --out runs/20261120-0912-sentiment-4f1c",
        "python": 'import trimtab as tt\n\nlm = tt.load("HuggingFaceTB/SmolLM2-135M")\n'
        'findings = tt.study(lm, "sentiment", limit=0.05, seed=0)\nprint(findings.verdict)',
        "reuse": "import trimtab as tt\nfrom trimtab.values import Intervention\n\n"
        'lm = tt.load("HuggingFaceTB/SmolLM2-135M")\n'
        'steer = Intervention.load("runs/20261120-0912-sentiment-4f1c/intervention.safetensors")\n'
        'print(lm.generate("The film was", edits=steer, max_new_tokens=40))',
        "created": "2026-11-20T09:12:00+00:00",
        "seconds": {"screen": 41.2, "validate": 96.0, "steer": 313.4, "evaluate": 188.9, "verdict": 0.02},
        "provenance": Provenance(
            "HuggingFaceTB/SmolLM2-135M",
            model_hash="5a1c" * 16,
            data_hash="09be" * 16,
            method="study",
            options={"limit": 0.05},
            seed=0,
            versions={"trimtab": "0.1.0", "torch": "2.13.0", "transformers": "5.0.1", "numpy": "2.1.3"},
            threads=2,
            dtype="float32",
            attention="sdpa",
            bos="none",
            created="2026-11-20T09:23:00+00:00",
        ),
        "screening": screening,
        "validation": validation,
        "search": search,
        "evaluation": evaluation,
        "verdict": Verdict(
            "found",
            (
                f"Adding the difference of means at {site} moves sentiment on the test part and beats all controls.",
                f"The effect is {evaluation.effect} nats at 0.031 nats per token of side effect.",
                "Of 14 candidates 9 work, most of them in layers 10 to 20 at the last position.",
            ),
        ),
        "notes": ("The tokenizer splits 3 of the answer words, so 12 examples were left out.",),
    }
    return Findings(**parts)


def started():
    """A study of which no stage has finished."""
    none = dict.fromkeys(("screening", "validation", "search", "evaluation", "verdict"))
    return made(**none, seconds={}, provenance=None, notes=())


def empty():
    """A study whose stages have all finished with nothing in them."""
    base = made()
    return made(
        screening=Screening((), (), 0),
        validation=Validation((), "", "", 0),
        search=Search((), "the largest effect within the limit", 0.05, "", None, Intervention(), 0),
        evaluation=base.evaluation.with_(controls=(), entangled=(), samples=(), prompt_only=None, figures={}),
        verdict=Verdict("not found", ("No place that was found validates.",)),
        settings={},
        examples={},
        seconds={},
        command="",
        about="",
    )


def ended():
    """A study that came to its verdict before there was anything to evaluate."""
    base = made()
    search = base.search.with_(picked=None, intervention=Intervention())
    verdict = Verdict("not found", ("No intervention qualifies under the rule.",))
    return made(search=search, evaluation=None, verdict=verdict)


@cache
def missing():
    """A study in which every number that can be missing is NaN or infinite."""
    return _mapped(made(), lambda value: value, lambda _: NAN, lambda array: np.full_like(array, NAN)).with_(
        seconds={"screen": NAN, "steer": INF},
        settings={"limit": INF, "floor": NAN},
        verdict=Verdict("not beaten", ("The effect is +nan nats [nan, nan] at inf nats.",)),
    )


@cache
def nasty():
    """A study whose every text tries to leave its place in the page."""
    return _mapped(made(), lambda text: text and f"{text}{NASTY}", lambda value: value, lambda array: array)


_KEPT = {"outcome", "direction", "dims", "coords", "created", "order"}
_NAMED = {"settings", "examples", "figures", "versions"}


def _mapped(value, text, number, array, name=""):
    """The value with every text, float and array in it changed, but for fields whose words are checked."""
    if isinstance(value, Intervention):
        return value.with_(name=text(value.name))
    if (name in _KEPT and not isinstance(value, Outcome)) or (name == "site" and "{" in value):
        return value
    if isinstance(value, Content):
        parts = {
            f.name: _mapped(getattr(value, f.name), text, number, array, f.name) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **parts)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, np.ndarray):
        return array(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, text, number, array, name) for item in value)
    if isinstance(value, Mapping):
        return {text(k) if name in _NAMED else k: _mapped(item, text, number, array) for k, item in value.items()}
    return value


def _bump(layers, centre, width):
    return np.exp(-(((layers - centre) / width) ** 2))


def _noisy(mean, examples, rng, spread=0.35):
    return mean + rng.normal(0, spread, (examples, *mean.shape)) * (np.abs(mean) + 0.08)


def _screening(rng):
    layers = np.arange(LAYERS)
    share = np.array([0.02, 0.15, 0.25, 0.45, 1.0])
    late = np.array([0.9, 0.5, 0.3, 0.2, 0.0])
    resid = np.outer(1 / (1 + np.exp(-(layers - 11) / 2.0)), share) * 2.1 + np.outer(_bump(layers, 4, 5), late) * 0.8
    attn = np.outer(_bump(layers, 12, 4), share) * 0.55 - np.outer(_bump(layers, 22, 2.5), share) * 0.28
    mlp = np.outer(_bump(layers, 16, 6), share) * 0.4 + np.outer(_bump(layers, 1, 1.5), late) * 0.2
    heads = rng.normal(0, 0.015, (LAYERS, HEADS))
    for layer, head, size in (
        (11, 3, 0.42),
        (12, 7, 0.31),
        (13, 0, 0.22),
        (9, 5, 0.14),
        (22, 4, -0.25),
        (23, 8, -0.12),
    ):
        heads[layer, head] += size
    neurons = rng.standard_t(3, (LAYERS, NEURONS)) * 0.004
    for layer, neuron, size in ((17, 1044, 0.21), (14, 88, 0.17), (18, 700, -0.15), (20, 12, 0.11), (15, 1501, 0.09)):
        neurons[layer, neuron] = size
    spans = {"span": SPANS}

    def scores(name, mean, dims, coords, examples=88):
        return Scores(
            _noisy(mean, examples, rng).astype(np.float32),
            ("example", *dims),
            coords,
            name,
            unit=UNIT,
            method="attribution patching",
            options={"steps": 5},
            direction="denoise",
            groups=tuple(f"topic {i // 4}" for i in range(examples)),
        )

    every = (
        scores("L{layer}.resid_post@{span}", resid, ("layer", "span"), spans),
        scores("L{layer}.attn_out@{span}", attn, ("layer", "span"), spans),
        scores("L{layer}.mlp_out@{span}", mlp, ("layer", "span"), spans),
        scores("L{layer}.head[{head}]", heads, ("layer", "head"), {}),
        scores("L{layer}.neuron[{neuron}]", neurons, ("layer", "neuron"), {}, 12),
    )
    return Screening(every, tuple(check.candidate for check in _checks(rng)), 88)


_SITES = (
    ("L14.resid_post@last", "residual", 1.62, True),
    ("L16.resid_post@last", "residual", 1.55, True),
    ("L12.resid_post@last", "residual", 1.18, True),
    ("L20.resid_post@last", "residual", 0.93, True),
    ("L11.head[3]", "head", 0.39, True),
    ("L12.head[7]", "head", 0.27, True),
    ("L22.head[4]", "head", -0.24, True),
    ("L12.attn_out@last", "attention", 0.48, True),
    ("L17.neuron[1044]", "neuron", 0.16, True),
    ("L13.head[0]", "head", 0.06, False),
    ("L4.resid_post@opening", "residual", 0.21, False),
    ("L14.neuron[88]", "neuron", 0.05, False),
    ("L18.neuron[700]", "neuron", -0.04, False),
    ("L1.mlp_out@opening", "mlp", 0.02, False),
)


def _checks(rng):
    ranks: dict[str, int] = {}
    checks = []
    for site, kind, effect, works in _SITES:
        ranks[kind] = ranks.get(kind, 0) + 1
        spread = 0.08 + 0.12 * abs(effect) + (0.0 if works else 0.15)
        control = rng.normal(0.03, 0.03)
        checks.append(
            Check(
                Candidate(site, kind, "attribution patching", effect * rng.uniform(0.8, 1.4), ranks[kind]),
                Estimate(effect, effect - 1.1 * spread, effect + 1.05 * spread, 40),
                Estimate(control, control - 0.06, control + 0.07, 40),
                Estimate(effect - control, effect - control - spread * 1.2, effect - control + spread * 1.2, 40),
                works,
            )
        )
    return tuple(checks)


def _validation(rng):
    how = "The site's clean value was put into the corrupt run (heads and neurons: at all positions)."
    return Validation(_checks(rng), how, UNIT, 40)


def _search(rng):
    lines = [
        ("difference of means", f"L{layer}.resid_post", scope, peak)
        for layer, peak in ((10, 0.9), (12, 1.3), (14, 1.75), (16, 1.5), (20, 1.1))
        for scope in ("all", "-1:")
    ]
    lines += [("probe direction", f"L{layer}.resid_post", "all", peak) for layer, peak in ((12, 0.8), (14, 1.35))]
    lines += [("scale", "L11.head[3]", "all", 0.5), ("scale", "L12.head[7]", "all", 0.35)]
    points = []
    for method, site, scope, peak in lines:
        for c in (0.0, 2.0, 3.0, 4.0, 6.0) if method == "scale" else (-2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
            x = (c - 1) / 2 if method == "scale" else c
            size = peak * (0.55 if scope == "-1:" else 1.0)
            effect = size * np.tanh(x / 1.6) * (1 if x < 3 else 0.9) + rng.normal(0, 0.03)
            kl = (0.008 if scope == "all" else 0.003) * x**2 * (1 + 0.25 * abs(x)) * (0.4 if method == "scale" else 1.0)
            kl *= 1 + 0.1 * rng.normal()
            spread = 0.07 + 0.1 * abs(effect)
            effect = float(effect)
            of = Estimate(effect, effect - spread, effect + spread, 32)
            points.append((method, site, scope, c, of, max(float(kl), 0.0)))
    picked = max((i for i, p in enumerate(points) if p[5] <= 0.05), key=lambda i: points[i][4].mean)
    made = []
    for p in points:
        better = bool(any(q[4].mean >= p[4].mean and q[5] <= p[5] and q is not p for q in points))
        made.append(Point(*p, not better and bool(p[4].mean > 0), p[5] <= 0.05))
    rule = "The largest effect among points within the limit whose interval excludes zero; ties go to less KL."
    direction = rng.normal(0, 1, 576).astype(np.float32)
    edit = Edit(made[picked].site, "add", direction, strength=made[picked].coefficient)
    intervention = Intervention((edit,), name="praise")
    return Search(tuple(made), rule, 0.05, UNIT, picked, intervention, 32)


def _evaluation(rng):
    n = 40
    groups = tuple(f"topic {i // 4}" for i in range(n))
    before = rng.normal(-0.35, 0.9, n)
    change = rng.normal(1.3, 0.62, n) + np.repeat(rng.normal(0, 0.25, n // 4), 4)
    change = np.abs(change)
    change[[4, 17, 31]] = (-0.22, -0.08, -0.41)
    outcome = Outcome("log_prob_diff", UNIT, before, before + change, groups)
    items = rng.random(200) < 0.42
    later = np.where(rng.random(200) < 0.04, ~items, items)

    def control(name, about, draws, mean, spread, p, beaten=True):
        effects = rng.normal(mean, spread, (draws, 1)) + rng.normal(0, 0.4, (draws, n))
        difference = Estimate.of(change - effects.mean(0), groups)
        return Control(name, about, effects, rng.uniform(0.028, 0.034, draws), difference, p, beaten)

    tasks = (("formality", 0.22, 0.12, "nats"), ("subject–verb agreement", -0.05, 0.1, "nats"))
    tasks += (
        ("refusal", -0.14, 0.15, "log odds"),
        ("capital cities", -0.02, 0.09, "nats"),
        ("past tense", 0.09, 0.1, "nats"),
    )
    entangled = []
    for task, shift, spread, unit in tasks:
        old = rng.normal(0.5, 1.4, 60)
        entangled.append(
            Entangled(
                task,
                Outcome("log_prob_diff", unit, old, old + 1.4 * shift + rng.normal(0, 0.3, 60)),
                Estimate(shift, shift - spread, shift + spread, 60),
            )
        )
    return Evaluation(
        outcome=outcome,
        effect=Estimate.of(change, groups),
        wrong_way=3 / n,
        kl=Estimate(0.0312, 0.0268, 0.0359, 24),
        neutral_tokens=12288,
        neutral_sources=24,
        perplexity=(21.37, 21.96),
        capability=Outcome("accuracy", "", items.astype(float), later.astype(float)),
        controls=(
            control("Random directions", "vectors of the same norm at the same site", 20, 0.02, 0.16, 1 / 21),
            control("Shuffled labels", "difference of means with the two sides tossed", 20, 0.05, 0.3, 1 / 21),
            control("Other places", "the same vector in a layer that did not validate", 10, 0.3, 0.12, 1 / 11),
        ),
        entangled=tuple(entangled),
        samples=tuple(Sample(*texts) for texts in _SAMPLES),
        prompt_only=Outcome("log_prob_diff", UNIT, before, before + rng.normal(0.55, 0.5, n), groups),
        figures={"balanced accuracy of a probe on held-out groups": Estimate(0.89, 0.84, 0.93, 40)},
    )
