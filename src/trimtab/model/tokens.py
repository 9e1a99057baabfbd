"""From texts or token ids to rows of real tokens: the chat template, the BOS policy, and the checks of what was given.

It knows nothing of padding, of spans or of models: `Prompts` lays the rows out, `spans` finds words in them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from trimtab.errors import PromptError
from trimtab.model.chat import Placed, policy, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rows:
    """Rows of real tokens, and what was done to get them. Those made from ids have no texts, offsets and places."""

    ids: list[list[int]]
    bos: str
    chat: str = "none"
    texts: tuple[str, ...] | None = None
    offsets: list[list[tuple[int, int]]] | None = None
    placed: Sequence[Placed | None] | None = None


def rows_of_texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool = False,
    system: str | None = None,
    bos: bool | None = None,
) -> Rows:
    """Tokenise `texts`, each as the one user message of a chat where `chat` is true. PromptError where impossible."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise PromptError(f"row {row} must be a text like the others, got {text!r}: texts and token ids do not mix")
        if not text:
            raise PromptError(f"row {row} is an empty text: give at least one character, or token ids such as [[0]]")
    if system is not None and not chat:
        raise PromptError("a system prompt was given without chat=True: add chat=True, or put the words into the text")
    if chat:
        said = policy(tokenizer, system)
        rendered, placed = render(texts, tokenizer, system, bos)
    else:
        said, rendered, placed = "none", list(texts), [Placed(text, 0, 0, len(text)) for text in texts]
    fast = bool(tokenizer.is_fast)
    encoded = tokenizer(
        rendered,
        add_special_tokens=not chat,
        return_offsets_mapping=fast,
        return_attention_mask=False,
        verbose=False,
    )
    ids = [list(row) for row in encoded["input_ids"]]
    offsets = [list(row) for row in encoded["offset_mapping"]] if fast else None
    done = _text_bos(ids, offsets, tokenizer, bos, chat)
    for row, real in enumerate(ids):
        if not real:
            raise PromptError(
                f"row {row}, {texts[row]!r}, has no token left: the tokenizer drops every character of it"
            )
    return Rows(ids, done, said, tuple(rendered), offsets, placed)


def rows_of_ids(
    source: object, tokenizer: PreTrainedTokenizerBase | None, *, mask: object = None, bos: bool | None = None
) -> Rows:
    """Take the real tokens out of ids that may be padded on either side.

    Without a mask every id is real, except runs at the ends of a row of a pad token that is no other special token too.
    PromptError for ids that are not whole numbers of the vocabulary, a mask that does not fit, or a row with no real
    token.
    """
    ids = _whole_numbers(source, "token ids")
    if not ids:
        raise PromptError("no prompts were given: give at least one text or one row of token ids")
    keep = _mask_of_pads(ids, tokenizer) if mask is None else _mask_as_given(mask, ids)
    real = [[token for token, kept in zip(*pair, strict=True) if kept] for pair in zip(ids, keep, strict=True)]
    vocab = None if tokenizer is None else len(tokenizer)
    for row, tokens in enumerate(real):
        if not tokens:
            raise PromptError(f"row {row} has no real token: give at least one id that the mask keeps")
        wrong = next((token for token in tokens if token < 0 or (vocab is not None and token >= vocab)), None)
        if wrong is not None:
            known = "ids start at 0" if vocab is None else f"the tokenizer knows 0 to {vocab - 1}"
            raise PromptError(
                f"row {row} holds the token id {wrong} at position {tokens.index(wrong)}, and {known}: was it made "
                "with the tokenizer of another model?"
            )
    done = "as given"
    if bos is True:
        done = _prepend(real, None, _bos_id(tokenizer))
    elif bos is False:
        done = _remove(real, None, special(tokenizer, "bos"), "removed")
        for row, tokens in enumerate(real):
            if not tokens:
                raise PromptError(
                    f"row {row} holds a BOS and nothing else, and bos=False removes it: leave out bos=False"
                )
    return Rows(real, done)


