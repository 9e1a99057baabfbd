"""Stage 4, evaluate: the picked intervention on the test part, its cost, and controls that were treated alike.

Every control is given what the intervention was given: a direction's sign is picked on the validation part, and its
strength is set to the same KL per token on neutral text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab import locate
from trimtab.errors import TaskError
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
from trimtab.tasks import builtin
from trimtab.tasks.example import Contrast
from trimtab.tasks.fit import fit
from trimtab.tasks.means import mean_difference
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention
from trimtab.values.findings import Control, Entangled, Estimate, Evaluation, Sample, Screening, Search
from trimtab.values.outcome import Outcome
from trimtab.values.site import Site


def evaluate(context: Context, screening: Screening, found: Search) -> Evaluation:
    """Everything that is said of the picked intervention.

    Where none was picked there is nothing to compare with controls: what is left is the task's number as it is, and how
    well a probe tells its two sides apart.
    """
    lm, settings, task, picked = context.lm, context.settings, context.parts.test, found.intervention
    context.report("effect on the test part", 0.0)
    test = measure(lm, task)
    effect = effects(lm, test, [picked])
    change = effect.changes[0]
    progress = context.step("KL and perplexity on neutral text", 0.03, 0.2)
    cost = side_effects(lm, [picked], part("test"), length=settings.test_tokens, progress=progress)
    context.report("unrelated capabilities", 0.2)
    items = some(capability_items(), settings.capability, settings.seed)
    before = capability(lm, items)
    after = capability(lm, items, picked) if picked else before
    controls = _controls(context, screening, found, test, change) if picked else ()
    entangled = _entangled(context, picked) if picked else ()
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
        prompt_only=_prompt_only(context, effect),
        figures=_figures(context, screening, picked),
    )


def _controls(
    context: Context, screening: Screening, found: Search, test: Measure, change: np.ndarray
) -> tuple[Control, ...]:
    """Random directions, shuffled labels and random places, at the KL that the picked intervention has."""
    lm, settings = context.lm, context.settings
    assert found.picked is not None
    picked, target = found.intervention, found.points[found.picked].kl
    vector = all(edit.op == "add" for edit in picked.edits)
    draws, seed = settings.draws, settings.seed + 1
    shapes = [_shape(context, edit) for edit in picked.edits]
    kinds: list[tuple[str, str, list[Intervention], bool]] = [
        (
            "random directions",
            "Gaussian directions at the same sites and positions, the sign picked on the validation part",
            random_directions(picked, shapes, draws, seed),
            True,
        )
    ]
    make = _vector_controls if vector else _unit_controls
    kinds += make(context, screening, picked, draws, seed)
    made: list[Control] = []
    for i, (name, about, drawn, by_rank) in enumerate(kinds):
        context.report(f"controls: {name}", 0.3 + 0.15 * i)
        if not drawn:  # a model of one layer has no other site of the kind
            continue
        if vector or name == "random directions":
            signs = np.sign(effects(lm, context.validation, drawn).changes.mean(1))
            drawn = [d * (-1.0 if sign < 0 else 1.0) for d, sign in zip(drawn, signs, strict=True)]
        matched, kl = drawn, np.zeros(len(drawn))
        if target > 0:
            matched, kl = match_kl(lm, drawn, target, context.passages[:4], length=settings.search_tokens)
        moved = effects(lm, test, matched).changes
        made.append(compared(name, about, change, moved, kl, test.groups, by_rank=by_rank))
    return tuple(made)


def _vector_controls(
    context: Context, screening: Screening, picked: Intervention, draws: int, seed: int
) -> list[tuple[str, str, list[Intervention], bool]]:
    """For added vectors: vectors of shuffled labels at the same sites, and true ones at other sites of the kind."""
    lm, rng = context.lm, np.random.default_rng(seed)
    here = [edit.site for edit in picked.edits]
    means = mean_difference(lm, context.parts.train, here)
    where, strength = picked.edits[0].where, abs(float(np.mean(picked.edits[0].strength)))
    shuffled = []
    for _ in range(draws):
        signs = np.where(np.arange(len(means)) % 2 == 0, 1.0, -1.0)
        rng.shuffle(signs)
        edits = vector_edits(means, here, where=where, strength=strength, signs=signs)
        shuffled.append(Intervention(tuple(edits), name="shuffled labels"))
    if is_wide(here[0]):
        others = [Site(here[0].name, layer) for layer in range(lm.anatomy.n_layers) if layer != here[0].layer]
        choices = [[others[int(i)]] for i in rng.permutation(len(others))[:draws]]
        about = "the same method at another layer of the same kind of site"
    else:
        choices = [_random_units(context, here, rng) for _ in range(draws)]
        about = "the same method at random units of the same layers, as many"
    there = mean_difference(lm, context.parts.train, list(dict.fromkeys(s for choice in choices for s in choice)))
    elsewhere = [
        Intervention(tuple(vector_edits(there, choice, where=where, strength=strength)), name="random sites")
        for choice in choices
    ]
    return [
        ("shuffled labels", "the same method on pairs whose two sides were swapped at random", shuffled, True),
        ("random sites", about, elsewhere, False),
    ]


def _unit_controls(
    context: Context, screening: Screening, picked: Intervention, draws: int, seed: int
) -> list[tuple[str, str, list[Intervention], bool]]:
    """For scaled units: units chosen by scores of shuffled labels, and random units of the same layers."""
    rng = np.random.default_rng(seed)
    factor = picked.edits[0].value
    here = [edit.site for edit in picked.edits]
    count = sum(len(site.index or ()) for site in here)
    own = {str(site.with_(index=(unit,))) for site in here for unit in site.index or ()}
    kind = here[0].name
    scores = [s for s in screening.scores if s.site_at(**{d: s.coords[d][0] for d in s.places}).name == kind]
    shuffled = []
    for _ in range(draws):
        chosen = scores[int(rng.integers(len(scores)))]
        signs = np.where(np.arange(len(chosen)) % 2 == 0, 1.0, -1.0)
        rng.shuffle(signs)
        tossed = chosen.with_(array=chosen.array * signs.reshape(-1, *[1] * (chosen.array.ndim - 1)))
        units = dict.fromkeys(str(site).partition("@")[0] for site in tossed.top(4 * count + len(own)))
        shuffled.append(_scaled([Site.parse(unit) for unit in units][:count], factor))
    elsewhere = [_scaled(_random_units(context, here, rng), factor) for _ in range(draws)]
    return [
        ("shuffled labels", "as many units, chosen by the same scores of pairs swapped at random", shuffled, True),
        ("random sites", "random units of the same layers, as many", elsewhere, True),
    ]


def _scaled(sites: Sequence[Site], factor: object) -> Intervention:
    assert isinstance(factor, float)
    return scale(sites, factor).with_(name="random units")


def _random_units(context: Context, here: Sequence[Site], rng: np.random.Generator) -> list[Site]:
    """For each site as many random units of the same layer, others where there are enough."""
    chosen = []
    for site in here:
        units = context.lm.anatomy.units(site.base)
        own = set(site.index or ())
        free = [i for i in range(units) if i not in own]
        pool = free if len(free) >= len(own) else list(range(units))
        chosen.append(site.with_(index=tuple(sorted(int(i) for i in rng.permutation(pool)[: len(own)]))))
    return chosen


def _shape(context: Context, edit: Edit) -> tuple[int, ...]:
    """The shape of what an edit is about: its units, each as wide as it is."""
    whole = context.lm.shape(edit.site.whole)
    return whole if edit.site.index is None else (len(edit.site.index), *whole[1:])


def _entangled(context: Context, picked: Intervention) -> tuple[Entangled, ...]:
    """The effect on the other built-in contrast tasks."""
    settings = context.settings
    if not settings.others:
        return ()
    names = [name for name in builtin.names() if name != context.parts.test.name]
    rows: list[Entangled] = []
    contrasts = [task for task in map(builtin.task, names) if task.shape == "contrast"]
    for i, other in enumerate(contrasts):
        context.report(f"effect on {other.name}", 0.78 + 0.15 * i / len(contrasts))
        try:
            fitted = fit(context.lm, other.take(settings.others, settings.seed)).task
        except TaskError:  # none of its words is a token of this model: nothing to measure
            continue
        found = effects(context.lm, fitted, [picked])
        spread = float(found.base.std()) or 1.0
        rows.append(Entangled(other.name, found.outcome(), Estimate.of(found.changes[0] / spread, found.groups)))
    return tuple(rows)


def _samples(context: Context, picked: Intervention) -> tuple[Sample, ...]:
    """Continuations of test prompts before and after."""
    settings, task = context.settings, context.parts.test
    if not settings.samples:
        return ()
    prompts = measure(context.lm, task.take(settings.samples, settings.seed)).prompts
    texts = [_text(prompts.rows([row], trim=True)) for row in range(prompts.batch)]
    both = [context.lm.generate(prompts, edit, max_new_tokens=settings.new_tokens).texts for edit in (None, picked)]
    return tuple(Sample(text, b, a) for text, b, a in zip(texts, *both, strict=True))


def _text(row: Prompts) -> str:
    return row.texts[0] if row.texts is not None else "".join(row.tokens[0])


def _prompt_only(context: Context, effect: Effects) -> Outcome | None:
    """The task's number with an instruction in place of the intervention, where the task has one."""
    task = context.parts.test
    if not task.instruction or not all(isinstance(e, Contrast) and e.question for e in task.examples):
        return None
    asked = measure(context.lm, instructed(task))
    plain = effects(context.lm, asked, [Intervention()])
    return Outcome(effect.metric, effect.unit, effect.base, plain.base, effect.groups)


def instructed(task: Task) -> Task:
    """The task with its instruction in front of every question, or in the system prompt of a chat."""
    if task.chat:
        return task.with_(system=task.instruction)
    examples = [
        e.with_(question=f"{task.instruction} {e.question}") if isinstance(e, Contrast) else e for e in task.examples
    ]
    return task.of(examples)


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
