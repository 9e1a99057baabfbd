"""Stage 5, verdict: a few sentences made from the numbers. An effect counts when it beats every control."""

from __future__ import annotations

import math

from trimtab.values.findings import Estimate, Evaluation, Search, Validation, Verdict


def conclude(name: str, validation: Validation, found: Search, evaluation: Evaluation) -> Verdict:
    """Whether an intervention was found, how strong it is, what it costs, and what speaks against it.

    "not found" when nothing was picked; "not beaten" when a control does as much; else "found".
    """
    sentences = [_validated(validation)]
    if found.picked is None:
        return Verdict("not found", (_nothing(name, validation, found), *sentences, *_probes(evaluation)))
    point = found.points[found.picked]
    unbeaten = [control for control in evaluation.controls if not control.beaten]
    right_way = evaluation.effect.low > 0
    change = f"{_with(evaluation.effect)} {evaluation.outcome.unit}"
    how = f"coefficient {point.coefficient:g}, {_scope(point.scope)}"
    what = f"{_words(point.method).capitalize()} at {point.site} ({how})"
    over = evaluation.kl.mean > found.limit
    counts = not unbeaten and right_way and not over and bool(evaluation.controls)
    if unbeaten or not right_way or not evaluation.controls:
        reason = _names([control.name for control in unbeaten]) or ("zero" if evaluation.controls else "anything")
        head = f"{what} moves {name} by {change} on held-out groups, which does not beat {reason}."
    elif over:
        head = (
            f"{what} moves {name} by {change} on held-out groups, more than every control, but costs more on the test "
            f"text than the limit of {found.limit:g} nats of KL per token."
        )
    else:
        head = f"{what} moves {name} by {change} on held-out groups, more than every control."
    sentences = [
        head,
        _cost(evaluation),
        *_differences(evaluation),
        *sentences,
        *_caveats(evaluation),
        *_probes(evaluation),
    ]
    return Verdict("found" if counts else "not beaten", tuple(sentences))


def _nothing(name: str, validation: Validation, found: Search) -> str:
    if not validation.working:
        return f"None of the {len(validation.checks)} candidates for {name} does more than its controls."
    if not found.points:
        return f"None of the steering methods asked for applies to what was validated for {name}."
    if not any(point.allowed for point in found.points):
        least = min(point.kl for point in found.points)
        return (
            f"Every point costs more than {found.limit:g} nats of KL per token on neutral text; the "
            f"cheapest costs {least:.2g}."
        )
    return (
        f"None of the {len(found.points)} points tried moves {name} by more than zero on the validation "
        f"part within {found.limit:g} nats of KL per token."
    )


def _validated(validation: Validation) -> str:
    total, working = len(validation.checks), len(validation.working)
    if not total:
        return "The screen proposed no candidates."
    return (
        f"Of {total} screened candidates {working} did something beyond their controls when intervened on; "
        f"{total - working} ({(total - working) / total:.0%}) were false positives."
    )


def _cost(evaluation: Evaluation) -> str:
    before, after = evaluation.perplexity
    right = evaluation.capability.difference()
    points = f"{100 * right.mean:+.1f} points [{100 * right.low:.1f}, {100 * right.high:.1f}]"
    return (
        f"It costs {evaluation.kl.mean:.2g} nats of KL per token on neutral text [{evaluation.kl.low:.2g}, "
        f"{evaluation.kl.high:.2g}], takes perplexity there from {before:.3g} to {after:.3g}, and changes accuracy on "
        f"unrelated items by {_signed(points)}."
    )


def _differences(evaluation: Evaluation) -> list[str]:
    parts = [f"{control.name} {_with(control.difference)}" for control in evaluation.controls]
    unit = _plural(evaluation.outcome.unit)
    return [f"It goes beyond each control by, in {unit}: {'; '.join(parts)}."] if parts else []


def _plural(unit: str) -> str:
    """A unit in a sentence: "nats", "logits"; of one that is no word for a thing, or already several, as it is."""
    return f"{unit}s" if unit in ("nat", "logit") else unit


def _caveats(evaluation: Evaluation) -> list[str]:
    found = []
    if evaluation.wrong_way > 0:
        wrong = evaluation.moved_wrong
        ends = f" [{wrong.low:.0%}, {wrong.high:.0%}]" if math.isfinite(wrong.low) else ""
        found.append(f"{evaluation.wrong_way:.0%}{ends} of the test examples move the wrong way.")
    moved = [e for e in evaluation.entangled if e.standardised.excludes_zero and abs(e.standardised.mean) > 0.5]
    if moved:
        moved.sort(key=lambda e: -abs(e.standardised.mean))
        names = ", ".join(f"{e.task} ({_signed(f'{e.standardised.mean:+.1f}')} SD)" for e in moved)
        found.append(f"It also moves other behaviours: {names}.")
    if evaluation.prompt_only is not None:
        prompt = evaluation.prompt_only.difference()
        found.append(
            f"An instruction alone moves the same number by {_with(Estimate(*prompt, len(evaluation.prompt_only)))}."
        )
    return found


def _probes(evaluation: Evaluation) -> list[str]:
    return [
        f"The {name} is {value.mean:.2f} [{value.low:.2f}, {value.high:.2f}] on held-out groups."
        for name, value in evaluation.figures.items()
    ]


def _with(estimate: Estimate) -> str:
    return _signed(f"{estimate.mean:+.2f} [{estimate.low:.2f}, {estimate.high:.2f}]")


def _signed(numbers: str) -> str:
    """With the minus sign that belongs to numbers."""
    return numbers.replace("-", "−")


def _words(method: str) -> str:
    return method.replace("_", " ")


def _scope(scope: str) -> str:
    return {"all": "all positions", "-1:": "from the last prompt token on"}.get(scope, f"at {scope}")


def _names(names: list[str]) -> str:
    return " and ".join(names)
