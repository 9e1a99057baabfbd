import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TrimtabError
from trimtab.values.bootstrap import bootstrap_interval, mean_interval, mean_over_examples, ratio_interval

OPTIONS = {"level": 0.9, "samples": 500, "seed": 0}


def test_the_mean_leaves_nan_out():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    assert mean_over_examples(values)[:2].tolist() == [2.0, 5.0]
    assert np.isnan(mean_over_examples(values)[2])


@given(st.integers(0, 2**31))
def test_the_interval_is_the_quantile_of_resampled_means(seed):
    values = np.random.default_rng(1).normal(size=(7, 2, 3))
    low, high = bootstrap_interval(values, level=0.8, samples=50, seed=seed)
    draws = np.random.default_rng(seed).integers(0, 7, size=(50, 7))
    means = np.stack([values[draw].mean(axis=0) for draw in draws])
    assert np.allclose(low, np.quantile(means, 0.1, axis=0))
    assert np.allclose(high, np.quantile(means, 0.9, axis=0))


def test_groups_are_resampled_whole():
    values = np.random.default_rng(1).normal(size=(6, 2))
    groups = ["a", "b", "a", "c", "b", "a"]
    low, high = bootstrap_interval(values, level=0.8, samples=50, seed=3, groups=groups)
    members = [[0, 2, 5], [1, 4], [3]]
    draws = np.random.default_rng(3).integers(0, 3, size=(50, 3))
    means = np.stack([values[[i for group in draw for i in members[group]]].mean(axis=0) for draw in draws])
    assert np.allclose(low, np.quantile(means, 0.1, axis=0))
    assert np.allclose(high, np.quantile(means, 0.9, axis=0))


def test_examples_of_one_group_each_are_plain_examples():
    values = np.random.default_rng(1).normal(size=(6, 2))
    plain = bootstrap_interval(values, **OPTIONS)
    grouped = bootstrap_interval(values, **OPTIONS, groups=range(6))
    assert np.allclose(plain, grouped)


def test_identical_groups_widen_the_interval():
    values = np.random.default_rng(1).normal(size=(20, 1))
    tripled, groups = np.repeat(values, 3, axis=0), np.repeat(np.arange(20), 3).tolist()
    naive = np.subtract(*bootstrap_interval(tripled, **OPTIONS))
    honest = np.subtract(*bootstrap_interval(tripled, **OPTIONS, groups=groups))
    alone = np.subtract(*bootstrap_interval(values, **OPTIONS))
    assert np.allclose(honest, alone)
    assert abs(naive) < 0.75 * abs(honest)  # by √3 in the limit


def test_constant_values_have_an_interval_of_no_width():
    low, high = bootstrap_interval(np.full((5, 2), 3.0), **OPTIONS)
    assert low.tolist() == high.tolist() == [3.0, 3.0]


def test_where_there_is_nothing_to_resample_the_ends_are_nan():
    values = np.array([[1.0, 1.0], [np.nan, 2.0]])
    low, high = bootstrap_interval(values, **OPTIONS)
    assert np.isnan(low[0])
    assert np.isnan(high[0])
    assert (low[1], high[1]) == (1.0, 2.0)
    assert np.isnan(bootstrap_interval(values, **OPTIONS, groups=["a", "a"])).all()


