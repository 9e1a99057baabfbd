"""Scope: which positions of a row are meant. Written after a site (`L3.resid_pre@subject`) or given to an edit.

It knows nothing of tokens, masks or padding: `Prompts.columns` turns a scope into columns of a batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from trimtab.errors import PromptError
from trimtab.values.numbers import whole

ScopeKind = Literal["all", "prompt", "generated", "index", "slice", "span", "tokens"]

WORDS = ("all", "prompt", "generated", "last", "tokens")
NAME = r"[^\W\d](?:[\w.+\-]*[\w+])?"  # a span name: a letter or underscore first, never a dash or dot last
_INDEX = re.compile(r"-?\d+", re.ASCII)
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?", re.ASCII)
_TOKENS = re.compile(r"tokens\{([^{}]*)\}")
_GRAMMAR = 'write all, prompt, generated, last, an index ("-1"), a slice ("2:5", "-1:"), a span name, or tokens{12,55}'


@dataclass(frozen=True)
class Scope:
    """A set of positions of each row, counted over the row's real prompt tokens (padding has no number).

    Negative numbers count from the end of the prompt. Positions are absolute: generation does not move them. A slice
    without a stop reaches into the generated tokens, so `-1:` is the last prompt token and everything generated after
    it.

    | kind | text | positions |
    |---|---|---|
    | all | `all` | every one, prompt and generated |
    | prompt, generated | `prompt`, `generated` | those of the prompt; those fed back after it |
    | index | `-1`, `3`, `last` | one |
    | slice | `2:5`, `-1:`, `:4` | from start up to but not including stop |
    | span | `subject` | those of a named span of the prompts |
    | tokens | `tokens{12,55}` | every one that holds one of these token ids |

    >>> Scope.parse("last")
    Scope.parse("-1")
    >>> str(Scope.parse("tokens{55, 12}"))
    'tokens{12,55}'
    """

    kind: ScopeKind
    index: int | None = None
    start: int | None = None
    stop: int | None = None
    name: str | None = None
    tokens: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for field in ("index", "start", "stop"):
            number = getattr(self, field)
            if number is not None:
                object.__setattr__(self, field, _whole(number, f"{field} of a scope"))
        object.__setattr__(self, "tokens", frozenset(_whole(token, "token id of a scope") for token in self.tokens))
        self._check_fields()
        if self.kind == "slice":
            self._check_slice()
        if self.kind == "span" and (self.name in WORDS or not re.fullmatch(NAME, self.name or "")):
            raise PromptError(
                f"{self.name!r} cannot name a span: start with a letter, go on with letters, digits, _ . + or -, "
                f"and avoid the words {', '.join(WORDS)}"
            )
        if self.kind == "tokens" and (not self.tokens or min(self.tokens) < 0):
            raise PromptError("a scope of tokens needs at least one token id, none of them negative: tokens{12,55}")

    def _check_fields(self) -> None:
        allowed = {"index": {"index"}, "slice": {"start", "stop"}, "span": {"name"}, "tokens": {"tokens"}}
        if self.kind not in ("all", "prompt", "generated", *allowed):
            raise PromptError(f"unknown kind of scope {self.kind!r}: {_GRAMMAR}")
        given = {f for f in ("index", "start", "stop", "name") if getattr(self, f) is not None}
        given |= {"tokens"} if self.tokens else set()
        extra = given - allowed.get(self.kind, set())
        if extra:
            raise PromptError(f"a scope of kind {self.kind!r} takes no {', '.join(sorted(extra))}: {_GRAMMAR}")
        if self.kind == "index" and self.index is None:
            raise PromptError('a scope of kind "index" needs its index, for example Scope("index", index=-1)')

    def _check_slice(self) -> None:
        start, stop = self.start, self.stop
        same_end = start is not None and stop is not None and (start < 0) == (stop < 0)
        if stop == 0 or (same_end and start >= stop):  # type: ignore[operator]
            raise PromptError(
                f'the slice "{self}" covers no position: start must come before stop (stop is not included)'
            )

    @classmethod
    def parse(cls, text: str | int | Scope) -> Scope:
        """Read a scope from its text; a Scope is returned as it is, an int is an index. PromptError otherwise."""
        if isinstance(text, Scope):
            return text
        if isinstance(text, int) and not isinstance(text, bool):
            return cls("index", index=text)
        if not isinstance(text, str):
            raise PromptError(f"a scope is written as text, got {text!r}: {_GRAMMAR}")
        text = text.strip()
        if text in ("all", "prompt", "generated"):
            return cls(text)
        if text == "last":
            return cls("index", index=-1)
        if _INDEX.fullmatch(text):
            return cls("index", index=int(text))
        if match := _SLICE.fullmatch(text):
            start, stop = (None if part is None else int(part) for part in match.groups())
            return cls("slice", start=start, stop=stop)
        if match := _TOKENS.fullmatch(text):
            parts = [part.strip() for part in match[1].split(",")]
            if not all(part.isascii() and part.isdigit() for part in parts):
                raise PromptError(f'"{text}" must list token ids, for example tokens{{12,55}}')
            return cls("tokens", tokens=frozenset(int(part) for part in parts))
        if re.fullmatch(NAME, text) and text not in WORDS:
            return cls("span", name=text)
        raise PromptError(f'"{text}" is not a scope: {_GRAMMAR}')

    def __str__(self) -> str:
        if self.kind == "index":
            return str(self.index)
        if self.kind == "slice":
            return f"{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"
        if self.kind == "span":
            return str(self.name)
        if self.kind == "tokens":
            return "tokens{" + ",".join(str(token) for token in sorted(self.tokens)) + "}"
        return self.kind

    def __repr__(self) -> str:
        return f'Scope.parse("{self}")'

    @property
    def sentence(self) -> str:
        """The scope in words, to follow a site in a sentence.

        >>> Scope.parse("-1").sentence
        'at the last prompt position'
        """
        if self.kind == "index":
            return _position(int(self.index or 0), "at ")
        if self.kind == "slice":
            start = "from the first position" if self.start is None else _position(self.start, "from ")
            end = (
                "on, generated tokens included" if self.stop is None else _position(self.stop, "up to, not including, ")
            )
            return f"{start} {end}"
        if self.kind == "span":
            return f"at the span “{self.name}”"
        if self.kind == "tokens":
            return f"wherever the token is one of {', '.join(str(token) for token in sorted(self.tokens))}"
        return {"all": "at every position", "prompt": "at the prompt's positions"}.get(
            self.kind, "at the generated positions"
        )


def _whole(number: object, what: str) -> int:
    value = whole(number)
    if value is None:
        raise PromptError(f"the {what} must be a whole number, got {number!r}")
    return value


def _position(index: int, before: str) -> str:
    if index == -1:
        return f"{before}the last prompt position"
    if index < 0:
        return f"{before}prompt position {-index} from the end"
    return f"{before}position {index}"
