"""The page of a study: whole, escaped, readable in every scheme, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.report.findings import INF, NAN, NASTY, empty, ended, made, missing, nasty, started
from trimtab.figures.colours import contrast
from trimtab.figures.numbers import NONE, estimate, mean_of, number
from trimtab.figures.svg import legible
from trimtab.report.study import SECTIONS, study_html
from trimtab.values.findings import STAGES, Estimate
from trimtab.values.scores import Scores

FIELDS = dict(zip(STAGES, ("screening", "validation", "search", "evaluation", "verdict"), strict=True))


class Page(HTMLParser):
    """What a browser finds: each tag with its attributes and the tags around it, and each text with the tags around
    it."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], ["page"]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice: {names}"
        self.tags.append((tag, dict(attributes), tuple(self.open)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append((data, tuple(self.open)))

    def all(self, name):
        return [attributes for tag, attributes, _ in self.tags if tag == name]

    def words(self, inside=None, without=("style", "script")):
        return "".join(
            text for text, path in self.texts if (inside is None or inside in path) and not set(without) & set(path)
        )


@cache
def shown(make):
    """The page of a study, as text, made once."""
    return study_html(make())


@pytest.fixture(scope="module")
def text():
    return shown(made)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture(scope="module")
def css(page):
    return page.words("style", without=())


def part(text, name):
    """The words of one section of a page."""
    return Page(section(text, name)).words()


def section(text, name):
    names = list(SECTIONS)
    begin = text.index(f'<section aria-labelledby="{name}"')
    after = names.index(name) + 1
    end = text.index(f'<section aria-labelledby="{names[after]}"') if after < len(names) else text.index("</main>")
    return text[begin:end]


@pytest.mark.parametrize("make", [made, started, empty, ended, missing, nasty])
def test_the_page_is_whole_whatever_came_of_the_study(make):
    page = Page(shown(make))
    assert page.open == ["page"]
    ids = [attributes["id"] for _, attributes, _ in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [a["aria-labelledby"] for a in page.all("section")] == list(SECTIONS)
    links = [a["href"] for a in page.all("a")]
    assert links[1:] == [f"#{name}" for name in SECTIONS]
    assert all(link[1:] in ids for link in links)
    assert len(page.all("h1")) == 1


@pytest.mark.parametrize("make", [made, nasty])
def test_nothing_comes_from_elsewhere(make):
    text = shown(make)
    for tag, attributes, _ in Page(text).tags:
        assert not {"src", "srcset", "action", "style", "xlink:href"} & set(attributes), tag
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")], tag
    assert "url(" not in text
    assert "@import" not in text
    assert not re.findall(r"https?://", text)


def test_its_policy_allows_its_own_script_and_style_only(page):
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    for name in ("style", "script"):
        (source,) = [text for text, path in page.texts if path[-1] == name]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_no_text_becomes_markup():
    plain, wild = Page(shown(made)), Page(shown(nasty))
    loose = {"span", "mark", "tspan"}  # continuations and code are cut into parts by what they say
    counts = [Counter(tag for tag, *_ in page.tags if tag not in loose) for page in (plain, wild)]
    assert counts[0] == counts[1]
    kinds = [Counter(name for _, attributes, _ in page.tags for name in attributes) for page in (plain, wild)]
    assert set(kinds[0]) == set(kinds[1])
    assert [path for text, path in wild.texts if "alert(" in text and path[-1] in ("script", "style")] == []


def test_every_text_is_there_with_its_controls_written_out():
    text = shown(nasty)
    assert "\u202e" not in text
    assert "\x1b" not in text
    words = Page(text).words()
    seen = legible(NASTY)
    study = nasty()
    for said in (
        *(study.name, study.about, study.task, *study.poles, study.model, study.command, study.python, study.reuse),
        *(study.search.rule, study.validation.how, study.evaluation.outcome.metric, study.notes[0]),
        *study.verdict.sentences,
        *(sample.prompt for sample in study.evaluation.samples),
        *(entangled.task for entangled in study.evaluation.entangled),
        *(control.about for control in study.evaluation.controls),
        *(check.candidate.site for check in study.validation.checks),
        *study.settings,
        *study.provenance.versions,
    ):
        assert said.endswith(NASTY)
        assert legible(said) in words, said
    assert f"train{seen}" in words


@pytest.mark.parametrize("make", [made, started, empty, ended, missing])
def test_no_number_is_nan_or_infinite(make):
    page = Page(shown(make))
    words = [*(text for text, path in page.texts if path[-1] not in ("style", "script"))]
    words += [value or "" for _, attributes, _ in page.tags for value in attributes.values()]
    assert [w for w in words if re.search(r"\b(nan|inf|infinity)\b", w, re.IGNORECASE)] == []


def test_a_few_missing_numbers_leave_the_drawings_whole():
    study = made()
    points = [
        point.with_(effect=Estimate(NAN, NAN, NAN, 0)) if i % 7 == 0 else point.with_(kl=INF) if i % 7 == 1 else point
        for i, point in enumerate(study.search.points)
    ]
    checks = [check.with_(effect=Estimate(0.4, NAN, NAN, 1)) for check in study.validation.checks[:3]]
    controls = [c.with_(effects=np.where(np.arange(c.effects.size).reshape(c.effects.shape) % 3, c.effects, NAN))
                for c in study.evaluation.controls]  # fmt: skip
    scores = study.screening.scores[0]
    holes = scores.array.copy()
    holes[:, 3, 2] = NAN
    holed = Scores(holes, scores.dims, scores.coords, scores.site, unit="nats", method="patching")
    text = study_html(
        study.with_(
            screening=study.screening.with_(scores=(holed,)),
            validation=study.validation.with_(checks=(*checks, *study.validation.checks[3:])),
            search=study.search.with_(points=tuple(points), limit=INF),
            evaluation=study.evaluation.with_(controls=tuple(controls), perplexity=(21.0, INF)),
        )
    )
    assert not re.search(r"\b(nan|inf)\b", text.split("</style>")[1].split("<script>")[0], re.IGNORECASE)
    assert 'class="none"' in text
    assert "Limit: none." in part(text, "search")
    assert "no number: not finite on the neutral text" in part(text, "verdict")
    assert text.count("<svg") > 6


def test_a_dash_is_explained_where_it_stands():
    page = Page(shown(missing))
    words = page.words()
    assert part(shown(missing), "verdict").count("no number: ") == 5  # all key figures but the count of controls
    for name in ("where", "sites", "search", "test", "side"):
        assert f"{NONE} stands where there is no number: " in part(shown(missing), name), name
    assert "The effect is – nats [–, –] at – nats." in words


@pytest.mark.parametrize("done", range(6))
def test_a_run_that_has_not_finished_says_how_far_it_came(done):
    whole = made()
    fields = {field: getattr(whole, field) if i < done else None for i, field in enumerate(FIELDS.values())}
    study = made(**fields)
    words = Page(study_html(study)).words()
    waiting = list(STAGES)[done:]
    assert ("Not run yet: " + ", ".join(waiting) + "." in words) == bool(waiting)
    for stage in ("screen", "validate", "steer", "evaluate"):
        assert (f"This stage ({stage}) has not run yet." in words) == (stage in waiting)
    assert ("Unfinished" in words) == bool(waiting)
    assert ("Points tried" in words) == (done == 3)


def test_a_verdict_without_an_evaluation_is_not_called_unfinished():
    words = Page(shown(ended)).words()
    assert "Not found" in words
    assert "not run" not in words.lower()
    assert "The study came to its verdict without this stage (evaluate)." in words
    assert "No point qualifies under the rule." in words


def test_stages_that_found_nothing_say_so():
    words = Page(shown(empty)).words()
    for said in (
        "Nothing was scored.",
        "The screen proposes no candidate.",
        "There was no candidate to put to the test.",
        "No intervention was tried.",
        "No control was run",
        "The effect on other tasks was not measured.",
        "No continuation was generated.",
    ):
        assert said in words


@pytest.mark.parametrize("outcome", ["found", "not beaten", "not found"])
def test_the_verdict_has_a_word_and_a_colour(outcome, css):
    study = made()
    text = study_html(study.with_(verdict=study.verdict.with_(outcome=outcome)))
    kind = outcome.replace(" ", "-")
    assert f'<div class="verdict {kind}">' in text
    assert f"</span> {outcome.capitalize()}</p>" in text
    assert f".verdict.{kind} {{ --tone: " in css
    assert f"<title>{study.name}: {outcome}</title>" in text


def test_the_key_figures_are_those_of_the_evaluation(text, page):
    e = made().evaluation
    words = part(text, "verdict")
    change = e.outcome.after - e.outcome.before
    assert f"{change.mean():+.2f}\u00a0nats".replace("-", "−") in words
    assert mean_of(e.kl, False) in words
    assert f"{number(e.perplexity[0])} → {number(e.perplexity[1])}" in words
    assert f"{100 * e.capability.before.mean():.0f}\u00a0% → {100 * e.capability.after.mean():.0f}\u00a0%" in words
    assert "7.5\u00a0%" in words
    assert "[1.5\u00a0%, 31\u00a0%]" in words
    assert f"{sum(c.beaten for c in e.controls)} of {len(e.controls)}" in words
    assert len([1 for tag, a, path in page.tags if a.get("class") == "value"]) == 6


def test_every_stage_shows_its_own_numbers(text):
    study = made()
    assert f"{len(study.validation.working)} of {len(study.validation.checks)} candidates work" in part(text, "sites")
    missed = [check for check in study.validation.checks if not check.works]
    assert f"{len(missed)} of {len(study.validation.checks)} (36\u00a0%) did nothing" in part(text, "sites")
    for check in missed:
        assert estimate(check.effect, "nats") in part(text, "sites")
    assert study.search.rule in part(text, "search")
    assert f"{len(study.search.points)} interventions tried" in part(text, "search")
    for control in study.evaluation.controls:
        assert control.name in part(text, "test")
    assert "37 of 40 examples moved as intended or not at all, 3 the wrong way" in part(text, "test")
    for name in ("found", study.command, study.python, study.reuse, study.provenance.model_hash, "10 min 40 s"):
        assert name in Page(text).words().replace("\u00a0", " ").lower() or name in Page(text).words()
    assert study.notes[0] in part(text, "limits")
    assert "p cannot be below 0.091" in part(text, "limits")


def test_maps_of_layers_and_bars_of_neurons(text, page):
    svgs = [a for a in page.all("svg") if a["class"] == "chart map"]
    assert len(svgs) == 4
    where = part(text, "where")
    assert "The 30 strongest of 46,080." in where
    assert where.count("Framed: the strongest.") == 4
    cells = [a for tag, a, path in page.tags if tag == "rect" and re.fullmatch(r"d\d+|none", a.get("class", ""))]
    assert len(cells) == 3 * 30 * 5 + 30 * 9 + 4 * 21  # maps, and their legends


def test_every_drawing_can_be_read_out_and_has_its_numbers(page):
    svgs = page.all("svg")
    assert len(svgs) >= 11
    assert all(a["role"] == "img" and a["aria-label"] for a in svgs)
    assert all(tag != "svg" or "figure" in path for tag, _, path in page.tags)
    tables = len(page.all("table"))
    assert len(page.all("details")) >= 10
    assert tables == len(page.all("tbody")) == len(page.all("thead"))
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    boxes = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(boxes) == tables
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in boxes)


def test_minus_signs_are_true_ones(page):
    numbers = [text for text, path in page.texts if not {"code", "style", "script"} & set(path)]
    assert [text for text in numbers if re.search(r"(^|[\[→+]\s?|nats )-\d", text)] == []
    assert any("[−" in text for text in numbers)


def _schemes(css):
    """The variables of the light and of the dark scheme, as colours."""
    blocks = re.findall(r":root \{([^}]*)\}", css)
    return [
        {name: tuple(int(h * (2 // len(h)), 16) for h in re.findall(r".{2}|.", c) if h) for name, c in found}
        for found in (
            [(n, c if len(c) == 6 else "".join(x * 2 for x in c)) for n, c in re.findall(r"--([\w-]+): #(\w+)", block)]
            for block in blocks
        )
    ]


def test_words_and_lines_stand_out_in_both_schemes(css):
    light, dark = _schemes(css)
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for front, back in (
            *((ink, page) for ink in ("ink", "soft", "line", "accent") for page in ("page", "card")),
            *(("ink", f"{kind}-card") for kind in ("good", "fair", "bad")),
            *((kind, f"{kind}-card") for kind in ("good", "fair", "bad")),
            *(("ink", "mark"), ("accent", "page"), ("ink", "band")),
        ):
            assert contrast(scheme[front], scheme[back]) >= 4.5, (front, back)
        for shape in ("bar", *(f"s{i}" for i in range(6))):
            assert contrast(scheme[shape], scheme["page"]) >= 3, shape


def test_it_is_light_on_paper_and_opens_what_is_closed(css, page):
    assert css.count("@media screen and (prefers-color-scheme: dark)") == 2
    assert "prefers-color-scheme: dark" not in css.replace("@media screen and (prefers-color-scheme: dark)", "")
    paper = css[css.index("@media print") :]
    assert "size: A4" in paper
    assert "details::details-content { content-visibility: visible; display: block; }" in paper
    assert "break-inside: avoid" in paper
    assert "beforeprint" in page.words("script", without=())


def test_it_works_without_its_script_and_is_not_large(text, page):
    assert len(page.all("script")) == 1
    assert len(page.words("script", without=())) < 3000
    assert len(text.encode()) < 1_500_000
    assert [a for a in page.all("meta") if a.get("name") == "viewport"]


def test_words_that_differ_are_marked(page):
    marked = [text for text, path in page.texts if path[-1] == "mark"]
    assert "bad" in marked
    assert "good" in marked
    assert not any(text != text.strip() for text in marked)
    assert "long." not in marked


def test_figures_of_the_search_share_its_points(text):
    study = made()
    search = Page(section(text, "search"))
    spots = [a for a in search.all("circle") if a.get("class", "").startswith("spot")]
    assert len(spots) == len(study.search.points)
    assert sum("hollow" in a["class"] for a in spots) == sum(not p.allowed for p in study.search.points)
    assert sum("front" in a["class"] for a in spots) == sum(p.front for p in study.search.points)
    assert len([a for a in search.all("circle") if a.get("class") == "ring"]) == 2  # in the chart and on its curve
    legends = [text for text, path in search.texts if path[-1] == "text" and "·" in text]
    assert len(legends) == 6


def test_a_search_for_less_ranks_the_lowest_first():
    study = made()
    flipped = [p.with_(effect=Estimate(-p.effect.mean, -p.effect.high, -p.effect.low, 32)) for p in study.search.points]
    texts = [study_html(study), study_html(study.with_(search=study.search.with_(points=tuple(flipped))))]
    names = [[t for t, path in Page(text).texts if path[-1] == "text" and "·" in t] for text in texts]
    assert names[0] == names[1]
    assert len(names[0]) == 6


def test_many_points_and_examples_are_cut_short():
    study = made()
    points = tuple(p.with_(coefficient=p.coefficient + i / 100) for i in range(20) for p in study.search.points)
    picked = study.search.picked
    many = np.linspace(-1, 2, 300)
    text = study_html(
        study.with_(
            search=study.search.with_(points=points),
            evaluation=study.evaluation.with_(
                outcome=study.evaluation.outcome.with_(before=np.zeros(300), after=many, groups=None)
            ),
        )
    )
    assert "1,500 points (the front and the largest effects of 2,120)" in part(text, "search")
    assert picked is not None
    assert "picked" in part(text, "search")
    assert "Too many examples to draw each" in part(text, "test")
    assert len(text.encode()) < 1_500_000
