"""Pages of searches, robustness, entanglement, ablation studies, propensity and generations: complete in themselves."""

from __future__ import annotations

import base64
import hashlib
import re

import numpy as np
import pytest

from tests.report.findings import NASTY
from tests.report.test_scores import Reader
from tests.values.test_search import made as search
from trimtab.errors import TrimtabError
from trimtab.report.steering import section, steering_html
from trimtab.values.ablation_study import AblatedNumber, AblationStudy
from trimtab.values.edit import Intervention
from trimtab.values.entanglement import Entanglement
from trimtab.values.findings import Sample
from trimtab.values.generations import Generations
from trimtab.values.outcome import Outcome
from trimtab.values.propensity import Propensity
from trimtab.values.provenance import Provenance
from trimtab.values.robustness import Robustness

R = np.random.default_rng(0)
MADE = Provenance.now("tiny", model_hash="ab" * 32, options={"command": "trimtab search --task twins", "limit": 0.3})
GROUPS = ("a", "b", "c", "d")


def robustness():
    kl = np.abs(R.normal(size=(2, 3, 2)))
    kl[1] = 9.0
    cosines, beaten = R.uniform(-1, 1, (3, 2, 2)), np.array([[0.9, np.nan, 1.0], [np.nan] * 3])
    sites = ("L3.resid_post", "L4.resid_post", NASTY)
    return Robustness(
        "truth", "nat", ("means", "pca"), sites, (0.5, 1.0), R.normal(size=(2, 3, 2, 4)), kl, cosines, beaten, 10, 1.0,
        GROUPS, {"pca at L3": NASTY}, MADE,
    )  # fmt: skip


def entanglement():
    tasks = ("one", "other")
    changes = {name: R.normal(size=(2, 4)) for name in tasks}
    base = {"one": R.normal(size=4), "other": np.ones(4)}
    return Entanglement(
        tasks, tasks, 0.1, np.array([0.1, 0.3]), (Intervention(), Intervention()), base, changes,
        dict.fromkeys(tasks, GROUPS), dict.fromkeys(tasks, "nat"), {}, MADE,
        {name: R.normal(size=(2, 4)) for name in tasks}, (0.1, 0.4),
    )  # fmt: skip


def ablation_study():
    numbers = tuple(
        AblatedNumber(name, unit, R.normal(size=4), R.normal(size=(2, 3, 4)), R.normal(size=(2, 3, 5, 4)), GROUPS)
        for name, unit in (("behaviour", "nat"), ("nll", "nat/token"), ("capability", "share"))
    )
    return AblationStudy("truth", ("L3.head[1]", NASTY), ("zero", "mean"), (1, 2, 4), 5, numbers, "patching", MADE)


def propensity():
    return Propensity((0.0, 1.0, 2.0), R.normal(size=(3, 4)), "nat", GROUPS, "truth", MADE)


def generations():
    samples = (Sample("a prompt", "before", NASTY), Sample("other", "", "after"))
    outcome = Outcome("nll", "nat/token", np.array([1.0, np.nan]), np.array([2.0, 3.0]))
    return Generations("truth", samples, {"nll": outcome}, Intervention(), MADE)


VALUES = {
    "search": lambda: search(provenance=MADE, left_out={"a at b": NASTY}),
    "robustness": robustness,
    "entanglement": entanglement,
    "ablation_study": ablation_study,
    "propensity": propensity,
    "generations": generations,
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_a_page_needs_nothing_else(make):
    page = steering_html(make())
    reader = Reader(page)
    assert not [a for tag, attrs in reader.tags for a in ("src", "href") if a in attrs]
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"doi[:.]org\S*|arxiv\S*", "", page))
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"sha256-{digest}" in policy
    assert "<script>alert" not in page
    assert "nan" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL).lower().split()
    assert "trimtab search --task twins" in reader.words
    assert "ab" * 32 in reader.words


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_it_has_figures_tables_and_limits(make):
    found = section(make())
    assert found.panels
    assert found.tables
    assert all(table.rows for table in found.tables)
    assert found.limits
    words = Reader(steering_html(make())).words
    for panel in found.panels:
        assert panel.title in words


def test_numbers_are_those_of_the_value():
    value = robustness()
    words = Reader(steering_html(value)).words
    assert "10 random" not in words
    summary = value.summary()
    assert f"{summary['effect'].iloc[0]:.3g}".replace("-", "−") in words
    study = ablation_study()
    words = Reader(steering_html(study)).words
    for column in ("random least", "random most", "p"):
        assert column in words
    search_words = Reader(steering_html(VALUES["search"]())).words
    assert "accuracy lost" in search_words
    assert "+1.00" in search_words


def test_several_stand_below_each_other():
    page = steering_html([make() for make in VALUES.values()])
    assert page.count("<section") == len(VALUES) + 2
    with pytest.raises(TrimtabError, match="at least one section"):
        steering_html([])
    with pytest.raises(TrimtabError, match="has no section"):
        section(MADE)
