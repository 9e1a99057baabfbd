"""Entanglement: whether steering one trait moves others, every intervention set to the same KL on neutral text.

Without the match a strong vector would look entangled and a weak one clean; without random directions at the same KL
nobody could say which effects any push of that size has. Effects are in standard deviations of each task's own number,
as in a study's row of other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from trimtab.errors import EditError, PromptError, TaskError
from trimtab.evaluate import texts
from trimtab.evaluate.controls import match_kl, random_directions, shapes_of
from trimtab.evaluate.effect import Effects, effects
from trimtab.evaluate.texts import Passage
from trimtab.model.provenance import provenance
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.entanglement import Entanglement, near

if TYPE_CHECKING:
    from trimtab.model.lm import LM


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
    measures, left_out = _measures(lm, tasks, examples, seed)
    total = 1 + len(measures)

    def told(done: int) -> None:
        if progress is not None:
            progress(done, total)

    text = texts.search_passages(passages)
    listed = [Intervention.of(intervention) for intervention in interventions.values()]
    matched, matched_kl = match_kl(lm, listed, kl, text, length=length, rounds=rounds)
    bases = [made for made, well in zip(matched, near(matched_kl, kl), strict=True) if well and made.edits]
    drawn, drawn_kl = match_kl(lm, _drawn(lm, bases, draws, seed), kl, text, length=length, rounds=rounds)
    if draws and not drawn:
        left_out["random directions"] = "no intervention with edits of activations came near the wanted KL"
    told(1)
    found: dict[str, Effects] = {}
    for done, (name, measured) in enumerate(measures.items(), 2):
        found[name] = effects(lm, measured, [*matched, *drawn])
        told(done)
    many = len(matched)
    options = {"interventions": list(interventions), "tasks": list(found), "kl": kl, "draws": draws}
    options |= {"examples": examples}
    prompts = next(iter(measures.values())).prompts
    return Entanglement(
        traits=tuple(interventions),
        tasks=tuple(found),
        target=kl,
        kl=matched_kl,
        matched=tuple(matched),
        base={name: each.base for name, each in found.items()},
        changes={name: each.changes[:many] for name, each in found.items()},
        groups={name: each.groups for name, each in found.items()},
        units={name: each.unit for name, each in found.items()},
        left_out=left_out,
        provenance=provenance(lm, prompts, "entanglement", options, seed=seed),
        random={name: each.changes[many:] for name, each in found.items()} if drawn else {},
        random_kl=tuple(drawn_kl.tolist()),
    )


def _measures(lm: LM, tasks: Mapping[str, Task], examples: int, seed: int) -> tuple[dict[str, Measure], dict[str, str]]:
    """Where each task is read off this model, and why some cannot be. TaskError where none can."""
    found: dict[str, Measure] = {}
    left_out: dict[str, str] = {}
    for name, task in tasks.items():
        try:
            found[name] = measure(lm, task.take(examples, seed), on="gap")
        except (TaskError, PromptError) as error:  # its words are no tokens of this model, or it has no chat template
            left_out[name] = str(error).splitlines()[0]
    if not found:
        raise TaskError(f"no task can be measured on {lm.name}: {next(iter(left_out.values()))}")
    return found, left_out


def _drawn(lm: LM, interventions: Sequence[Intervention], draws: int, seed: int) -> list[Intervention]:
    """Random directions in place of the interventions in turn, at their strength; none where there are none."""
    if not interventions:
        return []
    found: list[Intervention] = []
    for i in range(draws):
        base = interventions[i % len(interventions)]
        found += random_directions(base, shapes_of(lm, base), 1, draws * seed + i)
    return found
