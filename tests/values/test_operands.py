import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import EditError, PromptError, SiteError
from trimtab.values import Affine, Bounds, Condition, Noise, Probe, Ref, Rotation, Scope, Site
from trimtab.values.content import digest_of
from trimtab.values.operands import array_of, number_of, show


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_shown_number_reads_back(number):
    assert float(show(number)) == number
    assert np.signbit(float(show(number))) == np.signbit(number)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.ones(3, np.float64), np.float64),
        (np.ones(3, np.float32), np.float32),
        (np.ones(3, np.float16), np.float32),
        (np.ones(3, np.int64), np.float64),
        (torch.ones(3, dtype=torch.bfloat16), np.float32),
        (torch.ones(3, dtype=torch.float64, requires_grad=True), np.float64),
        ([1.0, 1.0, 1.0], np.float64),
    ],
)
def test_arrays_keep_what_they_hold(value, dtype):
    array = array_of(value, "it")
    assert array.dtype == dtype
    assert array.tolist() == [1, 1, 1]


@pytest.mark.parametrize("make", [np.ones, torch.ones])
def test_arrays_are_read_only_copies(make):
    source = make(3)
    array = array_of(source, "it")
    source[0] = 7
    assert array[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 7


def test_an_array_of_ours_is_not_copied_again():
    array = array_of(np.ones(3), "it")
    assert array_of(array, "it") is array


def test_a_read_only_view_is_copied():
    source = np.ones(3)
    view = source[:]
    view.setflags(write=False)
    array = array_of(view, "it")
    source[0] = 7
    assert array[0] == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([[1.0, np.nan]]), r"it holds NaN or infinity, first at \[0, 1\]"),
        (torch.tensor([np.inf]), r"holds NaN or infinity, first at \[0\]"),
        (np.array(["a"]), "must be numbers"),
        (object(), "must be numbers"),
        ([[1.0], [1.0, 2.0]], "must be numbers"),
        (np.ones((0, 3)), r"it is empty: shape \(0, 3\)"),
    ],
)
def test_what_is_no_array_is_refused(value, message):
    with pytest.raises(EditError, match=message):
        array_of(value, "it")


@pytest.mark.parametrize("value", [np.nan, np.inf, True, "3", None, np.ones(2), torch.ones(2)])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(EditError, match="it must be"):
        number_of(value, "it")


def test_an_affine_map_without_a_scale_is_what_it_was_before_there_were_any():
    a, c = np.ones((1, 3), np.float32), np.arange(3, dtype=np.float32)
    assert Affine(a, -a, c).digest == digest_of({"is": "Affine", "A": a, "B": -a, "c": c})
    assert Affine(c=c, scale=c) != Affine(c=c)
    assert Affine(scale=c, within=np.stack([c, c + 1])) != Affine(scale=c)
    assert Affine(scale=c).width == 3
    assert repr(Affine(scale=c)) == "Affine(A=None, B=None, c=None, scale=array(3,))"


