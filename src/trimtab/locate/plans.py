"""What a method would cost, before anything runs: places, variants of a run, forward passes, memory.

A method may say it itself, by a function of the same arguments that is attached with `planned_by`; for others places
are counted. Prompts are tokenised, nothing is run. Passes are estimates from layers and positions: an edit leaves the
layers below it and the positions before it as they were, and these are not computed again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from trimtab.errors import PromptError
from trimtab.locate.units import Places, Spans, default_spans, places
from trimtab.model.memory import budget, row_bytes
from trimtab.model.prompts import Prompts
from trimtab.model.spans import RELATIVE
from trimtab.tasks.measure import measure, measure_alone, sides
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Method = TypeVar("Method", bound=Callable[..., Any])

BACKWARD = 2
"""A backward pass in forward passes."""


@dataclass(frozen=True)
class Cost:
    """What a method would run.

    `places` have a value for every example; `variants` are the edited runs of single prompts at most; `passes` forward
    passes of one prompt, those that this many variants and all else come to (a backward pass is two); `memory` the
    bytes of activations held together, the model's weights apart. None: not known beforehand.
    """

    places: int | None = None
    variants: int | None = None
    passes: float | None = None
    memory: int | None = None


def planned_by(plan: Callable[..., Cost]) -> Callable[[Method], Method]:
    """Attach to a method what says its cost: `plan(lm, task, **options)` with the method's own options and defaults.

    >>> @planned_by(lambda lm, task, **options: Cost(places=len(task)))
    ... def method(lm, task): ...
    >>> cost(method, None, [1, 2], {}).places
    2
    """

    def attached(method: Method) -> Method:
        setattr(method, "plan", plan)  # noqa: B010
        return method

    return attached


def cost(method: Callable[..., Any], lm: LM, task: Task, given: Mapping[str, Any]) -> Cost:
    """What a method would cost with these options: by its own plan, or its places alone.

    Raises what the method would raise of a task or places that it cannot do.
    """
    parameters = list(inspect.signature(method).parameters.values())[2:]
    options = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(given)
    plan = getattr(method, "plan", None)
    if plan is not None:
        return plan(lm, task, **options)
    asked = options.get("sites")
    if not isinstance(asked, str | Site | list | tuple):
        return Cost()
    spans = options.get("spans") if "spans" in options else "all"
    return Cost(places=_count(places(lm, asked, spans, mapped=default_spans(task))))


def tokens(lm: LM, task: Task) -> int:
    """Tokens in the prompts of a task, both sides together, whether or not their positions correspond."""
    if task.shape == "contrast":
        return sum(int(side.lengths.sum()) for side in sides(lm, task))
    try:
        return sum(int(side.lengths.sum()) for side in sides(lm, task))
    except PromptError:  # twins of another length, which not every method compares
        turned = task.of([e.swapped().with_(answers=e.answers, distractors=e.distractors) for e in task.examples])
        return sum(int(measure_alone(lm, one).prompts.lengths.sum()) for one in (task, turned))


def plan_patching(lm: LM, task: Task, *, sites: Reads, spans: Spans | None, batch_size: int, **_: object) -> Cost:
    """Of every place on every twin prompt, and the run that the values are taken from. PromptError for no twins."""
    sides(lm, task)
    where = places(lm, sites, spans, mapped=default_spans(task))
    return _swept(lm, measure(lm, task).prompts, where, batch_size)


def plan_ablation(
    lm: LM, task: Task, *, sites: Reads, spans: Spans | None, on: Any, batch_size: int, **_: object
) -> Cost:
    """Of every place on every prompt, and the run that the values are taken from."""
    return _swept(lm, measure(lm, task, on=on).prompts, places(lm, sites, spans, mapped="all"), batch_size)


def plan_shift(lm: LM, task: Task, *, sites: Reads, scope: str | Scope, batch_size: int, **_: object) -> Cost:
    """Of every place on every prompt; the means of both sides come before."""
    where = places(lm, sites, None, mapped=scope, alone=scope)
    return _swept(lm, measure(lm, task).prompts, where, batch_size)


def plan_tracing(
    lm: LM,
    task: Task,
    *,
    sites: Reads,
    spans: Spans | None,
    subject: str,
    samples: int,
    metric: Any,
    batch_size: int,
    **_: object,
) -> Cost:
    """Of every place on every clean prompt under every draw of the noise; examples that do not count are counted."""
    prompts = measure_alone(lm, task, metric).prompts
    where = places(lm, sites, spans, mapped=(*(f"{subject}_{part}" for part in RELATIVE), "end"))
    return _swept(lm, prompts, where, batch_size, times=samples)


def plan_onward(lm: LM, task: Task, *, sites: Reads, steps: int, on: Any, batch_size: int, **_: object) -> Cost:
    """Of a path of `steps` through each layer's neurons: the last token alone goes on, forwards and backwards."""
    prompts, n_layers = measure(lm, task, on=on).prompts, lm.anatomy.n_layers
    where = places(lm, sites, None, mapped="last", alone="last")
    above = sum(1 - layer / n_layers for layer in {block.layer or 0 for block in where.blocks})
    each = (1 / prompts.lengths.double()).sum().item()
    passes = len(prompts) + above * each * (steps + 2) * (1 + BACKWARD)
    return Cost(_count(where), passes=passes, memory=_held(lm, prompts, [Site("neuron", 0)], batch_size))


