"""What a locating function would cost, before it is run: what it reads, its passes, memory, and about how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.commands.subjects import Given
    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts
    from trimtab.tasks.signatures import Method
    from trimtab.tasks.task import Task

BATCH = 16
"""Prompts that are timed together, where a method has no batch size of its own."""


@dataclass(frozen=True)
class Planned:
    """What a function would run on: examples of a task (or prompts) and their tokens; `plans.Cost`, as far as it is
    known beforehand; and an estimate of the time in seconds, from one batch of `timed` prompts."""

    method: str
    model: str
    task: str | None
    examples: int
    groups: int
    tokens: int
    places: int | None
    variants: int | None
    passes: float | None
    memory: int | None
    seconds: float | None = None
    timed: int = 0

    def plain(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([*self._on(), *self._costs(), *self._time()])

    def _on(self) -> list[str]:
        if self.task is not None:
            return [
                f"{self.method} on {self.model}: {self.examples} examples of {self.task} in {self.groups} groups,",
                f"{self.tokens:,} tokens in their prompts, both sides together",
            ]
        if not self.examples:
            return [f"{self.method} on {self.model}: weights alone"]
        return [f"{self.method} on {self.model}: {counted(self.examples, 'text')} of {self.tokens:,} tokens"]

    def _costs(self) -> list[str]:
        lines = []
        if self.places is not None:
            lines.append(f"{self.places:,} places, each with a value for every example")
        if self.variants is not None:
            lines.append(f"at most {self.variants:,} variants of a run of one prompt")
        if self.passes:
            lines.append(f"about {self.passes:,.0f} forward passes of a prompt at most:")
            if self.variants is None:
                lines.append("a backward pass counts as two, a readout of many places by its multiplications")
            else:
                lines.append("what an edit leaves as it was (layers below, positions before) is kept")
        elif self.passes == 0:
            lines.append("no forward pass over a prompt")
        else:
            lines.append("how many passes it takes, and how long, is not known beforehand")
        if self.memory is not None:
            lines.append(f"about {self.memory / 2**20:,.0f} MiB of activations together, the model apart")
        return lines

    def _time(self) -> list[str]:
        if self.seconds is None:
            return ["Nothing was run"]
        return [
            f"about {duration(self.seconds)} on this machine, estimated from one plain pass of",
            f"{counted(self.timed, 'prompt')}; fits and drawing are left out. Nothing else was run",
        ]


def planned(lm: LM, name: str, function: Method, parameter: str, given: Given, options: Mapping[str, Any]) -> Planned:
    """The plan of a function that is given this as `parameter`, with these options.

    Prompts are tokenised and places counted; where the number of passes is known, one batch of the prompts is run, as
    they are, to see how long that takes.
    """
    from trimtab.locate.plans import cost, pace, settled

    task = None if given.task is None else given.task.task
    others = {key: value for key, value in given.arguments.items() if key != parameter}
    every = settled(function, {**options, **others})
    found = cost(function, lm, given.arguments.get(parameter), every)
    prompts = None if found.passes == 0 else _prompts(lm, given, parameter, every)
    seen = None
    if found.passes and prompts is not None:
        seen = pace(lm, prompts, int(every.get("batch_size", BATCH)))
    return Planned(
        method=name,
        model=lm.name,
        task=None if task is None else task.name,
        examples=len(task) if task is not None else 0 if prompts is None else len(prompts),
        groups=0 if task is None else len(set(task.groups)),
        tokens=_tokens(lm, task, prompts),
        **asdict(found),
        seconds=None if seen is None or found.passes is None else seen.of(found.passes),
        timed=0 if seen is None else seen.rows,
    )


def _tokens(lm: LM, task: Task | None, prompts: Prompts | None) -> int:
    from trimtab.locate.plans import tokens

    if task is not None:
        return tokens(lm, task)
    return 0 if prompts is None else int(prompts.lengths.sum())


def _prompts(lm: LM, given: Given, parameter: str, options: Mapping[str, Any]) -> Prompts:
    """Prompts like those that the function reads: the task's, those that were given, texts in rows, or, where it is
    given nothing, the repeated tokens that it then makes."""
    from trimtab.evaluate.texts import part
    from trimtab.locate.lens_training import windows
    from trimtab.locate.plans import spanless
    from trimtab.tasks.measure import one_side
    from trimtab.tasks.repeated import RepeatedTokens

    if given.prompts is not None:
        return given.prompts
    if given.task is not None:
        return one_side(lm, spanless(given.task.task), "positive")
    if parameter == "texts":
        texts = given.arguments.get(parameter)
        texts = [passage.text for passage in part("search")] if texts is None else texts
        return windows(lm, lm.prompts(texts), options["context"])
    return RepeatedTokens().prompts(lm)


def duration(seconds: float) -> str:
    """A time to be read.

    >>> [duration(s) for s in (0.2, 42, 90, 4000, 1e6)]
    ['under a second', '42 s', '2 min', '67 min', '278 h']
    """
    if seconds < 1:
        return "under a second"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} h"


def counted(n: int, word: str) -> str:
    """How many of something there are.

    >>> counted(1, "prompt"), counted(2, "prompt")
    ('1 prompt', '2 prompts')
    """
    return f"{n:,} {word}{'s' * (n != 1)}"
