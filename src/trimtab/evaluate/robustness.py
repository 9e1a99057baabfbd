"""Robustness of a concept's vector: every method that makes it, at every layer and strength, beside random directions.

Vectors are made from the train part and measured on another. What the methods are is not known here: each is a function
that is given a model, a task and sites. The checks follow Tan et al. 2024 (arXiv 2407.12404).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trimtab.errors import EditError, PromptError, SiteError, TaskError
from trimtab.evaluate import texts
from trimtab.evaluate.controls import change_norms, match_kl, random_directions
from trimtab.evaluate.effect import effects
from trimtab.evaluate.places import Spot, parts_of, places
from trimtab.evaluate.side_effects import side_effects
from trimtab.evaluate.texts import Passage
from trimtab.model.provenance import provenance
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Parts, Task
from trimtab.values.edit import Affine, Intervention
from trimtab.values.robustness import Robustness
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Make = Callable[..., Intervention]
"""(lm, task, sites) -> the intervention at strength 1, as the vector methods of `steer` are."""
Vector = dict[Site, np.ndarray]
PASSAGES = 8
ROUNDS, READ = 6, 2
"""Rounds in which random directions are set to the KL of what adds nothing, and passages on which is read how much that
changes: a direction of that norm is where they begin."""


def robustness(
    lm: LM,
    task: Task | Parts,
    makes: Mapping[str, Make],
    sites: Spot | Iterable[Spot],
    coefficients: Sequence[float] = (0.5, 1.0, 2.0),
    *,
    on: Literal["validation", "test"] = "test",
    limit: float = 0.3,
    draws: int = 10,
    train: int = 64,
    examples: int = 48,
    passages: Sequence[Passage] | None = None,
    length: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Robustness:
    """Effect, anti-steerable examples, KL, agreement and random directions, for every method at every place.

    Args:
        task: a task, which is split by whole groups, or parts that share none; vectors are made from the train part.
        makes: methods by name, each `(lm, task, sites) -> Intervention` at strength 1.
        sites: addresses; each site as wide as the residual stream is a place of its own, the units that one address
            names are one place, and "A + B" takes sites together.
        coefficients: of each vector. Comparisons between methods are at the largest one within `limit` nats of KL per
            token, which is chosen by its cost alone.
        on: the part that is measured.
        draws: random directions for each method and place, each tried with both signs; 0 leaves them out. Where a
            method adds no vector they are set to its KL on the same passages: look at `missed`.
        train, examples: of the two parts at most.
        passages: neutral text, by default ours for searching; `length` tokens of each are read.
        progress: called with steps done and steps in all.

    Raises EditError without methods or coefficients, TaskError for parts that leak.

    >>> from trimtab import steer
    >>> methods = {"means": steer.difference_of_means, "reading": steer.reading_vector}
    >>> robustness(lm, task, methods, "L8-20.resid_post").summary()  # doctest: +SKIP
    """
    if not makes or not coefficients:
        raise EditError("robustness needs at least one method and one coefficient")
    parts, where = parts_of(task, seed), places(lm, sites)
    source = parts.train.take(train, seed)
    measured = measure(lm, getattr(parts, on).take(examples, seed), on="gap")
    text = texts.part("search")[:PASSAGES] if passages is None else passages
    wanted = tuple(float(c) for c in coefficients)
    total = len(makes) * len(where) + 2
    left_out: dict[str, str] = {}
    made: dict[tuple[int, int], Intervention] = {}
    for m, (name, make) in enumerate(makes.items()):
        for s, place in enumerate(where):
            try:
                made[m, s] = make(lm, source, [str(site) for site in place.sites])
            except (SiteError, EditError, TaskError, PromptError) as error:
                left_out[f"{name} at {place.label}"] = str(error).splitlines()[0]
            if progress is not None:
                progress(m * len(where) + s + 1, total)
    variants = [base * c for base in made.values() for c in wanted]
    if not variants:
        raise EditError(f"no method fits any of the places: {next(iter(left_out.values()))}")
    shape = (len(makes), len(where), len(wanted))
    changes, kl = np.full((*shape, len(measured)), np.nan), np.full(shape, np.nan)
    found = effects(lm, measured, variants).changes
    cost = side_effects(lm, variants, text, length=length).kl.mean(1)
    for i, key in enumerate(made):
        part = slice(i * len(wanted), (i + 1) * len(wanted))
        changes[key], kl[key] = found[part], cost[part]
    if progress is not None:
        progress(total - 1, total)
    options: dict[str, Any] = {"task": measured_name(parts, on), "methods": list(makes), "limit": limit}
    options |= {"sites": [place.label for place in where], "coefficients": list(wanted), "draws": draws, "on": on}
    value = Robustness(
        options["task"],
        measured.unit,
        tuple(makes),
        tuple(place.label for place in where),
        wanted,
        changes,
        kl,
        cosines(lm, made, len(makes), len(where)),
        np.full(shape[:2], np.nan),
        draws,
        limit,
        measured.groups,
        left_out,
        provenance(lm, measured.prompts, "robustness", options, seed=seed),
    )
    if draws:
        beaten, random_kl = _beaten(lm, measured, value, made, text, length, draws, seed)
        value = value.with_(beaten=beaten, random_kl=random_kl)
    if progress is not None:
        progress(total, total)
    return value


def measured_name(parts: Parts, on: str) -> str:
    """The name of the part that is measured."""
    return getattr(parts, on).name


def cosines(lm: LM, made: Mapping[tuple[int, int], Intervention], methods: int, sites: int) -> np.ndarray:
    """(site, method, method) the cosine of two methods' vectors; NaN where one of them has none."""
    found = np.full((sites, methods, methods), np.nan)
    vectors = {key: vector_of(lm, intervention) for key, intervention in made.items()}
    for (m, s), one in vectors.items():
        for (n, t), other in vectors.items():
            if s == t and one and other:
                found[s, m, n] = _cosine(one, other)
    return found


