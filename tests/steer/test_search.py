"""The grid, its front, and the point that is picked."""

from __future__ import annotations

import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.tinies import passages, questions, vector
from tests.model.tinies import lm_of
from tests.tiny import words
from trimtab.errors import EditError, FileError, MissingExtra, SiteError, TaskError, TrimtabError
from trimtab.evaluate import bench
from trimtab.evaluate.capabilities import measured_items
from trimtab.evaluate.effect import effects
from trimtab.evaluate.places import places
from trimtab.evaluate.side_effects import capability, side_effects
from trimtab.evaluate.texts import Item
from trimtab.steer import grid, pareto_front, scale
from trimtab.steer.proposals import resolved
from trimtab.steer.search import Proposal, largest_effect_within, search
from trimtab.steer.vectors import difference_of_means
from trimtab.tasks.measure import measure
from trimtab.values.edit import Edit, Intervention
from trimtab.values.findings import Estimate, Point, Search
from trimtab.values.front import Rule, objectives
from trimtab.values.front import pareto_front as front_of

module = sys.modules["trimtab.steer.search"]
LM = lm_of("llama", torch.float64)
TEXTS = passages(3)
TASK = questions(12)
TOWARDS = (LM.anatomy.unembed.weight[70] - LM.anatomy.unembed.weight[71]).detach().numpy()


def proposals():
    push = Intervention.of(Edit("L1.resid_post@-1:", "add", TOWARDS))
    return [
        Proposal("push", "L1.resid_post", "-1:", (0.5, 1.0, 4.0), lambda c: push * c),
        Proposal("away", "L1.resid_post", "-1:", (-1.0,), lambda c: push * c),
        Proposal("scale", "L0.head[1]", "all", (0, 2), lambda c: scale("L0.head[1]", c)),
        Proposal("none", "L0.mlp_out", "all", (), lambda c: Intervention()),
        Proposal("nothing", "L0.mlp_out", "all", (1.0,), lambda c: scale("L0.mlp_out", c)),
    ]


def found(limit=0.5, task=TASK):
    return grid(LM, task, proposals(), TEXTS, limit=limit, length=24)


def test_points_are_effects_and_side_effects():
    made, listed = found(), [p.at(c) for p in proposals() for c in p.coefficients]
    assert [(p.method, p.coefficient) for p in made.points] == [
        *(("push", 0.5), ("push", 1.0), ("push", 4.0), ("away", -1.0)),
        *(("scale", 0.0), ("scale", 2.0), ("nothing", 1.0)),
    ]
    for point, intervention in zip(made.points, listed, strict=True):
        changes = effects(LM, TASK, [intervention]).changes[0]
        assert point.effect.mean == pytest.approx(changes.mean(), abs=1e-8)
        assert (point.effect.low, point.effect.high) == pytest.approx(
            (Estimate.of(changes, TASK.groups).low, Estimate.of(changes, TASK.groups).high), abs=1e-8
        )
        kl = side_effects(LM, [intervention], TEXTS, length=24).kl.mean()
        assert point.kl == pytest.approx(kl, abs=1e-8)
        assert point.allowed is bool(kl <= 0.5)
    assert (made.unit, made.examples, made.limit) == ("nat", 12, 0.5)
    assert "0.5 nats" in made.rule


def test_the_one_that_is_picked_is_the_largest_that_may_be():
    made = found(math.inf)
    assert made.points[made.picked].coefficient == 4.0
    assert made.intervention == proposals()[0].at(4.0)
    costs = sorted(point.kl for point in made.points[:3])
    tight = found((costs[0] + costs[1]) / 2)
    assert tight.points[tight.picked].coefficient == 0.5
    assert tight.intervention == proposals()[0].at(0.5)
    front = {i for i, p in enumerate(made.points) if p.front}
    assert front == pareto_front(np.array([p.effect.mean for p in made.points]), np.array([p.kl for p in made.points]))
    assert not made.points[3].front


def test_where_nothing_may_be_picked_nothing_is():
    made = grid(LM, TASK, proposals()[1:2], TEXTS, limit=math.inf, length=24)
    assert (made.picked, made.intervention) == (None, Intervention())
    assert found(limit=1e-15).picked is None  # the one point that costs nothing does nothing


def test_a_measure_serves_as_a_task():
    assert found(task=measure(LM, TASK)) == found()


def test_a_search_is_kept_in_a_file(tmp_path):
    made = found()
    made.save(tmp_path / "search")
    again = Search.load(tmp_path / "search")
    assert again == made
    assert again.points[again.picked] == made.points[made.picked]


