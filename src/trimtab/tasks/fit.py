"""Fit: the examples of a task that a model's tokenizer can do, and why each of the others was left out.

All texts go through the tokenizer at once; where it refuses the batch, halves of it find out whom it refuses. What is
left can be given to `tasks.measure` as it is. Nothing is run, but one pass over the clean prompts with `right_only`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from trimtab.errors import PromptError, TaskError, nearest
from trimtab.model.spans import locate
from trimtab.model.tokens import rows_of_texts, special
from trimtab.tasks.distinct import joined, measured
from trimtab.tasks.example import Contrast, Counterfactual, Example
from trimtab.tasks.measure import measure, tokens_of
from trimtab.tasks.metrics import SEQUENCE
from trimtab.tasks.task import LEAST, Task
from trimtab.values.span import Span

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Reasons = dict[int, str]
Read = Literal["both", "clean", "corrupt"]
"""Which prompts of counterfactual examples are used: both, so that they have to correspond, or one alone."""
AT_ONCE = 1 << 13
"""Tokens that one forward pass may hold."""


@dataclass(frozen=True)
class Dropped:
    """An example that was left out: its number in the task that was given, and why, as "what is wrong: details"."""

    index: int
    example: Example
    reason: str

    @property
    def kind(self) -> str:
        """What is wrong, without the details."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class Fitted:
    """The `task` with the examples that fit the model of that name, and those that were `dropped`.

    `distinct` is how many different prompts with different answers the model is asked; examples that ask it the same
    share a group, for which so many groups were `joined` to others. Printed, it says how many are left and what the
    others lack.
    """

    task: Task
    dropped: tuple[Dropped, ...]
    model: str = ""
    distinct: int = 0
    joined: int = 0

    def __str__(self) -> str:
        left, most = len(self.task), len(self.task) + len(self.dropped)
        text = f"{self.task.name}: {left} of {most} examples fit {self.model}"
        if self.dropped:
            text += f"; left out:\n{_table(self.dropped)}"
        if self.joined:
            text += f"\n{self.why_joined}"
        if left < LEAST:
            text += f"\nfewer than {LEAST} examples: intervals will be wide"
        return text

    @property
    def why_joined(self) -> str:
        """What is said of groups that became one; empty where none did."""
        if not self.joined:
            return ""
        left = len(set(self.task.groups))
        return (
            f"{left + self.joined} groups count as {left}: their {len(self.task)} examples are read after "
            f"{self.distinct} different prompts, and those of one prompt and answers belong together"
        )


def fit(lm: LM, task: Task, *, read: Read = "both", right_only: bool = False, least: int | None = None) -> Fitted:
    """Leave out the examples of a task that the model's tokenizer cannot do.

    Kept are examples whose answers and distractors are single tokens of their own (or, of a contrast task most of whose
    answers are not, one answer and one distractor to be compared as texts); whose clean and corrupt prompts have
    equally many tokens; whose spans occur once; which fit the model's positions; which repeat no other one; and which
    leave something to predict a text from. Groups whose examples are read after the same tokens, with the same answers
    to choose from, become one. For what puts nothing of one prompt into the other, `read` names the one that is read,
    "clean" or "corrupt": its twin may then be of any length, and needs no spans. `right_only` keeps of these the
    counterfactual examples whose clean prompt the model continues rather with an answer than with a distractor.

    Raises TaskError where nothing is left, where fewer than `least` examples are, and where the model has no chat
    template that the task needs.

    >>> from trimtab import load  # doctest: +SKIP
    >>> print(fit(load("smollm2-135m-instruct"), builtin.task("capitals")))  # doctest: +SKIP
    capitals: 226 of 234 examples fit smollm2-135m-instruct; left out: …
    """
    if right_only and task.shape != "counterfactual":
        raise TaskError(
            f"{task.name} is a contrast task: right_only is for counterfactual ones, which have a right answer"
        )
    if read not in (kinds := ("both", "clean", "corrupt")):
        raise TaskError(f'read is which prompts are used, {", ".join(kinds)}, got "{read}"{nearest(str(read), kinds)}')
    _check_template(lm, task)
    reasons: Reasons = {}
    checks: tuple[Callable[[LM, Task, list[int]], Reasons], ...] = (_words, _sides, _repeated)
    if task.shape == "counterfactual":
        checks = (_words, partial(_spans, read=read), partial(_twins, read=read), _repeated)
    for check in (*checks, _wrong) if right_only else checks:
        left = [i for i in range(len(task)) if i not in reasons]
        if left:
            reasons |= check(lm, task, left)
    dropped = tuple(Dropped(i, task.examples[i], reasons[i]) for i in sorted(reasons))
    left = [i for i in range(len(task)) if i not in reasons]
    if len(left) < max(1, least or 0):
        wanted = "" if not left and least is None else f", and {least} are needed" if left else ", and some are needed"
        raise TaskError(
            f"{task.name}: {len(left)} of {len(task)} examples fit {lm.name}{wanted}; left out:\n{_table(dropped)}\n"
            "bring more examples, or such as this model's tokenizer can do"
        )
    kept = task.only(left)
    keys = measured(lm, kept)
    made = joined(kept, keys)
    return Fitted(made, dropped, lm.name, len(set(keys)), len(set(kept.groups)) - len(set(made.groups)))


