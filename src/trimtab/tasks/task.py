"""Task: examples of one behaviour, the number that says how much of it a model shows, and parts that share no group.

A task is a value made of texts: it knows no model. `tasks.fit` leaves out what a model's tokenizer cannot do,
`tasks.measure` makes prompts and a readout of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.errors import TaskError
from trimtab.tasks.example import Contrast, Counterfactual, Example
from trimtab.tasks.metrics import DEFAULT, Metric, name_of
from trimtab.values.content import Content

LEAST = 60
"""Examples that a built-in task keeps at least, after filtering by the tokenizer."""
SHARES = (0.4, 0.25, 0.35)
"""Of the examples, in train, validation and test part, as near as whole groups allow."""

Shape = Literal["counterfactual", "contrast"]


class Parts(NamedTuple):
    """Three tasks that share no group: to find with, to choose with, to judge with."""

    train: Task
    validation: Task
    test: Task


@dataclass(frozen=True, eq=False, repr=False)
class Task(Content):
    """Examples of one shape, and what is measured.

    `metric` is a name of `tasks.metrics`, a function of logits (batch pos vocab) and rows (batch) that gives (batch),
    or a `Readout`, which may be for just so many examples; of each more is better. A function without a gradient has
    the attribute `differentiable = False`. `about` says in a sentence what the task is; `poles` are words for its two
    sides (positive or clean first). `chat` puts prompts, questions and texts with a system prompt into the model's chat
    template, with `system` as the system prompt of questions. `read` is the scope over which activations of contrast
    texts are averaged ("text": all its tokens but a row's very first, which draws attention whatever it says; "last").

    `instruction` asks for the positive side in words, the prompt-only baseline: it goes before a question, before both
    prompts of a counterfactual example, or into the system prompt of a chat.

    Raises TaskError without examples, or where they are of both shapes or repeat.
    """

    name: str
    examples: tuple[Counterfactual, ...] | tuple[Contrast, ...]
    about: str = ""
    metric: Metric = DEFAULT
    poles: tuple[str, str] = ("positive", "negative")
    chat: bool = False
    system: str | None = None
    read: str = "text"
    instruction: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        kinds = {type(example) for example in self.examples}
        if not kinds <= {Counterfactual, Contrast} or len(kinds) != 1:
            names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "no examples"
            raise TaskError(f"the examples of a task are all Counterfactual or all Contrast; {self.name} has {names}")
        repeated = [example for example, times in Counter(self.examples).items() if times > 1]
        if repeated:
            raise TaskError(f"{self.name} has {len(repeated)} examples more than once, such as {repeated[0]!r}")

    @property
    def shape(self) -> Shape:
        """Which of the two shapes its examples have."""
        return "counterfactual" if isinstance(self.examples[0], Counterfactual) else "contrast"

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each example."""
        return tuple(example.group for example in self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def only(self, which: Iterable[int]) -> Task:
        """The task with some of its examples, in the order given."""
        return self.of([self.examples[i] for i in which])

    def of(self, examples: Sequence[Example]) -> Task:
        """The task with other examples."""
        return self.with_(examples=tuple(examples))

    def take(self, most: int, seed: int = 0) -> Task:
        """At most so many examples, drawn at random but spread evenly over the groups."""
        if most < 1:
            raise TaskError(f"at least one example must be taken, got {most}")
        if most >= len(self):
            return self
        rng = np.random.default_rng(seed)
        waiting = [list(rng.permutation(members)) for members in self._members().values()]
        waiting = [waiting[i] for i in rng.permutation(len(waiting))]
        rounds = [queue[turn] for turn in range(max(map(len, waiting))) for queue in waiting if turn < len(queue)]
        return self.only(sorted(int(i) for i in rounds[:most]))

    def shuffled(self, seed: int) -> Task:
        """With half of the examples, chosen at random, mislabelled: a task with nothing to find.

        Contrast examples have their two sides swapped and keep their questions; counterfactual ones have their answers
        and distractors swapped and keep their prompts.
        """
        coins = np.arange(len(self)) % 2 == 0
        np.random.default_rng(seed).shuffle(coins)
        return self.of([e.mislabelled() if coin else e for e, coin in zip(self.examples, coins, strict=True)])

    def split(self, seed: int = 0, shares: tuple[float, float, float] = SHARES) -> Parts:
        """Train, validation and test part; every group is whole in one of them, so no template or topic is in two.

        Groups are dealt in a random order, each to the part that is furthest below its share. TaskError with fewer
        than three groups.
        """
        members = self._members()
        if len(members) < 3:
            raise TaskError(
                f"{self.name} has {len(members)} group(s), {', '.join(members)}: parts that share no group need three "
                "or more; give each example the group (template, topic, entity) that it belongs to"
            )
        if len(shares) != 3 or min(shares) <= 0:
            raise TaskError(f"shares are three positive numbers, such as {SHARES}, got {shares!r}")
        rng = np.random.default_rng(seed)
        names = [list(members)[i] for i in rng.permutation(len(members))]
        names.sort(key=lambda name: -len(members[name]))
        wanted = np.array(shares) / sum(shares) * len(self)
        dealt: list[list[int]] = [[], [], []]
        for turn, name in enumerate(names):
            empty = [i for i in range(3) if not dealt[i]]
            must = len(names) - turn <= len(empty)
            part = min(empty if must else range(3), key=lambda i: len(dealt[i]) / wanted[i])
            dealt[part] += members[name]
        return Parts(*(self.only(sorted(part)) for part in dealt))

    def _members(self) -> dict[str, list[int]]:
        """The examples of each group, groups in order of appearance."""
        members: dict[str, list[int]] = {}
        for i, group in enumerate(self.groups):
            members.setdefault(group, []).append(i)
        return members

    def _content(self) -> object:
        metric = self.metric if isinstance(self.metric, str) else _told(self.metric)
        return {
            "is": "Task",
            "examples": self.examples,
            "metric": metric,
            "chat": self.chat,
            "system": self.system,
            "read": self.read,
            "instruction": self.instruction,
        }

    def __repr__(self) -> str:
        groups = len(set(self.groups))
        return f"<Task {self.name}: {len(self)} {self.shape} examples in {groups} groups, {name_of(self.metric)}>"


def _told(metric: Metric) -> str:
    """A metric by what it does: a function by its name, its code and what that holds on to, a readout by what it reads
    as well. Two that differ in any of these are never taken for one; what can only be told by its place in memory is
    another one in every process."""
    held = hashlib.sha256(repr(_plain(metric)).encode()).hexdigest()
    return f"{name_of(metric)} {held} {_gradient(metric)}".rstrip()


def _plain(value: object, within: tuple[int, ...] = ()) -> object:
    """What a metric is made of, as tuples and words whose `repr` leaves nothing out: tensors and arrays by dtype, shape
    and bytes. `within` are the ids of what `value` stands in, for what holds on to itself."""
    if id(value) in within:
        return "itself", len(within) - within.index(id(value))

    def all_of(*parts: object) -> tuple[object, ...]:
        return tuple(_plain(part, (*within, id(value))) for part in parts)

    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        flat = value.detach().cpu().to_dense().resolve_conj().resolve_neg().contiguous().reshape(-1)
        held = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes())
        return kind, str(value.dtype), tuple(value.shape), held.hexdigest()
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return kind, value.shape, all_of(*value.ravel())
        return kind, value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if hasattr(type(value), "__array__"):  # a table, whose `repr` leaves rows out
        return kind, repr(value), all_of(np.asarray(value))
    if isinstance(value, nn.Module):
        return kind, repr(value), all_of(*value.named_parameters(), *value.named_buffers())
    if is_dataclass(value) and not isinstance(value, type):
        return kind, all_of(*((field.name, getattr(value, field.name, None)) for field in fields(value)))
    if isinstance(value, Mapping):
        return kind, sorted(map(repr, all_of(*value.items())))
    if isinstance(value, set | frozenset):
        return kind, sorted(map(repr, all_of(*value)))
    if isinstance(value, list | tuple):
        return kind, all_of(*value)
    if isinstance(value, partial):
        return kind, all_of(value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        return kind, all_of(value.__func__, value.__self__)
    if isinstance(value, CodeType):
        return value.co_code.hex(), all_of(value.co_consts), value.co_names
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return value.__qualname__, all_of(value.__code__, cells, value.__defaults__, value.__kwdefaults__)
    return repr(value)


def _gradient(metric: object) -> str:
    """What is said of a metric that has no gradient."""
    return "" if getattr(metric, "differentiable", True) is not False else "without a gradient"
