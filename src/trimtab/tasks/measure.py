"""What a task is to a model: the prompts on which its effect is read, and the two sides whose activations are compared.

All tokenising of tasks happens here. It runs nothing: `LM.run`, `LM.gradients` and `LM.counterfactuals` take what it
makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import TaskError
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout
from trimtab.model.tokens import continuations
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.metrics import DEFAULT, SEQUENCE, Choice, Metric, readout, sequence_log_prob
from trimtab.tasks.task import Task

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Positions = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Measure:
    """Prompts, and a readout whose numbers, summed over the rows of an example, are the example's effect.

    `owner` (row) is the example that each row belongs to, `groups` the group of each example. An example has one row
    where its answers are single tokens, and one for each text whose log-likelihood is taken where they are not.
    """

    prompts: Prompts
    readout: Readout
    owner: np.ndarray
    groups: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Of the effect."""
        return self.readout.unit

    def __len__(self) -> int:
        return len(self.groups)

    def per_example(self, values: Tensor) -> Float[np.ndarray, "*variant example"]:
        """Effects (… example) from the readout's numbers (… row)."""
        rows = values.detach().double().cpu().numpy()
        total = np.zeros((*rows.shape[:-1], len(self)))
        for row, example in enumerate(self.owner):
            total[..., example] += rows[..., row]
        return total


On = Literal["clean", "corrupt", "gap"]
Side = Literal["positive", "negative"]


class Sides(NamedTuple):
    """Prompts of the positive (clean) and negative (corrupt) side, row by row of the examples.

    Both have the span "text": the tokens of the text itself, without a template and without the row's very first
    token, which draws attention whatever it says; and "end", the last token. Clean and corrupt have the task's own
    spans too, those that every example has.
    """

    positive: Prompts
    negative: Prompts


def measure(lm: LM, task: Task, on: On = "corrupt", metric: Metric | None = None) -> Measure:
    """Where and how the effect of a task is read off a model.

    Contrast tasks are read after their questions, whose tokens but the first are the span "text"; counterfactual tasks
    on their "clean" or their "corrupt" prompts, or on both as the "gap": the number of the clean prompt minus that
    of the corrupt one, by how much the model tells the two apart. The twins may differ in length: who puts something of
    one prompt into the other asks `sides`, which refuses those that do not correspond.
    `metric` reads something else than the task's own. "sequence_log_prob" compares the texts of contrast examples also
    where they are single tokens: the answer with the distractor after the question.

    Raises TaskError where an answer is more than one token and a metric of single tokens is asked for.
    """
    if task.shape == "counterfactual":
        if on == "gap":
            return _gap(lm, task, metric)
        prompts = one_side(lm, task, "positive" if on == "clean" else "negative")
        return _of_words(lm, task, prompts, task.examples, metric)
    examples: Sequence[Contrast] = task.examples  # pyright: ignore[reportAssignmentType]
    asked = [bool(example.question) for example in examples]
    if all(asked):
        questions = [example.question for example in examples]
        prompts = lm.prompts(questions, chat=task.chat, system=task.system if task.chat else None)
        prompts = _with_text(prompts, prompts.lengths.tolist())
        words = [word for e in examples for word in (*e.answers, *e.distractors)]
        if (task.metric if metric is None else metric) != SEQUENCE and answer_tokens(lm, words) is not None:
            return _of_words(lm, task, prompts, examples, metric)
        texts = [(e.question, (e.answers[0], e.distractors[0])) for e in examples]
        if any(len(e.answers) != 1 or len(e.distractors) != 1 for e in examples):
            raise TaskError(
                f"{task.name}: answers of several tokens are compared one with one; give one answer and one distractor "
                "for each question, or words of a single token (with their leading space)"
            )
        return _of_texts(lm, task, texts, metric, mean=False)
    if any(asked):
        raise TaskError(
            f"{task.name}: {sum(asked)} of {len(task)} examples have a question; give all of them one, or none"
        )
    texts = [(example.prompt, (example.positive, example.negative)) for example in examples]
    return _of_texts(lm, task, texts, metric, mean=not any(example.prompt for example in examples))


def measure_alone(lm: LM, task: Task, metric: Metric | None = None) -> Measure:
    """`measure` on the clean prompts of a counterfactual task. TaskError for a contrast task, which has none."""
    if task.shape != "counterfactual":
        raise TaskError(f"{task.name} has contrast examples, and clean prompts with answers are needed")
    return measure(lm, task, "clean", metric)


def sides(lm: LM, task: Task) -> Sides:
    """The prompts whose activations are compared. PromptError where clean and corrupt do not correspond."""
    both = Sides(one_side(lm, task, "positive"), one_side(lm, task, "negative"))
    if task.shape == "counterfactual":
        both.positive.align(both.negative)
    return both


