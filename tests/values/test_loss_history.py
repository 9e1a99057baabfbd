"""Losses by epoch, in a table, a figure and a file."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.values.loss_history import LossHistory
from trimtab.values.saved import load

HISTORY = LossHistory([4.0, 2.0, 1.0, 0.5], [3.0, 2.5, 2.75], 1)


def test_the_table_has_an_epoch_a_row():
    frame = HISTORY.to_frame()
    assert frame["epoch"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(frame["train"], [np.nan, 3.0, 0.75])
    assert frame["held_out"].tolist() == [3.0, 2.5, 2.75]
    assert repr(HISTORY) == "<LossHistory: 4 steps, held out 3 to 2.5 nats per token, epoch 1 kept>"


def test_without_anything_held_out():
    history = LossHistory([4.0, 2.0], [], 2)
    frame = history.to_frame()
    np.testing.assert_array_equal(frame["train"], [np.nan, 4.0, 2.0])
    assert frame["held_out"].isna().all()
    assert "<svg" in history.plot().svg


def test_the_figure_names_both_lines():
    svg = HISTORY.plot().svg
    assert "train" in svg
    assert "held out" in svg
    assert "picked" in svg


def test_it_is_kept_in_a_file(tmp_path):
    HISTORY.save(tmp_path / "history")
    assert load(tmp_path / "history") == HISTORY


def test_losses_are_one_number_each():
    with pytest.raises(TrimtabError, match="one number for each step"):
        LossHistory(np.zeros((2, 2)), [], 1)
