"""Parts of a span: its first, middle and last token and those after it, of any span and under any padding."""

from __future__ import annotations

import pytest

from tests.model.tinies import lm_of
from tests.tiny import words
from trimtab.errors import PromptError
from trimtab.model.spans import RELATIVE, relative

PARTS = {"first": [[2], [1]], "middle": [[3, 4], []], "last": [[5], [1]], "next": [[6], []], "further": [[7, 8], []]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_span_has_parts(side):
    texts = [words(40, *range(10, 14), *range(50, 54)), words(20, 60)]
    spans = {"who": [words(*range(10, 14)), words(20)]}
    prompts = lm_of("llama").prompts(texts, spans=spans).pad(side)
    starts, first = prompts.start.tolist(), prompts.spans["who"]
    for part, positions in PARTS.items():
        moved = [[p - start for p in row] for row, start in zip(prompts.positions(f"who_{part}"), starts, strict=True)]
        shift = [first[row][0] - by[0] for row, by in enumerate(PARTS["first"])]
        assert moved == [[p + by for p in row] for row, by in zip(positions, shift, strict=True)]


def test_a_span_of_that_name_comes_first_and_other_names_are_refused():
    prompts = lm_of("llama").prompts([words(10, 11, 12)], spans={"a": words(10, 11), "a_last": words(10)})
    assert prompts.positions("a_last") == prompts.positions("a_first")
    with pytest.raises(PromptError, match="a part of one: NAME_first"):
        prompts.positions("a_end")
    with pytest.raises(PromptError, match='no span "b_last"'):
        prompts.positions("b_last")


def test_a_span_without_tokens_has_none_in_its_parts():
    assert [relative(part, (), 5) for part in RELATIVE] == [()] * 5