def one_side(lm: LM, task: Task, which: Side) -> Prompts:
    """The prompts of one of the two `sides`, without a look at the other, which may be of another length."""
    if which not in ("positive", "negative"):
        raise TaskError(f'a side is "positive" (clean) or "negative" (corrupt), got {which!r}')
    if task.shape == "counterfactual":
        examples = [e for e in task.examples if isinstance(e, Counterfactual)]
        named = [name for name in examples[0].spans if all(name in e.spans for e in examples)]
        if which == "positive":
            texts, spans = [e.clean for e in examples], [e.spans for e in examples]
        else:
            texts, spans = [e.corrupt for e in examples], [{**e.spans, **e.corrupt_spans} for e in examples]
        places = {**{name: [each[name] for each in spans] for name in named}, "text": texts}
        options = {"chat": task.chat, "system": task.system if task.chat else None}
        return _without_sink(lm.prompts(texts, spans=places, **options))
    contrasts = [e for e in task.examples if isinstance(e, Contrast)]
    if which == "positive":
        return _contrast_side(lm, task, [(e.prompt, e.positive, e.positive_system) for e in contrasts])
    return _contrast_side(lm, task, [(e.prompt, e.negative, e.negative_system) for e in contrasts])


def openings(lm: LM, task: Task) -> Prompts:
    """What a model may be asked to continue: clean prompts, questions, prompts, or the first half of positive texts."""
    options = {"chat": task.chat, "system": task.system if task.chat else None}
    texts = []
    for example in task.examples:
        if isinstance(example, Counterfactual):
            texts.append(example.clean)
        else:
            words = example.positive.split()
            texts.append(example.question or example.prompt or " ".join(words[: max(1, len(words) // 2)]))
    return lm.prompts(texts, **options)


def answer_tokens(lm: LM, words: Sequence[str]) -> list[int] | None:
    """The token of each word, or None where one of them is not a single token."""
    found = tokens_of(lm, words)
    ids = [found[word] for word in words]
    return [row[0] for row in ids] if all(len(row) == 1 for row in ids) else None


def tokens_of(lm: LM, texts: Iterable[str]) -> dict[str, list[int]]:
    """The tokens of each text as one that goes on from another: nothing is added to it. A few calls for all of them."""
    unique = list(dict.fromkeys(texts))
    return dict(zip(unique, continuations(lm.tokenizer, unique), strict=True))


def _contrast_side(lm: LM, task: Task, texts: Sequence[tuple[str, str, str | None]]) -> Prompts:
    """Prompts of (prompt, text, system) each: raw text, a message in the template, or an answer to one."""
    rows: list[list[int]] = [[] for _ in texts]
    spans: list[tuple[int, ...]] = [() for _ in texts]
    policy: Prompts | None = None
    tails = tokens_of(lm, (text for prompt, text, _ in texts if prompt))
    for system in dict.fromkeys(system for _, _, system in texts):
        which = [i for i, (_, _, own) in enumerate(texts) if own == system]
        chat = task.chat or system is not None
        options = {"chat": chat, "system": (task.system if system is None else system) if chat else None}
        answering = [bool(texts[i][0]) for i in which]
        heads = [texts[i][0] or texts[i][1] for i in which]
        made = lm.prompts(heads, spans={"text": heads}, **options)
        policy = policy or made
        for row, (i, answers) in enumerate(zip(which, answering, strict=True)):
            ids = made.ids[row][made.mask[row].bool()].tolist()
            tail = tails[texts[i][1]] if answers else []
            rows[i] = ids + tail
            spans[i] = tuple(range(len(ids), len(ids) + len(tail))) if answers else made.spans["text"][row]
    assert policy is not None
    prompts = replace(lm.prompts(rows), bos=policy.bos, chat=policy.chat)
    return _without_sink(prompts.with_spans(text=tuple(spans)))


def _without_sink(prompts: Prompts) -> Prompts:
    """The span "text" without the row's first token, where there is another."""
    spans = tuple(tuple(p for p in places if p or len(places) == 1) for places in prompts.spans["text"])
    return prompts.with_spans(text=spans)


def _gap(lm: LM, task: Task, metric: Metric | None) -> Measure:
    """A measure of clean minus corrupt: one row for each prompt, those of the corrupt ones counted negatively."""
    both = [e for e in task.examples if isinstance(e, Counterfactual)]
    turned = [e.swapped().with_(answers=e.answers, distractors=e.distractors) for e in both]
    joint = [*both, *turned]
    texts, n = [e.clean for e in joint], len(both)
    named = [name for name in both[0].spans if all(name in e.spans for e in joint)]
    spans = {**{name: [e.spans[name] for e in joint] for name in named}, "text": texts}
    options = {"chat": task.chat, "system": task.system if task.chat else None}
    prompts = _without_sink(lm.prompts(texts, spans=spans, **options))
    one = _of_words(lm, task, prompts, joint, metric)
    sign = torch.cat([torch.ones(n), -torch.ones(n)])

    def function(logits: Tensor, rows: Tensor) -> Tensor:
        value = one.readout.function(logits, rows)
        return value * sign.to(value)[rows]

    made = replace(one.readout, function=function, name=f"{one.readout.name} gap")
    return Measure(prompts, made, np.tile(np.arange(n), 2), tuple(e.group for e in both))


def _with_text(prompts: Prompts, lengths: Sequence[int]) -> Prompts:
    """With the span "text": the first `lengths` (row) tokens, which ask, but the very first where there is another."""
    return prompts.with_spans(text=tuple(tuple(range(1, n)) or (0,) for n in lengths))


def _of_words(
    lm: LM, task: Task, prompts: Prompts, examples: Sequence[Contrast | Counterfactual], metric: Metric | None
) -> Measure:
    """A measure of the token after each prompt."""
    tokens = tokens_of(lm, (word for e in examples for word in (*e.answers, *e.distractors)))
    wrong = next((word for word, ids in tokens.items() if len(ids) != 1), None)
    if wrong is not None:
        raise TaskError(
            f"{task.name}: {wrong!r} is {len(tokens[wrong])} tokens of {lm.name}, and one is needed; choose another "
            "word, or leave such examples out with tasks.fit"
        )
    sets = [[e.answers for e in examples], [e.distractors for e in examples]]
    choices = [Choice.of([[tokens[word][0] for word in words] for words in each]) for each in sets]
    made = readout(task.metric if metric is None else metric, *choices)
    return Measure(prompts, made, np.arange(len(examples)), tuple(e.group for e in examples))


def _of_texts(
    lm: LM, task: Task, texts: Sequence[tuple[str, tuple[str, str]]], metric: Metric | None, *, mean: bool
) -> Measure:
    """A measure of log-likelihoods: of the first continuation minus that of the second, each after its prompt."""
    other = task.metric if metric is None and task.metric != DEFAULT else metric
    if other not in (None, SEQUENCE):
        raise TaskError(
            f"{task.name} is read as the log-likelihood of whole texts, and {other!r} reads single tokens; give "
            f'questions with answers of one token, or leave the metric out (or name it, "{SEQUENCE}")'
        )
    rows: list[list[int]] = []
    targets: list[list[int]] = []
    weights: list[float] = []
    heads = prompt_tokens(lm, (prompt for prompt, _ in texts if prompt), task)
    tails = tokens_of(lm, (text for prompt, pair in texts if prompt for text in pair))
    bare = prompt_tokens(lm, (text for prompt, pair in texts if not prompt for text in pair))
    for prompt, pair in texts:
        for text, sign in zip(pair, (1.0, -1.0), strict=True):
            row = heads[prompt] + tails[text] if prompt else bare[text]
            tail = tails[text] if prompt else row[1:]
            if not tail:
                raise TaskError(f"{task.name}: {text!r} is a single token with nothing before it to predict it from")
            rows.append(row)
            targets.append(tail)
            weights.append(sign / len(tail) if mean else sign)
    prompts = lm.prompts(rows)
    predict = tuple(tuple(range(len(r) - len(t) - 1, len(r) - 1)) for r, t in zip(rows, targets, strict=True))
    prompts = _with_text(prompts.with_spans(predict=predict), [places[0] + 1 for places in predict])
    name, unit = ("log_likelihood_diff", "nat/token") if mean else ("log_likelihood_diff", "nat")
    made = sequence_log_prob(Choice.of(targets), "predict", torch.tensor(weights, dtype=torch.float64), name, unit)
    groups = tuple(example.group for example in task.examples)
    return Measure(prompts, made, np.repeat(np.arange(len(texts)), 2), groups)


def prompt_tokens(lm: LM, texts: Iterable[str], task: Task | None = None) -> dict[str, list[int]]:
    """The tokens of each text as a prompt, in the template where the task is chat."""
    unique = list(dict.fromkeys(texts))
    if not unique:
        return {}
    options = {"chat": True, "system": task.system} if task is not None and task.chat else {}
    made = lm.prompts(unique, **options)
    return {text: ids[real.bool()].tolist() for text, ids, real in zip(unique, made.ids, made.mask, strict=True)}
