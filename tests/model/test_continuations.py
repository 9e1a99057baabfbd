"""Texts that go on from others are tokenised as they are after them, whatever a tokenizer puts before a text alone."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny
from trimtab.errors import PromptError
from trimtab.model.lm import LM
from trimtab.model.tokens import continuations, single_token
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task

WORDS = ("▁the", "▁capital", "▁of", "▁France", "▁Italy", "▁is", "▁Paris", "▁Rome", "un", "▁un", "happy", "▁happy")


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """A BPE of whole words, each built up from its left, with a dummy prefix as Llama 2 has it or as Metaspace does."""
    letters = sorted({letter for word in WORDS for letter in word} | set("▁\n:.a0"))
    steps = list(dict.fromkeys((word[:i], word[i]) for word in WORDS for i in range(1, len(word))))
    vocab = dict.fromkeys(["<unk>", "<s>", *letters, *(a + b for a, b in steps)])
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, steps, unk_token="<unk>"))
    if kind == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


KINDS = ("llama", "first", "always", "never")
PROMPT = "the capital of France is"


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return sentencepiece(request.param)


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_trouble_is_there():
    """Alone, with such a tokenizer, a word is not what it is after a prompt."""
    assert len(plain(sentencepiece("llama"), " Paris")) == 2
    assert plain(sentencepiece("always"), "happy") == plain(sentencepiece("always"), " happy")


@pytest.mark.parametrize("text", [" Paris", " Rome", "happy", " happy", " un", ".", " is Paris", "un happy"])
@pytest.mark.parametrize("prompt", [PROMPT, "the", "the capital:", "is\n"])
def test_it_is_what_comes_after_a_prompt(tokenizer, prompt, text):
    before, joint = plain(tokenizer, prompt), plain(tokenizer, prompt + text)
    assert joint[: len(before)] == before
    assert continuations(tokenizer, [text]) == [joint[len(before) :]]


def test_many_at_once_and_none(tokenizer):
    texts = [" Paris", "happy", "\n", " Rome"]
    assert continuations(tokenizer, texts) == [continuations(tokenizer, [text])[0] for text in texts]
    assert continuations(tokenizer, []) == []


def test_single_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens(single_token(tokenizer, " Paris")) == "▁Paris"
    assert tokenizer.convert_ids_to_tokens(single_token(tokenizer, "happy")) == "happy"
    with pytest.raises(PromptError, match=r"must be one token and is 4.*' Rome', it is one"):
        single_token(tokenizer, "Rome")


def test_a_word_of_a_space_alone_stays_as_it_is():
    """Where no text can be gone on from without a space, what the tokenizer says of the text alone is all there is."""
    vocab = {"<unk>": 0, "▁Paris": 1, "▁": 2}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert continuations(made, [" Paris", "Paris"]) == [[1], [1]]


def test_tasks_are_measured_after_their_prompts(tokenizer):
    """Answers that are one token after the prompt fit, and are read as that token; texts go on without a gap."""
    lm = LM(tiny("llama", torch.float64), tokenizer, name="own", check=False)
    pair = Counterfactual(
        "the capital of France is",
        "the capital of Italy is",
        (" Paris",),
        (" Rome",),
        "a",
        {"s": "France"},
        {"s": "Italy"},
    )
    task = Task("capitals", (pair, pair.swapped().with_(group="b")), metric="logit_diff")
    fitted = fit(lm, task)
    assert not fitted.dropped
    made = measure(lm, fitted.task, "clean")
    logits = lm.run([e.clean for e in task.examples]).logits[:, -1]
    ids = [plain(tokenizer, PROMPT + word)[-1] for word in (" Paris", " Rome")]
    want = (logits[:, ids[0]] - logits[:, ids[1]]) * torch.tensor([1, -1])
    at = lm.run(made.prompts).logits[:, -1:]
    read = made.per_example(made.readout.of(at, torch.arange(2)))
    torch.testing.assert_close(torch.tensor(read), want.double())
    said = Task("said", (Contrast(" is Paris", " is Rome", "a", prompt="the capital of France"),))
    rows = sides(lm, fit(lm, said).task)
    assert [row.tolist() for row in rows.positive.ids] == [plain(tokenizer, "the capital of France is Paris")]
