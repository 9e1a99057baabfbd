"""Roles of heads set by hand, and of the bundled model."""

from __future__ import annotations

import numpy as np
import pytest

from tests.locate.tinytasks import twins
from tests.locate.wired import wired
from tests.model.tinies import lm_of
from trimtab.errors import TrimtabError
from trimtab.locate.ablation import ablation
from trimtab.locate.attention import induction_score
from trimtab.locate.circuits_qk_ov import composition
from trimtab.locate.roles import ABOUT, head_roles, least, role_graph, standing_out
from trimtab.tasks.builtin import task as builtin
from trimtab.tasks.fit import fit
from trimtab.tasks.repeated import RepeatedTokens
from trimtab.values.roles import RoleGraph, RoleTable
from trimtab.values.scores import Scores

GIVEN = RepeatedTokens(length=10, sequences=4)


def test_heads_set_by_hand_get_their_roles_and_no_others():
    table = head_roles(wired(), GIVEN)
    roles = {head: table.roles_of(head) for head in table.heads}
    assert roles == {
        "L0.head[0]": ("previous_token",),
        "L0.head[1]": ("duplicate_token",),
        "L1.head[0]": ("induction", "copying"),
        "L1.head[1]": ("suppression",),
    }
    assert table.scores.shape == table.nulls.shape == (4, len(ABOUT))


def test_the_null_has_nothing_to_find():
    table = head_roles(wired(), GIVEN)
    frame = table.to_frame().set_index(["head", "role"])
    assert frame.loc[("L1.head[0]", "induction"), "null"] < 0.1
    assert frame.loc[("L0.head[1]", "duplicate_token"), "null"] < 0.1
    assert frame.loc[("L0.head[0]", "previous_token"), "null"] < 0.1
    assert abs(frame.loc[("L1.head[0]", "copying"), "null"]) < 0.5


def test_intervals_hold_for_all_heads_and_roles_at_once():
    """Where no head has any role, one is assigned somewhere in at most a twentieth of the tables."""
    rng = np.random.default_rng(0)
    tables = [least(rng.standard_normal((8, 30, 6)), 0.95) for _ in range(400)]
    assert np.mean([(table > 0).any() for table in tables]) < 0.05
    values = np.array([[1.0, 3.0], [2.0, np.nan], [3.0, 1.0]])[:, None]
    # one test, since the other is not defined: Student's with two degrees of freedom
    np.testing.assert_allclose(least(values, 0.95)[0], [2 - 4.302653 / np.sqrt(3), np.nan], rtol=1e-6)
    assert np.isnan(least(values[:1], 0.95)).all()


def test_the_graph_has_the_edge_that_makes_the_induction_head():
    lm = wired()
    table = head_roles(lm, GIVEN)
    graph = role_graph(lm, table, least=0.9)
    values = graph.to_frame().set_index("edge")["value"]
    assert values.idxmax() == "L0.head[0]->L1.head[0].k"
    assert values["L0.head[0]->L1.head[0].k"] > 2 * values["L0.head[0]->L1.head[0].q"]
    pairs = graph.between_roles().set_index(["sender_role", "receiver_role", "input"])
    assert pairs.loc[("previous_token", "induction", "k"), "mean_z"] > 0.9
    given = role_graph(lm, table, edges=composition(lm, kind="k"), least=0.9)
    assert "L0.head[0]->L1.head[0].k" in given.to_frame()["edge"].tolist()
    made = composition(lm, kind="k")  # and as path patching has them, with a span and a unit
    dims, site = ("example", "layer", "head", "span", "receiver"), "L{layer}.head[{head}]@{span}->{receiver}"
    coords = {**made.coords, "span": ("all",)}
    paths = role_graph(lm, table, edges=Scores(-made.array[:, :, :, None], dims, coords, site, unit="nat"), least=0.9)
    assert paths.edges == given.edges
    np.testing.assert_allclose(paths.values, given.values)
    assert paths.unit == "nat"


def test_what_stands_out_is_compared_within_its_layer():
    values = np.array([[1.0, 1.0, 4.0], [10.0, 10.0, 10.0]])[..., None]
    z = standing_out(values)[..., 0]
    np.testing.assert_allclose(z[1], 0)
    np.testing.assert_allclose(z[0], [-1, -1, 2])
    assert np.isnan(standing_out(np.ones((2, 3, 1)))).all()


@pytest.mark.parametrize("family", ["opt-350m", "llama", "olmoe"])
def test_tables_and_graphs_are_saved_and_shown(family, tmp_path):
    lm = lm_of(family)
    table = head_roles(lm, RepeatedTokens(length=6, sequences=3), attention=0.0, copying=0.0, batch_size=2)
    again = head_roles(lm, RepeatedTokens(length=6, sequences=3), attention=0.0, copying=0.0)
    np.testing.assert_allclose(table.scores, again.scores, atol=1e-5)
    table.save(tmp_path / "table")
    assert RoleTable.load(tmp_path / "table") == table
    assert "heads have a role" in table._repr_html_()
    if family == "opt-350m":
        assert np.isnan(table.scores[:, 4:]).all()
        assert not table.assigned[:, 4:].any()
        return
    graph = role_graph(lm, table, least=0.0)
    graph.save(tmp_path / "graph")
    assert RoleGraph.load(tmp_path / "graph") == graph
    assert "Pairs of roles" in graph._repr_html_()


def test_no_roles_make_an_empty_graph():
    lm = lm_of("llama")
    table = head_roles(lm, RepeatedTokens(length=6, sequences=3), attention=1.0, copying=100.0, sink=1.0)
    graph = role_graph(lm, table)
    assert not len(graph.to_frame())
    assert not len(graph.between_roles())
    assert "0 edges" in repr(graph)


def test_what_is_asked_wrongly_is_refused():
    lm = lm_of("llama")
    with pytest.raises(TrimtabError, match="RepeatedTokens"):
        head_roles(lm, twins())
    table = head_roles(lm, RepeatedTokens(length=6, sequences=3))
    with pytest.raises(TrimtabError, match='did you mean "induction"'):
        table.heads_of("inductoin")
    with pytest.raises(TrimtabError, match='no role "inductoin"'):
        role_graph(lm, table, roles=("inductoin",))
    with pytest.raises(TrimtabError, match="layer, head and receiver"):
        role_graph(lm, table, edges=induction_score(lm))


@pytest.mark.slow
def test_the_bundled_model_has_induction_heads_and_ablation_agrees(bundled):
    table = head_roles(bundled, RepeatedTokens(sequences=8))
    column = table.roles.index("induction")
    assert table.scores[:, column].max() > 5 * table.nulls[:, column].max()
    assert len(table.heads_of("induction")) >= 3
    graph = role_graph(bundled, table, roles=("previous_token", "induction"))
    pairs = graph.between_roles().set_index(["sender_role", "receiver_role", "input"])["mean_z"]
    keys = pairs["previous_token", "induction", "k"]
    assert keys > 0.3
    assert keys > max(pairs["previous_token", "induction", other] for other in ("q", "v"))
    task = fit(bundled, builtin("induction")).task.take(8, seed=0)
    lost = ablation(bundled, task, "L*.head", kind="resample")
    agree = induction_score(bundled, RepeatedTokens(sequences=8)).compare(lost, k=20, by="value")
    assert agree.rank_correlation > 0.05
    assert agree.p_value < 0.05
    # the two heads that the task loses most by: one looks one back, the other is an induction head
    roles = [set(table.roles_of(site.with_(at=None))) for site in lost.top(2, by="value")]
    assert "previous_token" in roles[0] | roles[1]
    assert "induction" in roles[0] | roles[1]
