"""Lens: shapes, files, the table, and tokens made visible."""

from __future__ import annotations

import numpy as np
import pytest

from tests.report.lenses import made
from trimtab.errors import FileError, SiteError, TrimtabError
from trimtab.values.lens import Lens, marked, visible


def test_it_is_read_back_from_its_file(tmp_path):
    lens = made()
    lens.save(tmp_path / "lens.safetensors")
    back = Lens.load(tmp_path / "lens.safetensors")
    assert back == lens
    assert hash(back) == hash(lens)
    assert back.words == lens.words
    np.testing.assert_array_equal(back.top_ids, lens.top_ids)
    with pytest.raises(FileError, match="there is no file"):
        Lens.load(tmp_path / "nothing.safetensors")


def test_its_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        made().rank[0, 0] = 5


def test_rows_and_guesses():
    lens = made()
    assert lens.row("L1.resid_post") == lens.row(-1) == 1
    assert [guess.token for guess in lens.top("L0.resid_post", 1)] == [" a", "\n"]
    assert lens.top(-1)[0].probability == lens.top_probabilities[-1, -1, 0]
    assert lens.prompt == "The <b>"
    assert "2 sites × 2 positions" in repr(lens)
    with pytest.raises(SiteError, match=r'"L2.resid_post" is not in this lens.*L0.resid_post to L1.resid_post'):
        lens.row("L2.resid_post")
    with pytest.raises(SiteError, match="row 2 is out of range"):
        lens.row(2)


@pytest.mark.parametrize(
    ("ranks", "first"),
    [([1, 1], "L0.resid_post"), ([5, 1], "L1.resid_post"), ([1, 2], None), ([3, 2], None)],
)
def test_from_where_on_the_target_is_first(ranks, first):
    assert made(rank=np.array([[1, ranks[0]], [1, ranks[1]]])).first_at() == first


def test_the_table_has_a_row_for_each_guess():
    frame = made().to_frame()
    assert len(frame) == 2 * 2 * 2
    assert list(frame["order"][:2]) == [1, 2]
    assert frame["guess"][0] == made().top(0, 0)[0].token
    assert set(frame["site"]) == {"L0.resid_post", "L1.resid_post"}


def test_a_notebook_sees_escaped_tokens():
    html = made()._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "·a" in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": np.ones((2, 3))}, r"rank of this lens must have shape \(2, 2\), got \(2, 3\)"),
        ({"top_ids": np.ones((2, 2))}, "top_ids of this lens must have shape"),
        ({"words": {"1": "x"}}, "words must spell every token id of a lens, and 2 is missing"),
        ({"tokens": ()}, "at least one site and one position"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    with pytest.raises(TrimtabError, match=message):
        made(**changes)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Paris", "·Paris"),
        ("\n\n", "↵↵"),
        ("\t\r", "⇥␍"),
        ("", "∅"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202eabc", "\\u202eabc"),
        ("日本", "日本"),
        ("a b", "a·b"),
    ],
)
def test_what_cannot_be_seen_is_shown(token, shown):
    assert visible(token) == shown
    assert "".join(text for text, _ in marked(token)) == shown
