"""Thresholds by F1, against every threshold by hand; and what a search keeps of itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import EditError, FileError, SiteError, TrimtabError
from trimtab.values import Condition, Edit, Intervention, Provenance, WeightPatch
from trimtab.values.condition_search import ConditionSearch, best_threshold

sides = st.lists(st.integers(-5, 5).map(lambda n: n / 5), min_size=1, max_size=8)
PARTS = ("train", "train", "validation", "validation", "test", "test", "test")


def f1(positive, negative, threshold, above):
    """Word for word: precision and recall of "it happens", and their harmonic mean."""
    happens = [np.array([x > threshold if above else x < threshold for x in side]) for side in (positive, negative)]
    hits, alarms = happens[0].sum(), happens[1].sum()
    if not hits:
        return 0.0
    precision, recall = hits / (hits + alarms), hits / len(positive)
    return 2 * precision * recall / (precision + recall)


def search(**fields):
    """Two sites: at the first the sides are apart on validation and not on all of test, at the second the other way
    round and below the threshold."""
    first = [[0.9, 0.8, 0.7, 0.6, 0.9, 0.1, 0.8], [0.1, 0.2, 0.3, 0.2, 0.1, 0.1, 0.9]]
    second = [[-0.5] * 7, [0.5, 0.5, 0.5, -0.6, 0.5, 0.5, 0.5]]
    known = {
        "sites": ("L0.resid_post", "L1.resid_post"),
        "directions": np.eye(2, 4),
        "cosines": [first, second],
        "thresholds": [0.45, 0.0],
        "above": (True, False),
        "picked": 0,
        "parts": PARTS,
        "groups": tuple("aabbccd"),
        "task": "kinds",
    }
    return ConditionSearch(**known | fields)


class TestThreshold:
    @given(positive=sides, negative=sides)
    def test_none_is_better(self, positive, negative):
        best = best_threshold(np.array(positive), np.array(negative))
        values = sorted({*positive, *negative})
        if len(values) == 1:
            assert best.f1 == 0
            return
        assert best.f1 == pytest.approx(f1(positive, negative, best.threshold, best.above))
        for low, high in pairwise(values):
            for above in (True, False):
                other = f1(positive, negative, (low + high) / 2, above)
                assert other <= best.f1 + 1e-12
                if other == pytest.approx(best.f1, abs=1e-12):
                    assert high - low <= best.gap + 1e-12

    @given(positive=sides, negative=sides)
    def test_the_other_way_round_it_lies_on_the_other_side(self, positive, negative):
        best = best_threshold(np.array(positive), np.array(negative))
        turned = best_threshold(-np.array(positive), -np.array(negative))
        assert turned.f1 == pytest.approx(best.f1)
        if best.f1 == 1:
            assert (turned.threshold, turned.above) == (-best.threshold, not best.above)

    def test_by_hand(self):
        best = best_threshold(np.array([0.5, 0.7]), np.array([0.1, 0.3, 0.2]))
        assert (best.f1, best.threshold, best.above) == (1.0, 0.4, True)
        best = best_threshold(np.array([0.1, 0.2, 0.9]), np.array([0.8, 0.95]))
        assert best.f1 == pytest.approx(6 / 7)
        assert not best.above
        assert best.threshold == pytest.approx(0.925)


class TestSearch:
    def test_f1_and_what_happens(self):
        found = search()
        np.testing.assert_allclose(found.f1("validation"), [1.0, 0.8])
        np.testing.assert_allclose(found.f1(), [2 * 2 / (2 + 1 + 3), 1.0])
        assert found.fires().tolist() == [
            [[True, False, True], [False, False, True]],
            [[True, True, True], [False, False, False]],
        ]
        assert found.correct().mean == pytest.approx((1 + 0.5 + 0.5) / 3)
        assert found.correct().n == 3

    def test_the_condition_is_that_of_the_pick(self):
        expected = Condition("L0.resid_post@1:", np.eye(2, 4, dtype=np.float32)[0], 0.45, "mean", True)
        assert search().condition == expected
        assert search(picked=1).condition == search().condition_at("L1.resid_post")
        assert not search(picked=1).condition.above
        assert search(pool="last", read="last").condition.site.at is None
        assert search(sites=("L0.resid_post@-4:", "L1.resid_post")).condition.site.at.start == -4
        with pytest.raises(SiteError, match=r"L7\.resid_post was not tried: there are L0\.resid_post, L1"):
            search().condition_at("L7.resid_post")

    def test_every_edit_waits_for_it(self):
        edits = Intervention.of(["L1.resid_pre add 1 x 2", "L1.mlp_out scale 0"]).with_(name="it")
        made = search().apply(edits)
        assert [edit.when for edit in made] == [search().condition] * 2
        assert made.with_(edits=tuple(edit.with_(when=None) for edit in made)) == edits
        assert made.name == "it when kinds"

    def test_it_keeps_where_both_are_from(self):
        edits = Intervention.of("L1.mlp_out scale 0").with_(name="it")
        own, other = Provenance("tiny", "ab", method="own"), Provenance("huge", "cd")
        made = search(provenance=Provenance("tiny", "ab")).apply(edits.with_(provenance=own)).provenance
        assert made == own.with_(options={"when": str(search().condition)})
        assert search(provenance=own).apply(edits).provenance.model_hash == "ab"
        assert search().apply(edits).provenance is None
        with pytest.raises(EditError, match="different weights"):
            search(provenance=other).apply(edits.with_(provenance=own))

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            ("L0.resid_post scale 0", "the condition reads L0.resid_post, which is not computed before L0.resid_post"),
            ("embed scale 0", "which is not computed before embed; search among earlier sites"),
            (Edit("L1.mlp_out", "add", 1.0, when=search().condition), "waits for a condition already"),
            (WeightPatch("w", delta=np.ones(2)), "weight patches are the same for every prompt"),
        ],
    )
    def test_what_cannot_wait_is_refused(self, edit, said):
        with pytest.raises(EditError, match=said):
            search().apply(Intervention.of(["L1.mlp_out add 1", edit]))

    def test_a_table(self):
        table = search().to_frame()
        assert table.site.tolist() == ["L0.resid_post", "L1.resid_post"]
        np.testing.assert_allclose(table.precision, [2 / 3, 1])
        np.testing.assert_allclose(table.recall, [2 / 3, 1])
        assert table.picked.tolist() == [True, False]

    def test_a_figure(self):
        svg = search().plot().svg
        assert "L1.resid_post test" in svg
        many = {"directions": np.eye(4), "thresholds": [0.1] * 4, "above": (True,) * 4}
        lines = search(sites=[f"L{i}.resid_post" for i in range(4)], cosines=np.zeros((4, 2, 7)), **many).plot()
        assert "validation, layer 2: F1" in lines.svg
        assert "picked" in lines.svg

    def test_it_comes_back(self, tmp_path):
        search().save(tmp_path / "it")
        again = ConditionSearch.load(tmp_path / "it")
        assert again == search()
        assert again.condition == search().condition
        assert "F1 0.667 on groups held out, 2 sites tried" in repr(again)
        data = bytearray((tmp_path / "it").read_bytes())
        data[-1] ^= 1
        (tmp_path / "it").write_bytes(data)
        with pytest.raises(FileError):
            ConditionSearch.load(tmp_path / "it")

    @pytest.mark.parametrize(
        "fields",
        [
            {"thresholds": [0.1]},
            {"cosines": np.zeros((2, 2, 6))},
            {"cosines": np.full((2, 2, 7), np.nan)},
            {"picked": 2},
            {"above": (True,)},
            {"parts": ("train",) * 6 + ("exam",)},
            {"groups": ("a",)},
        ],
    )
    def test_what_does_not_fit_is_refused(self, fields):
        with pytest.raises(TrimtabError):
            search(**fields)
