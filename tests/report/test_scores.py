"""The page of scores: complete in itself, the same numbers as the scores, whatever made them."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.report.findings import NASTY
from trimtab.errors import TrimtabError
from trimtab.report import scores_html
from trimtab.report.scores import comparison, python, sites
from trimtab.values import Provenance, Scores

R = np.random.default_rng(0)


def heads(**fields):
    made = Provenance.now("tiny", model_hash="ab" * 32, options={"command": "trimtab locate patching --task twins"})
    fields = {
        "coords": {"span": ("S2", "end"), "layer": (3, 4, 5)},
        "site": "L{layer}.head[{head}]@{span}",
        "unit": "logits",
        "method": "patching",
        "options": {"task": "ioi", "spans": ["S2", "end"], "exact": "fast"},
        "direction": "denoise",
        "groups": tuple("aabbc"),
        "provenance": made,
        **fields,
    }
    return Scores(R.normal(size=(5, 3, 2, 2)), ("example", "layer", "head", "span"), **fields)


class Reader(HTMLParser):
    """Tags with their attributes, and text by the tag it stands in."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.inside, self.path, self.words = [], {}, [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.path.append(tag)

    def handle_endtag(self, tag):
        while self.path and self.path.pop() != tag:
            pass

    def handle_data(self, data):
        self.words += data
        if self.path:
            self.inside.setdefault(self.path[-1], []).append(data)


def test_it_names_everything_that_is_known():
    scores = heads()
    page = scores_html(scores)
    words = Reader(page).words
    for site in map(str, scores.top(5)):
        assert site in words
    for known in (
        "ioi",
        "tiny",
        "denoise",
        "5 in 3 groups",
        "trimtab locate patching --task twins",
        "ab" * 32,
        "logits",
    ):
        assert known in words
    assert page.count("<svg") == 2


def test_nothing_is_fetched_and_its_policy_allows_its_own_style_and_script_only():
    page = scores_html(heads())
    reader = Reader(page)
    for tag, attributes in reader.tags:
        assert tag not in ("link", "img", "iframe", "object")
        assert not {"src", "style", "onclick", "srcset"} & set(attributes)
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256("".join(reader.inside[tag]).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_words_stay_words():
    page = scores_html(heads(method=NASTY, unit=NASTY, options={"task": NASTY, NASTY: NASTY}))
    assert "alert('x')</script>" not in page
    assert "\u202e" not in page


def test_several_are_shown_and_compared():
    one, other = heads(), heads(method="ablation")
    third = Scores(np.ones((2, 3)), ("example", "layer"), {}, "L{layer}.mlp_out", method="probe")
    table = comparison([one, other, third], 3)
    (row,) = table.rows
    found = one.compare(other, 3)
    assert row[:2] == ("patching: L*.head[*]@*", "ablation: L*.head[*]@*")
    assert row[2] == f"{found.rank_correlation:.2f}".replace("-", "−")
    page = scores_html([one, other, third])
    assert page.count("The strongest") >= 3
    assert "patching: L*.head[*]@* and 2 others" in page
    assert comparison([one, third]) is None
    with pytest.raises(TrimtabError, match="at least one"):
        scores_html([])


def test_python_that_makes_them_again():
    code = python(heads())
    compile(code, "again", "exec")
    assert "locate.patching(lm, task, 'L3-5.head', direction='denoise', spans=['S2', 'end'], exact='fast')" in code
    assert "trimtab.load('tiny')" in code
    assert python(heads(method="")) == ""


def test_places_as_a_method_is_told_them():
    assert sites(heads()) == "L3-5.head"
    assert sites(heads().sel(span="end")) == "L3-5.head@end"
    assert sites(Scores(np.ones((1, 2)), ("example", "site"), {"site": ("embed@S1", "L0.head[1]")}, "{site}")) == [
        "embed@S1",
        "L0.head[1]",
    ]
    assert sites(heads().sel(layer=3, span="end")) == ["L3.head[0]@end", "L3.head[1]@end"]


def test_scores_without_a_value_or_a_past():
    page = scores_html(Scores(np.full((1, 3), np.nan), ("example", "layer"), {}, "L{layer}.mlp_out"))
    assert "No place here has a value." in page
    assert "The provenance was not recorded." in page
    assert not re.search(r"\bnan\b", page.split("</style>")[1].split("<script>")[0])
