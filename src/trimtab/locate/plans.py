"""What a method would cost, before anything runs: places, variants of a run, forward passes, memory.

A method may say it itself, by a function of the same arguments that is attached with `planned_by`; for others places
are counted. Prompts are tokenised, nothing is run. Passes are estimates from layers and positions: an edit leaves the
layers below it and the positions before it as they were, and these are not computed again. `pace` times one batch, so
that passes can be told in seconds. Plans of methods that only read are in `plans_reading`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from trimtab.locate.methods import SUBJECTS
from trimtab.locate.sweep import window_around
from trimtab.locate.units import Places, Spans, default_spans, places
from trimtab.model.memory import budget, row_bytes
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure, measure_alone, one_side, sides
from trimtab.tasks.reference import reference_prompts
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Method = TypeVar("Method", bound=Callable[..., Any])
Dictionaries = Mapping[str, Dictionary] | None

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


def cost(method: Callable[..., Any], lm: LM, subject: Any, given: Mapping[str, Any]) -> Cost:
    """What a method would cost with these options: by its own plan, or its places alone.

    `subject` is what it would be run on: a task, `Prompts`, texts, or None for the weights alone or its own prompts.
    Raises what the method would raise of a task or places that it cannot do.
    """
    options = settled(method, given)
    plan = getattr(method, "plan", None)
    found = Cost() if plan is None else plan(lm, subject, **options)
    asked = options.get("sites")
    if found.places is not None or not isinstance(subject, Task) or not isinstance(asked, str | Site | list | tuple):
        return found
    spans = options.get("spans") if "spans" in options else "all"
    where = places(lm, asked, spans, mapped=default_spans(subject), dictionaries=options.get("dictionaries"))
    return replace(found, places=cells(where))


def settled(method: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a method with its value: what was given, else its default."""
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name not in ("lm", *SUBJECTS)]
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(given)


@dataclass(frozen=True)
class Pace:
    """How long a plain forward pass of one batch took, `rows` prompts of `tokens` tokens in `seconds`, and how many
    tokens all the prompts have on average."""

    rows: int
    tokens: int
    seconds: float
    average: float

    def of(self, passes: float) -> float:
        """Seconds that so many forward passes of one prompt of average length would take at this pace."""
        return passes * self.average * self.seconds / self.tokens


def pace(lm: LM, prompts: Prompts, batch_size: int = 16) -> Pace:
    """The pace of this model on this machine, from one batch of these prompts: the one of about average length among
    those that methods make, of prompts alike in length.

    A pass of a single prompt goes before it, and is not timed: the first one is slower than all later ones.
    """
    lengths = prompts.lengths.cpu().numpy()
    average = float(lengths.mean())
    made = list(batches(prompts, 1, batch_size))
    full = [rows for rows in made if len(rows) == max(map(len, made))]
    part = prompts.rows(min(full, key=lambda rows: abs(float(lengths[rows].mean()) - average)), trim=True)

    def run(rows: Prompts) -> None:
        lm.run(rows, "final@last", logits=False)["final@last"].sum().item()  # a value is read once all is computed

    run(part.rows([0]))
    start = perf_counter()
    run(part)
    return Pace(len(part), int(part.lengths.sum()), perf_counter() - start, average)


def tokens(lm: LM, task: Task) -> int:
    """Tokens in the prompts of a task, both sides together, whether or not their positions or spans correspond."""
    return sum(int(one_side(lm, spanless(task), which).lengths.sum()) for which in ("positive", "negative"))


def spanless(task: Task) -> Task:
    """The task without its spans, which a prompt that a method does not read may lack."""
    both = [e for e in task.examples if isinstance(e, Counterfactual)]
    return task.of([e.with_(spans={}, corrupt_spans={}) for e in both]) if both else task


def plan_patching(
    lm: LM,
    task: Task,
    *,
    sites: Reads,
    spans: Spans | None,
    window: int,
    batch_size: int,
    dictionaries: Dictionaries,
    **_: object,
) -> Cost:
    """Of every place on every twin prompt, and the run that the values are taken from. PromptError for no twins."""
    sides(lm, task)
    where = places(lm, sites, spans, mapped=default_spans(task), dictionaries=dictionaries)
    return _swept(lm, measure(lm, task).prompts, where, batch_size, window=window)


def plan_ablation(
    lm: LM,
    task: Task,
    *,
    sites: Reads,
    spans: Spans | None,
    on: Any,
    reference: Task | Prompts | None,
    batch_size: int,
    dictionaries: Dictionaries,
    **_: object,
) -> Cost:
    """Of every place on every prompt, and the run that the values are taken from."""
    prompts = measure(lm, task, on=on).prompts
    cost = _swept(lm, prompts, places(lm, sites, spans, mapped="all", dictionaries=dictionaries), batch_size)
    more = 0 if reference is None else len(reference_prompts(lm, task, reference, on)) - len(prompts)
    return replace(cost, passes=(cost.passes or 0.0) + more)


