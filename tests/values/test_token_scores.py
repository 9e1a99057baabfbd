"""Numbers of tokens: kept, refused where they do not fit, and shown as text that is escaped."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.values.token_scores import TokenScores, tokens_html

SCORES = TokenScores.of([[1.0, -2.0], [0.5]], [["a", " b"], ["c"]], site="embed", unit="logit", method="saliency")


def test_rows_and_file(tmp_path):
    assert SCORES.row(0) == [("a", 1.0), (" b", -2.0)]
    assert SCORES.row(1) == [("c", 0.5)]
    assert np.isnan(SCORES.array[1, 1])
    SCORES.save(tmp_path / "tokens.safetensors")
    kept = TokenScores.load(tmp_path / "tokens.safetensors")
    assert kept.tokens == SCORES.tokens
    np.testing.assert_array_equal(kept.array, SCORES.array)
    assert "strongest ' b' of prompt 0" in repr(SCORES)


def test_colours_say_sign_and_size():
    html = tokens_html(["a", "b", "c", "d"], [2.0, -1.0, 0.0, np.nan])
    assert 'background:rgba(214,69,65,0.80)" title="2">a' in html
    assert 'background:rgba(52,101,164,0.40)" title="-1">b' in html
    assert ',0.00)" title="0">c' in html
    assert "<span>d</span>" in html
    assert "rgba(214,69,65,0.40)" in tokens_html(["a"], [1.0], largest=2.0)


def test_text_is_escaped_and_lines_do_not_break():
    html = TokenScores.of([[1.0, 1.0]], [["<script>", "x\n"]], method="<b>").html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "x↵" in html
    assert "<b><b>" not in html


def test_at_most_some_prompts_are_shown():
    many = TokenScores.of([[1.0]] * 30, [["a"]] * 30)
    assert many.html().count("<p") == 20
    assert "first 20 of 30 prompts" in many._repr_html_()


def test_what_does_not_fit_is_refused():
    with pytest.raises(TrimtabError, match="a column for each token of the longest"):
        TokenScores(np.zeros((1, 2)), (("a",),))
    with pytest.raises(TrimtabError, match="needs a value, got 1"):
        tokens_html(["a", "b"], [1.0])
