"""Measures: what is read off a model is what plain passes over each prompt give; sides cover no template."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.commands.calls import TEMPLATE
from tests.model.tinies import close, lm_of
from tests.tiny import tiny, tokenizer
from trimtab.errors import PromptError, TaskError
from trimtab.model.lm import LM
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import answer_tokens, measure, one_side, sides, tokens_of
from trimtab.tasks.task import Task

PAIRS = Task(
    "pairs",
    (
        Counterfactual("w5 w6 w7", "w5 w8 w7", ("w9",), ("w10",), "a", {"subject": "w6"}, {"subject": "w8"}),
        Counterfactual(
            "w11 w6 w7 w12", "w11 w8 w7 w12", ("w9", "w13"), ("w10",), "b", {"subject": "w6"}, {"subject": "w8"}
        ),
    ),
    metric="logit_diff",
)
FILMS = Task(
    "films",
    (
        Contrast("w20 w21", "w22 w21", "a", question="w5 w6", answers=("w7",), distractors=("w8", "w9")),
        Contrast("w23 w21 w24", "w25", "b", question="w5 w6 w10 w11", answers=("w12",), distractors=("w8",)),
    ),
)


@pytest.fixture(params=["llama", "gpt2"])
def lm(request):
    return lm_of(request.param, torch.float64)


@pytest.fixture
def chatty():
    own = copy.deepcopy(tokenizer())
    own.chat_template = TEMPLATE
    return LM(tiny("llama", torch.float64), own, name="chatty", check=False)


def read(lm, made):
    """The effect of each example, read from one pass over the padded prompts."""
    logits = lm.run(made.prompts).logits
    columns = made.readout.columns(made.prompts)
    at = logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))
    return made.per_example(made.readout.of(at, torch.arange(made.prompts.batch)))


def logp(lm, text):
    """Log-probabilities (pos vocab) of one text, alone and unpadded."""
    return torch.log_softmax(lm.run(text).logits[0], -1)


def ids(text):
    return [int(word[1:]) for word in text.split()]


def same(found, expected):
    assert np.allclose(found, np.array(expected, dtype=float), rtol=1e-8, atol=1e-10), (found, expected)


@pytest.mark.parametrize("on", ["clean", "corrupt"])
def test_a_counterfactual_is_read_after_the_prompt(lm, on):
    made = measure(lm, PAIRS, on)
    texts = [getattr(example, on) for example in PAIRS.examples]
    first, second = (logp(lm, text)[-1] for text in texts)
    same(read(lm, made), [first[9] - first[10], (second[9] + second[13]) / 2 - second[10]])
    assert (made.unit, len(made), made.groups) == ("logit", 2, ("a", "b"))
    assert made.prompts.positions("subject") == [[2], [1]]  # the first row is padded by one


def test_another_metric_can_be_read(lm):
    p = [logp(lm, example.clean)[-1].exp() for example in PAIRS.examples]
    same(read(lm, measure(lm, PAIRS, "clean", metric="prob")), [p[0][9], p[1][9] + p[1][13]])

    def first(logits, rows):
        return logits[:, -1, 3]

    made = measure(lm, PAIRS.with_(metric=first), "clean")
    same(read(lm, made), [lm.run(example.clean).logits[0, -1, 3] for example in PAIRS.examples])


def test_a_contrast_is_read_after_its_question(lm):
    made = measure(lm, FILMS)
    one, other = (logp(lm, example.question)[-1] for example in FILMS.examples)
    same(read(lm, made), [one[7] - torch.logsumexp(one[[8, 9]], 0), other[12] - other[8]])


def likelihood(lm, prompt, text):
    """Σ log p of the text's tokens after the prompt, by a loop; without a prompt all but the first."""
    row = ids(prompt) + ids(text)
    found = logp(lm, [row])
    start = len(ids(prompt)) or 1
    return sum(float(found[pos - 1, row[pos]]) for pos in range(start, len(row)))


def test_answers_of_several_tokens_are_compared_as_texts(lm):
    task = Task(
        "long",
        (
            Contrast("w20", "w21", "a", question="w5 w6", answers=("w7 w8 w9",), distractors=("w10",)),
            Contrast("w22", "w23", "b", question="w5 w6 w30 w31", answers=("w7",), distractors=("w11 w12",)),
        ),
    )
    made = measure(lm, task)
    expected = [
        likelihood(lm, e.question, e.answers[0]) - likelihood(lm, e.question, e.distractors[0]) for e in task.examples
    ]
    same(read(lm, made), expected)
    assert made.owner.tolist() == [0, 0, 1, 1]
    assert made.prompts.batch == 4
    assert made.unit == "nat"


