import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.values import Outcome, Provenance

BEFORE, AFTER = np.array([3.0, 2.0, 5.0]), np.array([1.0, 1.0, 2.0])


def test_the_difference_is_after_minus_before():
    mean, low, high = Outcome("logit_diff", "logits", BEFORE, AFTER).difference()
    reach = 4.302652729911275 / np.sqrt(3)  # Student's quantile with two degrees of freedom; the deviation is 1
    assert mean == -2.0
    np.testing.assert_allclose((low, high), (mean - reach, mean + reach))


def test_the_interval_is_paired():
    spread = np.array([0.0, 100.0, 200.0])
    np.testing.assert_allclose(Outcome("m", "nats", spread, spread + 1).difference(), 1.0)


def test_groups_count_as_one():
    """Two groups with means 1.5 and 3.5: those are the two observations."""
    mean, low, high = Outcome("m", "nats", [0, 0, 0, 0], [1, 2, 3, 4], groups=["a"] * 2 + ["b"] * 2).difference()
    reach = 12.706204736174694  # Student's quantile with one degree of freedom; the standard error is 1
    assert mean == 2.5
    np.testing.assert_allclose((low, high), (2.5 - reach, 2.5 + reach))


def test_an_example_without_a_value_on_one_side_does_not_count():
    assert Outcome("m", "nats", [0.0, 1.0, np.nan], [1.0, 2.0, 9.0]).difference().mean == 1.0


def test_one_example_has_no_interval():
    mean, low, high = Outcome("m", "nats", [0.0], [1.0]).difference()
    assert mean == 1.0
    assert np.isnan([low, high]).all()


def test_it_prints_both_sides_and_the_interval():
    text = str(Outcome("logit_diff", "logits", [0.0, 100.0], [1.0, 101.0]))
    assert text == "logit_diff: 50 -> 51 logits, by +1 [1, 1], n = 2"


def test_save_and_load(tmp_path):
    made = Outcome("m", "nats", BEFORE / 3, AFTER, ("a", 1, "a"), Provenance("tiny"))
    made.save(tmp_path / "outcome")
    again = Outcome.load(tmp_path / "outcome")
    assert again == made
    assert again.before.tobytes() == made.before.tobytes()
    assert (again.groups, again.provenance) == (made.groups, made.provenance)


def test_it_is_frozen():
    source = BEFORE.copy()
    made = Outcome("m", "nats", source, AFTER)
    source[0] = 9
    assert made.before[0] == 3
    with pytest.raises(ValueError, match="read-only"):
        made.before[0] = 9


@pytest.mark.parametrize(
    ("before", "after", "groups", "message"),
    [
        (BEFORE, AFTER[:2], None, "of the same examples, got 3 and 2"),
        (BEFORE[None], AFTER, None, r"before of an outcome must have shape \(example,\), got \(1, 3\)"),
        ([], [], None, "must have shape"),
        (BEFORE, AFTER, ["a"], "label each of the 3 examples, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(before, after, groups, message):
    with pytest.raises(TrimtabError, match=message):
        Outcome("m", "nats", before, after, groups)
