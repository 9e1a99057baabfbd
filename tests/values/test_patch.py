import numpy as np
import pytest

from trimtab.errors import EditError
from trimtab.values import WeightPatch

COLUMN, ROW = np.arange(3.0)[:, None], np.arange(2.0)[None]


def test_both_forms_give_the_matrix():
    assert WeightPatch("w", left=COLUMN, right=ROW).matrix.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert WeightPatch("w", delta=np.ones(3)).matrix.tolist() == [1, 1, 1]


def test_equal_by_content():
    assert WeightPatch("w", delta=COLUMN) == WeightPatch("w", delta=COLUMN.copy())
    assert WeightPatch("w", delta=COLUMN) != WeightPatch("v", delta=COLUMN)
    assert WeightPatch("w", left=COLUMN, right=ROW) != WeightPatch("w", delta=COLUMN @ ROW)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameter": "w"}, 'the value of the patch of "w" must be left and right, or delta'),
        ({"parameter": "w", "left": COLUMN}, "left and right, or delta"),
        ({"parameter": "w", "left": COLUMN, "right": ROW, "delta": COLUMN}, "and not both"),
        ({"parameter": "w", "left": COLUMN, "right": COLUMN}, r"differ in k: \(3, 1\), \(3, 1\)"),
        ({"parameter": "w", "left": np.ones(3), "right": ROW}, "left of the patch of .w. must have 2 dimensions"),
        ({"parameter": "w", "delta": np.array([np.nan])}, "delta of the patch of .w. holds NaN"),
        ({"parameter": "", "delta": COLUMN}, "names its parameter"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(EditError, match=message):
        WeightPatch(**fields)


def test_it_prints_shapes():
    assert str(WeightPatch("w", left=COLUMN, right=ROW)) == "w += array(3, 1) @ array(1, 2)"
    assert str(WeightPatch("w", delta=COLUMN)) == "w += array(3, 1)"
