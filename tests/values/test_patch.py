import numpy as np
import pytest

from trimtab.errors import EditError
from trimtab.values import WeightPatch
from trimtab.values.content import digest_of, encode

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


def test_a_stack_of_matrices_has_factors_for_each_or_for_all():
    rng = np.random.default_rng(0)
    one, many = rng.normal(size=(3, 1)), rng.normal(size=(5, 1, 2))
    patch = WeightPatch("w", left=one, right=many)
    assert patch.shape == patch.matrix.shape == (5, 3, 2)
    np.testing.assert_allclose(patch.matrix[4], one @ many[4])
    assert WeightPatch("w", left=rng.normal(size=(5, 3, 1)), right=rng.normal(size=(1, 2))).shape == (5, 3, 2)
    with pytest.raises(EditError, match="differ in how many matrices there are"):
        WeightPatch("w", left=rng.normal(size=(4, 3, 1)), right=many)


def test_the_mark_of_an_untied_embedding():
    tied = WeightPatch("w", left=COLUMN, right=ROW)
    patch = tied.with_(untie=True)
    assert patch != tied
    assert patch.scaled(2).untie
    assert str(patch) == "w += array(3, 1) @ array(1, 2) untied"
    with pytest.raises(EditError, match=r"untie of the patch of .w. is True or False"):
        tied.with_(untie=1)


def test_a_patch_without_the_mark_is_what_it_was_before_there_was_one():
    """Files and digests of earlier versions."""
    arrays: dict[str, np.ndarray] = {}
    assert "untie" not in encode(WeightPatch("w", delta=COLUMN), arrays)
    assert digest_of({"is": "WeightPatch", "parameter": "w", "left": None, "right": None, "delta": COLUMN}) == (
        WeightPatch("w", delta=COLUMN).digest
    )
