"""One cell of the table of methods and tasks: an intervention found on train and validation part, judged on the test
part.

Every method gets the same: places and coefficients of its own short list, two scopes, one limit of KL, one rule. What
is found is plain numbers, so that a cell can be kept as a line of JSON. Six random directions have no rank worth a p
(it could not fall below 1/7): their mean, their least and most, and the difference from their mean are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.evaluate import texts
from trimtab.evaluate.controls import change_norms, match_kl, random_directions
from trimtab.evaluate.effect import effects
from trimtab.evaluate.instruction import measured_with_instruction
from trimtab.evaluate.propensity import propensity
from trimtab.evaluate.side_effects import SideEffects, side_effects
from trimtab.model.lm import LM
from trimtab.steer.search import search
from trimtab.tasks import builtin
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Parts
from trimtab.values.edit import Intervention
from trimtab.values.entanglement import NEAR
from trimtab.values.findings import Estimate
from trimtab.values.propensity import share_below

PROMPT_ONLY = "prompt only"
LIMIT = 0.3
"""Nats of KL per token that a pick may cost on the text of the search."""
NO_EFFECT = f"no effect above zero within {LIMIT:g} nats of KL"
"""Why a cell is left out in which the search picked nothing."""
WIDE = ("L10.resid_post", "L14.resid_post", "L18.resid_post")
MATCHED, ROUNDS = 4, 6
"""Passages of the search on which random directions are set to the KL that the pick has on the same ones, and in how
many rounds at most."""
SUBLAYERS = ("L4.mlp_out", "L12.mlp_out", "L12.attn_out", "L20.attn_out")


@dataclass(frozen=True)
class Row:
    """A method of the table: where its function is, what it is told, and what is tried."""

    function: str
    sites: tuple[str, ...] = WIDE
    coefficients: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    scopes: tuple[str, ...] = ("all", "-1:")
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Callable[..., Intervention]:
        module, _, name = self.function.rpartition(".")
        return getattr(import_module(f"trimtab.steer.{module}"), name)


ROWS: dict[str, Row] = {
    "difference of means": Row("vectors.difference_of_means"),
    "difference of means, heads": Row("vectors.difference_of_means", ("L6-11.head", "L12-17.head", "L18-23.head")),
    "reading vector (PCA)": Row("reading_vector.reading_vector"),
    "probe, logistic": Row("probe_direction.probe_direction"),
    "probe, LDA": Row("probe_direction.probe_direction", options={"probe": "lda"}),
    "inference-time intervention": Row(
        "iti.inference_time_intervention", ("L*.head",), (0.2, 0.4, 0.7, 1.0), options={"folds": 3}
    ),
    "angular steering": Row("angular.angular_steering", coefficients=(0.1, 0.25, 0.5, 1.0)),
    "linear transport": Row("transport.linear_transport", coefficients=(0.25, 0.5, 1.0, 1.5)),
    "K-steering": Row("k_steering.k_steering"),
    "LoReFT": Row("reft.loreft", WIDE[:2], (0.5, 1.0), ("all",), {"epochs": 5}),
    "ReFT-r1": Row("reft.reft_r1", WIDE[:2], (0.5, 1.0, 1.5), ("all",), {"epochs": 5}),
    "directional ablation": Row("directional.directional_ablation", coefficients=(0.5, 1.0)),
    "directional amplification (λ < 0)": Row("directional.directional_ablation", coefficients=(-0.2, -0.1)),
    "scaling of sublayers": Row("amplitude.scale", SUBLAYERS, (0.0, 0.5, 1.5, 2.0), ("all",)),
}
TASKS = ("sentiment", "truth", "formality", "language", "refusal", "sycophancy")


@dataclass(frozen=True)
class Sizes:
    """How much each cell reads, at most: examples of each part, passages and their tokens."""

    train: int = 48
    validation: int = 24
    test: int = 48
    passages: int = 4
    length: int = 48
    test_passages: int = 12
    test_length: int = 128
    draws: int = 6
    places: int = 4
    seed: int = 0


QUICK = Sizes(train=8, validation=4, test=4, passages=2, length=24, test_passages=2, test_length=24, draws=2, places=1)


def parts_of(lm: LM, task: str, sizes: Sizes) -> Parts:
    return fit(lm, builtin.task(task)).task.split(sizes.seed)


def cell(lm: LM, parts: Parts, row: Row, sizes: Sizes) -> dict[str, Any]:
    """A method on a task: what was picked, and its numbers on the test part beside random directions; or why not."""
    began = time.monotonic()
    make = row.load()
    name = getattr(make, "__name__", "method")
    passages = texts.part("search")[: sizes.passages]
    places, scopes = row.sites[: sizes.places], row.scopes if sizes.places > 1 else row.scopes[:1]
    try:
        found = search(
            lm,
            parts,
            methods=[make],
            sites=places,
            coefficients=row.coefficients,
            factors=row.coefficients,
            scopes=scopes,
            capability=False,
            limit=LIMIT,
            options={name: row.options},
            train=sizes.train,
            validation=sizes.validation,
            passages=passages,
            length=sizes.length,
            data_seed=sizes.seed,
        )
    except TrimtabError as error:
        return {"left_out": str(error).splitlines()[0], "seconds": time.monotonic() - began}
    point = found.point
    if point is None:
        return {"left_out": NO_EFFECT, "seconds": time.monotonic() - began}
    numbers = judged(lm, parts, found.intervention, passages, sizes)
    picked = {"site": point.site, "scope": point.scope, "coefficient": point.coefficient}
    return picked | numbers | {"seconds": time.monotonic() - began}


def judged(
    lm: LM, parts: Parts, picked: Intervention, passages: tuple[texts.Passage, ...], sizes: Sizes
) -> dict[str, Any]:
    """The numbers of an intervention on the test part."""
    task = parts.test.take(sizes.test, sizes.seed)
    found = propensity(lm, task, picked, coefficients=(0.0, 0.5, 1.0))
    test = measure(lm, task, on="gap")
    effect = effects(lm, test, [picked])
    change = effect.changes[0]
    text = texts.part("test")[: sizes.test_passages]
    cost = side_effects(lm, [picked], text, length=sizes.test_length)
    numbers = {
        "effect": _plain(Estimate.of(change, effect.groups)),
        "unit": effect.unit,
        "anti_steerable": _plain(found.anti_steerable),
        "kl": _plain(Estimate.of(cost.kl[0])),
        "perplexity": perplexity(cost),
        "base_perplexity": float(np.exp(cost.base_nll.mean())),
    }
    return numbers | _random(lm, parts, picked, test, change, passages, sizes)


def perplexity(cost: SideEffects) -> list[float]:
    """The perplexity and the ends of its interval, which is that of the mean over passages."""
    nll = Estimate.of(cost.nll[0])
    return [float(np.exp(value)) for value in (nll.mean, nll.low, nll.high)]


def _random(
    lm: LM,
    parts: Parts,
    picked: Intervention,
    test: Measure,
    change: np.ndarray,
    passages: tuple[texts.Passage, ...],
    sizes: Sizes,
) -> dict[str, Any]:
    """Random directions at the same sites and KL, the sign of each picked on the validation part."""
    passages = passages[:MATCHED]
    target = float(side_effects(lm, [picked], passages, length=sizes.length).kl.mean())
    if not target > 0:
        return {"random": None}
    shapes = [
        lm.shape(e.site.whole) if e.site.index is None else (len(e.site.index), *lm.shape(e.site.whole)[1:])
        for e in picked.edits
    ]
    norms = change_norms(lm, picked, passages[:1], length=sizes.length)
    drawn = random_directions(picked, shapes, sizes.draws, sizes.seed + 1, norms=norms)
    up, kl_up = match_kl(lm, drawn, target, passages, length=sizes.length, rounds=ROUNDS)
    down, kl_down = match_kl(lm, [d * -1.0 for d in up], target, passages, length=sizes.length, rounds=ROUNDS)
    validation = measure(lm, parts.validation.take(sizes.validation, sizes.seed), on="gap")
    gain = np.nan_to_num(effects(lm, validation, [*up, *down]).changes.mean(1), nan=-np.inf)
    turned = gain[len(up) :] > gain[: len(up)]
    chosen = [d if turn else u for u, d, turn in zip(up, down, turned, strict=True)]
    kl = np.where(turned, kl_down, kl_up)
    moved = effects(lm, test, chosen).changes
    means = moved.mean(1)
    return {
        "random": [float(means.mean()), float(means.min()), float(means.max())],
        "beyond_random": _plain(Estimate.of(change - moved.mean(0), test.groups)),
        "random_kl": [float(value) if np.isfinite(value) else None for value in kl],
        "wanted_kl": target,
        "missed": int((~(np.abs(kl / target - 1) <= NEAR)).sum()),
    }


def prompt_only(lm: LM, parts: Parts, sizes: Sizes) -> dict[str, Any]:
    """The task's instruction in place of an intervention; the model and its text are as they were."""
    began = time.monotonic()
    task = parts.test.take(sizes.test, sizes.seed)
    try:
        asked = effects(lm, measured_with_instruction(lm, task), [Intervention()]).base
    except TrimtabError as error:
        return {"left_out": str(error).splitlines()[0], "seconds": time.monotonic() - began}
    plain = effects(lm, measure(lm, task, on="gap"), [Intervention()])
    change = asked - plain.base
    cost = side_effects(lm, [Intervention()], texts.part("test")[: sizes.test_passages], length=sizes.test_length)
    return {
        "effect": _plain(Estimate.of(change, plain.groups)),
        "unit": plain.unit,
        "anti_steerable": _plain(share_below(change, plain.groups)),
        "kl": None,
        "perplexity": perplexity(cost),
        "base_perplexity": float(np.exp(cost.base_nll.mean())),
        "seconds": time.monotonic() - began,
    }


def _plain(estimate: Estimate) -> list[float | None]:
    """Mean and ends, None for what is no number."""
    known = asdict(estimate)
    return [known[name] if np.isfinite(known[name]) else None for name in ("mean", "low", "high")]
