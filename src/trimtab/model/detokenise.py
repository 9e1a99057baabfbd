"""From tokens to text as they come, and where a text ends.

Each token costs the decoding of a few tokens, however long the text is: what is decoded anew goes back to the last
places where the text was complete, so that a character of several tokens, and the spaces that decoders put between
words, come out as in the whole text. It knows nothing of models: it needs a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trimtab.model.lm import LM


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def ends(lm: LM) -> frozenset[int]:
    """The tokens that end a text: those of the model's generation configuration, else its tokenizer's."""
    config = getattr(lm.hf, "generation_config", None)
    eos: int | list[int] | None = getattr(config, "eos_token_id", None)
    if eos is None and lm.tokenizer is not None:
        eos = lm.tokenizer.eos_token_id  # pyright: ignore[reportAssignmentType]
    return frozenset(() if eos is None else [eos] if isinstance(eos, int) else eos)


class Detokeniser:
    """The text of tokens that come one by one; the pieces that `take` gives add up to the whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.said = ""
        self.before = self.read = 0
        """Tokens from `before` to `read` are decoded again with those behind them, for what stands between words."""
        self.known = ""

    def take(self, token: int, last: bool) -> str:
        """The text that a token completes; at the `last` one all that is left."""
        self.ids.append(token)
        text = text_of(self.tokenizer, self.ids[self.before :])
        if text.endswith("\ufffd") and not last:  # part of a character: wait for the rest
            return ""
        piece = text[len(self.known) :]
        if piece:
            self.said += piece
            self.before, self.read = self.read, len(self.ids)
            self.known = text_of(self.tokenizer, self.ids[self.before :])
        return piece

    def has(self, stops: Sequence[str], piece: str) -> bool:
        """Whether a text of `stops` is there since `piece`, the newest one, came."""
        new = len(self.said) - len(piece)
        return any(self.said.find(stop, max(0, new - len(stop) + 1)) >= 0 for stop in stops)


class Stops:
    """Cuts a text at the first of the texts that end it, and holds back what may become one of them."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.held = ""

    def take(self, piece: str, last: bool) -> tuple[str, bool]:
        """The text that can be shown, and whether it ends here; at the `last` piece nothing is held back."""
        if not self.stops:
            return piece, False
        text = self.held + piece
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], True
        kept = 0 if last else max(_begun(text, stop) for stop in self.stops)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept], False


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