def test_many_cells_are_taken_in_blocks(monkeypatch):
    values = np.random.default_rng(1).normal(size=(5, 11))
    whole = bootstrap_interval(values, **OPTIONS)
    monkeypatch.setattr("trimtab.values.bootstrap._BLOCK", 4)
    assert np.array_equal(whole, bootstrap_interval(values, **OPTIONS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 95}, "between 0 and 1, such as 0.95, got 95"),
        ({"samples": 0}, "at least 1, got 0"),
        ({"groups": ["a"]}, "one label for each of the 3 examples, got 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(TrimtabError, match=message):
        bootstrap_interval(np.ones((3, 2)), **{**OPTIONS, **change})


@pytest.mark.parametrize("groups", [3, 5, 8, 29, 40])
def test_an_interval_of_few_groups_covers_as_often_as_it_says(groups):
    """Groups of three examples that share their ups and downs: 95 intervals of 100 hold the mean."""
    rng, held, times = np.random.default_rng(groups), 0, 1500 if groups < 30 else 300
    labels = np.repeat(np.arange(groups), 3)
    for _ in range(times):
        values = rng.normal(0, 1, groups)[labels] + rng.normal(0, 0.5, 3 * groups)
        low, high = mean_interval(values, groups=labels.tolist(), samples=400)
        held += low <= 0 <= high
    assert held / times > (0.93 if groups < 30 else 0.90)
    assert held / times < 0.975


def test_an_interval_of_a_mean_leaves_out_what_is_missing_and_needs_two_groups():
    with_gaps = np.array([1.0, np.nan, 3.0, 2.0])
    assert mean_interval(with_gaps) == mean_interval(with_gaps[[0, 2, 3]])
    assert np.isnan(mean_interval(np.array([1.0, 2.0]), groups=["a", "a"])).all()
    assert np.isnan(mean_interval(np.array([np.nan, 2.0]))).all()


@pytest.mark.parametrize(("groups", "times"), [(6, 1000), (15, 1000), (40, 500)])
def test_an_interval_of_a_ratio_holds_the_truth_as_often_as_it_says(groups, times):
    """Of a share of 0.4 whose gaps vary, in groups whose members go together. Resampling six groups
    misses it 16 % of the time."""
    rng, held = np.random.default_rng(groups), 0
    labels = np.repeat(np.arange(groups), 3)
    for _ in range(times):
        gap = 2 + rng.normal(0, 0.4, groups)[labels] + rng.normal(0, 0.3, 3 * groups)
        effect = 0.4 * gap + rng.normal(0, 0.5, groups)[labels] + rng.normal(0, 0.2, 3 * groups)
        _, low, high = ratio_interval(effect, gap, groups=labels.tolist(), samples=300)
        held += low <= 0.4 <= high
    assert (0.93 if groups < 30 else 0.9) < held / times < 0.975


def test_the_ratio_of_few_groups_is_students_with_the_linearised_variance():
    x, y = np.array([1.0, 2.0, 4.0, 4.0]), np.array([2.0, 3.0, 5.0, 6.0])
    ratio, low, high = ratio_interval(x, y, groups=["a", "a", "b", "c"], level=0.9)
    apart = x - 11 / 16 * y
    error = np.sqrt(1.5 * ((apart[0] + apart[1]) ** 2 + apart[2] ** 2 + apart[3] ** 2)) / 16
    reach = 2.919986 * error  # Student's t of two degrees of freedom at 0.95
    assert np.allclose([ratio, low, high], [11 / 16, 11 / 16 - reach, 11 / 16 + reach])
    assert np.allclose(ratio_interval(-x, -y, groups=["a", "a", "b", "c"], level=0.9), [ratio, low, high])


def test_a_ratio_to_one_is_the_mean():
    """With many groups by the same resamples, with few by the same variance."""
    for n in (8, 45):
        values = np.random.default_rng(n).normal(1, 1, (n, 3))
        values[2, 1] = np.nan
        ratio, low, high = ratio_interval(values, np.ones(n), samples=4000)
        assert np.allclose(ratio, mean_over_examples(values))
        assert np.allclose([low, high], mean_interval(values, samples=4000), atol=1e-12 if n < 30 else 0.05)


def test_a_ratio_leaves_out_what_is_missing_on_either_side():
    x, y = np.array([1.0, np.nan, 3.0, 2.0, 5.0]), np.array([2.0, 1.0, np.nan, 3.0, 4.0])
    assert np.array_equal(ratio_interval(x, y), ratio_interval(x[[0, 3, 4]], y[[0, 3, 4]]))
    assert np.isnan(ratio_interval(x[:3], y[:3])[1:]).all()
    assert np.isnan(ratio_interval(np.array([1.0, 2.0]), np.array([1.0, -1.0]))).all()
    assert ratio_interval(np.ones((4, 0, 2)), np.ones(4))[1].shape == (0, 2)
