"""Span: a stretch of a prompt's text, given as a substring or as a range of characters.

It knows nothing of tokens: `Prompts` turns a located span into token positions through the tokenizer's offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.errors import PromptError, nearest
from trimtab.values.numbers import whole


@dataclass(frozen=True)
class Span:
    """A stretch of text: either `text` (with `occurrence` where it appears several times) or `start` and `end`.

    `occurrence` counts from 0; negative counts from the end. `start` and `end` are characters, `end` not included;
    occurrences may overlap ("aa" occurs twice in "aaa").

    >>> Span("John", occurrence=1).locate("When Mary and John met, John smiled")
    (24, 28)
    >>> Span.of((5, 9)).locate("When Mary and John met")
    (5, 9)
    """

    text: str | None = None
    occurrence: int | None = None
    start: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        for field in ("occurrence", "start", "end"):
            value = getattr(self, field)
            if value is not None:
                if whole(value) is None:
                    raise PromptError(f"the {field} of a span must be a whole number, got {value!r}")
                object.__setattr__(self, field, whole(value))
        by_text, by_range = self.text is not None, self.start is not None or self.end is not None
        if by_text == by_range:
            raise PromptError(f"a span is either a substring or a range of characters (start and end), got {self!r}")
        if by_text and not isinstance(self.text, str):
            raise PromptError(f"the text of a span must be a string, got {self.text!r}")
        if by_text and not self.text:
            raise PromptError("the text of a span is empty: give the words it covers")
        if by_range:
            if self.start is None or self.end is None or self.occurrence is not None:
                raise PromptError(f"a span given by characters needs start and end, and nothing else, got {self!r}")
            if not 0 <= self.start < self.end:
                raise PromptError(f"a span must have 0 <= start < end (end not included), got {self.start}..{self.end}")

    @classmethod
    def of(cls, value: str | tuple[int, int] | Span) -> Span:
        """A Span from a substring, a pair of characters (start, end), or a Span. PromptError otherwise."""
        if isinstance(value, Span):
            return value
        if isinstance(value, str):
            return cls(text=value)
        if isinstance(value, (tuple, list)) and len(value) == 2:
            return cls(start=value[0], end=value[1])
        raise PromptError(f"a span is a substring, a pair (start, end) of characters, or a Span, got {value!r}")

    def locate(self, text: str) -> tuple[int, int]:
        """The characters (start, end) that the span covers in `text`. PromptError where it is absent or ambiguous."""
        if self.text is None:
            start, end = int(self.start or 0), int(self.end or 0)
            if end > len(text):
                raise PromptError(f"the span {start}..{end} ends beyond the {len(text)} characters of {_show(text)}")
            return start, end
        found = _occurrences(self.text, text)
        if not found:
            raise PromptError(f'"{self.text}" does not occur in {_show(text)}{nearest(self.text, text.split())}')
        if self.occurrence is None and len(found) > 1:
            raise PromptError(
                f'"{self.text}" occurs {len(found)} times (at characters {", ".join(map(str, found))}) '
                f'in {_show(text)}: say which, for example Span("{self.text}", occurrence=0), or -1 for the last'
            )
        number = 0 if self.occurrence is None else self.occurrence
        if not -len(found) <= number < len(found):
            times = "once" if len(found) == 1 else f"{len(found)} times"
            raise PromptError(
                f'"{self.text}" occurs {times} in {_show(text)}: occurrence {number} must be between '
                f"{-len(found)} and {len(found) - 1}"
            )
        return found[number], found[number] + len(self.text)


def _occurrences(word: str, text: str) -> list[int]:
    return [start for start in range(len(text) - len(word) + 1) if text.startswith(word, start)]


def _show(text: str, width: int = 80) -> str:
    return repr(text if len(text) <= width else text[: width - 1] + "…")
