"""Examples of a task, in two shapes: a clean prompt with a corrupt twin, or a pair that differs in one trait.

They are texts. What they are to a model (its tokens, its template) is worked out in `tasks.measure` and `tasks.fit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trimtab.errors import PromptError, TaskError
from trimtab.values.content import Content
from trimtab.values.scope import Scope

RESERVED = ("end", "text")
"""Spans that every prompt of a task has anyway: its last token, and its own text."""


@dataclass(frozen=True, eq=False, repr=False)
class Counterfactual(Content):
    """A prompt the model continues with an answer, and a twin that it continues with a distractor instead.

    `clean` and `corrupt` have as many tokens, so that activations of one can be put into the other. `answers` are what
    the clean prompt asks for and `distractors` what the corrupt one does: words that follow the prompt, with their
    leading space. `spans` name substrings of the clean prompt that are compared ("subject": "France"), or characters
    (start, end) where the words occur more than once; `corrupt_spans` are those of the corrupt one where they differ.
    Examples of one `group` (template, entity) are never split.

    >>> Counterfactual("The capital of France is", "The capital of Italy is", (" Paris",), (" Rome",), group="Europe")
    Counterfactual('The capital of France is' / 'The capital of Italy is': ' Paris' against ' Rome')
    """

    clean: str
    corrupt: str
    answers: tuple[str, ...]
    distractors: tuple[str, ...]
    group: str
    spans: Mapping[str, str | tuple[int, int]] = field(default_factory=dict)
    corrupt_spans: Mapping[str, str | tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _set(self, "answers", _words(self.answers, "answers"))
        _set(self, "distractors", _words(self.distractors, "distractors"))
        _check_texts(self, "clean", "corrupt", "group")
        if self.clean == self.corrupt:
            raise TaskError(f"clean and corrupt are the same text: {_short(self.clean)}")
        if shared := set(self.answers) & set(self.distractors):
            raise TaskError(f"{sorted(shared)} is both an answer and a distractor of {_short(self.clean)}")
        for name in (*self.spans, *self.corrupt_spans):
            _check_span(name)

    def mislabelled(self) -> Counterfactual:
        """The same prompts, with the answers for distractors and the distractors for answers."""
        return self.with_(answers=self.distractors, distractors=self.answers)

    def swapped(self) -> Counterfactual:
        """The other way round: corrupt is clean, distractors are answers."""
        spans = {**self.spans, **self.corrupt_spans}
        others = {name: span for name, span in self.spans.items() if span != spans[name]}
        return Counterfactual(self.corrupt, self.clean, self.distractors, self.answers, self.group, spans, others)

    def __repr__(self) -> str:
        words = f"{_listed(self.answers)} against {_listed(self.distractors)}"
        return f"Counterfactual({_short(self.clean)} / {_short(self.corrupt)}: {words})"


@dataclass(frozen=True, eq=False, repr=False)
class Contrast(Content):
    """Two texts that differ in a trait, and where to see whether a model has it.

    `positive` and `negative` are texts; with a `prompt` they are two continuations of it, and with systems two answers
    (or two prompts) under two system prompts. The trait's effect is read after `question`: log p(answers) −
    log p(distractors). Without a question it is read after `prompt`, between `positive` and `negative` themselves;
    with neither, it is the log-likelihood per token of the positive text minus that of the negative one.

    >>> Contrast(
    ...     "I loved it.", "I hated it.", group="film", question="It was", answers=(" great",), distractors=(" bad",)
    ... )
    Contrast('I loved it.' / 'I hated it.', 'It was': ' great' against ' bad')
    """

    positive: str
    negative: str
    group: str
    prompt: str = ""
    question: str = ""
    answers: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    positive_system: str | None = None
    negative_system: str | None = None

    def __post_init__(self) -> None:
        _check_texts(self, "positive", "negative", "group")
        if self.question:
            _set(self, "answers", _words(self.answers, "answers"))
            _set(self, "distractors", _words(self.distractors, "distractors"))
            if shared := set(self.answers) & set(self.distractors):
                raise TaskError(f"{sorted(shared)} is both an answer and a distractor of {_short(self.question)}")
        elif self.answers or self.distractors:
            raise TaskError("answers and distractors follow a question, and there is none: give the question")
        if (self.positive, self.positive_system) == (self.negative, self.negative_system):
            raise TaskError(f"positive and negative are the same: {_short(self.positive)}")

    def mislabelled(self) -> Contrast:
        """The same pair labelled the other way round; the question keeps its answers."""
        return self.swapped()

    def swapped(self) -> Contrast:
        """The same pair labelled the other way round; the question keeps its answers."""
        return self.with_(
            positive=self.negative,
            negative=self.positive,
            positive_system=self.negative_system,
            negative_system=self.positive_system,
        )

    def __repr__(self) -> str:
        text = f"{_short(self.positive)} / {_short(self.negative)}"
        if self.question:
            text += f", {_short(self.question)}: {_listed(self.answers)} against {_listed(self.distractors)}"
        return f"Contrast({text})"


Example = Counterfactual | Contrast


def _words(words: object, name: str) -> tuple[str, ...]:
    found = (words,) if isinstance(words, str) else tuple(words) if isinstance(words, tuple | list) else ()
    if not found or not all(isinstance(word, str) and word for word in found):
        raise TaskError(f"{name} must be one or more texts, such as (' Paris',), got {words!r}")
    if len(set(found)) < len(found):
        raise TaskError(f"{name} repeat: {found!r}")
    return found


def _check_texts(example: object, *names: str) -> None:
    for name in names:
        value = getattr(example, name)
        if not isinstance(value, str) or not value.strip():
            raise TaskError(f"{name} must be a text that is not empty, got {value!r}")


def _check_span(name: str) -> None:
    if name in RESERVED:
        raise TaskError(f'"{name}" already names a span of every prompt: give this one another name')
    try:
        Scope("span", name=name)
    except PromptError as error:
        raise TaskError(str(error)) from error


def _set(example: object, name: str, value: object) -> None:
    object.__setattr__(example, name, value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(map(repr, words[:3])) + (" …" if len(words) > 3 else "")
