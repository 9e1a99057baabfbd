import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.values.grammar import scalar_edits
from trimtab.errors import EditError, FileError
from trimtab.values import (
    Affine,
    Bounds,
    Condition,
    Edit,
    Intervention,
    Noise,
    Probe,
    Provenance,
    Ref,
    Rotation,
    Scope,
    Site,
    WeightPatch,
)

VALUES = {
    "set": np.arange(4.0),
    "add": np.arange(4.0, dtype=np.float32),
    "scale": 0.5,
    "clamp": Bounds(0.0, None),
    "rotate": Rotation(np.eye(4)[0], np.eye(4)[1], 0.3),
    "affine": Affine(np.ones((2, 4)), np.ones((2, 4)), np.arange(4.0)),
    "noise": Noise(0.1, 3),
    "gradient": Probe(np.ones((2, 4)), np.zeros(2), 1, 0.2),
}


def every_kind() -> Intervention:
    condition = Condition("L1.resid_post", np.arange(1.0, 5.0) / 3, 0.25, "last", above=False)
    edits = [Edit("L2.resid_pre", op, value, "subject", strength=0.1) for op, value in VALUES.items()]
    edits += [
        Edit("L2.head[1]", "set", Ref("clean", "L1.head[3]", "S1"), strength=(0.1, 1 / 3), rows=(0, 5)),
        Edit("L2.mlp_out", "add", np.float32(1) / np.arange(1, 5, dtype=np.float32), when=condition),
    ]
    patches = [
        WeightPatch("model.layers.0.mlp.down_proj.weight", left=np.ones((4, 1)) / 3, right=np.ones((1, 8))),
        WeightPatch("model.norm.weight", delta=np.arange(4, dtype=np.float32)),
    ]
    provenance = Provenance.now("tiny", options={"k": 5, "layers": [1, 2], "note": None}, seed=0)
    return Intervention(tuple(edits), tuple(patches), "everything", provenance)


def test_positions_on_the_site_move_to_where():
    edit = Edit("L5.resid_pre@S2", "set", 0.0)
    assert edit.site == Site("resid_pre", 5)
    assert edit.where == Scope("span", name="S2")
    assert str(edit.address) == "L5.resid_pre@S2"
    assert Edit("L5.resid_pre@S2", "set", 0.0, where="S2") == edit
    with pytest.raises(EditError, match="names the positions S2 and also -1"):
        Edit("L5.resid_pre@S2", "set", 0.0, where="-1")


@pytest.mark.parametrize("op", sorted(VALUES))
def test_each_operation_takes_its_own_value_and_no_other_kind(op):
    Edit("L1.resid_pre", op, VALUES[op])
    wrong = Bounds(0, 1) if op != "clamp" else Noise(1.0)
    with pytest.raises(EditError, match=f'the value of "L1.resid_pre {op}" must be'):
        Edit("L1.resid_pre", op, wrong)
    with pytest.raises(EditError, match="got nothing"):
        Edit("L1.resid_pre", op)
    with pytest.raises(EditError, match="got 'clean'"):
        Edit("L1.resid_pre", op, "clean")


def test_scale_takes_no_ref():
    with pytest.raises(EditError, match="must be a number or an array"):
        Edit("L1.resid_pre", "scale", Ref("clean"))


def test_clamp_takes_a_pair():
    assert Edit("L1.neuron", "clamp", (0, 1)) == Edit("L1.neuron", "clamp", Bounds(0.0, 1.0))


@pytest.mark.parametrize("value", [np.nan, np.array([0.0, np.inf]), torch.tensor([np.nan])])
def test_nan_and_infinity_are_refused_with_the_edit_named(value):
    with pytest.raises(EditError, match=r'the value of "L1.head\[2\]@-1 add"'):
        Edit("L1.head[2]@-1", "add", value)


def test_an_unknown_operation_is_suggested():
    with pytest.raises(EditError, match=r'"sacle" \(did you mean "scale"\?\): the operations are set,'):
        Edit("L1.head", "sacle", 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": np.nan}, 'the strength of "L1.head set" must be finite'),
        ({"strength": ()}, "is empty"),
        ({"strength": "big"}, "must be a number"),
        ({"rows": (-1,)}, 'a row of "L1.head set" must be a whole number'),
        ({"rows": (1, 1)}, "repeat"),
        ({"when": "L0.head"}, "must be a Condition"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(EditError, match=message):
        Edit("L1.head", "set", 0, **fields)


@pytest.mark.parametrize("strength", [(0.5, 1.0), [0.5, 1], np.array([0.5, 1.0]), torch.tensor([0.5, 1.0])])
def test_strengths_may_be_one_for_each_row(strength):
    assert Edit("L1.head", "set", 0, strength=strength).strength == (0.5, 1.0)


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.array(2.0), torch.tensor(2.0), torch.tensor(2)])
def test_single_numbers_are_floats(number):
    edit = Edit("L1.head", "add", number, strength=number)
    assert (edit.value, edit.strength) == (2.0, 2.0)
    assert type(edit.value) is type(edit.strength) is float


