"""Dola: shapes, files, the table."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.values.dola import Dola


def made(**changes):
    parts = {
        "tokens": (("a", " b"), ("c",)),
        "log_probs": np.log([[0.75, 0.25, 1e-300], [0.2, 0.2, 0.6]]),
        "sites": ("embed", "L0.resid_post"),
        "divergence": [[0.1, 0.2], [0.3, 0.1]],
        "chosen": ("L0.resid_post", "embed"),
        "top_ids": [[0, 1], [2, 0]],
        "top_probabilities": [[0.75, 0.0], [0.6, 0.2]],
        "words": {"0": " one", "1": " two", "2": " three"},
    }
    return Dola(**parts | changes)


def test_it_is_read_back(tmp_path):
    found = made()
    found.save(tmp_path / "d.safetensors")
    assert Dola.load(tmp_path / "d.safetensors") == found
    assert [guess.token for guess in found.top()] == [" one"]  # an implausible token is none
    assert [guess.token for guess in found.top(1)] == [" three", " one"]
    frame = found.to_frame()
    assert frame["prompt"].tolist() == ["a b", "c", "c"]
    assert frame["against"].tolist() == ["L0.resid_post", "embed", "embed"]
    assert frame["divergence"].tolist() == [0.2, 0.3, 0.3]
    assert "next ' one' 75.0% against L0.resid_post" in repr(found)


def test_bad_input():
    with pytest.raises(TrimtabError, match=r"divergence must have shape \(2, 2\) here, got \(1, 2\)"):
        made(divergence=[[0.1, 0.2]])
    with pytest.raises(TrimtabError, match="one early layer that was chosen, got 2 and 1"):
        made(chosen=("embed",))
    with pytest.raises(TrimtabError, match=r"L9\.embed was chosen and is not among the candidates, embed, L0"):
        made(chosen=("embed", "L9.embed"))
    with pytest.raises(TrimtabError, match="words spells every id of top_ids, and 2 is missing"):
        made(words={"0": " one", "1": " two"})
    with pytest.raises(TrimtabError, match=r"at least its likeliest token, got top_ids of shape \(2, 0\)"):
        made(top_ids=np.zeros((2, 0), int), top_probabilities=np.zeros((2, 0)))
