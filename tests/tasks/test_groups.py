"""Groups: what shares a text shares a group, and a text in two groups is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TaskError
from trimtab.tasks.example import Contrast
from trimtab.tasks.groups import own_groups, refuse_leaks, texts_of


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] != p[1]), min_size=1, max_size=20)
)
def test_groups_of_our_own_join_what_shares_a_text(pairs):
    examples = [Contrast(f"t{a}", f"t{b}", "-") for a, b in pairs]
    grouped = own_groups(examples)
    assert [texts_of(e) for e in grouped] == [texts_of(e) for e in examples]
    refuse_leaks(grouped, [""] * len(grouped), "t")
    reach = [{i} for i in range(len(pairs))]  # by brute force: what is reached over shared texts
    for _ in pairs:
        for one in reach:
            for i in list(one):
                one |= {j for j, pair in enumerate(pairs) if set(pair) & set(pairs[i])}
    for i, e in enumerate(grouped):
        assert {j for j, other in enumerate(grouped) if other.group == e.group} == reach[i]


def test_named_groups_are_joined_where_they_share_a_text():
    examples = [
        Contrast("a", "b", "one"),
        Contrast("c", "d", "two"),
        Contrast("d", "e", "one"),
        Contrast("f", "g", "six"),
    ]
    assert [e.group for e in own_groups(examples, named=True)] == ["one", "one", "one", "six"]


def test_continuations_of_one_prompt_belong_together():
    examples = [Contrast("A", "B", "x", prompt="q"), Contrast("A", "B", "y", prompt="r")]
    refuse_leaks(examples, ["", ""], "t")  # the same answers after other questions are no leak
    with pytest.raises(TaskError, match="'q' is in group 'x'"):
        refuse_leaks([examples[0], Contrast("C", "D", "y", prompt="q")], ["", ""], "t")
