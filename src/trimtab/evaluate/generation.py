"""What a model writes under an intervention, scored offline: by the unsteered model, by words, by a probe.

No judge that has to be asked over a network: the text's likelihood under a prompt that asks for the behaviour, the
model's own yes or no about the text, the share of words of a lexicon, a probe trained on other data. Each has its own
blind spots, so they are read together, next to fluency.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.errors import TaskError, TrimtabError
from trimtab.evaluate.fluency import Rows, distinct, loops, nll
from trimtab.evaluate.instruction import instructed
from trimtab.model.generate import Generation
from trimtab.model.prompts import Prompts
from trimtab.model.provenance import provenance
from trimtab.tasks.means import pooled
from trimtab.tasks.measure import answer_tokens, openings
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention
from trimtab.values.findings import Sample
from trimtab.values.generations import Generations
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.outcome import Outcome
from trimtab.values.scope import Scope

if TYPE_CHECKING:
    from trimtab.model.lm import LM

YES, NO = (" yes", " Yes"), (" no", " No")
ASKED = "{text}\n\nQuestion: {question} Answer yes or no.\nAnswer:"
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
MeasureOfTexts = Callable[[Generation], np.ndarray]
"""A generation -> (row) a number for each text, NaN where it has none."""


def generations(
    lm: LM,
    task: Task,
    intervention: Intervention | Edit | str,
    *,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
    lexicon: Iterable[str] = (),
    question: str = "",
    probe: LinearProbe | None = None,
    measures: Mapping[str, tuple[MeasureOfTexts, str]] | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Generations:
    """Continues what a task asks, without and with an intervention, and measures both texts.

    Always: negative log-likelihood per token under the unsteered model (whose exponential is the perplexity), distinct
    words and pairs, loops. With the task's `instruction`: how much likelier the text is once that stands before its
    prompt, on the unsteered model. With `lexicon`, `question` and `probe` what `lexicon_share`, `yes_no` and
    `probe_margin` say. `measures` adds further ones, each a function of a `Generation` and its unit.

    Args:
        task: its clean prompts, questions, prompts, or the first half of its positive texts are continued.
        temperature: 0 is greedy; otherwise each row draws with `seed`.

    >>> generations(lm, parts.test.take(24), vector, lexicon=["lovely", "great"]).to_frame()  # doctest: +SKIP
    """
    edit = Intervention.of(intervention)
    prompts = openings(lm, task)
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    both = [_generated(lm, prompts, change, options, batch_size) for change in (None, edit)]
    if progress is not None:
        progress(1, 2)
    wanted = {**_measures(lm, task, prompts, tuple(lexicon), question, probe), **(measures or {})}
    found = {
        name: Outcome(name, unit, np.asarray(read(both[0])), np.asarray(read(both[1])), task.groups)
        for name, (read, unit) in wanted.items()
    }
    if progress is not None:
        progress(2, 2)
    asked = [_text(prompts, row) for row in range(prompts.batch)]
    samples = tuple(Sample(*texts) for texts in zip(asked, both[0].texts, both[1].texts, strict=True))
    made = provenance(lm, prompts, "generations", {"task": task.name, **options, "intervention": edit.digest})
    return Generations(task.name, samples, found, edit, made)


def prompt_likelihood(lm: LM, task: Task, tails: Rows) -> Float[np.ndarray, "row"]:
    """How much likelier each text is after the task's instruction than without, nats per token, on the unsteered model.

    Above zero the text reads as if it had been asked for. TaskError for a task without an instruction.
    """
    if not task.instruction:
        raise TaskError(f"{task.name} has no instruction that would ask for it in words (a task's `instruction`)")
    plain, asked = (_heads(openings(lm, each)) for each in (task, instructed(task)))
    return nll(lm, plain, tails) - nll(lm, asked, tails)


def yes_no(
    lm: LM,
    texts: Sequence[str],
    question: str,
    *,
    template: str = ASKED,
    yes: Sequence[str] = YES,
    no: Sequence[str] = NO,
    batch_size: int = 16,
) -> Float[np.ndarray, "row"]:
    """log p(yes) − log p(no) when the unsteered model is asked a question about each text; NaN for an empty text.

    `template` holds {text} and {question}; the words count together. TaskError for words of several tokens.
    """
    ids = answer_tokens(lm, [*yes, *no])
    if ids is None:
        raise TaskError(f"{[*yes, *no]} are not all single tokens of {lm.name}: give other words for yes and no")
    found = np.full(len(texts), np.nan)
    rows = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        prompts = lm.prompts([template.format(text=texts[i].strip(), question=question) for i in part])
        logits = lm.run(prompts.pad("left")).logits
        assert logits is not None
        last = logits[:, -1].double()
        log_odds = last[:, ids[: len(yes)]].logsumexp(-1) - last[:, ids[len(yes) :]].logsumexp(-1)
        found[part] = log_odds.cpu().numpy()
    return found


def lexicon_share(texts: Sequence[str], words: Iterable[str]) -> Float[np.ndarray, "row"]:
    """The share of each text's words that are in a lexicon, case aside; NaN for a text without words.

    A word that ends in * stands for all that begin so.

    >>> lexicon_share(["A lovely, lovable day", "Rain."], ["lov*", "day"])
    array([0.75, 0.  ])
    """
    known = {word.lower() for word in words}
    whole, starts = {w for w in known if not w.endswith("*")}, tuple(w[:-1] for w in known if w.endswith("*"))
    found = []
    for text in texts:
        said = [word.lower() for word in WORD.findall(text)]
        hits = sum(word in whole or (bool(starts) and word.startswith(starts)) for word in said)
        found.append(hits / len(said) if said else np.nan)
    return np.array(found, dtype=np.float64)


def probe_margin(lm: LM, probe: LinearProbe, heads: Rows, tails: Rows) -> Float[np.ndarray, "row"]:
    """The probe's margin at the mean activation over each text's tokens, read by the unsteered model: above zero on the
    positive side.

    A probe of a layer above the intervention, trained on another task's texts, cannot have learnt the vector itself.
    NaN for a text without tokens.
    """
    found = np.full(len(tails), np.nan)
    rows = [i for i, tail in enumerate(tails) if len(tail)]
    if not rows:
        return found
    spans = tuple(tuple(range(len(heads[i]), len(heads[i]) + len(tails[i]))) for i in rows)
    prompts = lm.prompts([[*heads[i], *tails[i]] for i in rows]).with_spans(text=spans)
    site = probe.site.with_(at=Scope("span", name="text"))
    found[rows] = probe.margin(pooled(lm, prompts, [site])[site])
    return found


def _measures(
    lm: LM, task: Task, prompts: Prompts, lexicon: Sequence[str], question: str, probe: LinearProbe | None
) -> dict[str, tuple[MeasureOfTexts, str]]:
    heads = _heads(prompts)
    found: dict[str, tuple[MeasureOfTexts, str]] = {
        "nll": (lambda g: nll(lm, heads, g.ids), "nat/token"),
        "distinct_1": (lambda g: distinct(g.ids, 1), "share"),
        "distinct_2": (lambda g: distinct(g.ids, 2), "share"),
        "loops": (lambda g: loops(g.ids), "share"),
    }
    if task.instruction:
        found["prompt_likelihood"] = (lambda g: prompt_likelihood(lm, task, g.ids), "nat/token")
    if question:
        found["yes_no"] = (lambda g: yes_no(lm, g.texts, question), "nat")
    if lexicon:
        found["lexicon"] = (lambda g: lexicon_share(g.texts, lexicon), "share")
    if probe is not None:
        found["probe"] = (lambda g: probe_margin(lm, probe, heads, g.ids), "margin")
    return found


def _generated(
    lm: LM, prompts: Prompts, edit: Intervention | None, options: Mapping[str, int | float], batch_size: int
) -> Generation:
    """All rows' continuations, a few at a time."""
    if batch_size < 1:
        raise TrimtabError(f"batch_size is at least 1, got {batch_size}")
    ids: list[tuple[int, ...]] = []
    texts: list[str] = []
    for start in range(0, prompts.batch, batch_size):
        part = prompts.rows(slice(start, start + batch_size), trim=True)
        made = lm.generate(part, edit, **options)  # pyright: ignore[reportArgumentType]
        ids += made.ids
        texts += made.texts
    return Generation(prompts, tuple(ids), tuple(texts))


def _heads(prompts: Prompts) -> list[list[int]]:
    """Each prompt's tokens, without padding."""
    return [ids[real.bool()].tolist() for ids, real in zip(prompts.ids, prompts.mask, strict=True)]


def _text(prompts: Prompts, row: int) -> str:
    return prompts.texts[row] if prompts.texts is not None else "".join(prompts.tokens[row])
