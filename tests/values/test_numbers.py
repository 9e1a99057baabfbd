import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import SiteError
from trimtab.values.numbers import read_numbers, whole, write_runs


@given(st.lists(st.integers(0, 60), min_size=1, unique=True).map(tuple))
def test_runs_read_back(numbers):
    assert read_numbers(write_runs(numbers), "here", "unit") == numbers


@pytest.mark.parametrize("value", [3, np.int32(3), np.array(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind(value):
    assert whole(value) == 3
    assert type(whole(value)) is int


@pytest.mark.parametrize("value", [3.0, True, "3", None, np.array([3, 4]), torch.tensor(3.0)])
def test_what_is_no_whole_number(value):
    assert whole(value) is None


def test_a_range_beyond_reason_is_refused():
    with pytest.raises(SiteError, match="0-99999999999 names too many units"):
        read_numbers("0-99999999999", "L3.neuron[0-99999999999]", "unit")


def test_the_error_names_the_address():
    with pytest.raises(SiteError, match=r'"L3.head" names layer 3 twice'):
        read_numbers("3,2-4", "L3.head", "layer")
