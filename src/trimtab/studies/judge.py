"""Stage 4, evaluate: the picked intervention on the test part, its cost, and controls that were treated alike.

Every control is given what the intervention was given: a direction's sign is picked on the validation part, and its
strength is set to the same KL per token on neutral text; a study of shuffled labels chooses all that this one chose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from trimtab import locate
from trimtab.errors import PromptError, TaskError
from trimtab.evaluate.controls import compared, match_kl, random_directions
from trimtab.evaluate.effect import Effects, effects
from trimtab.evaluate.side_effects import capability, side_effects
from trimtab.evaluate.texts import capability as capability_items
from trimtab.evaluate.texts import part, some
from trimtab.model.prompts import Prompts
from trimtab.steer.amplitude import scale
from trimtab.steer.vectors import vector_edits
from trimtab.studies.context import Context
from trimtab.studies.screen import is_wide
from trimtab.studies.shuffled import halves, shuffled_studies
from trimtab.tasks import builtin
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.fit import fit
from trimtab.tasks.means import mean_difference
from trimtab.tasks.measure import Measure, measure, openings
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention
from trimtab.values.findings import Control, Entangled, Estimate, Evaluation, Sample, Screening, Search
from trimtab.values.outcome import Outcome
from trimtab.values.site import Site

NEAR = 0.25
"""How far from the wanted KL, as a share of it, a draw may be."""


def evaluate(context: Context, screening: Screening, found: Search) -> Evaluation:
    """Everything that is said of the picked intervention.

    Where none was picked there is nothing to compare with controls: what is left is the task's number as it is, and how
    well a probe tells its two sides apart.
    """
    lm, settings, task, picked = context.lm, context.settings, context.parts.test, found.intervention
    context.report("effect on the test part", 0.0)
    test = measure(lm, task, on="gap")
    effect = effects(lm, test, [picked])
    change = effect.changes[0]
    progress = context.step("KL and perplexity on neutral text", 0.03, 0.2)
    cost = side_effects(
        lm, [picked], part("test")[: settings.test_passages], length=settings.test_tokens, progress=progress
    )
    context.report("unrelated capabilities", 0.2)
    items = some(capability_items(), settings.capability, settings.seed)
    before = capability(lm, items)
    after = capability(lm, items, picked) if picked else before
    controls = _controls(context, screening, found, test, change) if picked else ()
    entangled, left_out = _entangled(context, picked) if picked else ((), {})
    prompt_only = _prompt_only(context, effect)
    context.report("generations before and after", 0.93)
    return Evaluation(
        outcome=effect.outcome(),
        effect=Estimate.of(change, effect.groups),
        wrong_way=float((change < 0).mean()),
        kl=Estimate.of(cost.kl[0]),
        neutral_tokens=cost.tokens,
        neutral_sources=len(cost.sources),
        perplexity=cost.perplexity(),
        capability=Outcome("accuracy", "share", before, after, tuple(item.kind for item in items)),
        controls=controls,
        entangled=entangled,
        samples=_samples(context, picked) if picked else (),
        prompt_only=prompt_only if isinstance(prompt_only, Outcome) else None,
        figures=_figures(context, screening, picked),
        left_out=left_out,
        no_prompt=prompt_only if isinstance(prompt_only, str) else "",
    )


class Draws(NamedTuple):
    """What one kind of control tries."""

    name: str
    about: str
    drawn: Sequence[Intervention]
    by_rank: bool
    turned: bool = False
    """Whether the sign of each is picked on the validation part."""
    matched: bool = True
    """Whether each is set to the KL of the picked intervention."""


def _controls(
    context: Context, screening: Screening, found: Search, test: Measure, change: np.ndarray
) -> tuple[Control, ...]:
    """Random directions, shuffled labels and random places, at the KL that the picked intervention has, and whole
    studies of shuffled labels, within the KL that a study is allowed."""
    lm, settings = context.lm, context.settings
    assert found.picked is not None
    picked, passages = found.intervention, context.passages[:4]
    target = float(side_effects(lm, [picked], passages, length=settings.search_tokens).kl.mean())
    if not target > 0:
        return ()
    made: list[Control] = []
    kinds = _kinds(context, picked, _read_at(screening, picked))
    for i, (step, make) in enumerate(kinds):
        context.report(f"controls: {step}", 0.3 + 0.45 * i / len(kinds))
        kind = make()
        if not kind.drawn:  # a model of one layer has no other site of the kind
            continue
        drawn, about = list(kind.drawn), kind.about
        if kind.matched:
            drawn, kl = match_kl(lm, drawn, target, passages, length=settings.search_tokens)
            if kind.turned:
                drawn, kl = _better_sign(context, drawn, kl, target)
            if far := int((~(np.abs(kl / target - 1) <= NEAR)).sum()):
                about += (
                    f"; {far} of {len(kl)} draws came no nearer to that KL than {NEAR:.0%}, and stand where they did"
                )
        else:
            kl = side_effects(lm, drawn, passages, length=settings.search_tokens).kl.mean(1)
        moved = effects(lm, test, drawn).changes
        made.append(compared(kind.name, about, change, moved, kl, test.groups, by_rank=kind.by_rank))
    return tuple(made)


def _better_sign(
    context: Context, drawn: list[Intervention], kl: np.ndarray, target: float
) -> tuple[list[Intervention], np.ndarray]:
    """Each draw or its opposite, whichever does more on the validation part at the wanted KL, with the KL it has.

    Both signs are tried at the strength that counts: what a strong vector does is not the opposite of what its
    opposite does.
    """
    lm, settings = context.lm, context.settings
    turned, other = match_kl(
        lm, [draw * -1.0 for draw in drawn], target, context.passages[:4], length=settings.search_tokens
    )
    gain = np.nan_to_num(effects(lm, context.validation, [*drawn, *turned]).changes.mean(1), nan=-np.inf)
    turn = gain[len(drawn) :] > gain[: len(drawn)]
    chosen = [new if better else old for old, new, better in zip(drawn, turned, turn, strict=True)]
    return chosen, np.where(turn, other, kl)


def _kinds(context: Context, picked: Intervention, here: list[Site]) -> list[tuple[str, Callable[[], Draws]]]:
    """The kinds of control, each with the function that draws it; `here` are the sites as `_read_at` has them."""
    draws, seed = context.settings.draws, context.settings.seed + 1
    vector = all(edit.op == "add" for edit in picked.edits)
    kinds = [
        ("random directions", lambda: _directions(context, picked, draws, seed)),
        ("shuffled labels", lambda: _swapped(context, picked, here, draws, seed)),
        ("studies of shuffled labels", lambda: _studies(context, draws, seed, vector)),
        ("random sites", lambda: (_elsewhere if vector else _other_units)(context, picked, here, draws, seed)),
    ]
    return [kind for kind in kinds if vector or kind[0] != "shuffled labels"]


def _directions(context: Context, picked: Intervention, draws: int, seed: int) -> Draws:
    shapes = [_shape(context, edit) for edit in picked.edits]
    about = (
        "Gaussian directions at the same sites and positions, at the same KL, the sign picked on the validation part"
    )
    return Draws("random directions", about, random_directions(picked, shapes, draws, seed), True, turned=True)


def _read_at(screening: Screening, picked: Intervention) -> list[Site]:
    """The sites of the picked intervention with the positions that they were proposed at, where vectors are read."""
    proposed = {site.with_(at=None): site for site in (Site.parse(c.site) for c in screening.candidates)}
    return [proposed.get(edit.site, edit.site) for edit in picked.edits]


def _swapped(context: Context, picked: Intervention, here: list[Site], draws: int, seed: int) -> Draws:
    """For added vectors: the mean difference of swapped pairs at the same sites."""
    means = mean_difference(context.lm, context.parts.train, here)
    drawn = []
    for signs in halves(len(means), draws, seed):
        made = vector_edits(means, here, signs=signs)
        edits = tuple(
            new.with_(where=edit.where, strength=abs(float(np.mean(edit.strength))))
            for new, edit in zip(made, picked.edits, strict=True)
        )
        drawn.append(Intervention(edits, name="shuffled labels"))
    about = (
        "the mean difference of pairs of which half were swapped, at the same sites and positions, at the same KL, the "
        "sign picked on the validation part"
    )
    return Draws("shuffled labels", about, drawn, True, turned=True)


def _studies(context: Context, draws: int, seed: int, vector: bool) -> Draws:
    about = (
        "the same screen and search on pairs of which half were swapped: each draw chose its own place, scope, sign "
        "and strength within the study's coefficients and its limit of KL"
    )
    drawn = shuffled_studies(context, draws, seed + 1, vectors=vector)
    return Draws("studies of shuffled labels", about, drawn, True, matched=False)


def _elsewhere(context: Context, picked: Intervention, here: list[Site], draws: int, seed: int) -> Draws:
    """For added vectors: the same method, with true labels, at other sites of the kind, read at the same positions."""
    lm, rng = context.lm, np.random.default_rng(seed)
    where, strength = picked.edits[0].where, abs(float(np.mean(picked.edits[0].strength)))
    if is_wide(here[0]):
        others = [here[0].with_(layer=layer) for layer in range(lm.anatomy.n_layers) if layer != here[0].layer]
        choices = [[others[int(i)]] for i in rng.permutation(len(others))[:draws]]
        about = "the same method at another layer of the same kind of site, at the same KL"
    else:
        choices = [_random_units(context, here, rng) for _ in range(draws)]
        about = "the same method at random units of the same layers, as many, at the same KL"
    if not choices:
        return Draws("random sites", about, [], False)
    there = mean_difference(lm, context.parts.train, list(dict.fromkeys(s for choice in choices for s in choice)))
    drawn = [
        Intervention(tuple(vector_edits(there, choice, where=where, strength=strength)), name="random sites")
        for choice in choices
    ]
    return Draws("random sites", about, drawn, False, turned=True)


def _other_units(context: Context, picked: Intervention, here: list[Site], draws: int, seed: int) -> Draws:
    """For scaled units: random units of the same layers."""
    rng = np.random.default_rng(seed)
    bare = [site.with_(at=None) for site in here]
    drawn = [_scaled(_random_units(context, bare, rng), picked.edits[0].value) for _ in range(draws)]
    return Draws("random sites", "random units of the same layers, as many, at the same KL", drawn, True)


def _scaled(sites: Sequence[Site], factor: object) -> Intervention:
    assert isinstance(factor, float)
    return scale(sites, factor).with_(name="random units")


def _random_units(context: Context, here: Sequence[Site], rng: np.random.Generator) -> list[Site]:
    """For each site as many random units of the same layer, others than all of them where there are enough."""
    chosen = []
    for site in here:
        units = context.lm.anatomy.units(site.base)
        own = {i for other in here if other.whole == site.whole for i in other.index or ()}
        free = [i for i in range(units) if i not in own]
        many = len(site.index or ())
        pool = free if len(free) >= many else list(range(units))
        chosen.append(site.with_(index=tuple(sorted(int(i) for i in rng.permutation(pool)[:many]))))
    return chosen


def _shape(context: Context, edit: Edit) -> tuple[int, ...]:
    """The shape of what an edit is about: its units, each as wide as it is."""
    whole = context.lm.shape(edit.site.whole)
    return whole if edit.site.index is None else (len(edit.site.index), *whole[1:])


def _entangled(context: Context, picked: Intervention) -> tuple[tuple[Entangled, ...], dict[str, str]]:
    """The effect on the other built-in contrast tasks, and why some of them could not be measured."""
    settings = context.settings
    if not settings.others:
        return (), {}
    left_out: dict[str, str] = {}
    names = [name for name in builtin.names() if name != context.parts.test.name]
    rows: list[Entangled] = []
    contrasts = [task for task in map(builtin.task, names) if task.shape == "contrast"]
    for i, other in enumerate(contrasts):
        context.report(f"effect on {other.name}", 0.78 + 0.15 * i / len(contrasts))
        try:
            fitted = fit(context.lm, other.take(settings.others, settings.seed)).task
        except (TaskError, PromptError) as error:  # its words are no tokens of this model, or it has no chat template
            first, *more = str(error).removeprefix(f"{other.name}: ").splitlines()
            left_out[other.name] = " ".join([first, *(" ".join(line.split()) for line in more if line[:1] == " ")])
            continue
        found = effects(context.lm, fitted, [picked])
        spread = float(found.base.std()) or 1.0
        rows.append(Entangled(other.name, found.outcome(), Estimate.of(found.changes[0] / spread, found.groups)))
    return tuple(rows), left_out


def _samples(context: Context, picked: Intervention) -> tuple[Sample, ...]:
    """Continuations of test prompts before and after."""
    settings, task = context.settings, context.parts.test
    if not settings.samples:
        return ()
    prompts = openings(context.lm, task.take(settings.samples, settings.seed))
    texts = [_text(prompts.rows([row], trim=True)) for row in range(prompts.batch)]
    both = [context.lm.generate(prompts, edit, max_new_tokens=settings.new_tokens).texts for edit in (None, picked)]
    return tuple(Sample(text, b, a) for text, b, a in zip(texts, *both, strict=True))


def _text(row: Prompts) -> str:
    return row.texts[0] if row.texts is not None else "".join(row.tokens[0])


def _prompt_only(context: Context, effect: Effects) -> Outcome | str:
    """The task's number with an instruction in place of the intervention, or why there is none to compare with."""
    task = context.parts.test
    if not task.instruction:
        return f"{task.name} has no instruction that would ask for it in words (a task's `instruction`)"
    if not all(isinstance(e, Counterfactual) or e.question for e in task.examples):
        return f"{task.name} is read off its texts as they are, with no question that an instruction could go before"
    try:
        asked = measure(context.lm, instructed(task), on="gap")
        plain = effects(context.lm, asked, [Intervention()])
    except (TaskError, PromptError) as error:  # too long with it, or a template without a system prompt
        return f"{task.name} cannot be asked with its instruction: {' '.join(str(error).split())}"
    return Outcome(effect.metric, effect.unit, effect.base, plain.base, effect.groups)