def plan_shift(
    lm: LM,
    task: Task,
    *,
    sites: Reads,
    scope: str | Scope,
    source: Task | None,
    differences: object,
    batch_size: int,
    dictionaries: Dictionaries,
    **_: object,
) -> Cost:
    """Of every place on every prompt; the means of both sides, which have to correspond, come before."""
    if differences is None:
        sides(lm, source or task)
    where = places(lm, sites, None, mapped=scope, alone=scope, dictionaries=dictionaries)
    return _swept(lm, measure(lm, task).prompts, where, batch_size)


def plan_tracing(
    lm: LM, task: Task, *, where: Places, window: int, samples: int, metric: Any, batch_size: int, **_: object
) -> Cost:
    """Of every place on every clean prompt under every draw of the noise; examples that do not count are counted."""
    prompts = measure_alone(lm, task, metric).prompts
    return _swept(lm, prompts, where, batch_size, times=samples, window=window)


def plan_onward(lm: LM, task: Task, *, sites: Reads, steps: int, on: Any, batch_size: int, **_: object) -> Cost:
    """Of a path of `steps` through each layer's neurons: the last token alone goes on, forwards and backwards."""
    prompts, n_layers = measure(lm, task, on=on).prompts, lm.anatomy.n_layers
    where = places(lm, sites, None, mapped="last", alone="last")
    above = sum(1 - layer / n_layers for layer in {block.layer or 0 for block in where.blocks})
    each = (1 / prompts.lengths.double()).sum().item()
    passes = len(prompts) + above * each * (steps + 2) * (1 + BACKWARD)
    return Cost(cells(where), passes=passes, memory=_held(lm, prompts, [Site("neuron", 0)], batch_size))


def plan_integral(
    lm: LM,
    task: Task,
    *,
    sites: Reads,
    spans: Spans | None,
    steps: int,
    baseline: str,
    path: str,
    batch_size: int,
    **_: object,
) -> Cost:
    """Of `steps` forward and backward passes for each tensor, or for all of them along one path of the input."""
    if baseline == "corrupt":
        sides(lm, task)
    where = places(lm, sites, spans, mapped=default_spans(task))
    alone = len(where.tensors) if path == "site" else 1
    prompts = measure(lm, task, on="corrupt" if baseline == "corrupt" else "clean").prompts
    passes = len(prompts) * (2 + alone * (steps * (1 + BACKWARD) + (path == "site")))
    return Cost(cells(where), passes=float(passes), memory=_held(lm, prompts, where.tensors, batch_size))


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


def _swept(lm: LM, prompts: Prompts, where: Places, batch_size: int, times: int = 1, window: int = 1) -> Cost:
    """Of every place on every prompt, `times` over, from the first layer of its window and its first position on."""
    n_layers, starts = lm.anatomy.n_layers, prompts.start.tolist()
    lengths = [len(row) for row in prompts.tokens]
    together = [window_around(lm, block, window) for block in where.blocks]
    behind: dict[Scope, float] = {}
    share = 0.0
    for first, *_ in together:
        at = first.at or Scope("all")
        if at not in behind:
            rows = zip(prompts.positions(at), starts, lengths, strict=True)
            behind[at] = sum(1 - (row[0] - start) / n for row, start, n in rows if row)
        layers = 1 - (n_layers if first.name in ("final", "logits") else first.layer or 0) / n_layers
        share += (where.units or 1) * layers * behind[at]
    count = cells(where)
    tensors = list(dict.fromkeys(site.base.whole for sites in together for site in sites))
    memory = _held(lm, prompts, tensors, batch_size)
    rows = count * min(batch_size, len(prompts)) * times
    memory += int(min(budget(lm, None), rows * row_bytes(lm, prompts.width, prompts.width)))
    return Cost(count, count * len(prompts) * times, (1.0 + times) * len(prompts) + times * share, memory)


def _held(lm: LM, prompts: Prompts, tensors: Sequence[Site], batch_size: int) -> int:
    """Bytes of the activations of a batch of prompts, and of those that are put in their place."""
    entries = 2 * sum(int(np.prod(lm.shape(site))) for site in tensors)
    return entries * min(batch_size, len(prompts)) * prompts.width * lm.dtype.itemsize


def cells(where: Places) -> int:
    """How many places there are."""
    return int(np.prod(where.shape))