def test_progress_goes_up_to_all_points():
    told = []
    grid(LM, TASK, proposals()[:1], TEXTS, limit=1, length=24, progress=lambda *n: told.append(n))
    assert told == sorted(told)
    assert told[-1] == (6, 6)
    assert (3, 6) in told


@pytest.mark.parametrize("none", [[], proposals()[3:4]], ids=["no proposals", "no coefficients"])
def test_without_proposals_there_is_no_search(none):
    with pytest.raises(EditError, match="no proposals were given"):
        grid(LM, TASK, none, TEXTS, limit=1, length=24)


def test_numbers_that_are_missing_are_never_picked(monkeypatch):
    """A model that gives NaN under an intervention costs it the search, and the others go on."""
    real = bench.side_effects

    def broken(*arguments, **options):
        cost = real(*arguments, **options)
        cost.kl[0] = np.nan
        return cost

    monkeypatch.setattr(bench, "side_effects", broken)
    made = found(math.inf)
    assert math.isnan(made.points[0].kl)
    assert not made.points[0].allowed
    assert not made.points[0].front
    assert made.picked == 2


# The front and the pick
# ---------------------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-3, 3).map(float), st.floats(allow_infinity=False), st.just(math.nan))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_the_front_is_what_no_other_beats(points):
    effect, cost = np.array([p[0] for p in points]), np.array([p[1] for p in points])

    def beats(i, j):
        return all((effect[i] >= effect[j], cost[i] <= cost[j])) and (effect[i], cost[i]) != (effect[j], cost[j])

    wanted = {
        j
        for j in range(len(points))
        if not (math.isnan(effect[j]) or math.isnan(cost[j])) and not any(beats(i, j) for i in range(len(points)))
    }
    assert pareto_front(effect, cost) == wanted
    there = [j for j in range(len(points)) if not (math.isnan(effect[j]) or math.isnan(cost[j]))]
    assert bool(wanted) == bool(there)
    if there:
        assert max(there, key=lambda j: (effect[j], -cost[j])) in wanted
        assert min(there, key=lambda j: (cost[j], -effect[j])) in wanted


def test_equal_points_are_on_the_front_together():
    assert pareto_front(np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.2, 0.2, 0.3, 0.2])) == {0, 1}
    assert pareto_front(np.array([]), np.array([])) == set()


def point(mean, low, allowed=True, kl=0.1):
    return Point("m", "s", "all", 1.0, Estimate(mean, low, mean + 1, 9), kl, False, allowed)


ESTIMATES = st.one_of(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([-1.0, 0.0, 0.5, math.nan])),
    st.just((math.nan, math.nan)),
)


@given(st.lists(st.tuples(ESTIMATES, st.booleans(), st.sampled_from([0.1, 0.2])), max_size=8))
def test_the_pick_is_allowed_above_zero_and_the_largest(drawn):
    points = [point(*ends, allowed, kl) for ends, allowed, kl in drawn]
    picked = largest_effect_within(points)
    fit = [p for p in points if p.allowed and p.effect.low > 0]
    if not fit:
        assert picked is None
        return
    chosen = points[picked]
    assert chosen in fit
    assert chosen.effect.mean == max(p.effect.mean for p in fit)
    assert chosen.kl == min(p.kl for p in fit if p.effect.mean == chosen.effect.mean)


def test_ties_go_to_the_cheaper_and_then_to_the_first():
    assert largest_effect_within([point(1, 0.5, kl=0.3), point(1, 0.5, kl=0.1), point(1, 0.5, kl=0.1)]) == 1
    assert largest_effect_within([]) is None
    assert largest_effect_within([point(5, -0.1), point(4, 0.0), point(3, math.nan), point(9, 8, False)]) is None


def test_the_vector_is_a_direction():
    assert np.linalg.norm(vector()) == pytest.approx(3.0)


# The whole search
# ---------------------------------------------------------------------------------------------------------------------

PARTS = questions(42).split()
ITEMS = tuple(Item(words(20 + i, 5, 30 + i), f" w{70 + i % 3}", f" w{75 + i % 4}", f"kind {i % 3}") for i in range(12))
ASKED = {
    "sites": ["L0.resid_post", "L1.head"],
    "coefficients": (0.5, 2.0),
    "scopes": ("all", "-1:"),
    "passages": TEXTS,
    "items": ITEMS,
    "length": 24,
    "limit": 5.0,
}


def means(lm, task, sites, *, strength=1.0, where="all"):
    return difference_of_means(lm, task, sites, strength=strength, where=where)


