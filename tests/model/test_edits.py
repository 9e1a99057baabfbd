"""Edits compiled against prompts: each operation is its formula, its weight is strength, scope, rows and condition,
and what it does to a token does not depend on which other tokens are shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.tinies import IDS, OTHER, RAGGED, SIDES, close, exact, lm_of, off
from trimtab.errors import EditError, PromptError, SiteError
from trimtab.model.edits import blend
from trimtab.model.frame import Frame
from trimtab.model.protocols import logit_diff
from trimtab.values.edit import Affine, Bounds, Condition, Edit, Noise, Probe, Ref, Rotation

D = 32
few = settings(max_examples=25)
SEEDS = st.integers(0, 10_000)
STRENGTHS = st.floats(-3, 3, allow_nan=False).map(lambda s: round(s, 3))
# One edit of each operation, with values of every form that an operation takes
OPS = {
    "set number": ("set", 0.7),
    "set vector": ("set", np.linspace(-1, 1, D)),
    "add number": ("add", -0.3),
    "add vector": ("add", np.linspace(-1, 1, D)),
    "scale number": ("scale", -2.0),
    "scale vector": ("scale", np.linspace(0, 2, D)),
    "clamp": ("clamp", Bounds(-0.2, 0.5)),
    "clamp above": ("clamp", Bounds(None, 0.5)),
    "rotate": ("rotate", Rotation.plane(np.linspace(-1, 1, D), np.ones(D), 0.8)),
    "affine": ("affine", Affine(np.full((2, D), 0.1), np.arange(2.0 * D).reshape(2, D) / 9, np.ones(D))),
    "affine shift": ("affine", Affine(c=np.ones(D))),
    "affine scale": ("affine", Affine(c=np.ones(D), scale=np.linspace(0, 2, D))),
    "noise": ("noise", Noise(0.5, 3)),
    "gradient": ("gradient", Probe(np.arange(3.0 * D).reshape(3, D) / 50, np.zeros(3), 1, 0.5)),
}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compiled(edit, ids=IDS, padding="left", **options):
    lm = exact("llama")
    prompts = lm.prompts(ids, padding=padding) if isinstance(ids, list) else ids
    found = lm.compile([edit], prompts, **options)
    return (found[0] if found else None), prompts


def apply(edit, x, ids=IDS, padding="left", **options):
    one, prompts = compiled(edit, ids, padding, **options)
    return x if one is None else one.apply(x, Frame.whole(prompts))


class TestBlend:
    @few
    @given(seed=SEEDS, w=st.lists(st.sampled_from([0.0, 1.0, 0.3, -2.0]), min_size=4, max_size=4))
    def test_exact_at_zero_and_one_also_with_infinities(self, seed, w):
        x, y = normal(seed, 4, 3), normal(seed + 1, 4, 3)
        y[:, 0] = torch.tensor([math.inf, -math.inf, math.nan, math.inf], dtype=y.dtype)
        weight = torch.tensor(w, dtype=x.dtype)[:, None]
        out = blend(x, y, weight)
        for row, strength in enumerate(w):
            if strength == 0:
                assert torch.equal(out[row], x[row])
            elif strength == 1:
                assert torch.equal(out[row].nan_to_num(5), y[row].nan_to_num(5))
            else:
                assert off(out[row, 1:], (x + strength * (y - x))[row, 1:]) < 1e-15

    @few
    @given(seed=SEEDS)
    def test_booleans_choose(self, seed):
        x, y = normal(seed, 4, 3), normal(seed + 1, 4, 3)
        y[1] = math.inf
        w = torch.tensor([True, False, True, False])[:, None]
        out = blend(x, y, w)
        assert torch.equal(out[[0, 2]], y[[0, 2]])
        assert torch.equal(out[[1, 3]], x[[1, 3]])
        assert torch.equal(blend(x, y, None), y)

    def test_infinities_that_an_edit_makes_stay_where_it_applies(self):
        x = normal(0, 2, 7, D)
        x[0, 3, 2] = 1e308
        y = apply(Edit("L0.resid_post", "scale", 1e10, where="1:3"), x)
        assert torch.equal(y[0, :1], x[0, :1])
        assert torch.equal(y[0, 3:], x[0, 3:])
        y = apply(Edit("L0.resid_post", "scale", 1e10, rows=(1,), strength=0.5), x)
        assert torch.equal(y[0], x[0])
        y = apply(Edit("L0.resid_post", "add", np.full(D, 1e308), strength=0.9, where="3"), x, IDS)
        assert torch.equal(y[:, [0, 1, 2, 4, 5, 6]], x[:, [0, 1, 2, 4, 5, 6]])
        assert torch.isinf(y[0, 3, 2])


class TestFormulas:
    """At strength one, everywhere."""

    @few
    @given(seed=SEEDS, value=st.floats(-5, 5))
    def test_set_add_scale(self, seed, value):
        x = normal(seed, 2, 7, D)
        vector = normal(seed + 1, D)
        assert bool((apply(Edit("L0.resid_post", "set", value), x) == value).all())
        assert torch.equal(apply(Edit("L0.resid_post", "set", vector), x), vector.expand_as(x))
        assert torch.equal(apply(Edit("L0.resid_post", "add", value), x), x + value)
        assert torch.equal(apply(Edit("L0.resid_post", "add", vector), x), x + vector)
        assert torch.equal(apply(Edit("L0.resid_post", "scale", value), x), x * value)
        assert torch.equal(apply(Edit("L0.resid_post", "scale", vector), x), x * vector)

    @few
    @given(seed=SEEDS, low=st.floats(-2, 0), high=st.floats(0, 2))
    def test_clamp(self, seed, low, high):
        x = normal(seed, 2, 7, D)
        assert torch.equal(apply(Edit("L0.resid_post", "clamp", Bounds(low, high)), x), x.clamp(low, high))
        assert torch.equal(apply(Edit("L0.resid_post", "clamp", Bounds(low)), x), x.clamp(min=low))
        once = apply(Edit("L0.resid_post", "clamp", Bounds(low, high)), x)
        assert torch.equal(apply(Edit("L0.resid_post", "clamp", Bounds(low, high)), once), once)

    @few
    @given(seed=SEEDS, angle=st.floats(-7, 7), strength=STRENGTHS)
    def test_rotate_keeps_the_norm_and_what_lies_outside_the_plane(self, seed, angle, strength):
        x, u, v = normal(seed, 2, 7, D), normal(seed + 1, D), normal(seed + 2, D)
        value = Rotation.plane(u, v, angle)
        b1, b2 = torch.tensor(value.b1), torch.tensor(value.b2)
        y = apply(Edit("L0.resid_post", "rotate", value, strength=strength), x)
        assert off(y.norm(dim=-1), x.norm(dim=-1)) < 1e-9
        plane = torch.stack([b1, b2])

        def outside(z):
            return z - (z @ plane.T) @ plane

        assert off(outside(y), outside(x)) < 1e-9
        if strength == 1:
            radius = (x @ plane.T).norm(dim=-1, keepdim=True)
            expected = outside(x) + radius * (math.cos(angle) * b1 + math.sin(angle) * b2)
            assert off(y, expected) < 1e-9

    @few
    @given(seed=SEEDS, strength=st.floats(0, 1))
    def test_rotate_goes_the_short_way_by_the_share_of_its_strength(self, seed, strength):
        x = normal(seed, 2, 7, D)
        value = Rotation(np.eye(D)[4], np.eye(D)[9], 1.0)
        y = apply(Edit("L0.resid_post", "rotate", value, strength=strength), x)
        before, after = (torch.atan2(z[..., 9], z[..., 4]) for z in (x, y))
        turn = torch.remainder(1.0 - before + math.pi, 2 * math.pi) - math.pi
        assert float(torch.sin(after - before - strength * turn).abs().max()) < 1e-9
        assert float(turn.abs().max()) <= math.pi + 1e-12

    @few
    @given(seed=SEEDS)
    def test_affine_is_what_it_says(self, seed):
        x, a, b, c = normal(seed, 2, 7, D), normal(seed + 1, 3, D), normal(seed + 2, 3, D), normal(seed + 3, D)
        y = apply(Edit("L0.resid_post", "affine", Affine(a, b, c)), x)
        expected = torch.stack([torch.stack([h + b.T @ (a @ h) + c for h in row]) for row in x])
        assert off(y, expected) < 1e-12

    @few
    @given(seed=SEEDS, strength=st.floats(0, 1))
    def test_a_scaled_entry_goes_its_share_of_the_way_and_none_out_of_bounds(self, seed, strength):
        x, scale, c = normal(seed, 2, 7, D), normal(seed + 1, D), normal(seed + 2, D)
        ends = torch.stack([torch.full((D,), -0.5), torch.full((D,), 1.0)])
        mapped = x + strength * (scale * x + c - x)
        assert (
            off(apply(Edit("L0.resid_post", "affine", Affine(c=c, scale=scale), strength=strength), x), mapped) < 1e-12
        )
        value = Affine(c=c, scale=scale, within=ends)
        y = apply(Edit("L0.resid_post", "affine", value, strength=strength), x)
        inside = (x >= -0.5) & (x <= 1.0)
        assert off(y, torch.where(inside, mapped, x)) < 1e-12
        assert torch.equal(y[~inside], x[~inside])

    @few
    @given(seed=SEEDS)
    def test_ablating_a_direction_is_complete_and_the_same_twice(self, seed):
        x, r = normal(seed, 2, 7, D), normal(seed + 1, D)
        r = r / r.norm()
        edit = Edit("L0.resid_post", "affine", Affine(r, -r))
        once = apply(edit, x)
        assert float((once @ r).abs().max()) < 1e-12
        assert off(apply(edit, once), once) < 1e-12
        assert off(once, x - (x @ r)[..., None] * r) < 1e-12

    @few
    @given(seed=SEEDS)
    def test_a_subspace_is_set_to_values(self, seed):
        """LoReFT: B = R with orthonormal rows, A = W − R, c = Rᵀb sets R x to W x + b and leaves the rest."""
        x = normal(seed, 2, 7, D)
        r = torch.linalg.qr(normal(seed + 1, D, 3))[0].T
        w, b = normal(seed + 2, 3, D), normal(seed + 3, 3)
        y = apply(Edit("L0.resid_post", "affine", Affine(w - r, r, r.T @ b)), x)
        assert off(y @ r.T, x @ w.T + b) < 1e-10
        assert off(y - (y @ r.T) @ r, x - (x @ r.T) @ r) < 1e-10

    @few
    @given(seed=SEEDS, target=st.integers(0, 2))
    def test_gradient_goes_down_the_probe_s_loss(self, seed, target):
        x = normal(seed, 2, 7, D).requires_grad_()
        weight, bias = normal(seed + 1, 3, D) / 5, normal(seed + 2, 3)
        loss = torch.nn.functional.cross_entropy(
            (x @ weight.T + bias).flatten(0, 1), torch.full((14,), target), reduction="sum"
        )
        (slope,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            y = apply(Edit("L0.resid_post", "gradient", Probe(weight, bias, target, 0.3)), x)
        assert off(y, (x - 0.3 * slope).detach()) < 1e-12

    @few
    @given(seed=SEEDS, sigma=st.floats(0.1, 10))
    def test_noise_is_gaussian_of_its_size_and_in_proportion(self, seed, sigma):
        x = torch.zeros(2, 7, D, dtype=torch.float64)
        y = apply(Edit("L0.resid_post", "noise", Noise(sigma, seed)), x, IDS)
        assert 0.7 * sigma < float(y.std()) < 1.3 * sigma
        assert float(y.mean().abs()) < 0.3 * sigma
        one = apply(Edit("L0.resid_post", "noise", Noise(1.0, seed)), x, IDS)
        assert off(y, one * sigma) < 1e-12
        assert len(y.unique()) == y.numel()
        other = apply(Edit("L0.resid_post", "noise", Noise(sigma, seed + 1)), x, IDS)
        assert not torch.equal(y, other)
        assert torch.equal(y, apply(Edit("L0.resid_post", "noise", Noise(sigma, seed)), x, IDS))

    def test_per_head_and_per_unit_values(self):
        x = normal(0, 2, 7, 4, 8)
        heads = normal(1, 4, 8)
        assert torch.equal(apply(Edit("L0.head", "add", heads), x), x + heads)
        assert torch.equal(apply(Edit("L0.head", "scale", heads[:, :1]), x), x * heads[:, :1])
        y = apply(Edit("L0.head[3,1]", "set", heads[:2]), x)
        assert torch.equal(y[:, :, [3, 1]], heads[:2].expand(2, 7, 2, 8))
        assert torch.equal(y[:, :, [0, 2]], x[:, :, [0, 2]])
        y = apply(Edit("L0.head[2]", "affine", Affine(np.eye(8)[0], -np.eye(8)[0])), x)
        assert not y[:, :, 2, 0].any()
        assert torch.equal(y[:, :, 2, 1:], x[:, :, 2, 1:])
        assert torch.equal(y[:, :, [0, 1, 3]], x[:, :, [0, 1, 3]])

    def test_values_of_each_row_and_of_each_position(self):
        x = normal(0, 2, 7, D)
        rows, full = normal(1, 2, D), normal(2, 2, 7, D)
        assert torch.equal(apply(Edit("L0.resid_post", "add", rows), x), x + rows[:, None])
        assert torch.equal(apply(Edit("L0.resid_post", "add", full), x), x + full)
        assert torch.equal(apply(Edit("L0.resid_post", "add", full[:1]), x), x + full[:1])
        assert torch.equal(apply(Edit("L0.resid_post", "add", full[:, :1]), x), x + full[:, :1])

    def test_values_are_computed_as_wide_as_they_can_be(self):
        lm = lm_of("llama", torch.bfloat16)
        run = lm.run(IDS, "L0.resid_post", Edit("L0.resid_post", "set", np.full(D, 1 / 3)))
        assert run["L0.resid_post"].dtype == torch.bfloat16
        assert bool((run["L0.resid_post"] == torch.tensor(1 / 3, dtype=torch.bfloat16)).all())


class TestHalfPrecision:
    """Maps are computed in float32 and cast once; what no half number holds is refused, not made infinite."""

    halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])

    @halves
    @few
    @given(seed=SEEDS)
    def test_a_line_of_large_terms_makes_its_small_shift(self, dtype, seed):
        x = (50 + normal(seed, 2, 7, D)).to(dtype)
        scale, shift = torch.full((D,), 1.003, dtype=torch.float64), 0.6 * normal(seed + 1, D).abs() + 0.5
        c = shift + 50 * (1 - scale)
        y = apply(Edit("L0.resid_post", "affine", Affine(c=c, scale=scale)), x)
        wanted = x.double() * scale + c
        torch.testing.assert_close(y.double(), wanted, rtol=torch.finfo(dtype).eps / 2 + 1e-6, atol=0)
        moved = (y.double() - x.double()).mean((0, 1))
        torch.testing.assert_close(moved, shift, atol=0.15, rtol=0)

    @halves
    @few
    @given(seed=SEEDS, strength=st.sampled_from([1.0, 0.5, -2.0]))
    def test_the_maps_are_those_of_float32(self, dtype, seed, strength):
        x = (5 * normal(seed, 2, 7, D)).to(dtype)
        values = {
            "affine": Affine(normal(seed + 1, 3, D), normal(seed + 2, 3, D), 20 * normal(seed + 3, D)),
            "gradient": Probe(normal(seed + 1, 3, D), 9 * normal(seed + 2, 3), 1, 7.0),
            "rotate": Rotation.plane(normal(seed + 1, D), normal(seed + 2, D), 0.8),
        }
        for op, value in values.items():
            edit = Edit("L0.resid_post", op, value, strength=strength)
            y, wide = apply(edit, x), apply(edit, x.float())
            assert torch.equal(y, wide.to(dtype)), op

    @halves
    @pytest.mark.parametrize("name", ["affine", "affine scale", "gradient", "rotate"])
    def test_exactly_x_where_nothing_applies(self, dtype, name):
        op, value = OPS[name]
        x = normal(0, 2, 7, D).to(dtype)
        x[0, 0, 3], x[1, 2, 0] = math.inf, -math.inf
        for options in ({"where": "3"}, {"where": "3", "strength": 0.5}, {"where": "3", "strength": (0.5, 0.0)}):
            y = apply(Edit("L0.resid_post", op, value, **options), x)
            kept = [0, 1, 2, 4, 5, 6]
            assert torch.equal(y[:, kept], x[:, kept])
            assert not torch.equal(y[0, 3], x[0, 3])
        within = Affine(c=np.ones(D), within=np.stack([np.full(D, -0.5), np.full(D, 0.5)]))
        y = apply(Edit("L0.resid_post", "affine", within), x)
        outside = (x < -0.5) | (x > 0.5)
        assert torch.equal(y[outside], x[outside])

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (Edit("L0.resid_post", "set", 7e4), r"the value goes up to 70000, and float16, .*, to 65504 only"),
            (Edit("L0.resid_post", "add", np.full(D, -1e6)), "the value goes up to 1e.06"),
            (Edit("L0.resid_post", "scale", 1e5), "the value goes up to 100000"),
            (Edit("L0.resid_post", "add", np.full((2, D), 1e5)), "the value goes up to 100000"),
            (Edit("L0.resid_post", "add", np.full((2, 7, D), 1e5)), "the value goes up to 100000"),
            (Edit("L0.resid_post", "noise", Noise(1e5, 0)), "Noise.sigma goes up to 100000"),
            (Edit("L0.resid_post", "add", 1.0, strength=1e5), "the strength goes up to 100000"),
            (Edit("L0.resid_post", "add", 1.0, strength=(1.0, -7e4)), "the strength goes up to 70000"),
            (Edit("L0.resid_post", "clamp", Bounds(1e5, None)), "a bound goes up to 100000"),
            (Edit("L0.resid_post", "clamp", Bounds(None, -1e5)), "a bound goes up to 100000"),
        ],
        ids=str,
    )
    def test_what_float16_does_not_hold_is_refused(self, edit, said):
        with pytest.raises(EditError, match=said):
            lm_of("llama", torch.float16).run(IDS, edit=edit)
        assert torch.isfinite(lm_of("llama", torch.bfloat16).run(IDS, edit=edit).logits).all()

    def test_what_it_does_hold_is_not(self):
        x = normal(0, 2, 7, D).to(torch.float16)
        assert float(apply(Edit("L0.resid_post", "set", 65510.0), x).max()) == 65504  # rounds down to the largest
        assert torch.equal(apply(Edit("L0.resid_post", "clamp", Bounds(-1e6, 1e6)), x), x)
        masked = apply(Edit("L0.scores[1]", "add", -1e9), torch.zeros(2, 7, 4, 7, dtype=torch.float16))
        assert bool((masked[:, :, 1] == -math.inf).all())
        assert not masked[:, :, [0, 2, 3]].any()


class TestStrength:
    @pytest.mark.parametrize("name", OPS)
    @few
    @given(seed=SEEDS, strength=STRENGTHS)
    def test_is_a_blend(self, name, seed, strength):
        op, value = OPS[name]
        x = normal(seed, 2, 7, D)
        edit = Edit("L0.resid_post", op, value)
        whole, part = apply(edit, x), apply(edit.with_(strength=strength), x)
        if strength == 0:
            assert torch.equal(part, x)
        elif strength == 1:
            assert torch.equal(part, whole)
        elif op != "rotate":  # a rotation turns by a share of the angle instead
            assert off(part, x + strength * (whole - x)) < 1e-12

    @few
    @given(seed=SEEDS, a=STRENGTHS, b=STRENGTHS)
    def test_adding_is_linear(self, seed, a, b):
        x, v = normal(seed, 2, 7, D), normal(seed + 1, D)
        edit = Edit("L0.resid_post", "add", v)
        one_by_one = apply(edit.with_(strength=b), apply(edit.with_(strength=a), x))
        assert off(one_by_one, x + (a + b) * v) < 1e-12
        assert off(one_by_one, apply(edit.with_(strength=a + b), x)) < 1e-12

    @pytest.mark.parametrize("name", OPS)
    def test_of_each_row(self, name):
        op, value = OPS[name]
        x = normal(7, 3, 7, D)
        ids = [*IDS, OTHER[0]]
        edit = Edit("L0.resid_post", op, value)
        y = apply(edit.with_(strength=(0.0, 1.0, -0.5)), x, ids)
        assert torch.equal(y[0], x[0])
        assert torch.equal(y[1], apply(edit, x, ids)[1])
        assert torch.equal(y[2], apply(edit.with_(strength=-0.5), x, ids)[2])

    def test_none_at_all(self):
        for options in (
            {"strength": 0.0},
            {"rows": ()},
            {"strength": (0.0, 0.0)},
            {"strength": (0.0, 1.0), "rows": (0,)},
        ):
            assert compiled(Edit("L0.resid_post", "set", 1.0, **options))[0] is None

    def test_of_another_number_of_rows(self):
        with pytest.raises(EditError, match="3 strengths for 2 rows; give one number, or one for each row"):
            compiled(Edit("L0.resid_post", "set", 1.0, strength=(1, 2, 3)))
        with pytest.raises(EditError, match="row 2 is out of range; the prompts have rows 0 to 1"):
            compiled(Edit("L0.resid_post", "set", 1.0, rows=(0, 2)))


SCOPES = ["all", "prompt", "generated", "-1", "0", "-3", "1:3", "-2:", ":2", "-1:", "end", "tokens{9,12,40}"]
NEW = 4
"""Tokens generated after the prompt in these tests."""


def covered(scope, ids, lengths, width, side):
    """(row column) as the grammar of scopes has it, column by column, the generated ones too."""
    table = torch.zeros(len(lengths), width + NEW, dtype=torch.bool)
    for row, length in enumerate(lengths):
        first = width - length if side == "left" else 0
        for column in range(width + NEW):
            new, position = column >= width, column - first
            if not new and not 0 <= position < length:
                continue
            if scope in ("all", "prompt", "generated"):
                inside = scope == "all" or (scope == "generated") == new
            elif scope.startswith("tokens"):
                inside = int(ids[row, column]) in (9, 12, 40)
            elif ":" in scope:
                start, stop = (int(part) if part else None for part in scope.split(":"))
                inside = stop is None if new else position in range(length)[slice(start, stop)]
            else:
                inside = not new and position == range(length)[-1 if scope == "end" else int(scope)]
            table[row, column] = inside
    return table


class TestScopes:
    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("scope", SCOPES)
    @few
    @given(
        strength=st.one_of(st.sampled_from([1.0, 0.5]), st.tuples(*[st.sampled_from([0.0, 1.0, 2.0])] * 2)),
        rows=st.sampled_from([None, (0,), (1,), (1, 0)]),
        new=st.lists(st.sampled_from([3, 9, 12, 40]), min_size=2 * NEW, max_size=2 * NEW),
        split=st.integers(1, NEW),
    )
    def test_weights_of_prompt_and_generated_columns(self, scope, side, strength, rows, new, split):
        edit = Edit("L0.resid_post", "add", 1.0, where=scope, strength=strength, rows=rows)
        one, prompts = compiled(edit, RAGGED, side)
        ids = torch.cat([prompts.ids, torch.tensor(new).view(2, NEW)], dim=1)
        expected = covered(scope, ids, prompts.lengths.tolist(), prompts.width, side).double()
        for row in (0, 1):
            mine = strength[row] if isinstance(strength, tuple) else strength
            expected[row] *= mine if rows is None or row in rows else 0.0
        width, x = prompts.width, torch.zeros(2, prompts.width + NEW, D, dtype=torch.float64)
        frames = [(0, width), *((c, c + 1) for c in range(width, width + NEW))]  # the prompt, then token by token
        if split == 1:
            frames = [(0, width + NEW)]  # all at once, as without a cache
        elif split > 2:
            frames = [(0, 3), (3, width), (width, width + split), (width + split, width + NEW)]
        out = []
        for start, stop in frames:
            frame = Frame(prompts, 2, start, stop - start, ids=ids[:, :stop])
            out.append(x[:, start:stop] if one is None else one.apply(x[:, start:stop], frame))
        pads = torch.cat([prompts.mask == 0, torch.zeros(2, NEW, dtype=torch.bool)], 1)  # nothing reads what is there
        assert torch.equal(torch.cat(out, 1)[..., 0].masked_fill(pads, 0), expected)

    def test_out_of_range(self):
        with pytest.raises(PromptError, match="row 1"):
            compiled(Edit("L0.resid_post@5", "add", 1.0), RAGGED)
        with pytest.raises(PromptError, match="subject"):
            compiled(Edit("L0.resid_post@subject", "add", 1.0))


class TestFrames:
    """What an edit does to a token is the same whichever columns and rows are shown with it."""

    EDITS = (
        *(Edit("L0.resid_post", op, value, where="1:") for op, value in OPS.values()),
        Edit("L0.resid_post", "add", normal(3, 2, 7, D)),
        Edit("L0.resid_post", "scale", normal(3, 2, D), strength=(0.5, 2.0)),
        Edit("L0.resid_post[3,9]", "set", 1.0, rows=(1,)),
    )

    @pytest.mark.parametrize("edit", EDITS, ids=str)
    @pytest.mark.parametrize("side", SIDES)
    def test_columns(self, edit, side):
        x = normal(5, 2, 7, D)
        one, prompts = compiled(edit, RAGGED, side)
        whole = one.apply(x, Frame.whole(prompts))
        for cut in range(1, 7):
            parts = [
                one.apply(x[:, start:stop], Frame(prompts, 2, start, stop - start))
                for start, stop in ((0, cut), (cut, 7))
            ]
            assert off(torch.cat(parts, 1), whole) < 1e-14

    @pytest.mark.parametrize("edit", EDITS, ids=str)
    def test_rows(self, edit):
        x = normal(5, 2, 7, D)
        one, prompts = compiled(edit)
        frame = Frame.whole(prompts)
        whole = one.apply(x, frame)
        for rows in ([0], [1], [1, 0], [0, 1, 1, 0, 1]):
            picked = one.apply(x[rows], frame.pick(torch.tensor(rows)))
            assert off(picked, whole[rows]) < 1e-14
            suffix = Frame(prompts, len(rows), 3, 4, torch.tensor(rows))
            assert off(one.apply(x[rows][:, 3:], suffix), whole[rows][:, 3:]) < 1e-14
            again = suffix.pick(torch.tensor([0, 0]))
            assert off(one.apply(x[rows[:1] * 2][:, 3:], again), whole[rows[:1] * 2][:, 3:]) < 1e-14

    @pytest.mark.parametrize("edit", EDITS, ids=str)
    def test_moved_says_where_it_changes_anything(self, edit):
        x = normal(5, 2, 7, D)
        one, prompts = compiled(edit)
        frame = Frame.whole(prompts)
        assert torch.equal(one.moved(x, frame), (one.apply(x, frame) != x).any(-1))

    @few
    @given(
        seed=SEEDS,
        n=st.integers(1, 4),
        site=st.sampled_from(["L0.resid_post", "L0.head", "L0.head[2]", "L0.neuron[5]"]),
    )
    def test_noise_of_a_row_does_not_depend_on_the_rows_after_it(self, seed, n, site):
        lm = exact("llama")
        edit = Edit(site, "noise", Noise(1.0, seed))
        shape = lm.shape(edit.site)
        x = torch.zeros(n, 7, *shape, dtype=torch.float64)
        many = apply(edit, x, [IDS[0]] * n)
        alone = apply(edit, x[:1], [IDS[0]])
        assert torch.equal(many[:1], alone)
        if n > 1:
            assert not torch.equal(many[0], many[1])

    def test_noise_of_each_site_is_its_own(self):
        """The same seed at two sites, or at a head and at all of them: as if drawn with two seeds."""
        sites = ["L0.resid_post", "L1.resid_post", "L0.mlp_out", "L0.attn_out", "embed"]
        x = torch.zeros(2, 7, D, dtype=torch.float64)
        drawn = torch.stack([apply(Edit(site, "noise", Noise(1.0, 3)), x) for site in sites])
        alike = torch.corrcoef(drawn.flatten(1)) - torch.eye(len(sites), dtype=torch.float64)
        assert float(alike.abs().max()) < 0.2
        heads = apply(Edit("L0.head", "noise", Noise(1.0, 3)), x.view(2, 7, 4, 8))
        one = apply(Edit("L0.head[0]", "noise", Noise(1.0, 3)), x.view(2, 7, 4, 8))
        assert off(heads[:, :, 0], one[:, :, 0]) > 0.1
        two = ["L0.resid_post noise 1 seed 3", "L1.resid_pre noise 1 seed 3"]  # one tensor, two sites
        lm = exact("llama")
        base, run = (lm.run(IDS, "L1.resid_pre", edit)["L1.resid_pre"] for edit in (None, two))
        assert 1.2 < float((run - base).std()) < 1.6  # the root of two; the same noise twice would be 2

    @few
    @given(seed=SEEDS, cut=st.integers(1, 6))
    def test_noise_of_a_position_does_not_depend_on_the_padding(self, seed, cut):
        edit = Edit("L0.resid_post", "noise", Noise(1.0, seed))
        ids = [IDS[0][:cut], IDS[1]]
        x = torch.zeros(2, 7, D, dtype=torch.float64)
        left, right = (apply(edit, x, ids, padding=side) for side in SIDES)
        assert torch.equal(left[0, 7 - cut :], right[0, :cut])
        assert torch.equal(left[1], right[1])


class TestValuesThatDoNotFit:
    @pytest.mark.parametrize(
        ("site", "op", "value", "said"),
        [
            (
                "L0.resid_post",
                "add",
                np.ones(31),
                r"fits L0\.resid_post, \(32\) \(or with batch.*\(2 7 32\)\); got \(31\)",
            ),
            ("L0.resid_post", "set", np.ones((3, 32)), r"got \(3 32\)"),
            ("L0.resid_post", "set", np.ones((2, 6, 32)), r"got \(2 6 32\)"),
            ("L0.head", "scale", np.ones(4), r"fits L0\.head, \(4 8\).*got \(4\)"),
            ("L0.head[1,2]", "scale", np.ones((4, 8)), r"fits L0\.head\[1,2\], \(2 8\).*got \(4 8\)"),
            ("L0.neuron", "add", np.ones(32), r"\(40\).*got \(32\)"),
            ("logits", "add", np.ones(32), r"\(97\).*got \(32\)"),
            (
                "L0.resid_post",
                "affine",
                Affine(np.ones((1, 8)), np.ones((1, 8))),
                "A must have 32 columns.*shape \\(1, 8\\)",
            ),
            ("L0.head", "affine", Affine(c=np.ones(32)), r"c must have 8 columns, the last axis of L0\.head"),
            ("L0.resid_post", "rotate", Rotation(np.eye(8)[0], np.eye(8)[1], 1.0), "b1 must have 32 columns"),
            ("L0.mlp_out", "gradient", Probe(np.ones((2, 8)), np.ones(2), 0, 1.0), "weight must have 32 columns"),
        ],
    )
    def test_shape(self, site, op, value, said, unchecked):
        with pytest.raises(EditError, match=said):
            exact("llama").run(IDS, edit=Edit(site, op, value))

    def test_an_unknown_site_and_a_head_that_is_not_there(self):
        with pytest.raises(SiteError, match='did you mean "neuron"'):
            exact("llama").run(IDS, edit="L0.neurn scale 0")
        with pytest.raises(SiteError, match="head 9 is out of range; there are heads 0 to 3"):
            exact("llama").run(IDS, edit="L0.head[9] scale 0")


class TestConditions:
    """An edit in the rows only whose activation points somewhere (arXiv 2409.05907)."""

    def states(self, ids, pool="mean"):
        lm = exact("llama", padded=True)
        run = lm.run(ids, "L0.resid_post")
        rows = [row[mask] for row, mask in zip(run["L0.resid_post"], run.prompts.mask.bool(), strict=True)]
        return torch.stack([row.mean(0) if pool == "mean" else row[-1] for row in rows])

    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("pool", ["mean", "last"])
    def test_true_rows_are_edited_and_false_rows_bitwise_those_of_the_base(self, pool, side):
        lm = exact("llama")
        ids = [*RAGGED, [20, 21, 22]]
        prompts = lm.prompts(ids, padding=side)
        base, everywhere = lm.run(prompts).logits, lm.run(prompts, edit="L1.resid_pre scale -3").logits
        states = self.states(ids, pool)
        for row, state in enumerate(states):
            cosines = torch.nn.functional.cosine_similarity(states, state[None], dim=-1)
            assert sorted(cosines.tolist())[-2] < 0.9
            for above in (True, False):
                condition = Condition("L0.resid_post", state, 0.9, pool, above)
                edit = Edit("L1.resid_pre", "scale", -3.0, when=condition)
                logits = lm.run(prompts, edit=edit).logits
                for other, real in enumerate(prompts.mask.bool()):
                    met = (other == row) == above
                    assert torch.equal(logits[other, real], (everywhere if met else base)[other, real])
                    assert not torch.equal(logits[other, real], (base if met else everywhere)[other, real])
                    if not met:
                        assert torch.equal(logits[other], base[other])

    @few
    @given(threshold=st.floats(-1, 1), above=st.booleans())
    def test_the_threshold_is_a_cosine(self, threshold, above):
        lm = exact("llama")
        direction = np.linspace(-1, 1, D)
        cosines = torch.nn.functional.cosine_similarity(self.states(RAGGED), torch.tensor(direction)[None], dim=-1)
        edit = Edit("L1.resid_pre", "set", 0.0, when=Condition("L0.resid_post", direction, threshold, "mean", above))
        run = lm.run(RAGGED, "L1.resid_pre", edit)
        for row, cosine in enumerate(cosines.tolist()):
            met = cosine > threshold if above else cosine < threshold
            real = run.prompts.mask[row].bool()
            assert (not run["L1.resid_pre"][row, real].any()) == met

    def test_scope_strength_and_rows_hold_too(self):
        lm = exact("llama")
        prompts = lm.prompts(IDS)
        always = Condition("embed", np.ones(D), -1.0)
        edit = Edit("L1.resid_pre", "add", 2.0, where="-2", strength=(0.5, 3.0), rows=(1,), when=always)
        run, base = lm.run(prompts, "L1.resid_pre", edit), lm.run(prompts, "L1.resid_pre")
        expected = base["L1.resid_pre"].clone()
        expected[1, -2] += 6
        close(lm, run["L1.resid_pre"], expected)

    def test_at_positions(self):
        lm = exact("llama")
        state = lm.run(RAGGED, "L0.resid_post@1")["L0.resid_post@1"][1]
        edit = Edit("L1.resid_pre", "set", 0.0, when=Condition("L0.resid_post@1", state, 0.999))
        run = lm.run(RAGGED, "L1.resid_pre", edit)
        assert not run["L1.resid_pre"][1, 2:].any()
        assert run["L1.resid_pre"][0].any(-1).all()

    def test_reads_what_earlier_edits_left(self):
        lm = exact("llama")
        direction = np.eye(D)[3]
        edits = [
            Edit("L0.resid_post", "set", direction * 5, rows=(0,)),
            Edit("L1.resid_pre", "set", 0.0, when=Condition("L0.resid_post", direction, 0.99)),
        ]
        run = lm.run(IDS, "L1.resid_pre", edits)
        assert not run["L1.resid_pre"][0].any()
        assert run["L1.resid_pre"][1].any()

    @pytest.mark.parametrize("site", ["L1.resid_pre", "L1.head", "L1.resid_post", "final"])
    def test_after_its_edit_is_refused(self, site):
        condition = Condition(site, np.ones(D), 0.1)
        with pytest.raises(
            EditError, match=rf"condition reads {site}, which is .*computed .*L1\.resid_pre; choose an earlier"
        ):
            exact("llama").run(IDS, edit=Edit("L1.resid_pre", "scale", 0.0, when=condition))

    @pytest.mark.parametrize(
        "condition",
        [
            Condition("L0.resid_post", np.ones(8), 0.1),
            Condition("L0.resid_post[3]", np.ones(1), 0.1),
            Condition("L0.head", np.ones(4), 0.1),
            Condition("L0.head", np.ones(8), 0.1),
            Condition("L0.pattern", np.ones(4), 0.1),
        ],
        ids=str,
    )
    def test_of_the_wrong_width(self, condition, unchecked):
        with pytest.raises(EditError, match=r"needs a direction of|reads one vector at each position"):
            exact("llama").run(IDS, edit=Edit("L1.resid_pre", "scale", 0.0, when=condition))

    def test_on_a_dictionary_s_features_is_of_the_features_or_refused(self):
        """Never of the tensor under the dictionary."""
        lm, doubled = exact("llama"), Features(-torch.eye(D, dtype=torch.float64))
        state = self.states(IDS)[0]
        condition = Condition("L0.resid_post.feature@d", state, 0.9)
        edit = Edit("L1.resid_pre", "scale", 0.0, when=condition)
        try:
            logits = lm.run(IDS, edit=edit, dictionaries={"d": doubled}).logits
        except EditError:
            return
        features = doubled.encode(lm.run(IDS, "L0.resid_post")["L0.resid_post"]).mean(1)
        met = torch.nn.functional.cosine_similarity(features, state[None], dim=-1) > 0.9
        base = lm.run(IDS).logits
        for row in (0, 1):
            assert torch.equal(logits[row], base[row]) != bool(met[row])


class Features:
    """A small dictionary, made by hand: features are the positive part of some directions."""

    def __init__(self, w):
        self.w = w

    def encode(self, x):
        return torch.relu(x @ self.w.to(x))

    def decode(self, features):
        return features @ self.w.T.to(features) * 0.8


class TestDictionaries:
    """Edits of sparse features of a site, and of what the dictionary misses; the rest of the site is left as it is."""

    dictionary = Features(normal(0, D, 50) / D**0.5)
    site = "L0.resid_post"

    def run(self, op, value=None, view="feature", index="", where="all", **options):
        lm = exact("llama")
        edit = Edit(f"{self.site}.{view}@d{index}", op, value, where=where, **options)
        return lm.run(IDS, self.site, edit, dictionaries={"d": self.dictionary}, runs={"o": self.features(OTHER)})

    def features(self, ids):
        sites = [self.site, f"{self.site}.feature@d", f"{self.site}.error@d"]
        return exact("llama").run(ids, sites, dictionaries={"d": self.dictionary})

    @property
    def x(self):
        return exact("llama").run(IDS, self.site)[self.site]

    def decoded(self, features):
        return self.dictionary.decode(features)

    def test_nothing_changed_is_an_exact_no_op(self):
        x = self.x
        off_everywhere = int((self.dictionary.encode(x) == 0).all(1).all(0).int().argmax())
        silent = (self.dictionary.encode(x) == 0)[..., off_everywhere]
        run = self.run("scale", 0.0, index=f"[{off_everywhere}]")
        assert torch.equal(run[self.site][silent], x[silent])
        for op, value in (("scale", 1.0), ("add", 0.0), ("clamp", Bounds(0.0, None))):
            run = self.run(op, value)
            assert torch.equal(run[self.site], x)
            assert torch.equal(run.logits, exact("llama").run(IDS).logits)

    @pytest.mark.parametrize("index", ["", "[7]", "[3,40]", "[5,6,7]"])
    def test_features(self, index):
        chosen = [int(i) for i in index.strip("[]").split(",")] if index else slice(None)
        x = self.x
        features = self.dictionary.encode(x)
        for op, value, edited in (
            ("set", 2.0, lambda f: f * 0 + 2),
            ("scale", 0.0, lambda f: f * 0),
            ("add", 1.5, lambda f: f + 1.5),
        ):
            new = features.clone()
            new[:, :, chosen] = edited(new[:, :, chosen])
            expected = x + self.decoded(new) - self.decoded(features)
            lm = exact("llama")
            close(lm, self.run(op, value, index=index)[self.site], expected)
            half = x + 0.5 * (expected - x)
            close(lm, self.run(op, value, index=index, strength=0.5)[self.site], half)
            at = x.clone()
            at[:, 2] = expected[:, 2]
            close(lm, self.run(op, value, index=index, where="2")[self.site], at)

    def test_arrays_are_of_features(self):
        x, lm = self.x, exact("llama")
        features = self.dictionary.encode(x)
        value = normal(4, 50)
        close(
            lm, self.run("set", value)[self.site], x + self.decoded(value.expand_as(features)) - self.decoded(features)
        )
        close(lm, self.run("add", value)[self.site], x + self.decoded(value.expand_as(features)))
        new = features.clone()
        new[:, :, [3, 40]] = value[:2]
        close(lm, self.run("set", value[:2], index="[3,40]")[self.site], x + self.decoded(new) - self.decoded(features))

    def test_noise_is_of_features(self):
        x = self.x
        run = self.run("noise", Noise(1.0, 3))
        assert off(run[self.site], x) > 1e-3
        assert torch.equal(self.run("noise", Noise(1.0, 3))[self.site], run[self.site])

    def test_an_array_of_another_number_of_features(self, unchecked):
        with pytest.raises(EditError, match=r"\(50\).*got \(32\)"):
            self.run("set", np.ones(32))

    def test_from_another_run(self):
        x, other, lm = self.x, self.features(OTHER), exact("llama")
        features = self.dictionary.encode(x)
        new = features.clone()
        new[:, :, 7] = other[f"{self.site}.feature@d"][:, :, 7]
        close(lm, self.run("set", Ref("o"), index="[7]")[self.site], x + self.decoded(new) - self.decoded(features))
        whole = x + self.decoded(other[f"{self.site}.feature@d"]) - self.decoded(features)
        close(lm, self.run("set", Ref("o"))[self.site], whole)

    def test_error(self):
        x, lm = self.x, exact("llama")
        part = self.decoded(self.dictionary.encode(x))
        close(lm, self.run("scale", 0.0, view="error")[self.site], part)
        close(lm, self.run("scale", 0.5, view="error")[self.site], part + 0.5 * (x - part))
        missed = self.features(OTHER)[f"{self.site}.error@d"]
        close(lm, self.run("set", Ref("o"), view="error")[self.site], part + missed)

    def test_one_channel_of_the_error(self):
        x, lm = self.x, exact("llama")
        expected = x.clone()
        expected[:, :, 3] = self.decoded(self.dictionary.encode(x))[:, :, 3]
        close(lm, self.run("scale", 0.0, view="error", index="[3]")[self.site], expected)

    @pytest.mark.parametrize(
        ("view", "index", "unit", "last"), [("feature", 50, "feature", 49), ("error", 32, "channel", 31)]
    )
    def test_one_that_does_not_exist(self, view, index, unit, last):
        with pytest.raises(
            (SiteError, EditError), match=f"{unit} {index} is out of range; there are {unit}s 0 to {last}"
        ):
            self.run("set", 3.0, view=view, index=f"[{index}]")

    def test_a_dictionary_that_was_not_given(self):
        said = r'no dictionary named "e" was given \(dictionaries: d\)'
        for value in (0.0, np.ones(50), np.ones((2, 50)), np.ones((2, 7, 50))):
            edit = Edit("L0.resid_post.feature@e", "set", value)
            with pytest.raises(EditError, match=said):
                exact("llama").run(IDS, edit=edit, dictionaries={"d": self.dictionary})

    def test_infinities_stay_where_no_feature_changes(self):
        x = normal(0, 2, 7, D)
        x[0, 0, 0] = x[1, 3, 5] = math.inf
        edit = Edit(f"{self.site}.feature@d[7]", "set", 2.0, where="2")
        with np.errstate(all="ignore"):
            y = apply(edit, x, dictionaries={"d": self.dictionary})
        kept = [0, 1, 3, 4, 5, 6]
        assert torch.equal(y[:, kept], x[:, kept])
        assert torch.isfinite(y[:, 2]).all()


class TestSelections:
    """In text, an edit of a selection is an edit at each of its sites."""

    lm = property(lambda self: exact("llama"))

    @pytest.mark.parametrize(
        ("text", "spelled"),
        [
            ("L*.head[1] scale 0", ["L0.head[1] scale 0", "L1.head[1] scale 0"]),
            ("L0-1.mlp_out@-1 scale 0.5 x 0.5", ["L0.mlp_out@-1 scale 0.5 x 0.5", "L1.mlp_out@-1 scale 0.5 x 0.5"]),
            ("L1.k[*]@2: add 1 rows 1", ["L1.k[0]@2: add 1 rows 1", "L1.k[1]@2: add 1 rows 1"]),
            ("L0.head[0-2] set 0", ["L0.head[0,1,2] set 0"]),
            ("L*.resid_pre@2 set from o", ["L0.resid_pre@2 set from o", "L1.resid_pre@2 set from o"]),
        ],
    )
    def test_spelled_out(self, text, spelled):
        lm = self.lm
        runs = {"o": lm.run(OTHER, "L*.resid_pre")}
        expected = lm.run(IDS, edit=spelled, runs=runs).logits
        assert off(expected, lm.run(IDS).logits) > 1e-4
        assert torch.equal(lm.run(IDS, edit=text, runs=runs).logits, expected)
        assert torch.equal(lm.run(IDS, edit=[text], runs=runs).logits, expected)
        with lm.edited(text, runs=runs):
            assert torch.equal(lm.run(IDS).logits, expected)
        said = [lm.generate(IDS, edit, runs=runs, max_new_tokens=3).ids for edit in (text, spelled)]
        assert said[0] == said[1]

    def test_one_variant_of_many_edits(self):
        lm, readout = self.lm, logit_diff([3, 4], [5, 6])
        found = lm.counterfactuals(IDS, ["L*.head[1] scale 0", ["L0.q scale 0", "L*.k[*] add 1"]], readout)
        spelled = [
            ["L0.head[1] scale 0", "L1.head[1] scale 0"],
            ["L0.q scale 0", "L0.k[0] add 1", "L0.k[1] add 1", "L1.k[0] add 1", "L1.k[1] add 1"],
        ]
        expected = lm.counterfactuals(IDS, spelled, readout)
        close(lm, found.values, expected.values)
        assert found.plan.variants == 2

    def test_sites_that_a_layer_lacks_are_left_out(self):
        lm = exact("qwen2_moe")
        expected = lm.run(IDS, edit=["L0.neuron scale 0"]).logits
        assert torch.equal(lm.run(IDS, edit="L*.neuron scale 0").logits, expected)
        expected = lm.run(IDS, edit=[f"L1.expert[{e}] scale 0" for e in range(4)]).logits
        assert torch.equal(lm.run(IDS, edit="L*.expert[*] scale 0").logits, expected)

    @pytest.mark.parametrize(
        ("text", "error", "said"),
        [
            ("L0-9.head scale 0", SiteError, "layer 2 .*out of range"),
            ("L*.haed scale 0", SiteError, 'did you mean "head"'),
            ("L*.router scale 0", SiteError, "no such site in this model"),
            ("L*.head scle 0", EditError, 'did you mean "scale"'),
            ("L*.head", EditError, "is not an edit"),
            ("", EditError, "is not an edit"),
        ],
    )
    def test_what_cannot_be_read(self, text, error, said):
        for call in (lambda: self.lm.run(IDS, edit=text), lambda: self.lm.generate(IDS, text, max_new_tokens=1)):
            with pytest.raises(error, match=said):
                call()
