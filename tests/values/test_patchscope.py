"""Patchscope: shapes, files, the table."""

from __future__ import annotations

import pytest

from trimtab.errors import SiteError, TrimtabError
from trimtab.values.patchscope import Patchscope


def made(**changes):
    parts = {
        "tokens": ("a", " b"),
        "sites": ("L0.resid_post", "L1.resid_post"),
        "at": "-1",
        "target": ("x", "->", "?"),
        "into": ("L0.resid_post", "L0.resid_post"),
        "target_at": "-1",
        "texts": (" one", " two"),
        "top_ids": [[1, 2], [2, 1]],
        "top_probabilities": [[0.5, 0.1], [0.7, 0.2]],
        "words": {"1": " one", "2": " two"},
    }
    return Patchscope(**parts | changes)


def test_it_is_read_back(tmp_path):
    scope = made()
    scope.save(tmp_path / "p.safetensors")
    assert Patchscope.load(tmp_path / "p.safetensors") == scope
    assert scope.text("L1.resid_post") == " two"
    assert [guess.token for guess in scope.top("L0.resid_post")] == [" one", " two"]
    assert scope.to_frame()["guess"].tolist() == [" one", " two"]
    assert "L1.resid_post says ' two' 70.0%" in repr(scope)


def test_bad_input():
    with pytest.raises(TrimtabError, match="got 2 sites, 2 target sites and 1 texts"):
        made(texts=("a",))
    with pytest.raises(TrimtabError, match=r"shape \(2, 2\), got \(1, 2\)"):
        made(top_probabilities=[[0.5, 0.1]])
    with pytest.raises(SiteError, match="was not read"):
        made().top("L7.resid_post")
