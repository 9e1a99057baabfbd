"""What the documentation shows of the bundled model: methods that should agree do; where not, it says so."""

from __future__ import annotations

import pytest

from trimtab import locate
from trimtab.tasks import builtin
from trimtab.tasks.fit import fit
from trimtab.tasks.repeated import RepeatedTokens

pytestmark = pytest.mark.slow


def task(lm, name, most):
    return fit(lm, builtin.task(name)).task.take(most)


class TestIndirectObject:
    def test_the_heads_of_patching_are_those_of_atp_star(self, bundled):
        ioi = task(bundled, "ioi", 8)
        slopes = locate.atp_star(bundled, ioi, "L*.head", spans="end")
        exact = locate.patching(bundled, ioi, "L*.head", spans="end")
        agree = slopes.compare(exact, k=10)
        assert agree.overlap * agree.k >= 8
        assert agree.rank_correlation > 0.7

    def test_the_audit_finds_little_that_the_screen_missed(self, bundled):
        ioi = task(bundled, "ioi", 8)
        slopes = locate.atp_star(bundled, ioi, "L*.head", spans="end")
        audit = locate.audit_scores(bundled, ioi, slopes, k=10, sample=60)
        low, high = audit.missed_interval
        assert low <= audit.missed <= high
        assert audit.missed < 0.1


class TestInduction:
    def test_heads_that_look_like_it_are_needed_more_often_than_chance_would_have_it(self, bundled):
        looks = locate.induction_score(bundled, RepeatedTokens(sequences=8))
        lost = locate.ablation(bundled, task(bundled, "induction", 6), "L*.head")
        agree = looks.compare(lost, k=20, by="high")
        assert agree.p_value < 0.05
        assert agree.rank_correlation > 0


class TestFacts:
    def test_restored_states_count_early_at_the_subject_and_late_at_the_end(self, bundled):
        facts = task(bundled, "capitals", 8)
        streams = locate.causal_tracing(bundled, facts, "L*.resid_post", samples=4)

        def peak(span):
            return int(streams.sel(span=span).mean().argmax())

        layers = bundled.anatomy.n_layers
        assert peak("subject") < layers / 3
        assert peak("end") > 2 * layers / 3

    def test_windows_of_mlps_count_at_the_subject_in_the_first_third(self, bundled):
        facts = task(bundled, "capitals", 8)
        windows = locate.tracing_maps(bundled, facts, ("L*.mlp_out",), samples=4)["L*.mlp_out"]
        subject, end = (windows.sel(span=span).mean() for span in ("subject", "end"))
        assert int(subject.argmax()) < bundled.anatomy.n_layers / 3
        assert float(subject.max()) > float(end.max())
