"""Fitting a task to a model: every reason to leave an example out, how it is told, and that what is left can be run."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tokenizers import normalizers

from tests.commands.calls import TEMPLATE
from tests.model.tinies import lm_of
from tests.tiny import tiny, tokenizer, words
from trimtab.errors import TaskError
from trimtab.model.lm import LM
from trimtab.tasks import builtin
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task

GOOD = Counterfactual("w5 w6 w7", "w5 w8 w7", ("w9",), ("w10",), "a", {"subject": "w6"}, {"subject": "w8"})
FILM = Contrast("w20 w21", "w22 w21", "a", question="w5 w6", answers=("w7",), distractors=("w8",))
SAID = Contrast("w20 w21", "w22 w21", "a", prompt="w5 w6")
BARE = Contrast("w20 w21", "w22 w21", "a")


@pytest.fixture
def lm():
    return lm_of("llama")


def own(change=None, template=None):
    """A tiny model with a tokenizer of its own."""
    made = copy.deepcopy(tokenizer())
    made.chat_template = template
    if change is not None:
        change(made)
    return LM(tiny("llama"), made, name="own", check=False)


def dropped(lm, *examples, **settings):
    """The reasons why examples are left out, by their number; the first example of the task is a good one."""
    fitted = fit(lm, Task("t", tuple(examples), **settings))
    assert len(fitted.task) + len(fitted.dropped) == len(examples)
    assert all(one.example == examples[one.index] for one in fitted.dropped)
    measure(lm, fitted.task)
    sides(lm, fitted.task)
    return {one.index: one.reason for one in fitted.dropped}


FILLER = words(*[5] * 64)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answers": ("w9 w11",)}, "an answer that is not one token: 'w9 w11' is 2"),
        ({"distractors": ("w10", "w9 w9 w9")}, "an answer that is not one token: 'w9 w9 w9' is 3"),
        ({"answers": ("nowhere",), "distractors": ("never",)}, "an answer and a distractor that are one token"),
        ({"spans": {"subject": "w60"}}, 'a span that does not occur once: "w60" does not occur'),
        ({"clean": "w6 w6 w7"}, 'a span that does not occur once: "w6" occurs 2 times'),
        ({"corrupt_spans": {"subject": (3, 99)}}, "a span that does not occur once: the span 3..99 ends beyond"),
        (
            {"corrupt": "w5 w8 w8 w7", "corrupt_spans": {"subject": (3, 5)}},
            "clean and corrupt of different length: 3 and 4 tokens",
        ),
        ({"clean": f"w6 {FILLER}", "corrupt": f"w8 {FILLER}"}, "too long for the model: 65 tokens, and it has 64"),
        ({"group": "b"}, "a repeated example: Counterfactual"),
    ],
)
def test_counterfactuals_that_do_not_fit(lm, changes, reason):
    found = dropped(lm, GOOD, GOOD.with_(**changes))
    assert list(found) == [1]
    assert found[1].startswith(reason)


@pytest.mark.parametrize("read", ["clean", "corrupt"])
def test_where_one_prompt_is_read_its_twin_need_not_correspond(lm, read):
    """Nor has it to have the spans, or to fit the model's positions; the prompt that is read has."""
    other = {"clean": "corrupt", "corrupt": "clean"}
    gone = {"clean": {"spans": {"subject": "w60"}}, "corrupt": {"corrupt_spans": {"subject": "w60"}}}
    ragged = [
        GOOD,
        GOOD.with_(**{other[read]: "w6 w8 w6 w8 w11"}, spans={}, corrupt_spans={}),
        GOOD.with_(**{other[read]: f"w6 w8 {FILLER}"}, spans={}, corrupt_spans={}),
        GOOD.with_(**{read: f"w6 w8 {FILLER}"}, spans={}, corrupt_spans={}),
        GOOD.with_(answers=("w12",), **gone[read]),
    ]
    task = Task(
        "t", (*ragged, GOOD.with_(answers=("w13",), **{"corrupt_spans": GOOD.corrupt_spans, **gone[other[read]]}))
    )
    fitted = fit(lm, task, read=read)
    reasons = {one.index: one.kind for one in fitted.dropped}
    assert reasons == {3: "too long for the model", 4: "a span that does not occur once"}
    measure(lm, fitted.task, on=read)
    assert len(fit(lm, task).task) == 1


def test_what_is_read_is_one_prompt_or_both(lm):
    with pytest.raises(TaskError, match=r'both, clean, corrupt, got "clear".*did you mean "clean"'):
        fit(lm, Task("t", (GOOD,)), read="clear")