def _table(dropped: Sequence[Dropped]) -> str:
    """Reasons, the commonest first, each with its number and one example of it."""
    first = {one.kind: one.reason.partition(":")[2].strip() for one in reversed(dropped)}
    counts = Counter(one.kind for one in dropped).most_common()
    return "\n".join(f"  {times:5}  {kind}, such as: {first[kind]}" for kind, times in counts)


# Checks: each says of some examples (by number) what is wrong
# ---------------------------------------------------------------------------------------------------------------------


def _check_template(lm: LM, task: Task) -> None:
    """TaskError where the model has no chat template, or not one for the system prompts of this task."""
    systems: set[str | None] = {task.system} if task.chat else set()
    for example in task.examples:
        if isinstance(example, Contrast):
            systems |= {example.positive_system, example.negative_system} - {None}
    for system in sorted(systems, key=str):
        try:
            rows_of_texts(["a"], lm.tokenizer, chat=True, system=system)
        except PromptError as error:
            raise TaskError(f"{task.name} cannot be done by {lm.name}: {error}") from error


def _repeated(lm: LM, task: Task, which: list[int]) -> Reasons:
    """Examples that are in the task twice, in two groups."""
    first: dict[object, int] = {}
    found: Reasons = {}
    for i in which:
        example = task.examples[i]
        before = first.setdefault(_same(example), i)
        if before != i:
            found[i] = f"a repeated example: {example!r} in group {task.groups[before]!r} and {task.groups[i]!r}"
    return found


def _same(example: Example) -> object:
    """What is equal of two examples that differ in nothing but group and spans."""
    if isinstance(example, Counterfactual):
        return example.clean, example.corrupt, example.answers, example.distractors
    sides = (example.positive, example.positive_system, example.negative, example.negative_system)
    return *sides, example.prompt, example.question, example.answers, example.distractors


def _words(lm: LM, task: Task, which: list[int]) -> Reasons:
    """Answers and distractors that are no tokens of their own."""
    examples = {i: task.examples[i] for i in which}
    words = {i: (*e.answers, *e.distractors) for i, e in examples.items()}
    tokens = tokens_of(lm, (word for each in words.values() for word in each))
    several = {i for i, each in words.items() if any(len(tokens[word]) != 1 for word in each)}
    if task.shape == "contrast" and (2 * len(several) > len(which) or task.metric == SEQUENCE):
        some = ((i, e) for i, e in examples.items() if e.answers)
        return {
            i: f"several answers of several tokens: {(*e.answers, *e.distractors)}"
            for i, e in some
            if len(e.answers) != 1 or len(e.distractors) != 1
        }
    unknown = special(lm.tokenizer, "unk")
    found: Reasons = {}
    for i, example in examples.items():
        wrong = next((word for word in words[i] if len(tokens[word]) != 1), None)
        if wrong is not None:
            found[i] = f"an answer that is not one token: {wrong!r} is {len(tokens[wrong])}"
        elif any(tokens[word] == [unknown] for word in words[i]):
            found[i] = f"an answer that the tokenizer does not know: {words[i]}"
        elif {tokens[word][0] for word in example.answers} & {tokens[word][0] for word in example.distractors}:
            found[i] = f"an answer and a distractor that are one token: {words[i]}"
    return found


def _spans(lm: LM, task: Task, which: list[int], read: Read) -> Reasons:
    """Spans that are not in the text that is read, or more than once."""
    found: Reasons = {}
    for i in which:
        example = task.examples[i]
        assert isinstance(example, Counterfactual)
        try:
            for name, span in example.spans.items():
                if read != "corrupt":
                    Span.of(span).locate(example.clean)
                if read != "clean":
                    Span.of(example.corrupt_spans.get(name, span)).locate(example.corrupt)
        except PromptError as error:
            found[i] = f"a span that does not occur once: {str(error).partition(': say which')[0]}"
    return found


def _twins(lm: LM, task: Task, which: list[int], read: Read) -> Reasons:
    """Clean and corrupt prompts that the tokenizer refuses; of those that are read, different length, or too long."""
    examples = [example for i in which if isinstance(example := task.examples[i], Counterfactual)]
    named = [name for name in examples[0].spans if all(name in e.spans for e in examples)]
    spans = {name: [e.spans[name] for e in examples] for name in named}
    others = {name: [e.corrupt_spans.get(name, e.spans[name]) for e in examples] for name in named}
    clean, corrupt = (
        _lengths(lm, texts, places if read in ("both", name) else {}, task.chat, task.system)
        for name, texts, places in (
            ("clean", [e.clean for e in examples], spans),
            ("corrupt", [e.corrupt for e in examples], others),
        )
    )
    found: Reasons = {}
    for i, one, other in zip(which, clean, corrupt, strict=True):
        if isinstance(one, str) or isinstance(other, str):
            found[i] = f"a prompt that the tokenizer refuses: {one if isinstance(one, str) else other}"
        elif read == "both" and one != other:
            found[i] = f"clean and corrupt of different length: {one} and {other} tokens in {task.examples[i]!r}"
        elif reason := _too_long(lm, other if read == "corrupt" else one):
            found[i] = reason
    return found