def test_the_likelihood_of_texts_can_be_asked_for_by_name(lm):
    """Also of answers that are single tokens: one with one, by what the model gives each after its question."""
    films = FILMS.of([e.with_(distractors=e.distractors[:1]) for e in FILMS.examples])
    expected = [
        likelihood(lm, e.question, e.answers[0]) - likelihood(lm, e.question, e.distractors[0]) for e in films.examples
    ]
    named = films.with_(metric="sequence_log_prob")
    for made in (measure(lm, named), measure(lm, films, metric="sequence_log_prob")):
        same(read(lm, made), expected)
        assert made.prompts.batch == 4
    texts = Task("texts", (Contrast("w5 w6 w7", "w5 w8", "a"), Contrast("w9 w10", "w11 w12 w13 w14", "b")))
    same(read(lm, measure(lm, texts.with_(metric="sequence_log_prob"))), read(lm, measure(lm, texts)))
    fitted = fit(lm, FILMS.with_(metric="sequence_log_prob"))
    assert [one.reason.partition(":")[0] for one in fitted.dropped] == ["several answers of several tokens"]
    with pytest.raises(TaskError, match="sequence_log_prob reads whole texts"):
        measure(lm, PAIRS.with_(metric="sequence_log_prob"))
    with pytest.raises(TaskError, match="texts is read as the log-likelihood of whole texts, and 'rank' reads single"):
        measure(lm, texts.with_(metric="rank"))


def test_continuations_of_a_prompt_are_compared_in_sum(lm):
    task = Task("said", (Contrast("w7 w8", "w9", "a", "w5 w6"), Contrast("w10", "w11 w12 w13", "b", "w14 w15 w16")))
    expected = [likelihood(lm, e.prompt, e.positive) - likelihood(lm, e.prompt, e.negative) for e in task.examples]
    same(read(lm, measure(lm, task)), expected)


def test_texts_alone_are_compared_per_token(lm):
    task = Task("texts", (Contrast("w5 w6 w7", "w5 w8", "a"), Contrast("w9 w10", "w11 w12 w13 w14", "b")))
    expected = []
    for e in task.examples:
        each = [likelihood(lm, "", text) / (len(ids(text)) - 1) for text in (e.positive, e.negative)]
        expected.append(each[0] - each[1])
    made = measure(lm, task)
    same(read(lm, made), expected)
    assert made.unit == "nat/token"


def test_effects_of_variants_keep_their_axes(lm):
    made = measure(lm, Task("texts", (Contrast("w5 w6", "w5 w8", "a"), Contrast("w9 w10", "w11 w12", "b"))))
    values = torch.arange(12.0).view(3, 4)
    same(made.per_example(values), [[1, 5], [9, 13], [17, 21]])
    same(made.per_example(values[0]), [1, 5])


def test_the_engine_reads_what_a_plain_pass_reads(lm):
    for task in (PAIRS, FILMS, Task("texts", (Contrast("w5 w6 w7", "w5 w8", "a"), Contrast("w9 w10", "w11 w12", "b")))):
        made = measure(lm, task)
        found = lm.counterfactuals(made.prompts, ["L1.mlp_out scale 0"], made.readout)
        same(made.per_example(found.base), read(lm, made))


def test_questions_of_some_examples_only_are_refused(lm):
    task = Task("mixed", (*FILMS.examples, Contrast("w5", "w6", "c")))
    with pytest.raises(TaskError, match="2 of 3 examples have a question"):
        measure(lm, task)


def test_long_words_are_refused_where_one_token_is_needed(lm):
    task = PAIRS.of([PAIRS.examples[0].with_(answers=("w9 w10",))])
    with pytest.raises(TaskError, match=r"'w9 w10' is 2 tokens of (llama|gpt2), and one is needed.*tasks\.fit"):
        measure(lm, task)
    several = FILMS.of([FILMS.examples[0].with_(answers=("w7 w7", "w8 w8"), distractors=("w9",))])
    with pytest.raises(TaskError, match="one answer and one distractor"):
        measure(lm, several)


def test_nothing_to_predict_a_text_from_is_said(lm):
    with pytest.raises(TaskError, match="'w6' is a single token with nothing before it"):
        measure(lm, Task("texts", (Contrast("w5 w7", "w6", "a"),)))


def test_twins_of_different_length_are_no_sides_to_compare(lm):
    task = PAIRS.of([PAIRS.examples[0].with_(corrupt="w5 w8 w8 w7", corrupt_spans={"subject": (3, 5)})])
    with pytest.raises(PromptError, match="3 tokens and the row it is compared with has 4"):
        sides(lm, task)


@pytest.mark.parametrize("on", ["clean", "corrupt"])
def test_a_counterfactual_is_read_without_a_look_at_its_twin(lm, on):
    """The other prompt is longer, and has no such span."""
    other = "corrupt" if on == "clean" else "clean"
    spans = {"spans": {"subject": "w6"}, "corrupt_spans": {"subject": "w8"}}
    longer = [e.with_(**{other: "w5 w5 w9 w9 w9 w9"}, **spans) for e in PAIRS.examples]
    whole, alone = measure(lm, PAIRS, on), measure(lm, PAIRS.of(longer), on)
    assert torch.equal(whole.prompts.ids, alone.prompts.ids)
    assert whole.prompts.spans == alone.prompts.spans
    same(read(lm, alone), read(lm, whole))


