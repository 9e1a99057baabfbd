"""Groups: which examples belong together because they share a text, and the refusal of a text that is in two groups.

Parts of a task are made of whole groups, so what shares a text has to share a group. It knows texts and no tokenizer;
what is one prompt to a model is found out in `tasks.distinct`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence

from trimtab.errors import TaskError
from trimtab.tasks.example import Counterfactual, Example


def texts_of(example: Example) -> tuple[str, ...]:
    """The texts that must not be in two groups: those whose activations or continuations are compared."""
    if isinstance(example, Counterfactual):
        return example.clean, example.corrupt
    return (example.prompt,) if example.prompt else (example.positive, example.negative)


def refuse_leaks(examples: Sequence[Example], places: Sequence[str], name: str) -> None:
    """TaskError, naming both places, where one text is in two groups: it would be in two parts of a split task."""
    first: dict[str, int] = {}
    for i, example in enumerate(examples):
        for text in texts_of(example):
            before = examples[first.setdefault(text, i)]
            if before.group != example.group:
                raise TaskError(leak(name, text, places[first[text]], before.group, places[i], example.group))


def own_groups(examples: Sequence[Example], named: bool = False) -> list[Example]:
    """Each example in a group of its own, but together with those that it shares a text with.

    With `named`, their groups are kept, and groups that share a text become one.
    """
    keys = [{("text", text) for text in texts_of(e)} | ({("group", e.group)} if named else set()) for e in examples]
    return regrouped(examples, keys, [e.group if named else hashed("\n".join(texts_of(e))) for e in examples])


def regrouped(examples: Sequence[Example], keys: Sequence[Iterable[Hashable]], names: Sequence[str]) -> list[Example]:
    """The examples in groups of those that share a key, directly or through others, each group named by the first of
    its members' `names` in alphabetical order.

    >>> from trimtab.tasks.example import Contrast
    >>> films = [Contrast(f"{n} good", f"{n} bad", group=n) for n in "abc"]
    >>> [e.group for e in regrouped(films, [{1}, {2}, {1, 3}], "abc")]
    ['a', 'b', 'a']
    """
    leader = list(range(len(examples)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    first: dict[Hashable, int] = {}
    for i, own in enumerate(keys):
        for key in own:
            leader[find(i)] = find(first.setdefault(key, i))
    chosen: dict[int, str] = {}
    for i, name in enumerate(names):
        chosen[find(i)] = min(name, chosen.get(find(i), name))
    return [example.with_(group=chosen[find(i)]) for i, example in enumerate(examples)]


def leak(name: str, text: str, place: str, group: str | None, other_place: str, other_group: str | None) -> str:
    """What is said of a text that is in two groups."""
    shown = text if len(text) <= 60 else f"{text[:57]}…"
    return (
        f"{name}: the same text is in two groups, so two parts of the task could share it: {shown!r} is in group "
        f"{group!r} ({place}) and in group {other_group!r} ({other_place}); give both one group, or leave one out"
    )


def hashed(text: str) -> str:
    """A name for the group of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