def _sides(lm: LM, task: Task, which: list[int]) -> Reasons:
    """Texts of a contrast that the tokenizer refuses, that are too long, or that nothing comes before."""
    examples = {i: example for i in which if isinstance(example := task.examples[i], Contrast)}
    tails = tokens_of(lm, (text for e in examples.values() if e.prompt for text in (e.positive, e.negative)))
    words = tokens_of(lm, (word for e in examples.values() for word in (*e.answers, *e.distractors)))
    asked = {i: e.question for i, e in examples.items() if e.question}
    lengths: dict[str, dict[int, int | str]] = {"question": _rows(lm, task, asked, None)}
    for side in ("positive", "negative"):
        lengths[side] = {}
        systems = {i: getattr(e, f"{side}_system") for i, e in examples.items()}
        for system in dict.fromkeys(systems.values()):
            heads = {i: e.prompt or getattr(e, side) for i, e in examples.items() if systems[i] == system}
            lengths[side] |= _rows(lm, task, heads, system)
    found: Reasons = {}
    for i, example in examples.items():
        refused = [n for n in (lengths[side].get(i) for side in lengths) if isinstance(n, str)]
        if refused:
            found[i] = f"a text that the tokenizer refuses: {refused[0]}"
            continue
        for text, side in ((example.positive, "positive"), (example.negative, "negative")):
            before, after = int(lengths[side][i]), len(tails[text]) if example.prompt else 0
            if example.prompt and not after:
                found[i] = f"a text without tokens: {text!r}"
            elif not example.prompt and not example.question and before < 2:
                found[i] = f"nothing to predict a text from: {text!r} is a single token"
            elif reason := _too_long(lm, before + after):
                found[i] = reason
        if i in asked and i not in found:
            longest = max(len(words[word]) for word in (*example.answers, *example.distractors))
            if longest == 0:
                found[i] = f"a text without tokens: one of {(*example.answers, *example.distractors)}"
            elif reason := _too_long(lm, int(lengths["question"][i]) + (longest if longest > 1 else 0)):
                found[i] = reason
    return found


def _wrong(lm: LM, task: Task, which: list[int]) -> Reasons:
    """Clean prompts that the model continues with a distractor rather than with an answer."""
    made = measure(lm, task.only(which), on="clean", metric="accuracy")
    assert made.readout.tokens is not None
    lengths = made.prompts.lengths
    order, size = lengths.argsort().tolist(), max(1, AT_ONCE // int(lengths.max()))
    found: Reasons = {}
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        run = lm.run(made.prompts.rows(rows, trim=True), "final@last", logits=False)
        logits = lm.unembed(run["final@last"][:, None], made.readout.tokens[rows])
        right = made.readout.value(logits, torch.tensor(rows, device=logits.device))
        for row, share in zip(rows, right.tolist(), strict=True):
            if not share:
                found[which[row]] = f"a prompt that the model continues wrongly: {task.examples[which[row]]!r}"
    return found


# Rows of tokens
# ---------------------------------------------------------------------------------------------------------------------


def _rows(lm: LM, task: Task, texts: Mapping[int, str], system: str | None) -> dict[int, int | str]:
    """How many tokens the text of each example is, as `tasks.measure` makes prompts of it, or why it is refused."""
    chat = task.chat or system is not None
    lengths = _lengths(lm, list(texts.values()), {}, chat, task.system if system is None else system)
    return dict(zip(texts, lengths, strict=True))


def _lengths(
    lm: LM, texts: Sequence[str], spans: Mapping[str, Sequence[Any]], chat: bool, system: str | None
) -> list[int | str]:
    """The number of tokens of each text, or why the tokenizer refuses it."""
    if not texts:
        return []
    try:
        rows = rows_of_texts(texts, lm.tokenizer, chat=chat, system=system if chat else None)
        locate(spans, rows)
        return [len(row) for row in rows.ids]
    except PromptError as error:
        if len(texts) == 1:
            return [str(error).replace("row 0, ", "", 1).replace(" in row 0", "", 1)]
        cut = len(texts) // 2
        halves = (
            (texts[part], {name: each[part] for name, each in spans.items()}) for part in (slice(cut), slice(cut, None))
        )
        return [length for some, places in halves for length in _lengths(lm, some, places, chat, system)]


def _too_long(lm: LM, tokens: int) -> str | None:
    sizes = (getattr(lm.hf.config, name, None) for name in ("max_position_embeddings", "n_positions"))
    limit = next((size for size in sizes if size), None)
    if limit is None or tokens <= limit:
        return None
    return f"too long for the model: {tokens} tokens, and it has {limit} positions"