def instructed(task: Task) -> Task:
    """The task with its instruction before every question or both prompts, or in the system prompt of a chat."""
    if task.chat:
        return task.with_(system=task.instruction)
    return task.of([_after(task.instruction, e) for e in task.examples])


def _after(instruction: str, e: Counterfactual | Contrast) -> Counterfactual | Contrast:
    """An example after an instruction; where spans lie is of no interest in it."""
    if isinstance(e, Contrast):
        return e.with_(question=f"{instruction} {e.question}")
    return e.with_(clean=f"{instruction} {e.clean}", corrupt=f"{instruction} {e.corrupt}", spans={}, corrupt_spans={})


def _figures(context: Context, screening: Screening, picked: Intervention) -> dict[str, Estimate]:
    """How well a probe tells the two sides of held-out groups apart, at the site of the intervention or, failing that,
    at the first wide site that was proposed."""
    sites = [edit.site for edit in picked.edits] + [Site.parse(c.site) for c in screening.candidates]
    wide = [site.with_(at=None) for site in sites if is_wide(site)]
    if not wide:
        return {}
    train, test = context.parts.train, context.parts.test
    probe = locate.probe_accuracy(context.lm, train, test, str(wide[0]))
    return {f"balanced accuracy of a probe at {wide[0]}": Estimate.of(probe.correct, test.groups)}
