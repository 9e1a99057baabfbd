"""Robustness of a concept's vector: every method that makes it, at every layer and strength, beside random directions.

Vectors are made from the train part and measured on another. What the methods are is not known here: each is a function
that is given a model, a task and sites. The checks follow Tan et al. 2024 (arXiv 2407.12404).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import EditError
from trimtab.evaluate import texts
from trimtab.evaluate.bench import Bench
from trimtab.evaluate.controls import change_norms, match_kl, random_directions, shapes_of
from trimtab.evaluate.places import MISFITS, Place, Spot, parts_of, places
from trimtab.evaluate.texts import Passage
from trimtab.model.provenance import provenance
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Parts, Task
from trimtab.values.edit import Affine, Intervention
from trimtab.values.robustness import Robustness
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Make = Callable[..., Intervention]
"""(lm, task, sites) -> the intervention at strength 1, as the vector methods of `steer` are."""
Made = dict[tuple[int, int], Intervention]
"""Interventions by the numbers of their method and their place."""
Vector = dict[Site, np.ndarray]
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
    part, wanted = getattr(parts, on), tuple(map(float, coefficients))
    measured = measure(lm, part.take(examples, seed), on="gap")
    bench = Bench(lm, measured, texts.search_passages(passages), None, length)
    total = len(makes) * len(where) + 2

    def told(done: int) -> None:
        if progress is not None:
            progress(done, total)

    made, left_out = _made(lm, parts.train.take(train, seed), makes, where, told)
    changes, kl = _measured(bench, made, wanted, (len(makes), len(where)))
    told(total - 1)
    labels = tuple(place.label for place in where)
    options: dict[str, Any] = {"task": part.name, "methods": list(makes), "limit": limit, "sites": list(labels)}
    options |= {"coefficients": list(wanted), "draws": draws, "on": on}
    value = Robustness(
        part.name,
        measured.unit,
        methods=tuple(makes),
        sites=labels,
        coefficients=wanted,
        effects=changes,
        kl=kl,
        cosines=cosines(lm, made, len(makes), len(where)),
        beaten=np.full((len(makes), len(where)), np.nan),
        draws=draws,
        limit=limit,
        groups=measured.groups,
        left_out=left_out,
        provenance=provenance(lm, measured.prompts, "robustness", options, seed=seed),
    )
    if draws:
        beaten, random_kl = _beaten(bench, value, made, seed)
        value = value.with_(beaten=beaten, random_kl=random_kl)
    told(total)
    return value


def _made(
    lm: LM, train: Task, makes: Mapping[str, Make], where: Sequence[Place], told: Callable[[int], None]
) -> tuple[Made, dict[str, str]]:
    """Every method's intervention at every place, and why some have none. EditError where none has any."""
    made: Made = {}
    left_out: dict[str, str] = {}
    cells = product(enumerate(makes.items()), enumerate(where))
    for done, ((m, (name, make)), (s, place)) in enumerate(cells, 1):
        try:
            made[m, s] = make(lm, train, [str(site) for site in place.sites])
        except MISFITS as error:
            left_out[f"{name} at {place.label}"] = str(error).splitlines()[0]
        told(done)
    if not made:
        raise EditError(f"no method fits any of the places: {next(iter(left_out.values()))}")
    return made, left_out


def _measured(
    bench: Bench, made: Made, coefficients: Sequence[float], shape: tuple[int, int]
) -> tuple[Float[np.ndarray, "method site coefficient example"], Float[np.ndarray, "method site coefficient"]]:
    """The change of the task's number and the KL of every intervention at every coefficient; NaN where there is
    none."""
    many = len(coefficients)
    changes = np.full((*shape, many, len(bench.measured)), np.nan)
    kl = np.full((*shape, many), np.nan)
    variants = [base * c for base in made.values() for c in coefficients]
    found, cost = bench.effects(variants).changes, bench.kl(variants)
    for i, cell in enumerate(made):
        changes[cell], kl[cell] = found[i * many : (i + 1) * many], cost[i * many : (i + 1) * many]
    return changes, kl


def cosines(lm: LM, made: Made, methods: int, sites: int) -> Float[np.ndarray, "site method method"]:
    """The cosine of two methods' vectors; NaN where one of them has none."""
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
    bench: Bench, value: Robustness, made: Made, seed: int
) -> tuple[Float[np.ndarray, "method site"], Float[np.ndarray, "method site draw"]]:
    """The share of random directions that do less than the method at its chosen coefficient, and the KL that each came
    to where KL was matched; each with the sign that does more."""
    draws = value.draws
    shares, came = np.full(value.beaten.shape, np.nan), np.full((*value.beaten.shape, draws), np.nan)
    for (m, s), base in made.items():
        chosen = value.chosen(m, s)
        if chosen is None or not base.edits:
            continue
        picked, target = base * value.coefficients[chosen], float(value.kl[m, s, chosen])
        drawn, kl = _directions(bench, picked, target, draws, seed + 1 + m * len(value.sites) + s)
        if not drawn:
            continue
        gain = np.nan_to_num(bench.effects(drawn).changes.mean(1), nan=-np.inf)
        turned = gain[draws:] > gain[:draws]
        best = np.where(turned, gain[draws:], gain[:draws])
        shares[m, s] = float((best < value.effect(m, s).mean).mean())
        came[m, s] = np.where(turned, kl[draws:], kl[:draws])
    return shares, came


def _directions(
    bench: Bench, picked: Intervention, target: float, draws: int, seed: int
) -> tuple[list[Intervention], Float[np.ndarray, "variant"]]:
    """Random directions in the place of an intervention, then their opposites, and the KL that each was brought to.

    Those in the place of added vectors have their norm, and NaN for a KL. Others are set to the KL `target`, and there
    are none where that is 0.
    """
    lm, shapes = bench.lm, shapes_of(bench.lm, picked)
    if all(edit.op == "add" for edit in picked.edits):
        drawn = random_directions(picked, shapes, draws, seed)
        return _both_signs(drawn), np.full(2 * draws, np.nan)
    if not target > 0:
        return [], np.empty(0)
    norms = change_norms(lm, picked, bench.passages[:READ], length=bench.length)
    drawn = random_directions(picked, shapes, draws, seed, norms=norms)
    both, kl = match_kl(lm, _both_signs(drawn), target, bench.passages, length=bench.length, rounds=ROUNDS)
    return both, np.nan_to_num(kl, nan=np.inf)


def _both_signs(drawn: Sequence[Intervention]) -> list[Intervention]:
    return [*drawn, *(draw * -1.0 for draw in drawn)]
