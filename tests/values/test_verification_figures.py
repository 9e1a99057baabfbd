"""Verifications as figures: every place beside its controls, and the sampled rest."""

from __future__ import annotations

from tests.figures.reading import Svg, inside, near, number, on
from trimtab.values.estimate import Estimate
from trimtab.values.findings import Candidate, Check
from trimtab.values.verification import AuditSample, Verification
from trimtab.values.verification_figures import DRAWN

AUDIT = AuditSample(20, 0.5, ("L5.head[0]", "L5.head[1]", "L6.head[2]"), (0.1, -0.9, 0.2), ("L5.head[1]",), 0.01, 0.9)


def checked(i, mean, works):
    effect = Estimate(mean, mean - 0.25, mean + 0.25, 8)
    control = Estimate(0.1, 0.0, 0.2, 8)
    difference = Estimate(mean - 0.1, mean - 0.5, mean + 0.3, 8)
    return Check(Candidate(f"L{i}.head[1]@end", "head", "patching", 3.0 - i, i + 1), effect, control, difference, works)


CHECKS = (checked(0, 0.5, True), checked(1, -2.0, True), checked(2, 0.05, False))


def found(checks=CHECKS, audit=AUDIT):
    return Verification("ioi", "atp_star", "patching", "denoise", "nats", checks, 3, 0.5, 8, audit)


def test_bars_are_in_the_order_of_the_scores_and_pale_where_nothing_is_done():
    made = found()
    figure = made.plot()
    svg = Svg(figure.drawings[0].svg)
    axis, drawn = svg.axis(), svg.all("rect", "bar")
    assert [e[0].text.split(":")[0] for e in drawn] == [c.candidate.site for c in CHECKS]
    assert ["pale" in e.get("class").split() for e in drawn] == [False, False, True]
    for e, check in zip(drawn, CHECKS, strict=True):
        ends = number(e, "x"), number(e, "x") + number(e, "width")
        assert ends == tuple(near(x) for x in sorted((on(axis, 0), on(axis, check.effect.mean))))
    assert [number(e, "cx") for e in svg.all("circle", "control")] == [near(on(axis, 0.1))] * 3
    assert figure.title == "Verification: atp_star on ioi"
    assert figure.caption == f"{str(made).splitlines()[0]}."
    assert "2 of 3 places work" in figure.caption
    inside(svg)


def test_places_that_were_missed_are_pointed_out_of_the_sample():
    svg = Svg(found().plot().drawings[1].svg)
    (point,) = svg.all("circle", "pointed")
    assert number(point, "cx") == near(on(svg.axis(), -0.9))
    assert point[0].text.startswith("L5.head[1]: −0.9")
    said = [e[0].text for e in svg.all("rect", "hit")]
    assert said[0].startswith("places others: 3 values from −0.9")
    assert said[1].startswith("places tested: 3 values from −2")
    assert found().plot().drawings[1].caption.endswith("missed, 1 of 3.")
    assert len(found(audit=None).plot().drawings) == 1


def test_too_many_are_the_first_ones():
    made = found(tuple(checked(i, 1.0, True) for i in range(DRAWN + 3)))
    drawing = made.plot().drawings[0]
    assert drawing.svg.count('class="bar"') == DRAWN
    assert f"The first {DRAWN} of {DRAWN + 3}" in drawing.caption


def test_it_shows_itself(tmp_path):
    html = found()._repr_html_()
    assert html.count("<svg") == 2
    assert "L2.head[1]@end  +0.05 [-0.2, 0.3]  controls +0.1  does no more than its controls" in html
    assert str(AUDIT) in html
    found().plot().save(tmp_path / "v.svg")
