"""Entanglement: whether steering one trait moves others, every intervention set to the same KL on neutral text.

Without the match a strong vector would look entangled and a weak one clean; without random directions at the same KL
nobody could say which effects any push of that size has. Effects are in standard deviations of each task's own number,
as in a study's row of other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import EditError, PromptError, TaskError
from trimtab.evaluate import texts
from trimtab.evaluate.controls import match_kl, random_directions
from trimtab.evaluate.effect import effects
from trimtab.evaluate.texts import Passage
from trimtab.model.provenance import provenance
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.entanglement import Entanglement, near
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

PASSAGES = 8


def entanglement(
    lm: LM,
    interventions: Mapping[str, Intervention],
    tasks: Mapping[str, Task],
    *,
    kl: float = 0.1,
    draws: int = 5,
    examples: int = 32,
    passages: Sequence[Passage] | None = None,
    length: int = 64,
    rounds: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Entanglement:
    """The effect of every trait's intervention on every trait's task, at `kl` nats per token.

    Args:
        interventions: by trait; each is scaled to the wanted KL, its sign kept.
        tasks: by trait, under the same names where a trait has both; best parts that no intervention was made from.
        draws: random directions at the sites of the interventions in turn, set to the same KL: what any push of that
            size does; 0 leaves them out.
        examples: of each task at most.
        passages: neutral text on which KL is matched, by default ours for searching; `length` tokens of each.
        rounds: of the match at most.
        seed: of the examples and the random directions.
        progress: called with steps done and in all: the match, then each task.

    Returns:
        An `Entanglement`; look at `matched_well`, since an intervention without any effect cannot be matched.

    Raises EditError without interventions or tasks, and for draws below 0. Tasks that this model cannot be measured on
    are left out.

    >>> entanglement(
    ...     lm, {"sentiment": praise, "truth": true}, {"sentiment": one, "truth": other}
    ... ).plot()  # doctest: +SKIP
    """
    if not interventions or not tasks:
        raise EditError("entanglement needs interventions and tasks, each by the name of its trait")
    if draws < 0:
        raise EditError(f"draws is how many random directions there are, 0 or more, got {draws}")
    total = 1 + len(tasks)
    text = texts.part("search")[:PASSAGES] if passages is None else passages
    listed = [Intervention.of(intervention) for intervention in interventions.values()]
    matched, found_kl = match_kl(lm, listed, kl, text, length=length, rounds=rounds)
    bases = [made for made, well in zip(matched, near(found_kl, kl), strict=True) if well and made.edits]
    drawn = _drawn(lm, bases, draws, seed)
    drawn, random_kl = match_kl(lm, drawn, kl, text, length=length, rounds=rounds)
    if progress is not None:
        progress(1, total)
    base: dict[str, np.ndarray] = {}
    changes: dict[str, np.ndarray] = {}
    random: dict[str, np.ndarray] = {}
    groups: dict[str, tuple[str, ...]] = {}
    units: dict[str, str] = {}
    left_out: dict[str, str] = {}
    prompts = None
    for done, (name, task) in enumerate(tasks.items(), 2):
        try:
            measured = measure(lm, task.take(examples, seed), on="gap")
        except (TaskError, PromptError) as error:  # its words are no tokens of this model, or it has no chat template
            left_out[name] = str(error).splitlines()[0]
        else:
            found = effects(lm, measured, [*matched, *drawn])
            prompts = prompts or measured.prompts
            base[name], changes[name] = found.base, found.changes[: len(matched)]
            random[name] = found.changes[len(matched) :]
            groups[name], units[name] = found.groups, found.unit
        if progress is not None:
            progress(done, total)
    if prompts is None:
        raise TaskError(f"no task can be measured on {lm.name}: {next(iter(left_out.values()))}")
    if draws and not drawn:
        left_out["random directions"] = "no intervention with edits of activations came near the wanted KL"
    options = {"interventions": list(interventions), "tasks": list(base), "kl": kl, "draws": draws}
    options |= {"examples": examples}
    return Entanglement(
        tuple(interventions),
        tuple(base),
        kl,
        found_kl,
        tuple(matched),
        base,
        changes,
        groups,
        units,
        left_out,
        provenance(lm, prompts, "entanglement", options, seed=seed),
        random if drawn else {},
        tuple(random_kl.tolist()),
    )


def _drawn(lm: LM, interventions: Sequence[Intervention], draws: int, seed: int) -> list[Intervention]:
    """Random directions in place of the interventions in turn, at their strength; none where there are none."""
    if not interventions:
        return []
    found: list[Intervention] = []
    for i in range(draws):
        base = interventions[i % len(interventions)]
        found += random_directions(base, [_shape(lm, edit.site) for edit in base.edits], 1, draws * seed + i)
    return found


def _shape(lm: LM, site: Site) -> tuple[int, ...]:
    whole = lm.shape(site.whole)
    return whole if site.index is None else (len(site.index), *whole[1:])
