"""Verify: the first places of any scores, put to the test by exact intervention, against random places like them.

Gradients, magnitudes and probes propose places, and some of these do nothing when one intervenes there (Hase et al.
2023, arXiv 2301.04213, on localisation that does not inform editing). Here each is patched exactly, next to random
units of its kind and layer; and a random sample of the places left behind says how many were missed (AtP* is audited in
this way: Kramár et al. 2024, arXiv 2403.00745).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.evaluate.intervening import Direction, How, Intervening, direction_of, window_of
from trimtab.evaluate.sweep import Exact, Progress
from trimtab.model.protocols import Dictionary
from trimtab.model.provenance import provenance
from trimtab.tasks.task import Task
from trimtab.values.findings import Candidate, Check, Estimate
from trimtab.values.scope import Scope
from trimtab.values.scores import AnyScores, By, Order, Scores, sized, spearman
from trimtab.values.shares import share_interval
from trimtab.values.site import Edge, Site
from trimtab.values.verification import AuditSample, Verification

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def verify(
    lm: LM,
    task: Task,
    scores: AnyScores,
    *,
    k: int = 10,
    controls: int = 3,
    audit: int = 0,
    method: How | None = None,
    direction: Direction | None = None,
    source: Task | None = None,
    by: By | None = None,
    exact: Exact = "fast",
    seed: int = 0,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Intervenes exactly at the `k` first places of scores, at random places like them, and at a sample of the rest.

    What scores say of windows of layers, as `causal_tracing` of `mlp_out` does, is tested in these windows.

    A unit is compared with other units of its layer at the same positions, none of them among the first where that can
    be helped; a place of which a layer has one with random directions, as long at each position as what is put there
    differs from what was there. It works where its effect's interval excludes zero, and the paired difference from its
    controls' mean effect does too.

    Args:
        task: the examples to test on, best a part that the scores have not seen.
        scores: over sites, of any method.
        controls: random places for each candidate.
        audit: how many of the other places are patched too, for the fraction that was missed: those whose effect is
            larger than the smallest of a candidate.
        method: "patching" puts the twin's activation there (counterfactual tasks, as `locate.patching`), "ablation"
            that of another example (as `locate.ablation` resamples, on the prompts that it was measured on), "shift"
            adds the mean difference of the two sides of `source` (as `locate.shift`); by default patching where the
            task allows it.
        direction: of patching, by default that of the scores: their own, or "noise" where they were computed on clean
            prompts, of which both say what is lost without a place, and "denoise" otherwise.
        source: what `shift` takes the difference from, such as the training part; by default the task itself.
        by: how the first are chosen, as in `Scores.top`: by default in the order that the scores have. With "high"
            effects are compared as they are, otherwise by size.
        seed: of controls and sample, and of an ablation's donors.

    Returns:
        A `Verification`, whose `false_positives` are the candidates that did no more than their controls.

    Raises TaskError for patching a contrast task, SiteError for attention scores, TrimtabError for scores of edges or
    without a value.

    >>> print(verify(lm, parts.validation, locate.attribution_patching(lm, parts.train, "L*.head")))  # doctest: +SKIP
    """
    how = _how(task, method)
    direction = _direction(scores, how, direction)
    _check_asked(scores, k, controls, audit)
    rng = np.random.default_rng(seed)
    places = _Places.of(lm, cast("Scores", scores), k, by, dictionaries or {})
    others = [places.like(site, controls, rng) for site in places.first]
    sample = [places.rest[i] for i in rng.permutation(len(places.rest))[:audit]]
    on, window = _on(scores, how, direction), window_of(scores)
    test = Intervening(
        lm, task, how, on, source or task, exact, batch_size, dictionaries, progress, window=window, seed=seed
    )
    found = test.at(list(dict.fromkeys([*places.first, *(site for part in others for site in part), *sample])))
    alone = [site for site, part in zip(places.first, others, strict=True) if not part]
    drawn = test.directions(alone, controls, rng)
    checks = []
    for rank, (site, part) in enumerate(zip(places.first, others, strict=True), 1):
        candidate = Candidate(str(site), site.unit, scores.method, places.score[site], rank)
        draws = np.stack([found[other] for other in part]) if part else drawn[site]
        checks.append(check(candidate, found[site], draws, task.groups))
    options = {"task": task.name, "proposed_by": scores.method, "k": k, "controls": controls, "audit": audit, "by": by}
    options |= {"method": how, "direction": direction, "window": window, "source": (source or task).name}
    return Verification(
        task.name,
        scores.method,
        how,
        direction,
        test.measured.unit,
        tuple(checks),
        controls,
        _agreement(places, found, [*places.first, *sample], scores.order, by),
        len(task),
        _audited(places, found, sample, by) if sample else None,
        provenance(lm, test.measured.prompts, "verify", options, seed=seed),
        window,
    )


def check(
    candidate: Candidate,
    moved: Float[np.ndarray, "example"],
    draws: Float[np.ndarray, "draw example"],
    groups: Sequence[str],
) -> Check:
    """A candidate's effect against its controls', each turned so that its own mean is positive."""
    effect = Estimate.of(moved, groups)
    turned = draws * np.where(draws.mean(1, keepdims=True) < 0, -1.0, 1.0)
    difference = Estimate.of(moved * (1.0 if effect.mean >= 0 else -1.0) - turned.mean(0), groups)
    works = effect.excludes_zero and difference.low > 0
    return Check(candidate, effect, Estimate.of(turned.mean(0), groups), difference, works)


