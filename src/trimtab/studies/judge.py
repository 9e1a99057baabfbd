"""Stage 4, evaluate: the picked intervention on the test part, its cost, and controls that were treated alike.

Every control is given what the intervention was given: a direction's sign is picked on the validation part, and its
strength is set to the same KL per token on neutral text; a study of shuffled labels chooses its own place, scope, sign
and strength, and not its method, which is the one that was picked.
"""

from __future__ import annotations

import numpy as np

from trimtab import locate
from trimtab.errors import PromptError, TaskError
from trimtab.evaluate.controls import compared, match_kl
from trimtab.evaluate.effect import Effects, effects
from trimtab.evaluate.instruction import instructed
from trimtab.evaluate.side_effects import capability, side_effects
from trimtab.evaluate.texts import capability as capability_items
from trimtab.evaluate.texts import part, some
from trimtab.model.prompts import Prompts
from trimtab.studies.context import Context
from trimtab.studies.draws import Made, kinds
from trimtab.studies.screen import is_wide
from trimtab.tasks import builtin
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import Measure, measure, openings
from trimtab.values.edit import Intervention
from trimtab.values.findings import (
    Control,
    Entangled,
    Estimate,
    Evaluation,
    Sample,
    Screening,
    Search,
    Validation,
)
from trimtab.values.outcome import Outcome
from trimtab.values.propensity import share_below
from trimtab.values.shares import share_of
from trimtab.values.site import Site

NEAR = 0.25
"""How far from the wanted KL, as a share of it, a draw may be."""


def evaluate(context: Context, screening: Screening, validation: Validation, found: Search) -> Evaluation:
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
    items = some(capability_items("test"), settings.capability, settings.seed)
    before = capability(lm, items)
    after = capability(lm, items, picked) if picked else before
    controls = _controls(context, screening, validation, found, test, change) if picked else ()
    entangled, left_out = _entangled(context, picked) if picked else ((), {})
    prompt_only = _prompt_only(context, effect)
    context.report("generations before and after", 0.93)
    return Evaluation(
        outcome=effect.outcome(),
        effect=Estimate.of(change, effect.groups),
        wrong_way=share_below(change, effect.groups).mean,
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


def _controls(
    context: Context,
    screening: Screening,
    validation: Validation,
    found: Search,
    test: Measure,
    change: np.ndarray,
) -> tuple[Control, ...]:
    """Random directions, shuffled labels and random places, at the KL that the picked intervention has, and whole
    studies of shuffled labels, within the KL that a study is allowed."""
    lm, settings, passages = context.lm, context.settings, context.passages[:4]
    target = float(side_effects(lm, [found.intervention], passages, length=settings.search_tokens).kl.mean())
    if not target > 0:
        return ()
    made: list[Control] = []
    every = kinds(context, Made.of(context, screening, validation, found))
    for i, (step, make) in enumerate(every):
        context.report(f"controls: {step}", 0.3 + 0.45 * i / len(every))
        kind = make()
        if not kind.drawn:  # a model of one layer has no other site of the kind, a method may not read the labels
            continue
        drawn, about = list(kind.drawn), kind.about
        if kind.matched:
            drawn, kl = match_kl(lm, drawn, target, passages, length=settings.search_tokens, rounds=kind.rounds)
            if kind.turned:
                drawn, kl = _better_sign(context, drawn, kl, target, kind.rounds)
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
    context: Context, drawn: list[Intervention], kl: np.ndarray, target: float, rounds: int = 3
) -> tuple[list[Intervention], np.ndarray]:
    """Each draw or its opposite, whichever does more on the validation part at the wanted KL, with the KL it has.

    Both signs are tried at the strength that counts: what a strong vector does is not the opposite of what its
    opposite does.
    """
    lm, settings = context.lm, context.settings
    turned, other = match_kl(
        lm,
        [draw * -1.0 for draw in drawn],
        target,
        context.passages[:4],
        length=settings.search_tokens,
        rounds=rounds,
    )
    gain = np.nan_to_num(effects(lm, context.validation, [*drawn, *turned]).changes.mean(1), nan=-np.inf)
    turn = gain[len(drawn) :] > gain[: len(drawn)]
    chosen = [new if better else old for old, new, better in zip(drawn, turned, turn, strict=True)]
    return chosen, np.where(turn, other, kl)


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
    if not task.instruction and context.settings.toward == "negative":
        return f"an instruction of {task.name} asks for {task.poles[1]}, and this study steers to {task.poles[0]}"
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


def _figures(context: Context, screening: Screening, picked: Intervention) -> dict[str, Estimate]:
    """How well a probe tells the two sides of held-out groups apart, at the site of the intervention or, failing that,
    at the first wide site that was proposed."""
    sites = [edit.site for edit in picked.edits] + [Site.parse(c.site) for c in screening.candidates]
    wide = [site.with_(at=None) for site in sites if is_wide(site)]
    if not wide:
        return {}
    train, test = context.parts.train, context.parts.test
    probe = locate.probe_accuracy(context.lm, train, test, str(wide[0]))
    return {f"balanced accuracy of a probe at {wide[0]}": share_of(probe.correct, test.groups)}
