"""Text as it comes, token by token: the pieces add up to the text, cost the same however long it is, and stop."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.tiny import tokenizer, words
from trimtab.model.detokenise import Detokeniser, Stops, text_of

PIECES = ["<pad>", "<s>", "</s>", "Ã", "©", "Ġa", "b", "â", "Ĥ", "¬", "Ġ", "Ċ", "ðŁ", "ĺ", "Ģ"]


def made(decoder, pieces):
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<pad>"))
    core.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


BYTES = made(decoders.ByteLevel(), PIECES)
SPACES = made(
    decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    ["<pad>", "<s>", "</s>", "▁one", "two", "▁", "<0xC3>", "<0xA9>", "▁x", "."],
)


@pytest.mark.parametrize("tokens", [BYTES, SPACES, tokenizer()], ids=["bytes", "sentencepiece", "words"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_add_up(tokens, data):
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=14))
    text = Detokeniser(tokens)
    shown = [text.take(token, last=n == len(ids) - 1) for n, token in enumerate(ids)]
    assert "".join(shown) == text.said
    whole = text_of(tokens, ids)
    if tokens is not SPACES or "\ufffd" not in whole:  # a byte that fits no character spoils those before it
        assert text.said == whole
    assert not any(piece.endswith("\ufffd") for piece in shown[:-1])


def test_the_cost_of_a_token_does_not_grow():
    asked = []

    class Counting:
        def decode(self, ids, **_):
            asked.append(len(ids))
            return words(*ids)

    text = Detokeniser(Counting())
    for token in range(3, 90):
        text.take(token, last=False)
    assert text.said == words(*range(3, 90))
    assert max(asked) <= 3


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abc", max_size=3), min_size=1, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_a_text_is_cut_before_the_first_stop_to_be_complete(pieces, stops):
    cut, shown = Stops(stops), ""
    for n, piece in enumerate(pieces):
        whole = "".join(pieces[: n + 1])
        found = [at for stop in stops if (at := whole.find(stop)) >= 0]
        part, ended = cut.take(piece, last=n == len(pieces) - 1)
        shown += part
        assert ended == bool(found)
        if found:
            assert shown == whole[: min(found)]
            return
        assert whole.startswith(shown)
        left = whole[len(shown) :]
        assert left == "" or any(stop.startswith(left) for stop in stops), "held back for nothing"
    assert shown == "".join(pieces)


def test_whether_a_stop_came_with_a_piece():
    text = Detokeniser(tokenizer())
    pieces = [text.take(token, last=False) for token in (5, 6, 7)]
    assert pieces == ["w5", " w6", " w7"]
    assert text.has(["6 w7"], pieces[2])
    assert not text.has(["w5 w6"], pieces[2]), "it came before"