def special(tokenizer: PreTrainedTokenizerBase | None, name: Literal["bos", "eos", "pad", "unk"]) -> int | None:
    """The id of a special token, None where the tokenizer has none, or where there is no tokenizer."""
    token = None if tokenizer is None else getattr(tokenizer, f"{name}_token_id")
    return None if token is None else int(token)


def strings(tokenizer: PreTrainedTokenizerBase | None, rows: Iterable[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
    """Each token as text, decoded on its own, or as its number where there is no tokenizer.

    A leading space that a decoder drops at the start of a text is kept.
    """
    if tokenizer is None:
        return tuple(tuple(str(token) for token in row) for row in rows)
    known: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in known:
            decoded = tokenizer.decode([token], clean_up_tokenization_spaces=False)
            piece = tokenizer.convert_ids_to_tokens(token)
            lost = isinstance(piece, str) and piece.startswith("▁") and not str(decoded).startswith(" ")
            known[token] = f" {decoded}" if lost else str(decoded)
        return known[token]

    return tuple(tuple(text(token) for token in row) for row in rows)


ANCHORS = ("\n", ":", "a", "0")
"""Texts that others are tokenised after, where a tokenizer puts a space of its own before every text."""
SPACES = "▁Ġ"
"""How a space is written within a token."""


def continuations(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text as one that goes on from another: nothing is put before it.

    Tokenizers of the SentencePiece kind put a space before whatever they are given (" Paris" alone is then two tokens,
    "▁" and "▁Paris"). Such a text is tokenised after another one, whose tokens are taken off again.
    """
    rows = _plainly(tokenizer, texts)
    left = [i for i, (text, row) in enumerate(zip(texts, rows, strict=True)) if _spaces(tokenizer, row, text) > 0]
    for anchor in ANCHORS:
        if not left:
            break
        before, *joint = _plainly(tokenizer, [anchor, *(anchor + texts[i] for i in left)])
        for i, row in zip(tuple(left), joint, strict=True):
            tail = row[len(before) :]
            if row[: len(before)] == before and tail and _spaces(tokenizer, tail, texts[i]) == 0:
                rows[i] = tail
                left.remove(i)
    return rows


def _plainly(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    return [list(row) for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]


def _spaces(tokenizer: PreTrainedTokenizerBase, row: Sequence[int], text: str) -> int:
    """How many more spaces the tokens of a text begin with than the text itself."""
    written = "".join(piece for piece in tokenizer.convert_ids_to_tokens(list(row)) if isinstance(piece, str))
    return (len(written) - len(written.lstrip(SPACES))) - (len(text) - len(text.lstrip(" " + SPACES)))


def single_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The id of the one token that `text` is. PromptError, showing the tokens, where it is several or none."""
    if not isinstance(text, str) or not text:
        raise PromptError(f"one token is needed, got {text!r}: give a word with its leading space, such as ' Paris'")

    def ids(words: str) -> list[int]:
        return continuations(tokenizer, [words])[0]

    found = ids(text)
    if len(found) == 1:
        return found[0]
    if not found:
        raise PromptError(f"{text!r} has no token: the tokenizer drops every character of it")
    other = text[1:] if text.startswith(" ") else f" {text}"
    spaced = "without its leading space" if text.startswith(" ") else "with a leading space"
    advice = f"{spaced}, {other!r}, it is one; or " if other.strip() and len(ids(other)) == 1 else ""
    pieces = ", ".join(
        f"{piece!r} ({token})" for piece, token in zip(strings(tokenizer, [found])[0], found, strict=True)
    )
    raise PromptError(
        f"{text!r} must be one token and is {len(found)}: {pieces}; {advice}choose a word of one token, or compare the "
        f"first token, {found[0]}"
    )


def _text_bos(
    ids: list[list[int]],
    offsets: list[list[tuple[int, int]]] | None,
    tokenizer: PreTrainedTokenizerBase,
    bos: bool | None,
    chat: bool,
) -> str:
    """Carry out the BOS policy on tokenised texts, in place, and say what was done."""
    token = special(tokenizer, "bos")
    if chat:
        present = token is not None and all(row[:1] == [token] for row in ids)
        if bos is False:
            return "none added (the chat template itself begins with it)" if present else "none"
        if present:
            return "written by the chat template"
        return _prepend(ids, offsets, _bos_id(tokenizer)) if bos else "none (chat template writes none)"
    adds = token is not None and list(tokenizer("", verbose=False)["input_ids"])[:1] == [token]
    if bos is False and adds:
        return _remove(ids, offsets, token, "removed (tokenizer adds one)")
    if bos and not adds:
        return _prepend(ids, offsets, _bos_id(tokenizer))
    return "added by the tokenizer" if adds else "none (tokenizer adds none)"


def _bos_id(tokenizer: PreTrainedTokenizerBase | None) -> int:
    token = special(tokenizer, "bos")
    if token is None:
        raise PromptError("bos=True needs a tokenizer with a BOS token, and this one has none: leave out bos=True")
    return token


def _prepend(ids: list[list[int]], offsets: list[list[tuple[int, int]]] | None, token: int) -> str:
    for row, real in enumerate(ids):
        if real[:1] != [token]:
            real.insert(0, token)
            if offsets is not None:
                offsets[row].insert(0, (0, 0))
    return "prepended"


def _remove(ids: list[list[int]], offsets: list[list[tuple[int, int]]] | None, token: int | None, done: str) -> str:
    for row, real in enumerate(ids):
        if token is not None and real[:1] == [token]:
            del real[0]
            if offsets is not None:
                del offsets[row][0]
    return done


def _whole_numbers(source: object, what: str) -> list[list[int]]:
    if hasattr(source, "keys"):
        raise PromptError(
            'a mapping was given: give its ids and mask, Prompts.of(x["input_ids"], …, mask=x["attention_mask"])'
        )
    if isinstance(source, torch.Tensor):
        if source.dim() not in (1, 2):
            raise PromptError(f"{what} must have shape (batch, pos), got {tuple(source.shape)}")
        source = torch.atleast_2d(source).tolist()
    if not isinstance(source, Sequence):
        raise PromptError(f"give texts, or {what} as rows of whole numbers, got {source!r}")
    if source and not any(hasattr(part, "__len__") for part in source):
        source = [source]
    return [_whole_row(row, number, what) for number, row in enumerate(source)]


def _whole_row(row: object, number: int, what: str) -> list[int]:
    values = row.tolist() if hasattr(row, "tolist") else row  # type: ignore[attr-defined]
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise PromptError(f"row {number} of the {what} must be a list of whole numbers, got {values!r}")
    for value in values:
        if (isinstance(value, bool) and what == "token ids") or not hasattr(value, "__index__"):
            raise PromptError(f"{what} must be whole numbers, got {value!r} in row {number}")
    return [operator.index(value) for value in values]


def _mask_as_given(mask: object, ids: list[list[int]]) -> list[list[int]]:
    keep = _whole_numbers(mask, "mask")
    if len(keep) != len(ids):
        raise PromptError(f"the mask must have the shape of the ids: {len(ids)} rows of ids, {len(keep)} rows of mask")
    for row, (kept, tokens) in enumerate(zip(keep, ids, strict=True)):
        if len(kept) != len(tokens):
            raise PromptError(
                f"the mask must have the shape of the ids: row {row} has {len(tokens)} ids and a mask of {len(kept)}"
            )
        if not set(kept) <= {0, 1}:
            wrong = next(value for value in kept if value not in (0, 1))
            raise PromptError(f"the mask holds 1 for a real token and 0 for padding, got {wrong} in row {row}")
        if "0" in "".join(map(str, kept)).strip("0"):
            raise PromptError(f"row {row} of the mask has padding between real tokens: it may stand at either end only")
    return keep


def _mask_of_pads(ids: list[list[int]], tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    pad = special(tokenizer, "pad")
    if pad is None or pad in (special(tokenizer, "bos"), special(tokenizer, "eos"), special(tokenizer, "unk")):
        return [[1] * len(row) for row in ids]
    keep = []
    for row in ids:
        real = [column for column, token in enumerate(row) if token != pad]
        first, last = (real[0], real[-1]) if real else (len(row), len(row))
        keep.append([int(first <= column <= last) for column in range(len(row))])
    return keep