def test_values_are_equal_by_content():
    direction = np.arange(3.0)
    assert Affine(direction, -direction) == Affine(direction[None].copy(), -direction[None])
    assert hash(Affine(direction, -direction)) == hash(Affine(direction, -direction))
    assert Affine(direction, -direction) != Affine(direction, direction)
    assert Affine(direction, -direction) != Affine(direction.astype(np.float32), -direction.astype(np.float32))
    assert Bounds(0, 1) != Noise(0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(), "would change nothing"),
        (lambda: Affine(A=np.ones(3)), "needs A and B together"),
        (lambda: Affine(np.ones(3), np.ones(4)), r"same shape \(k, d\), got \(1, 3\) and \(1, 4\)"),
        (lambda: Affine(np.ones(3), np.ones(3), np.ones(4)), r"Affine.c must have shape \(3,\)"),
        (lambda: Affine(c=np.ones((1, 3))), "Affine.c must have 1 dimension, got shape"),
        (lambda: Affine(np.ones((1, 1, 3)), np.ones((1, 1, 3))), "Affine.A must have 2 dimensions"),
        (lambda: Affine(np.array([np.nan]), np.ones(1)), "Affine.A holds NaN"),
        (lambda: Affine(c=np.ones(3), scale=np.ones(2)), r"Affine.scale must have shape \(3,\)"),
        (lambda: Affine(within=np.ones((2, 3))), "would change nothing"),
        (lambda: Affine(scale=np.ones(3), within=np.ones((3, 2))), r"Affine.within must have shape \(2, 3\)"),
        (lambda: Affine(scale=np.ones(1), within=[[1.0], [0.0]]), "lows above highs"),
        (lambda: Bounds(), "neither low nor high"),
        (lambda: Bounds(2, 1), "Bounds.low must not exceed Bounds.high, got 2.0 and 1.0"),
        (lambda: Bounds(low=np.nan), "Bounds.low must be finite"),
        (lambda: Noise(-1.0), "must not be negative"),
        (lambda: Noise(1.0, seed=-1), "Noise.seed must be a whole number from 0 up"),
        (lambda: Noise(1.0, seed=1.5), "Noise.seed must be a whole number from 0 up"),
        (lambda: Rotation(np.ones(2), np.ones(2), 0.1), "must be orthonormal.*Rotation.plane"),
        (lambda: Rotation(np.eye(3)[0], np.eye(2)[1], 0.1), "same shape"),
        (lambda: Rotation(np.eye(3)[0], np.eye(3)[1], np.inf), "Rotation.angle must be finite"),
        (lambda: Rotation.plane(np.ones(3), 2 * np.ones(3), 0.1), "must span a plane"),
        (lambda: Rotation.plane(np.zeros(3), np.ones(3), 0.1), "must span a plane"),
        (lambda: Probe(np.ones((2, 3)), np.ones(3), 0, 1.0), r"Probe.bias must have shape \(2,\)"),
        (lambda: Probe(np.ones((2, 3)), np.ones(2), 2, 1.0), "one of the 2 classes, 0 to 1, got 2"),
        (lambda: Probe(np.ones(3), np.ones(2), 0, 1.0), "Probe.weight must have 2 dimensions"),
        (lambda: Condition("L1.resid_post", np.zeros(3), 0.1), "direction is zero"),
        (lambda: Condition("L1.resid_post", np.ones(3), 1.5), "is a cosine, from -1 to 1"),
        (lambda: Condition("L1.resid_post", np.ones(3), 0.5, pool="max"), '"mean" or "last"'),
        (lambda: Condition("L1.resid_post", np.ones(3), 0.5, above=1), "True or False"),
        (lambda: Ref("a b"), "a Ref names a run"),
        (lambda: Ref("clean", "L4.head@S1", "S2"), "give the positions once"),
    ],
)
def test_values_that_do_not_fit_are_refused(make, message):
    with pytest.raises(EditError, match=message):
        make()


def test_sites_and_positions_of_values_are_read():
    assert Ref("clean", "L4.head[2]@S1") == Ref("clean", Site("head", 4, (2,)), Scope("span", name="S1"))
    assert Condition("L1.resid_post@subject", [1.0], 0.2).site.at == Scope("span", name="subject")
    with pytest.raises(SiteError):
        Ref("clean", "L4.hed")
    with pytest.raises(PromptError):
        Ref("clean", at="5:2")


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_plane_holds_both_directions(u, v):
    u, v = np.array(u), np.array(v)
    if np.linalg.norm(np.cross(u, v)) < 1e-3:
        return
    rotation = Rotation.plane(u, v, 0.5)
    basis = np.stack([rotation.b1, rotation.b2])
    assert np.allclose(basis @ basis.T, np.eye(2), atol=1e-9)
    for direction in (u, v):
        assert np.allclose(basis.T @ (basis @ direction), direction, atol=1e-9)
    assert rotation.b1 @ u > 0
    assert rotation.b2 @ v > 0


def test_widths():
    assert Affine(np.ones((2, 5)), np.ones((2, 5))).width == 5
    assert Affine(c=np.ones(4)).width == 4
    assert Rotation(np.eye(3)[0], np.eye(3)[1], 0).width == 3
    assert Probe(np.ones((2, 6)), np.ones(2), 0, 1.0).width == 6


def test_values_show_shapes_not_numbers():
    assert repr(Affine(c=np.ones(4))) == "Affine(A=None, B=None, c=array(4,))"
    assert str(Condition("L1.resid_post", [1.0], 0.25, above=False)) == "cos(L1.resid_post, mean) < 0.25"