@dataclass(frozen=True, eq=False)
class _Places:
    """The first places of some scores, the others, and what the scores say of each."""

    lm: LM
    first: list[Site]
    rest: list[Site]
    score: dict[Site, float]
    dictionaries: Mapping[str, Dictionary]

    @classmethod
    def of(cls, lm: LM, scores: Scores, k: int, by: By | None, dictionaries: Mapping[str, Dictionary]) -> _Places:
        spans = scores.options.get("spans")
        alone = spans[0] if isinstance(spans, list | tuple) and len(spans) == 1 else "all"

        def placed(site: Site) -> Site:
            return site if site.at is not None else site.with_(at=Scope.parse(str(alone)))

        means = scores.mean().ravel()
        score = {placed(site): float(mean) for site, mean in zip(scores.sites(), means, strict=True) if mean == mean}
        if not score:
            raise TrimtabError("these scores have no place with a value: there is nothing to verify")
        if wrong := [site for site in score if site.name in ("scores", "pattern")]:
            raise SiteError(f"{wrong[0]}: attention has a number for each key and no units; score the head's output")
        first = [placed(site) for site in scores.top(k, by)]
        chosen = set(first)
        return cls(lm, first, [site for site in score if site not in chosen], score, dictionaries)

    def like(self, site: Site, draws: int, rng: np.random.Generator) -> list[Site]:
        """Random other units of the same layer at the same positions; none for a place that has no units."""
        if site.index is None:
            return []
        own, n = set(site.index), self._units(site)
        taken = {
            i for other in self.first if other.with_(index=None) == site.with_(index=None) for i in other.index or ()
        }
        free = [i for i in range(n) if i not in taken] or [i for i in range(n) if i not in own]
        if len(free) < len(own):
            return []  # no units are left to compare with: random directions are
        picks = dict.fromkeys(tuple(sorted(rng.permutation(free)[: len(own)].tolist())) for _ in range(4 * draws))
        return [site.with_(index=pick) for pick in list(picks)[:draws]]

    def _units(self, site: Site) -> int:
        if site.view != "feature":
            return self.lm.shape(site.base)[0]
        d = int(np.prod(self.lm.shape(site.base)))
        dictionary = self.dictionaries.get(site.dictionary or "")
        if dictionary is None:
            raise SiteError(f'{site}: no dictionary named "{site.dictionary}" was given: give dictionaries={{…}}')
        return dictionary.encode(torch.zeros(1, 1, d, dtype=self.lm.dtype, device=self.lm.device)).shape[-1]


def _agreement(
    places: _Places, found: Mapping[Site, np.ndarray], looked_at: Sequence[Site], order: Order, by: By | None
) -> float:
    """The rank correlation of what the scores say of places with the exact effects; NaN for a single place."""
    proposed = sized(np.array([places.score[site] for site in looked_at]), order if by is None else by)
    exactly = sized(np.array([found[site].mean() for site in looked_at]), "high" if by in ("high", "value") else "abs")
    return spearman(proposed, exactly) if len(looked_at) > 1 else float("nan")


def _audited(places: _Places, found: Mapping[Site, np.ndarray], sample: Sequence[Site], by: By | None) -> AuditSample:
    def size(site: Site) -> float:
        mean = float(found[site].mean())
        return mean if by in ("high", "value") else abs(mean)

    kth, rest = min(map(size, places.first)), len(places.rest)
    missed = sorted((site for site in sample if size(site) > kth), key=size, reverse=True)
    effects = tuple(float(found[site].mean()) for site in sample)
    low, high = share_interval(len(missed), len(sample), of=rest)
    return AuditSample(rest, kth, tuple(map(str, sample)), effects, tuple(map(str, missed)), low, high)


def _check_asked(scores: AnyScores, k: int, controls: int, audit: int) -> None:
    if k < 1 or controls < 1 or audit < 0:
        raise TrimtabError(f"k and controls are at least 1 and audit at least 0, got {k}, {controls} and {audit}")
    if any(isinstance(place, Edge) for place in scores.sites()):
        raise TrimtabError(
            "verify tests sites, and these scores are of edges: verify their senders, or patch the paths"
        )


def _on(scores: AnyScores, how: How, direction: Direction | None) -> Literal["clean", "corrupt"]:
    """Where the number is read: an ablation's where that of the scores was."""
    if how == "ablation":
        return "corrupt" if scores.options.get("on") == "corrupt" else "clean"
    return "clean" if direction == "noise" else "corrupt"


def _how(task: Task, method: str | None) -> How:
    if method not in (None, "patching", "ablation", "shift"):
        raise TrimtabError(f'method is "patching", "ablation" or "shift", got {method!r}')
    if method == "patching" and task.shape != "counterfactual":
        raise TaskError(
            f"{task.name} has contrast examples, whose sides do not correspond token by token, and nothing can be "
            'patched: verify with method="shift" or "ablation"'
        )
    return method or ("patching" if task.shape == "counterfactual" else "shift")


def _direction(scores: AnyScores, how: How, direction: Direction | None) -> Direction | None:
    if direction not in (None, "denoise", "noise"):
        raise TrimtabError(f'direction is "denoise" or "noise", got {direction!r}')
    if how == "ablation":
        if direction is not None:
            raise TrimtabError("ablation loses what a place says and has no direction: leave it out")
        return None
    if how == "shift":
        if direction == "noise":
            raise TrimtabError("shift adds to corrupt prompts or questions and has no direction: leave it out")
        return None
    return direction or direction_of(scores)