def only_heads(lm, task, sites, *, where="all"):
    if any("head" not in str(site) for site in sites):
        raise SiteError("heads are needed: give L*.head")
    return difference_of_means(lm, task, sites, where=where)


def test_a_grid_is_the_naive_loop():
    """Every method at every place, scope and coefficient, each measured alone; vectors of the train part."""
    made = search(LM, PARTS, methods=[means, scale], factors=(0.0,), **ASKED)
    validation = measure(LM, PARTS.validation)
    items = measured_items(LM, ITEMS)
    wanted = []
    for site in (["L0.resid_post"], ["L1.head"]):
        for scope in ("all", "-1:"):
            vector = difference_of_means(LM, PARTS.train, site, where=scope)
            wanted += [("means", " ".join(site), scope, c, vector * c) for c in (0.5, 2.0)]
    for site in (["L0.resid_post"], ["L1.head"]):
        wanted += [("scale", " ".join(site), scope, 0.0, scale(site, 0.0, where=scope)) for scope in ("all", "-1:")]
    assert [(p.method, p.site, p.scope, p.coefficient) for p in made.points] == [row[:4] for row in wanted]
    assert made.interventions == tuple(row[4] for row in wanted)
    for point, row in zip(made.points, wanted, strict=True):
        gain = effects(LM, validation, [row[4]]).changes[0]
        assert point.effect.mean == pytest.approx(gain.mean(), abs=1e-8)
        assert point.kl == pytest.approx(side_effects(LM, [row[4]], TEXTS, length=24).kl.mean(), abs=1e-8)
        right = capability(LM, ITEMS, row[4])
        assert point.capability.mean == pytest.approx(capability(LM, ITEMS).mean() - right.mean())
    assert len(items) == 12
    assert {i for i, p in enumerate(made.points) if p.front} == front_of(objectives(made.points))
    assert made.picked == Rule("largest_effect_within", 5.0).choose(made.points)
    assert made.how == "grid"
    assert made.provenance.method == "search"


def test_the_test_part_is_not_looked_at():
    broken = PARTS._replace(test=questions(42).with_(name="other"))
    with pytest.raises(TaskError, match="share"):
        search(LM, broken, methods=means, **ASKED)
    other = PARTS.test.of([e.with_(question=words(90, 91, 92, 93)) for e in PARTS.test.examples[:3]])
    one, two = (search(LM, parts, methods=means, **ASKED) for parts in (PARTS, PARTS._replace(test=other)))
    assert one.points == two.points


def test_parts_that_leak_are_refused():
    with pytest.raises(TaskError, match="the train and the validation part share 1 group"):
        search(LM, PARTS._replace(validation=PARTS.train.take(1)), methods=means, **ASKED)


def test_what_does_not_fit_is_left_out_and_said():
    made = search(LM, PARTS, methods=[means, only_heads], **ASKED)
    assert made.left_out == {"only_heads at L0.resid_post": "heads are needed: give L*.head"}
    assert {p.method for p in made.points if p.site == "L1.head"} == {"means", "only_heads"}
    with pytest.raises(SiteError, match="heads are needed"):
        search(LM, PARTS, methods=only_heads, **{**ASKED, "sites": "L0.resid_post"})


def test_options_reach_the_method_and_are_checked():
    told = search(LM, PARTS, methods=means, options={"means": {"where": "-1:"}}, **ASKED)
    assert {p.scope for p in told.points} == {"-1:"}
    with pytest.raises(EditError, match='means has no option "were"'):
        search(LM, PARTS, methods=means, options={"means": {"were": "-1:"}}, **ASKED)
    with pytest.raises(EditError, match="which is not among the methods"):
        search(LM, PARTS, methods=means, options={"mean": {}}, **ASKED)


def test_methods_of_one_name_are_refused_and_a_mapping_names_them():
    halves = {"half": partial(means, strength=0.5), "double": partial(means, strength=2.0)}
    made = search(LM, PARTS, methods=halves, **{**ASKED, "sites": "L0.resid_post", "scopes": "all"})
    assert [(p.method, p.coefficient) for p in made.points] == [(m, c) for m in ("half", "double") for c in (0.5, 2.0)]
    assert made.interventions[1] == made.interventions[0] * 4.0
    assert made.points[1].effect.mean != pytest.approx(made.points[3].effect.mean)
    for twice in (list(halves.values()), [lambda lm, task, sites: 1, lambda lm, task, sites: 2]):
        with pytest.raises(EditError, match=r'go by the name "(method|<lambda>)": give them in a mapping'):
            search(LM, PARTS, methods=twice, **ASKED)
    assert resolved([means, means, "scale"]) == resolved({"means": means, "scale": "scale"})