@pytest.mark.parametrize(
    ("good", "changes", "reason"),
    [
        (FILM, {"answers": ("w7 w9",)}, "an answer that is not one token: 'w7 w9' is 2"),
        (FILM, {"question": words(*[5] * 65)}, "too long for the model: 65 tokens"),
        (FILM, {"positive": words(*[5] * 65)}, "too long for the model: 65 tokens"),
        (FILM, {"group": "b"}, "a repeated example: Contrast"),
        (SAID, {"prompt": words(*[5] * 63)}, "too long for the model: 65 tokens"),
        (BARE, {"negative": "w9"}, "nothing to predict a text from: 'w9' is a single token"),
        (BARE, {"positive": words(*[5] * 65)}, "too long for the model: 65 tokens"),
    ],
)
def test_contrasts_that_do_not_fit(lm, good, changes, reason):
    found = dropped(lm, good, good.with_(**changes))
    assert list(found) == [1]
    assert found[1].startswith(reason)


def test_one_of_two_alike_is_kept_where_the_other_does_not_fit(lm):
    other = GOOD.with_(clean="w6 w5 w7")
    assert list(dropped(lm, GOOD, other.with_(spans={"subject": "w60"}), other)) == [1]


def test_the_longest_prompts_that_fit_are_kept(lm):
    assert not dropped(lm, GOOD, GOOD.with_(clean=f"w6 {words(*[5] * 63)}", corrupt=f"w8 {words(*[5] * 63)}"))
    assert not dropped(lm, SAID, SAID.with_(prompt=words(*[5] * 62)))
    assert not dropped(lm, BARE, BARE.with_(positive=words(*[5] * 64)))


def test_answers_of_several_tokens_are_kept_where_they_are_the_rule(lm):
    long = [FILM.with_(answers=(f"w7 w{i}",), group=f"{i}") for i in range(30, 33)]
    found = dropped(lm, *long, FILM, FILM.with_(answers=("w7 w8", "w9"), group="z"))
    assert list(found) == [4]
    assert found[4].startswith("several answers of several tokens: ('w7 w8', 'w9', 'w8')")
    assert list(
        dropped(lm, *long, FILM, FILM.with_(group="x", positive="w50"), FILM.with_(group="y", positive="w51"))
    ) == [0, 1, 2]


def test_words_that_a_tokenizer_does_not_know():
    def unknown(made):
        made.unk_token = "<pad>"

    found = dropped(own(unknown), GOOD, GOOD.with_(answers=("nowhere",)))
    assert found[1].startswith("an answer that the tokenizer does not know: ('nowhere', 'w10')")


def test_texts_that_a_tokenizer_drops():
    def drops(made):
        made.backend_tokenizer.normalizer = normalizers.Replace("x", "")

    lm = own(drops)
    gone = GOOD.with_(clean="x", spans={}, corrupt_spans={})
    many = [gone.with_(group=f"{i}", corrupt=f"w{i}") for i in range(20, 25)]
    found = dropped(
        lm, GOOD.with_(spans={}, corrupt_spans={}), *many, GOOD.with_(spans={}, corrupt_spans={}, clean="w90 w5 w5")
    )
    assert list(found) == [1, 2, 3, 4, 5]
    assert found[3].startswith("a prompt that the tokenizer refuses: 'x', has no token left")
    assert dropped(lm, FILM, FILM.with_(positive="xx"))[1].startswith("a text that the tokenizer refuses")
    assert dropped(lm, SAID, SAID.with_(positive="xx"))[1] == "a text without tokens: 'xx'"
    assert dropped(lm, FILM, FILM.with_(answers=("x",)))[1] == "an answer that is not one token: 'x' is 0"


def test_chat_needs_a_template(lm):
    with pytest.raises(TaskError, match="t cannot be done by llama: this tokenizer has no chat template"):
        fit(lm, Task("t", (GOOD,), chat=True))
    system = FILM.with_(positive_system="w30", negative_system="w31")
    with pytest.raises(TaskError, match="has no chat template"):
        fit(lm, Task("t", (system,)))
    assert not dropped(own(template=TEMPLATE), GOOD, chat=True)
    assert not dropped(own(template=TEMPLATE), system)


def test_a_template_that_takes_no_system_prompt_is_told():
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    strict = refusal + "w91 {{ messages[0].content }}"
    with pytest.raises(TaskError, match="does not take a system prompt: no system"):
        fit(own(template=strict), Task("t", (GOOD,), chat=True, system="w5"))


def test_the_template_counts(lm):
    chatty = own(template=TEMPLATE)
    found = dropped(
        chatty, GOOD, GOOD.with_(clean=f"w6 {words(*[5] * 62)}", corrupt=f"w8 {words(*[5] * 62)}"), chat=True
    )
    assert found[1].startswith("too long for the model: 65 tokens")