def vector_of(lm: LM, intervention: Intervention) -> Vector:
    """What an intervention adds to each whole site, or the one direction that it ablates; empty where it does neither.

    Units that it leaves alone have zeros.
    """
    found: Vector = {}
    for edit in intervention.edits:
        whole, shape = edit.site.whole, lm.shape(edit.site.whole)
        if isinstance(edit.value, Affine) and edit.value.A is not None and len(edit.value.A) == 1:
            value = edit.value.A[0].reshape(-1)
        elif edit.op == "add" and isinstance(edit.value, np.ndarray):
            value = edit.value * np.mean(edit.strength)
        else:
            continue
        into = found.setdefault(whole, np.zeros(shape))
        if edit.site.index is None:
            into += np.broadcast_to(value.reshape(shape) if value.size == into.size else value, shape)
        else:
            units = list(edit.site.index)
            into[units] += np.broadcast_to(value, into[units].shape)
    return found


def _cosine(one: Vector, other: Vector) -> float:
    size = float(np.sqrt(_dot(one, one) * _dot(other, other)))
    return _dot(one, other) / size if size > 0 else np.nan


def _dot(one: Vector, other: Vector) -> float:
    return float(sum((one[site] * other[site]).sum() for site in one if site in other))


def _beaten(
    lm: LM,
    measured: Measure,
    value: Robustness,
    made: Mapping[tuple[int, int], Intervention],
    passages: Sequence[Passage],
    length: int,
    draws: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(method, site) the share of random directions that do less than the method at its chosen coefficient, and
    (method, site, draw) the KL that each came to where KL was matched."""
    shares, came = np.full(value.beaten.shape, np.nan), np.full((*value.beaten.shape, draws), np.nan)
    for (m, s), base in made.items():
        chosen = value.chosen(m, s)
        if chosen is None or not base.edits:
            continue
        picked = base * value.coefficients[chosen]
        shapes = [_shape(lm, edit.site) for edit in picked.edits]
        matched, norms, kl = any(edit.op != "add" for edit in picked.edits), None, np.full(2 * draws, np.nan)
        target = float(value.kl[m, s, chosen])
        if matched and not target > 0:
            continue
        if matched:
            norms = change_norms(lm, picked, passages[:READ], length=length)
        drawn = random_directions(picked, shapes, draws, seed + 1 + m * len(value.sites) + s, norms=norms)
        both = [*drawn, *(draw * -1.0 for draw in drawn)]
        if matched:
            both, kl = match_kl(lm, both, target, passages, length=length, rounds=ROUNDS)
            kl = np.nan_to_num(kl, nan=np.inf)
        gain = np.nan_to_num(effects(lm, measured, both).changes.mean(1), nan=-np.inf)
        turned = gain[draws:] > gain[:draws]
        best = np.where(turned, gain[draws:], gain[:draws])
        shares[m, s] = float((best < value.effect(m, s).mean).mean())
        came[m, s] = np.where(turned, kl[draws:], kl[:draws])
    return shares, came


def _shape(lm: LM, site: Site) -> tuple[int, ...]:
    whole = lm.shape(site.whole)
    return whole if site.index is None else (len(site.index), *whole[1:])