def test_a_limit_is_of_the_default_rule():
    asked = {key: value for key, value in ASKED.items() if key != "limit"}
    assert search(LM, PARTS, methods=means, **asked).limit == 0.3
    knee = search(LM, PARTS, methods=means, rule="knee", **asked)
    assert (knee.limit, "knee" in knee.rule) == (math.inf, True)
    for rule in ("knee", "least_cost_for:1", "largest_effect_within:0.5"):
        with pytest.raises(EditError, match=f'limit=5 .* rule="{rule}" was given too: leave one out'):
            search(LM, PARTS, methods=means, rule=rule, **ASKED)


def test_items_are_those_to_search_by(monkeypatch):
    asked = []
    monkeypatch.setattr(module.texts, "capability", lambda which=None: asked.append(which) or ITEMS)
    search(LM, PARTS, methods=means, **{**ASKED, "items": None})
    assert asked == ["search"]


def test_sites_are_places():
    labels = [p.label for p in places(LM, ["L*.resid_post", "L*.head", "L0.mlp_out + L1.mlp_out", "L1.resid_post"])]
    assert labels == ["L0.resid_post", "L1.resid_post", "L*.head", "L0.mlp_out + L1.mlp_out"]
    assert [len(p.sites) for p in places(LM, ["L*.head", "L0.mlp_out + L1.mlp_out"])] == [2, 2]
    with pytest.raises(EditError, match="no sites"):
        places(LM, [])


# Trials
# ---------------------------------------------------------------------------------------------------------------------


def trials(n=6, journal=None, seed=0, **more):
    return search(
        LM, PARTS, methods=[means, scale], how="tpe", trials=n, journal=journal, seed=seed, **{**ASKED, **more}
    )


def test_trials_are_points_within_the_ranges():
    told = []
    made = trials(12, progress=lambda *n: told.append(n))
    assert told[-1] == (12, 12)
    assert len(made.points) == 12
    assert len({(p.method, p.site, p.scope, p.coefficient) for p in made.points}) == 12
    for p in made.points:
        low, high = (0.0, 3.0) if p.method == "scale" else (0.5, 2.0)
        assert low <= p.coefficient <= high
    i = made.front[-1]
    gain = effects(LM, measure(LM, PARTS.validation), [made.interventions[i]]).changes[0]
    assert made.points[i].effect.mean == pytest.approx(gain.mean(), abs=1e-8)
    assert set(made.front) == front_of(objectives(made.points))


def test_another_seed_draws_on_the_same_parts(cheap, monkeypatch):
    """The test part of `data_seed` stays unseen, however often trials are drawn again."""
    task, seen = questions(42), []
    real = module.Proposer
    monkeypatch.setattr(module, "Proposer", lambda lm, train, *rest: seen.append(train) or real(lm, train, *rest))
    for seeds in ({"seed": 0}, {"seed": 1}, {"seed": 1, "data_seed": 1}):
        search(LM, task, methods=means, how="tpe", trials=1, **seeds, **ASKED)
    for train, data_seed in zip(seen, (0, 0, 1), strict=True):
        parts = task.split(data_seed)
        assert train == parts.train.take(64, data_seed)
        assert not {*train.groups} & {*parts.test.groups}
    assert seen[0] != seen[2]


def test_the_seed_is_the_search(cheap):
    assert trials(seed=3).points == trials(seed=3).points
    assert trials(seed=3).points != trials(seed=4).points


class Killed(BaseException):
    """What ends a process in the middle of a trial."""


@pytest.fixture
def cheap(monkeypatch):
    """Points whose numbers are drawn from what the intervention is: for tests of the trials and not of the numbers."""
    asked = []

    def found(self, variants, progress=None):
        asked.append(len(variants))
        draws = [np.random.default_rng(int(v.digest[:8], 16)) for v in variants]
        return [
            module.Found(Estimate(r.normal(), r.normal(), 2.0, 9), r.random(), Estimate(r.normal(), -1.0, 1.0, 9))
            for r in draws
        ]

    monkeypatch.setattr(module.Bench, "found", found)
    return asked