def test_what_is_left_out_is_told_by_its_commonest_reasons(lm):
    bad = [GOOD.with_(answers=(f"w9 w{i}",), group=f"{i}") for i in range(20, 26)]
    fitted = fit(lm, Task("mine", (GOOD, *bad, GOOD.with_(group="again"))))
    told = str(fitted).splitlines()
    assert told[0] == "mine: 1 of 8 examples fit llama; left out:"
    assert told[1] == "      6  an answer that is not one token, such as: 'w9 w20' is 2"
    assert told[2].split()[:4] == ["1", "a", "repeated", "example,"]
    assert told[3] == "fewer than 60 examples: intervals will be wide"
    assert {one.kind for one in fitted.dropped} == {"an answer that is not one token", "a repeated example"}


def test_a_task_that_fits_says_so_briefly(lm):
    task = Task(
        "mine",
        tuple(
            GOOD.with_(group=f"{i}", spans={}, corrupt_spans={}, clean=f"w6 w{i}", corrupt=f"w8 w{i}")
            for i in range(20, 84)
        ),
    )
    fitted = fit(lm, task)
    assert str(fitted) == "mine: 64 of 64 examples fit llama"
    assert fitted.task == task


def test_too_few_are_an_error_where_a_number_is_asked_for(lm):
    task = Task("mine", (GOOD, GOOD.with_(answers=("w9 w9",))))
    assert len(fit(lm, task, least=1).task) == 1
    with pytest.raises(
        TaskError, match=r"1 of 2 examples fit llama, and 2 are needed; left out:\n +1  an answer that is not"
    ):
        fit(lm, task, least=2)


def test_nothing_left_is_an_error(lm):
    with pytest.raises(
        TaskError, match=r"0 of 1 examples fit llama.*\n +1  an answer that is not one token.*\nbring more"
    ):
        fit(lm, Task("mine", (GOOD.with_(answers=("w9 w9",)),)))


def test_a_whole_task_is_a_few_calls_of_the_tokenizer(lm, monkeypatch):
    calls = []
    whole = type(lm.tokenizer).__call__
    monkeypatch.setattr(type(lm.tokenizer), "__call__", lambda self, *a, **k: calls.append(1) or whole(self, *a, **k))
    many = [
        GOOD.with_(clean=f"w6 w{i} w{j}", corrupt=f"w8 w{i} w{j}", group=f"{i} {j}")
        for i in range(11, 35)
        for j in range(11, 35)
    ]
    fit(lm, Task("many", tuple(many)))
    assert len(calls) <= 8
    calls.clear()
    clean = "w6 w7 w8" + " w9" * 10
    many[300] = GOOD.with_(clean=clean, corrupt=clean.replace("w6", "w20"), spans={"subject": (2, 3)}, corrupt_spans={})
    fitted = fit(lm, Task("many", tuple(many)))
    assert [one.index for one in fitted.dropped] == [300]  # its span is between two words
    assert len(calls) <= 8 + 4 * math.ceil(math.log2(len(many)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt-350m", "bloom"])
def test_right_only_keeps_what_the_model_gets_right(family):
    lm = lm_of(family)
    examples = [
        Counterfactual(
            words(*[i] * (1 + i % 5), 7), words(*[i + 1] * (1 + i % 5), 7), (f"w{i + 2}", "w3"), (f"w{i + 3}",), f"{i}"
        )
        for i in range(10, 50)
    ]
    right = []
    for i, e in enumerate(examples):
        z = lm.run(e.clean).logits[0, -1]
        answers, distractors = ([int(word[1:]) for word in words_] for words_ in (e.answers, e.distractors))
        if float(z[answers].max()) > float(z[distractors].max()):
            right.append(i)
    assert 5 < len(right) < 38  # of both kinds there are enough to tell
    fitted = fit(lm, Task("t", tuple(examples)), right_only=True)
    assert list(fitted.task.examples) == [examples[i] for i in right]
    assert all(one.kind == "a prompt that the model continues wrongly" for one in fitted.dropped)


def test_right_only_is_for_counterfactuals(lm):
    with pytest.raises(TaskError, match="right_only is for counterfactual"):
        fit(lm, Task("t", (FILM,)), right_only=True)


@pytest.mark.parametrize("name", builtin.names())
def test_built_in_tasks_fit_the_bundled_model(bundled, name):
    fitted = fit(bundled, builtin.task(name), least=60)
    made = measure(bundled, fitted.task)
    assert len(made) == len(fitted.task)
    sides(bundled, fitted.task)
    for one in fitted.dropped:
        assert one.kind == "an answer that is not one token"
        word = one.reason.partition(": ")[2].partition("' is ")[0].strip("'")
        assert len(bundled.tokenizer(word, add_special_tokens=False)["input_ids"]) != 1


def test_values_of_a_fitted_task_are_finite(bundled):
    fitted = fit(bundled, builtin.task("greater-than").take(6), right_only=True)
    made = measure(bundled, fitted.task, "clean", metric="accuracy")
    found = made.readout.of(bundled.run(made.prompts).logits[:, -1:], torch.arange(len(fitted.task)))
    assert found.tolist() == [1.0] * len(fitted.task)