def plan_integral(
    lm: LM, task: Task, *, sites: Reads, spans: Spans | None, steps: int, path: str, batch_size: int, **_: object
) -> Cost:
    """Of `steps` forward and backward passes for each tensor, or for all of them along one path of the input."""
    where = places(lm, sites, spans, mapped=default_spans(task))
    alone = len(where.tensors) if path == "site" else 1
    prompts = measure(lm, task).prompts
    passes = len(prompts) * (2 + alone * (steps * (1 + BACKWARD) + (path == "site")))
    return Cost(_count(where), passes=float(passes), memory=_held(lm, prompts, where.tensors, batch_size))


def plan_paths(lm: LM, task: Task, senders: Sequence[Site], receivers: Sequence[Site], batch_size: int) -> Cost:
    """Of every path on every prompt: a run for each sender, and one for each receiver that comes after it, from the
    layer of either on."""
    prompts = sides(lm, task).positive
    n_layers = lm.anatomy.n_layers
    after = [[r for r in receivers if r.layer is None or r.layer > (s.layer or 0)] for s in senders]
    share = sum(1 - (s.layer or 0) / n_layers for s in senders)
    share += sum(0.0 if r.layer is None else 1 - r.layer / n_layers for each in after for r in each)
    paths = sum(map(len, after))
    made = _held(lm, prompts, [Site("head", layer) for layer in range(n_layers)], batch_size)
    return Cost(len(senders) * len(receivers), paths * len(prompts), (2 + share) * len(prompts), made)


def _swept(lm: LM, prompts: Prompts, where: Places, batch_size: int, times: int = 1) -> Cost:
    """Of every place on every prompt, `times` over, from the layer and the first position of each on."""
    n_layers, starts = lm.anatomy.n_layers, prompts.start.tolist()
    lengths = [len(row) for row in prompts.tokens]
    behind: dict[Scope, float] = {}
    share = 0.0
    for block in where.blocks:
        at = block.at or Scope("all")
        if at not in behind:
            rows = zip(prompts.positions(at), starts, lengths, strict=True)
            behind[at] = sum(1 - (row[0] - start) / n for row, start, n in rows if row)
        layers = 1 - (n_layers if block.name in ("final", "logits") else block.layer or 0) / n_layers
        share += (where.units or 1) * layers * behind[at]
    count = _count(where)
    memory = _held(lm, prompts, where.tensors, batch_size)
    rows = count * min(batch_size, len(prompts)) * times
    memory += int(min(budget(lm, None), rows * row_bytes(lm, prompts.width, prompts.width)))
    return Cost(count, count * len(prompts) * times, (1.0 + times) * len(prompts) + times * share, memory)


def _held(lm: LM, prompts: Prompts, tensors: Sequence[Site], batch_size: int) -> int:
    """Bytes of the activations of a batch of prompts, and of those that are put in their place."""
    entries = 2 * sum(int(np.prod(lm.shape(site))) for site in tensors)
    return entries * min(batch_size, len(prompts)) * prompts.width * lm.dtype.itemsize


def _count(where: Places) -> int:
    return int(np.prod(where.shape))
