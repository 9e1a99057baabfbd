"""The control of shuffled labels: the same screen and the same search on pairs that were swapped at random.

A vector of shuffled labels at the place that true labels chose would be a weak control: the place, the scope and the
sign of the picked intervention were chosen for their effect. So every draw chooses too. Its places are those where
its own mean difference, times the gradient of the task's number, promises most; then difference of means (or scaling,
where that was picked) is tried there at the same scopes on the validation part, and the one of most effect at equal KL
is the draw's.

Exactly half of the pairs are swapped. With coins that may fall unevenly something of the true difference would remain
in every draw, and the choice of its sign would find it again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trimtab.evaluate.effect import effects
from trimtab.evaluate.side_effects import side_effects
from trimtab.steer.amplitude import scale
from trimtab.steer.vectors import vector_edits
from trimtab.studies.context import WIDE, Context
from trimtab.studies.search import UNITS
from trimtab.tasks.means import MeanDifference, mean_difference
from trimtab.tasks.measure import measure
from trimtab.values.edit import Intervention
from trimtab.values.site import Site

ROWS = 16
"""Questions in a backward pass."""
PASSAGES, TOKENS = 2, 40
"""Neutral text on which a draw's proposals are compared; `match_kl` measures the chosen one on more."""


def shuffled_draws(
    context: Context, draws: int, coefficient: float, target: float, seed: int, *, vectors: bool = True
) -> list[Intervention]:
    """For each draw of swapped labels, the intervention that the study would have come to, not yet at `target` KL.

    `vectors`: whether the picked intervention adds vectors; a scaling is compared with scalings, whose places come from
    the labels and whose direction does not. `coefficient` is that of the picked vector; `target` nats of KL per token
    make proposals comparable, as an effect grows with a small strength and KL with its square.
    """
    rng = np.random.default_rng(seed)
    every = [f"L*.{kind}" for kind in context.settings.objects]
    means = mean_difference(context.lm, context.parts.train, every)
    slopes = gradients(context, list(means))
    proposed: list[list[Intervention]] = []
    for _ in range(draws):
        signs = np.where(np.arange(len(means)) % 2 == 0, 1.0, -1.0)
        rng.shuffle(signs)
        proposed.append(_proposals(context, means, slopes, signs, coefficient, vectors))
    flat = [proposal for part in proposed for proposal in part]
    gain = effects(context.lm, context.validation, flat).changes.mean(1)
    length = min(context.settings.search_tokens, TOKENS)
    kl = side_effects(context.lm, flat, context.passages[:PASSAGES], length=length).kl.mean(1)
    chosen, start = [], 0
    for part in proposed:
        here = slice(start, start + len(part))
        start += len(part)
        turned = [all(edit.op == "add" for edit in proposal.edits) for proposal in part]
        worth = np.where(turned, np.abs(gain[here]), gain[here]) * np.sqrt(target / np.maximum(kl[here], 1e-9))
        best = int(np.argmax(worth))
        sign = -1.0 if turned[best] and gain[here][best] < 0 else 1.0
        chosen.append((part[best] * sign).with_(name="shuffled labels"))
    return chosen


def gradients(context: Context, sites: list[Site]) -> Mapping[Site, np.ndarray]:
    """The gradient of the task's number on the train part at each site, summed over positions, mean over examples."""
    made = measure(context.lm, context.parts.train, on="gap")
    total: dict[Site, np.ndarray] = {}
    for start in range(0, made.prompts.batch, ROWS):
        rows = list(range(start, min(start + ROWS, made.prompts.batch)))
        found = context.lm.gradients(made.prompts.rows(rows, trim=True), made.readout.of_rows(rows), sites)
        for site in sites:
            part = found.gradients[site].sum((0, 1)).double().cpu().numpy() / len(made)
            total[site] = total[site] + part if site in total else part
    return total


def _proposals(
    context: Context,
    means: MeanDifference,
    slopes: Mapping[Site, np.ndarray],
    signs: np.ndarray,
    coefficient: float,
    vectors: bool,
) -> list[Intervention]:
    """What the search would try with these labels, vectors or scalings, at the places that promise most."""
    settings = context.settings
    places: list[list[Site]] = []
    promise: dict[str, list[tuple[float, Site]]] = {kind: [] for kind in settings.objects}
    for site in means:
        product = slopes[site] * means.difference(site, signs)
        if site.name in WIDE:
            promise[site.name].append((abs(float(product.sum())), site))
            continue
        units = np.abs(product.reshape(len(product), -1).sum(1))
        best = np.argsort(-units, kind="stable")[: settings.candidates]
        promise[site.name] += [(float(units[unit]), site.with_(index=(int(unit),))) for unit in best]
    for kind, found in promise.items():
        found.sort(key=lambda pair: -pair[0])
        if kind in WIDE:
            places += [[site] for _, site in found[: settings.sites]]
        else:
            places.append([site for _, site in found[: min(settings.candidates, UNITS)]])
    made: list[Intervention] = []
    for place in places:
        if vectors:
            made += [
                Intervention(tuple(vector_edits(means, place, strength=coefficient, where=scope, signs=signs)))
                for scope in settings.scopes
            ]
        elif place[0].name not in WIDE:
            made += [scale(place, factor) for factor in settings.factors]
    return made
