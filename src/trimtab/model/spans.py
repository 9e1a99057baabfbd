"""Spans in tokens: which tokens of a row a named stretch of text covers, found through the tokenizer's character
offsets, and which positions of a row an index, a slice or a span name means.

It knows nothing of padding: positions count the real tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from trimtab.errors import PromptError, nearest
from trimtab.model.tokens import Placed, Rows
from trimtab.values.scope import Scope
from trimtab.values.span import Span

SpanLike = str | tuple[int, int] | Span
Positions = tuple[tuple[int, ...], ...]


def locate(spans: Mapping[str, SpanLike | Sequence[SpanLike]], rows: Rows) -> dict[str, Positions]:
    """The token positions of each named span in each row, and of the span "end", the last token of each.

    A span is given once for all rows, or as a list with one for each. It covers every token that shares a visible
    character with it, so a substring that cuts a token covers the whole token. PromptError where it is absent,
    ambiguous or unnamed.
    """
    if spans and rows.placed is None:
        raise PromptError(
            "spans are found in text, and these prompts were made from token ids: give texts, or use positions"
        )
    if spans and rows.offsets is None:
        raise PromptError(
            "this tokenizer is a slow one and gives no character offsets, which spans need: load its fast version"
        )
    found: dict[str, Positions] = {}
    for name, given in spans.items():
        _check_name(name)
        wanted = _one_per_row(name, given, len(rows.ids))
        found[name] = tuple(_in_row(name, span, row, rows) for row, span in enumerate(wanted))
    return found | {"end": tuple((len(ids) - 1,) for ids in rows.ids)}


def covered(start: int, end: int, text: str, offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The tokens that share a character with `text[start:end]`; its outer spaces count only where it is nothing else.

    >>> covered(1, 7, "a Paris b", [(0, 1), (1, 4), (4, 7), (7, 9)])
    (1, 2)
    """
    words = text[start:end]
    if words.strip():
        start, end = start + len(words) - len(words.lstrip()), end - len(words) + len(words.rstrip())
    return tuple(token for token, (first, last) in enumerate(offsets) if first < end and last > start and first < last)


RELATIVE = ("first", "middle", "last", "next", "further")
"""Parts that any span has: "subject_first" is the first token of "subject", unless a span of that name is there."""


def meant(scope: Scope, row: int, length: int, spans: Mapping[str, Positions]) -> Sequence[int]:
    """The positions that an index, a slice or a span name means in a row of `length` tokens. PromptError for none.

    >>> list(meant(Scope.parse("-2:"), row=0, length=5, spans={}))
    [3, 4]
    """
    if scope.kind == "index":
        index = int(scope.index or 0)
        if not -length <= index < length:
            raise PromptError(
                f"position {index} is out of range in row {row}, which has {length} tokens: 0 to {length - 1}, "
                f"or -{length} to -1"
            )
        return [index % length]
    if scope.kind == "slice":
        positions = range(length)[scope.start : scope.stop]
        if not positions:
            raise PromptError(f'the slice "{scope}" covers nothing of row {row}, which has {length} tokens')
        return positions
    name = str(scope.name)
    if name in spans:
        return spans[name][row]
    whole, _, part = name.rpartition("_")
    if whole in spans and part in RELATIVE:
        return relative(part, spans[whole][row], length)
    raise PromptError(
        f'there is no span "{name}"{nearest(name, spans)}: these prompts have {", ".join(spans)}; '
        f"name others with spans={{…}}, or take a part of one: {', '.join(f'NAME_{part}' for part in RELATIVE)}"
    )


def relative(part: str, span: Sequence[int], length: int) -> tuple[int, ...]:
    """Positions relative to those of a span, in a row of `length` tokens: one of `RELATIVE`, perhaps of no token.

    Its first, middle and last token, the "next" one, and those that follow "further", which never reach the last token
    of the row: that is the span "end".

    >>> [relative(part, (1, 2, 3), length=8) for part in RELATIVE]
    [(1,), (2,), (3,), (4,), (5, 6)]
    """
    if not span:
        return ()
    first, last = min(span), max(span)
    following = tuple(range(last + 1, length - 1))
    parts = {
        "first": (first,),
        "middle": tuple(sorted(span))[1:-1],
        "last": (last,),
        "next": following[:1],
        "further": following[1:],
    }
    return parts[part]


def _check_name(name: str) -> None:
    if name == "end":
        raise PromptError('"end" already names the last token of each row: give this span another name')
    Scope("span", name=name)


def _one_per_row(name: str, given: SpanLike | Sequence[SpanLike], rows: int) -> list[Span]:
    pair = isinstance(given, Sequence) and len(given) == 2 and all(isinstance(part, int) for part in given)
    if isinstance(given, (str, Span)) or pair or not isinstance(given, Sequence):
        return [Span.of(cast(SpanLike, given))] * rows
    if len(given) != rows:
        raise PromptError(
            f'the span "{name}" must be given once for all rows or once for each of the {rows}, got {len(given)}'
        )
    return [Span.of(cast(SpanLike, span)) for span in given]


def _in_row(name: str, span: Span, row: int, rows: Rows) -> tuple[int, ...]:
    assert rows.texts is not None
    assert rows.offsets is not None
    assert rows.placed is not None
    place = rows.placed[row]
    if place is None:
        raise PromptError(
            f'the span "{name}" cannot be found in row {row}: the chat template rewrites the text of the user'
        )
    try:
        start, end = span.locate(place.text)
    except PromptError as error:
        raise PromptError(f'the span "{name}" cannot be found in row {row}: {error}') from error
    tokens = covered(*_within(start, end, place), rows.texts[row], rows.offsets[row])
    if not tokens:
        raise PromptError(
            f'the span "{name}" covers no token in row {row}: the tokenizer drops {place.text[start:end]!r}'
        )
    return tokens


def _within(start: int, end: int, place: Placed) -> tuple[int, int]:
    return max(start + place.shift, place.start), min(end + place.shift, place.end)