def test_a_side_is_one_of_two(lm):
    both = sides(lm, PAIRS)
    for which, prompts in zip(("positive", "negative"), both, strict=True):
        made = one_side(lm, PAIRS, which)
        assert torch.equal(made.ids, prompts.ids)
        assert made.spans == prompts.spans
    with pytest.raises(TaskError, match="got 'clean'"):
        one_side(lm, PAIRS, "clean")


def test_sides_of_a_counterfactual_have_its_spans(lm):
    clean, corrupt = sides(lm, PAIRS)
    assert clean.spans["subject"] == ((1,), (1,))
    assert clean.spans["text"] == ((1, 2), (1, 2, 3))  # without the first token of the row
    assert clean.spans["end"] == corrupt.spans["end"] == ((2,), (3,))
    assert clean.tokens[0] == ("w5", "w6", "w7")
    assert corrupt.tokens[0] == ("w5", "w8", "w7")


def test_a_span_that_one_example_lacks_is_no_span_of_the_task(lm):
    task = PAIRS.of([PAIRS.examples[0], PAIRS.examples[1].with_(spans={}, corrupt_spans={})])
    assert set(sides(lm, task).positive.spans) == {"text", "end"}


def test_sides_of_texts_leave_out_the_first_token(lm):
    positive, negative = sides(lm, FILMS)
    assert positive.spans["text"] == ((1,), (1, 2))
    assert negative.spans["text"] == ((1,), (0,))  # a text of one token is all there is


def test_sides_of_continuations_cover_the_continuation(lm):
    task = Task("said", (Contrast("w7 w8", "w9", "a", "w5 w6"), Contrast("w10", "w11 w12 w13", "b", "w14")))
    positive, negative = sides(lm, task)
    assert positive.tokens == (("w5", "w6", "w7", "w8"), ("w14", "w10"))
    assert positive.spans["text"] == ((2, 3), (1,))
    assert negative.spans["text"] == ((2,), (1, 2, 3))


def test_system_prompts_make_the_two_sides(chatty):
    words = {"question": "w7", "answers": "w8", "distractors": "w9", "positive_system": "w30"}
    examples = (
        Contrast("w5 w6", "w5 w6", "a", negative_system="w31", **words),
        Contrast("w12", "w12", "b", negative_system="w32 w33", **words),
    )
    task = Task("honesty", examples, chat=True, system="w40")
    positive, negative = sides(chatty, task)
    assert positive.tokens == (("w90", "w30", "w91", "w5", "w6", "w92"), ("w90", "w30", "w91", "w12", "w92"))
    assert negative.tokens[1] == ("w90", "w32", "w33", "w91", "w12", "w92")
    assert positive.spans["text"] == ((3, 4), (3,))
    assert negative.spans["text"] == ((3, 4), (4,))
    made = measure(chatty, task)
    assert made.prompts.tokens[0] == (
        "w90",
        "w40",
        "w91",
        "w7",
        "w92",
    )  # the question has the system prompt of questions
    at = logp(chatty, [[90, 40, 91, 7, 92]])[-1]
    same(read(chatty, made), [at[8] - at[9]] * 2)


def test_a_prompt_in_the_template_is_answered_after_it(chatty):
    task = Task("said", (Contrast("w7 w8", "w9", "a", "w5 w6"),), chat=True)
    assert sides(chatty, task).positive.tokens[0] == ("w91", "w5", "w6", "w92", "w7", "w8")
    same(
        read(chatty, measure(chatty, task)),
        [likelihood(chatty, "w91 w5 w6 w92", "w7 w8") - likelihood(chatty, "w91 w5 w6 w92", "w9")],
    )


def test_tokens_of_many_texts_are_one_call(lm, monkeypatch):
    assert tokens_of(lm, ["w5 w6", "w7", "w5 w6"]) == {"w5 w6": [5, 6], "w7": [7]}
    assert tokens_of(lm, []) == {}
    assert answer_tokens(lm, ["w5", "w6"]) == [5, 6]
    assert answer_tokens(lm, ["w5", "w6 w7"]) is None
    calls = []
    whole = type(lm.tokenizer).__call__
    monkeypatch.setattr(type(lm.tokenizer), "__call__", lambda self, *a, **k: calls.append(1) or whole(self, *a, **k))
    many = [
        Contrast(f"w{i} w5", f"w{i} w6", f"{i}", question=f"w{i}", answers=("w7",), distractors=("w8",))
        for i in range(9, 90)
    ]
    measure(lm, Task("many", tuple(many)))
    assert len(calls) < 10


def test_the_bundled_model_knows_its_capitals(bundled):
    example = Counterfactual(
        "The capital of France is",
        "The capital of Italy is",
        (" Paris",),
        (" Rome",),
        "a",
        {"s": "France"},
        {"s": "Italy"},
    )
    task = Task("capitals", (example, example.swapped().with_(group="b")), metric="logit_diff")
    found = read(bundled, measure(bundled, task, "clean"))
    assert (found > 2).all()
    crossed = read(bundled, measure(bundled, task, "corrupt"))
    close(bundled, torch.tensor(-crossed[::-1].copy()), torch.tensor(found), times=10)