@pytest.mark.parametrize("after", [0, 3, 11])
@pytest.mark.parametrize("cut", [False, True], ids=["", "with a line cut off"])
def test_a_search_that_was_killed_goes_on(after, cut, tmp_path, monkeypatch, cheap):
    """It ends with the trials that it would have had: as many, none twice."""
    wanted, real = trials(13, tmp_path / "whole"), module.Bench.found

    def dies(self, *arguments, **options):
        if len(cheap) == 13 + after:
            raise Killed
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module.Bench, "found", dies)
        with pytest.raises(Killed):
            trials(13, tmp_path / "journal")
    if cut:
        with (tmp_path / "journal").open("ab") as file:
            file.write(b'{"op_code": 4, "worker')
    (tmp_path / "journal.lock").symlink_to("nowhere")  # as Optuna leaves it where it is killed while it writes
    made = trials(13, tmp_path / "journal")
    assert made.points == wanted.points
    assert made.interventions == wanted.interventions
    assert len({(p.method, p.site, p.scope, p.coefficient) for p in made.points}) == 13
    assert len(cheap) == 2 * 13
    assert len(trials(13, tmp_path / "journal").points) == 13  # and again, with nothing left to do
    assert len(cheap) == 2 * 13


@pytest.mark.parametrize("told", [False, True], ids=["before", "after its numbers are kept"])
def test_killed_within_a_trial(told, tmp_path, monkeypatch, cheap):
    """Between the numbers of a trial and its end, or before them."""
    from optuna.study import Study

    wanted = trials(5, tmp_path / "whole")
    real = Study.tell if told else module.Bench.found
    calls = []

    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) > 2:
            raise Killed
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*((Study, "tell") if told else (module.Bench, "found")), dies)
        with pytest.raises(Killed):
            trials(5, tmp_path / "journal")
    assert trials(5, tmp_path / "journal").points == wanted.points
    assert len(cheap) == 10


def test_more_trials_go_on_from_a_journal(tmp_path, cheap):
    first = trials(3, tmp_path / "journal")
    more = trials(6, tmp_path / "journal")
    assert [(p.site, p.coefficient) for p in more.points[:3]] == [(p.site, p.coefficient) for p in first.points]
    assert len(more.points) == 6


def test_a_journal_of_another_search_is_refused(tmp_path, cheap):
    trials(2, tmp_path / "journal")
    for change in ({"seed": 1}, {"coefficients": (1.0, 3.0)}, {"scopes": ("all",)}, {"items": ITEMS[:6]}):
        with pytest.raises(TrimtabError, match="is of another search"):
            trials(2, tmp_path / "journal", **change)
    (tmp_path / "other").write_text("not a journal\n")
    with pytest.raises(FileError, match="no journal of a search"):
        trials(2, tmp_path / "other")
    with pytest.raises(FileError, match="no folder"):
        trials(2, tmp_path / "none" / "journal")


def test_a_journal_in_use_is_refused(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".journal.held"), pytest.raises(TrimtabError, match="in use by another search"):
        trials(2, tmp_path / "journal")


def test_refused_draws_count_as_trials(tmp_path, cheap):
    made = search(LM, PARTS, methods=only_heads, how="tpe", trials=8, journal=tmp_path / "j", **ASKED)
    assert 0 < len(made.points) < 8
    again = search(LM, PARTS, methods=only_heads, how="tpe", trials=8, journal=tmp_path / "j", **ASKED)
    assert again.points == made.points
    assert list(made.left_out) == ["only_heads at L0.resid_post"]
    with pytest.raises(SiteError, match="heads are needed"):
        search(LM, PARTS, methods=only_heads, how="tpe", trials=2, **{**ASKED, "sites": "L0.resid_post"})


def test_numbers_that_are_missing_are_kept_and_never_picked(monkeypatch):
    real = bench.side_effects

    def broken(*arguments, **options):
        cost = real(*arguments, **options)
        cost.kl[0] = np.nan
        return cost

    monkeypatch.setattr(bench, "side_effects", broken)
    made = trials(3)
    assert len(made.points) == 3
    assert all(math.isnan(p.kl) and not p.front for p in made.points)
    assert made.picked is None


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"trimtab\[search\]"):
        trials(2)


@pytest.mark.parametrize(
    ("change", "words_"),
    [
        ({"how": "random"}, 'how is "grid" or "tpe"'),
        ({"journal": "x"}, "a grid has none"),
        ({"methods": []}, "no methods were given"),
        ({"coefficients": (), "methods": means}, "no coefficients"),
        ({"factors": (), "methods": scale}, "no coefficients"),
        ({"how": "tpe", "coefficients": ()}, "no coefficients"),
        ({"how": "tpe", "trials": 0}, "at least 1"),
    ],
)
def test_what_makes_no_search_is_refused(change, words_):
    with pytest.raises(EditError, match=words_):
        search(LM, PARTS, **{"methods": means, **ASKED, **change})