def test_edits_are_equal_by_content():
    def edit(value=1.0, **fields):
        return Edit("L1.head[2]", "add", np.array([value, 2.0]), **fields)

    assert edit() == edit()
    assert hash(edit()) == hash(edit())
    assert len({edit(), edit(), edit(3.0)}) == 2
    for other in (edit(3.0), edit(where="last"), edit(strength=2), edit(rows=0), edit().with_(op="set")):
        assert other != edit()
        assert other.digest != edit().digest
    assert edit() != "L1.head[2] add"


def test_an_edit_does_not_follow_its_source():
    vector = np.zeros(3)
    edit = Edit("L1.resid_pre", "add", vector)
    vector[:] = 5
    assert edit.value.tolist() == [0, 0, 0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.op = "set"


def test_an_edit_prints_what_text_cannot_hold():
    condition = Condition("L0.resid_post", [1.0], 0.5)
    assert str(Edit("L1.resid_pre", "add", np.zeros(3))) == "L1.resid_pre add array(3,)"
    assert str(Edit("L1.resid_pre", "set", 0, when=condition)).endswith("set 0 when cos(L0.resid_post, mean) > 0.5")


@given(scalar_edits(), st.floats(-4, 4))
def test_scaling_an_edit_scales_its_strength(edit, factor):
    if np.any(np.abs(np.atleast_1d(edit.strength)) > 1e300):
        return
    scaled = edit.scaled(factor)
    assert np.array_equal(np.atleast_1d(scaled.strength), np.atleast_1d(edit.strength) * factor)
    assert scaled.with_(strength=edit.strength) == edit


def test_interventions_are_made_of_anything_that_names_edits():
    edit = Edit.parse("L1.head[2] scale 0")
    patch = WeightPatch("w", delta=np.ones(2))
    assert Intervention.of(None) == Intervention()
    assert not Intervention.of(None)
    assert Intervention.of(edit) == Intervention.of("L1.head[2] scale 0") == Intervention((edit,))
    assert Intervention.of([edit, [patch, "L3.mlp_out add 1"]]).edits == (edit, Edit.parse("L3.mlp_out add 1"))
    assert Intervention.of([edit, patch]).patches == (patch,)
    assert Intervention("L1.head[2] scale 0").edits == (edit,)
    whole = Intervention.of(edit)
    assert Intervention.of(whole) is whole
    with pytest.raises(EditError, match="an intervention is made of edits, or of their text, got 3"):
        Intervention.of(3)
    with pytest.raises(EditError, match="patches of an intervention are WeightPatch"):
        Intervention(patches=("w",))


def test_the_algebra_of_interventions():
    a, b = Intervention.of("L1.head[2] scale 0"), Intervention((Edit.parse("L3.mlp_out add 1 x 3"),), name="b")
    assert (a + b).edits == a.edits + b.edits
    assert (a + b).name == "b"
    assert a + b != b + a
    assert a + Intervention() == a
    assert sum([a, b], start=Intervention()) == a + b
    assert "L0.head[0] scale 0" + a == Intervention.of("L0.head[0] scale 0") + a
    assert [edit.strength for edit in 2 * (a + b)] == [2, 6]
    assert 2 * (a + b) == 2 * a + 2 * b
    assert a * 1 == a
    assert len(a + b) == 2


def test_scaling_a_patch_scales_its_matrix():
    low = WeightPatch("w", left=np.ones((3, 1)), right=np.arange(2.0)[None])
    full = WeightPatch("w", delta=np.ones((3, 1)) @ np.arange(2.0)[None])
    assert np.array_equal(low.matrix, full.matrix)
    for patch in (low, full):
        (scaled,) = (3 * Intervention(patches=(patch,))).patches
        assert np.array_equal(scaled.matrix, 3 * patch.matrix)


def test_name_and_provenance_do_not_change_what_an_intervention_does():
    everything = every_kind()
    assert everything.with_(name="other", provenance=None) == everything
    assert everything.with_(edits=everything.edits[1:]) != everything
    assert everything.with_(patches=()) != everything


def test_an_intervention_comes_back_bit_for_bit(tmp_path):
    everything = every_kind()
    everything.save(tmp_path / "everything.safetensors")
    again = Intervention.load(tmp_path / "everything.safetensors")
    assert again == everything
    assert again.name == "everything"
    assert again.provenance == everything.provenance
    assert str(again) == str(everything)
    for new, old in zip(again.edits, everything.edits, strict=True):
        assert new == old
        assert new.strength == old.strength
        if isinstance(old.value, np.ndarray):
            assert new.value.dtype == old.value.dtype
            assert new.value.tobytes() == old.value.tobytes()
            assert not new.value.flags.writeable
    assert again.patches[0].left.tobytes() == everything.patches[0].left.tobytes()


@given(edits=st.lists(scalar_edits(), max_size=4))
def test_any_scalar_intervention_comes_back(edits, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "it"
    Intervention(tuple(edits)).save(path)
    assert Intervention.load(path).edits == tuple(edits)


def test_an_altered_intervention_is_refused(tmp_path):
    path = tmp_path / "it"
    Intervention.of(Edit("L1.resid_pre", "add", np.array([1.0, 2.0]))).save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # one bit of the last number
    path.write_bytes(data)
    with pytest.raises(FileError, match="was altered after it was written"):
        Intervention.load(path)
