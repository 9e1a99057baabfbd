"""The neutral text and the capability items that come with the package."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.evaluate.side_effects import capability, side_effects
from trimtab.evaluate.texts import capability as items
from trimtab.evaluate.texts import neutral, part, search_items, search_passages, some
from trimtab.values.edit import Intervention


def test_every_passage_has_a_source_of_its_own():
    passages = neutral()
    assert len({p.source for p in passages}) == len({p.text for p in passages}) == len(passages)
    assert all(p.source.strip() and p.text == p.text.strip() for p in passages)


@pytest.mark.parametrize(("share", "seed"), [(0.3, 0), (0.3, 1), (0.5, 0)])
def test_the_parts_share_nothing_and_leave_nothing_out(share, seed):
    search, test = part("search", share, seed), part("test", share, seed)
    assert not {p.source for p in search} & {p.source for p in test}
    assert {*search, *test} == set(neutral())
    assert len(search) + len(test) == len(neutral())
    assert len(search) == round(share * len(neutral()))
    assert part("search", share, seed) == search
    assert {*part("search", share, seed + 5)} != {*search}


def test_other_parts_are_refused():
    with pytest.raises(TrimtabError, match='"search" and "test", got \'train\''):
        part("train")


@pytest.mark.parametrize(("share", "seed"), [(0.25, 0), (0.25, 1), (0.5, 0)])
def test_items_to_search_and_to_judge_by_share_no_words(share, seed):
    """A mirror (the same two words, the other one right) is in the part of its item."""
    search, test = items("search", share, seed), items("test", share, seed)
    assert {*search, *test} == set(items())
    assert len(search) + len(test) == len(items())
    words = [{(i.kind, frozenset((i.answer, i.distractor))) for i in found} for found in (search, test)]
    assert not words[0] & words[1]
    assert {i.kind for i in search} == {i.kind for i in test} == {i.kind for i in items()}
    assert items("search", share, seed) == search != items("search", share, seed + 5)


def test_enough_items_are_left_to_judge_by():
    assert len(items("search")) >= 64
    assert len(items("test")) >= 200
    with pytest.raises(TrimtabError, match='capability set are "search" and "test", got \'train\''):
        items("train")


def test_what_is_given_is_searched_on_and_else_a_little_of_ours():
    given = (*part("test")[:2],), (*items("test")[:2],)
    assert (search_passages(given[0]), search_items(given[1])) == given
    assert (search_passages(()), search_items(())) == ((), ())
    assert search_passages() == part("search")[:8]
    assert len(search_items()) == 64
    assert set(search_items()) <= set(items("search"))
    assert search_items(seed=1) != search_items() == search_items(seed=0)


def test_items_are_proper():
    found = items()
    assert len({(i.prompt, i.answer, i.distractor) for i in found}) == len(found)
    for item in found:
        assert item.answer != item.distractor
        assert item.answer.strip() != item.distractor.strip()
        assert item.prompt == item.prompt.rstrip()
        assert item.answer[0] == item.distractor[0] == " "
        assert item.kind


def test_some_items_are_drawn_alike_each_time():
    found = some(items(), 50)
    assert len(set(found)) == 50
    assert found == some(items(), 50)
    assert found != some(items(), 50, seed=1)
    assert [i for i in items() if i in set(found)] == list(found)
    assert some(items(), 10**6) == items()
    assert len({item.kind for item in some(items(), 200)}) > 2


def test_the_bundled_model_can_read_all_of_it(bundled):
    """As much text as a study needs at its full length: 4,096 tokens of 20 sources or more."""
    lengths = [len(bundled.prompts([p.text]).ids[0]) for p in neutral()]
    assert min(lengths) >= 170
    test = part("test")
    tokens = len(test) * (170 - 16)
    assert tokens >= 4096
    assert len({p.source for p in test}) >= 20
    assert len(part("search")) >= 8
    one = side_effects(bundled, [Intervention()], test[:1], length=170)
    assert one.tokens * len(test) == tokens


def test_the_bundled_model_can_answer_enough_items(bundled):
    words = [bundled.tokenizer([i.answer, i.distractor], add_special_tokens=False)["input_ids"] for i in items()]
    usable = [all(len(ids) == 1 for ids in pair) for pair in words]
    assert sum(usable[items().index(item)] for item in items("test")) >= 200
    chosen = some(items(), 60)
    right = capability(bundled, chosen)
    expected = [usable[items().index(item)] for item in chosen]
    np.testing.assert_array_equal(~np.isnan(right), expected)
    assert np.nanmean(right) > 0.6
