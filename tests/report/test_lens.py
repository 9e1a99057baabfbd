"""The page of a lens: everything escaped, nothing from elsewhere, every number there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from tests.report.lenses import NASTY, long, made
from trimtab.report import lens_html
from trimtab.report.lens import labels, number, percent, shortened


class Page(HTMLParser):
    """What a browser finds in a page: tags with their attributes, and the text of each."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    def inside(self, name):
        return [text for tag, text in self.texts if tag == name]


@pytest.fixture(scope="module")
def text():
    return lens_html(made())


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_no_token_becomes_markup(page, text):
    assert page.open == []
    assert len(page.all("script")) == 3  # two with data, and the page's own
    assert not page.all("b") or len(page.all("b")) == 1  # what the model says next, and no token
    assert not page.all("i") or all(a.get("class", "").startswith("mark") for a in page.all("i"))
    assert "\u202e" not in text
    assert "\\u202e" in text
    assert "alert(" in "".join(page.inside("bdi"))


def test_the_data_are_json_that_cannot_end_its_script(page):
    data, lines = (json.loads(text) for text in page.inside("script")[:2])
    assert data["words"][0] == NASTY.replace(" ", "·")
    assert data["tokens"] == ["The", "·<b>"]
    assert len(data["cells"]) == 4
    words, shares, rank, p, entropy, kl = data["cells"][1]
    assert [data["words"][i] for i in words] == ["·a", "↵"]
    assert (shares, rank, p, entropy, kl) == ([0.9, 0.01], 2, 0.005, 2.0, 4.0)
    assert [line["name"] for line in lines] == ["rank", "probability"]


def test_nothing_comes_from_elsewhere(page, text):
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert "url(" not in text
    assert "@import" not in text
    assert not re.findall(r"https?://", text)


def test_its_policy_allows_its_own_script_and_style_only(page):
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    for name, source in (("style", page.inside("style")[0]), ("script", page.inside("script")[-1])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_the_grid_has_the_last_layer_on_top(page):
    heads = [text for tag, text in page.texts if tag == "th" and text.strip()]
    assert [h for h in heads if h.startswith("L")] == ["L1", "L0"]
    cells = [a for a in page.all("td") if "data-cell" in a]
    assert [int(a["data-cell"]) for a in cells] == [2, 3, 0, 1]
    assert [a["class"] for a in cells] == ["b3 hit", "b9 hit", "b5", "b9"]
    assert cells[3]["title"] == "L0.resid_post, position 1 ·<b>: ·a 90%"


def test_it_works_on_paper_in_the_dark_and_on_a_phone(text):
    assert "@media print" in text
    assert text.count("prefers-color-scheme: dark") == 2
    assert 'name="viewport"' in text
    assert "overflow-x: auto" in text


def test_it_says_how_it_was_made(text):
    assert "&lt;i&gt;model&lt;/i&gt;" in text
    assert "L0.head[1] scale 0" in text
    assert "abababababababab" in text
    assert "That token is first from L1.resid_post on." in text


def test_a_long_prompt_has_every_cell_and_the_end_of_the_table():
    page = Page(lens_html(long()))
    assert len([a for a in page.all("td") if "data-cell" in a]) == 6000
    assert "The last 500 of 600 positions; " in page.inside("p")
    assert sum(1 for tag, text in page.texts if tag == "td" and text == "L0.resid_post") == 500


def test_a_chosen_answer_is_named():
    text = lens_html(long(3, 2))
    assert "Followed through the layers: <b><bdi>x</bdi></b>" in text
    assert "top token is the followed one" in text


def test_rows_are_named_briefly_where_that_is_clear():
    assert labels(("embed", "L0.resid_post", "L1.resid_post")) == ["embed", "L0", "L1"]
    assert labels(("L0.resid_mid", "L0.resid_post")) == ["L0.resid_mid", "L0.resid_post"]


@pytest.mark.parametrize(
    ("p", "shown"), [(1.0, "100%"), (0.534, "53%"), (0.0996, "10%"), (0.0123, "1.2%"), (0.0005, "0.1%"), (0, "<0.1%")]
)
def test_probabilities_to_be_read(p, shown):
    assert percent(p) == shown


def test_other_numbers_to_be_read():
    assert (number(-0.001), number(1.234)) == ("0.00", "1.23")
    assert (shortened("a" * 60), shortened("a" * 61)) == ("a" * 60, "a" * 59 + "…")
