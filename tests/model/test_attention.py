"""Inside attention: scores and patterns of chosen layers, read and edited in every family; other layers stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from tests.model.tinies import (
    CORE,
    IDS,
    OTHER,
    RAGGED,
    SIDES,
    close,
    exact,
    fresh,
    lm_of,
    off,
    plain_logits,
    real,
    tolerance,
    untouched,
)
from tests.tiny import FAMILIES
from trimtab.errors import EditError
from trimtab.model import attention
from trimtab.model.attention import attend, masked
from trimtab.model.identities import identities
from trimtab.model.protocols import logit_diff
from trimtab.model.run import Run
from trimtab.values.edit import Affine, Bounds, Edit, Noise, Probe, Ref, Rotation
from trimtab.values.site import Site

ALIBI = ("bloom", "falcon-rw")
CAP = {"gemma2": 3.0}
SCALING = {"gemma2": 10**-0.5, "gemma3": 10**-0.5}
WINDOWS = {"mistral": (4, 4), "gemma2": (4, None), "gemma3": (4, None)}


def allowed(family, layer, n):
    """(query key) which keys each query may see."""
    keys = torch.ones(n, n, dtype=torch.bool).tril()
    window = WINDOWS.get(family, (None, None))[layer]
    return keys if window is None else keys.triu(1 - window)


def by_hand(prompts, site, values):
    """A run that holds one site (batch head query key) or (batch pos head d)."""
    site = Site.parse(site)
    kept = values.transpose(1, 2) if site.name in ("scores", "pattern") else values
    return Run(prompts, None, {site: kept})


def by_pattern(pattern, v):
    """(batch query head d): values (batch key head d) mixed by a pattern (batch head query key)."""
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_scores_are_made_of_queries_and_keys(self, family):
        """Scale, soft cap, ALiBi and mask included; so the sites of queries and keys are what their names say."""
        lm = exact(family)
        a = lm.anatomy
        names = ("rot_q", "rot_k") if a.family.rotary else ("q", "k")
        run = lm.run(IDS, [f"L*.{name}" for name in (*names, "scores")])
        for layer in (0, 1):
            q, k = (run[f"L{layer}.{name}"] for name in names)
            k = k.repeat_interleave(a.n_heads // a.n_kv, dim=2)
            expected = torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALING.get(family, a.d_head**-0.5)
            if family in CAP:
                expected = CAP[family] * torch.tanh(expected / CAP[family])
            scores, seen = run[f"L{layer}.scores"], allowed(family, layer, 7)
            assert bool((scores[:, :, ~seen] < -1e4).all()), "a key that is masked has a score"
            if family not in ALIBI:
                close(lm, scores[:, :, seen], expected[:, :, seen], layer)
                continue
            bias = torch.where(
                seen, scores - expected, 0.0
            )  # grows by one slope for each key, the same for all queries
            slopes = bias[0, :, -1, -1] - bias[0, :, -1, -2]
            line = slopes[:, None, None] * torch.arange(7.0, dtype=lm.dtype)
            flat = (bias - line - (bias - line)[:, :, :, :1])[:, :, seen]
            assert float(flat.abs().max()) < 1e-5
            assert slopes.min() > 0
            assert len(slopes.unique()) == a.n_heads

    @pytest.mark.parametrize("side", SIDES)
    def test_pattern_is_that_of_transformers(self, family, side):
        eager = lm_of(family, attention="eager")
        prompts = eager.prompts(RAGGED, padding=side)
        with torch.no_grad():
            theirs = eager.call(prompts, output_attentions=True).attentions
        # transformers' own two formulas for Falcon with ALiBi differ, so there the default one has no peer
        for lm in (eager,) if family == "falcon-rw" else (eager, lm_of(family)):
            run = lm.run(prompts, ["L*.pattern"])
            for layer in (0, 1):
                for row, mask in enumerate(prompts.mask.bool()):
                    ours = run[f"L{layer}.pattern"][row][:, mask]
                    assert off(ours, theirs[layer][row][:, mask]) < 1e-5
                    seen = allowed(family, layer, int(mask.sum()))
                    assert bool((ours[:, :, mask] > 0).eq(seen).all())
                    assert bool((ours[:, :, ~mask] == 0).all())
                    assert off(ours.sum(-1), torch.ones_like(ours.sum(-1))) < 1e-5
            logits = plain_logits(lm, prompts)
            assert off(run.logits[prompts.mask.bool()], logits[prompts.mask.bool()]) < 2e-5

    def test_heads_are_the_pattern_times_the_values(self, family):
        lm = exact(family)
        a = lm.anatomy
        run = lm.run(IDS, ["L*.pattern", "L*.v", "L*.head", "L*.scores"])
        for layer in (0, 1):
            v = run[f"L{layer}.v"].repeat_interleave(a.n_heads // a.n_kv, dim=2)
            close(lm, run[f"L{layer}.head"], by_pattern(run[f"L{layer}.pattern"], v))
            close(lm, run[f"L{layer}.pattern"], torch.softmax(run[f"L{layer}.scores"], -1))

    @pytest.mark.parametrize("side", SIDES)
    def test_reading_a_layer_leaves_the_others_bitwise(self, family, side):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED, padding=side)
        core = [name for name in lm.anatomy.present(1) if name in CORE]
        before = lm.run(prompts, ["L0.head", "L0.resid_post", "L1.attn_in"])
        with untouched(lm):
            run = lm.run(prompts, ["L0.head", "L0.resid_post", "L1.attn_in", *(f"L1.{name}" for name in core)])
        for site in before:
            assert torch.equal(run[site], before[site]), site
        real = prompts.mask.bool()
        assert off(run.logits[real], before.logits[real]) < 2e-5
        run = lm.run(prompts, ["L0.attn_in", "L0.q", "L0.pattern"])
        for site in ("L0.attn_in", "L0.q"):
            assert torch.equal(run[site], lm.run(prompts, site)[site])
        assert off(run.logits[real], before.logits[real]) < 2e-5

    def test_a_pattern_that_looks_at_one_key_gives_its_value(self, family):
        lm = exact(family)
        a = lm.anatomy
        prompts = lm.prompts(IDS)
        base = lm.run(prompts, ["L1.pattern", "L1.v", "L1.head"])
        pattern = base["L1.pattern"].clone()
        pattern[:, 2, 5] = 0
        pattern[:, 2, 5, 3] = 1
        edit = Edit("L1.pattern[2]", "set", Ref("mine"), where="5")
        run = lm.run(prompts, ["L1.head", "L1.pattern"], edit, runs={"mine": by_hand(prompts, "L1.pattern", pattern)})
        close(lm, run["L1.pattern"], pattern)
        expected = base["L1.head"].clone()
        expected[:, 5, 2] = base["L1.v"][:, 3, 2 // (a.n_heads // a.n_kv)]
        close(lm, run["L1.head"], expected)

    def test_scores_move_the_pattern(self, family):
        lm = exact(family)
        prompts = lm.prompts(IDS)
        base = lm.run(prompts, ["L0.pattern", "L0.scores"])
        shifted = lm.run(prompts, "L0.pattern", Edit("L0.scores", "add", 5.0))["L0.pattern"]
        near = 1e-5 if lm.name in ALIBI else 10 * tolerance(lm)
        assert off(shifted, base["L0.pattern"]) < near  # a softmax does not see what all keys have in common
        scores = base["L0.scores"].clone()
        scores[:, 1, :, 0] += 4
        edit = Edit("L0.scores[1]", "set", Ref("mine"))
        runs = {"mine": by_hand(prompts, "L0.scores", scores)}
        run = lm.run(prompts, ["L0.pattern", "L0.scores"], edit, runs=runs)
        close(lm, run["L0.pattern"], torch.softmax(scores, -1))
        assert off(run["L0.pattern"][:, 1], base["L0.pattern"][:, 1]) > 0.01
        assert torch.equal(run["L0.pattern"][:, [0, 2, 3]], base["L0.pattern"][:, [0, 2, 3]])

    def test_a_query_of_zero_looks_at_all_keys_alike(self, family):
        lm = exact(family)
        if family in ALIBI:
            return  # there the distance speaks too
        name = "rot_q" if lm.anatomy.family.rotary else "q"
        for where, rows in (("all", slice(None)), ("4", slice(4, 5))):
            run = lm.run(IDS, "L1.pattern", f"L1.{name}[3]@{where} scale 0")["L1.pattern"][:, 3, rows]
            seen = allowed(family, 1, 7)[rows].to(run)
            assert off(run, (seen / seen.sum(-1, keepdim=True)).expand_as(run)) < 1e-6

    def test_what_is_masked_stays_masked(self, family):
        """Scores of a head set or scaled: all keys alike, and still none of the future and no padding."""
        for lm in (exact(family, padded=True), lm_of(family, torch.float16), lm_of(family, torch.bfloat16)):
            self.check_masked(family, lm)

    def check_masked(self, family, lm):
        prompts = lm.prompts(RAGGED)
        near = 1e-6 if lm.dtype.itemsize > 2 else 1e-2
        for edit in ("L1.scores[3] scale 0", "L1.scores[3] set 0.5", "L1.scores[3] scale -1"):
            run = lm.run(prompts, ["L1.pattern", "L1.scores"], edit)
            for row, mask in enumerate(prompts.mask.bool()):
                pattern = run["L1.pattern"][row, 3, mask]
                seen = allowed(family, 1, int(mask.sum()))
                assert not pattern[:, ~mask].any(), f"{edit}: a query looks at padding"
                assert not pattern[:, mask][~seen].any(), f"{edit}: a query looks at what comes after it"
                if "-1" not in edit:
                    assert off(pattern[:, mask], (seen / seen.sum(-1, keepdim=True)).to(pattern)) < near

    @pytest.mark.parametrize("name", ["scores", "pattern"])
    def test_patches_between_runs_padded_otherwise(self, family, name):
        """Left, right or not at all, here and there: each row is what it is alone, unpadded."""
        lm = exact(family, padded=True)
        mine, theirs = [7, 12, 9, 10, 13], [7, 21, 9, 10, 14]
        for where in ("all", "-2:"):
            edit = Edit(f"L0.{name}", "set", Ref("o"), where=where)
            alone = lm.run([mine], edit=edit, runs={"o": lm.run([theirs], edit.site)}).logits[0]
            assert off(alone, lm.run([mine]).logits[0]) > 1e-3
            there = {side: lm.prompts([theirs, IDS[0]], padding=side).rows([0, 0]) for side in SIDES}
            here = {side: lm.prompts([mine, IDS[1]], padding=side).rows([0, 0]) for side in SIDES}
            there["no"], here["no"] = lm.prompts([theirs, theirs]), lm.prompts([mine, mine])
            for source, origin in there.items():
                runs = {"o": lm.run(origin, edit.site)}
                for target, prompts in here.items():
                    logits = lm.run(prompts, edit=edit, runs=runs).logits
                    for row, mask in zip(logits, prompts.mask.bool(), strict=True):
                        close(lm, row[mask], alone, (where, source, target))

    def test_pattern_of_what_is_masked_stays_nothing(self, family):
        """Whatever is made of a pattern, no query looks at padding or at what comes after it; and so it is read."""
        lm = exact(family, padded=True)
        own = np.linspace(0.1, 1, 2 * 4 * 7 * 7).reshape(2, 4, 7, 7)
        for side in SIDES:
            prompts = lm.prompts(RAGGED, padding=side)
            base = lm.run(prompts, "L0.pattern")
            for op, value, expected in (
                ("add", 0.3, base["L0.pattern"] + 0.3),
                ("set", 0.2, torch.full_like(base["L0.pattern"], 0.2)),
                ("clamp", Bounds(0.5), base["L0.pattern"].clamp(min=0.5)),
                ("set", own, torch.tensor(own).to(base.logits)),
            ):
                run = lm.run(prompts, ["L0.pattern", "L0.v", "L0.head"], Edit("L0.pattern", op, value))
                v = run["L0.v"].repeat_interleave(lm.anatomy.n_heads // lm.anatomy.n_kv, dim=2)
                close(lm, real(prompts, run["L0.head"]), real(prompts, by_pattern(run["L0.pattern"], v)))
                for row, mask in enumerate(prompts.mask.bool()):
                    seen = allowed(family, 0, int(mask.sum()))
                    pattern = run["L0.pattern"][row][:, mask]
                    assert not pattern[:, :, ~mask].any(), f"{op}: a query looks at padding"
                    assert not pattern[:, :, mask][:, ~seen].any(), f"{op}: a query looks at what comes after it"
                    close(lm, pattern[:, :, mask][:, seen], expected[row][:, mask][:, :, mask][:, seen], op)

    def test_pattern_off_is_head_off(self, family):
        lm = exact(family)
        base = lm.run(IDS, "L1.head")["L1.head"]
        run = lm.run(IDS, "L1.head", "L1.pattern[1]@-1 scale 0")["L1.head"]
        assert not run[:, -1, 1].any()
        kept = torch.ones(7, 4, dtype=torch.bool)
        kept[-1, 1] = False
        close(lm, run[:, kept], base[:, kept])


class TestNested:
    def test_a_read_inside_a_block_sees_its_edit_and_leaves_it_on(self):
        for family in ("llama", "gptj", "bloom", "falcon"):
            lm = exact(family)
            expected = lm.run(IDS, edit="L0.pattern[1] scale 0").logits
            with untouched(lm), lm.edited("L0.pattern[1] scale 0"):
                run = lm.run(IDS, ["L0.pattern", "L1.pattern"])
                assert not run["L0.pattern[1]"].any()
                inner = lm.run(IDS, "L0.pattern", "L0.pattern[2] scale 0")
                assert not inner["L0.pattern[1,2]"].any()
                close(lm, lm.run(IDS).logits, expected)
                assert off(inner.logits, expected) > 1e-4

    def test_an_error_in_the_inner_one_leaves_the_outer_one(self):
        lm = exact("llama")
        expected = lm.run(IDS, edit="L0.pattern[1] scale 0").logits
        with untouched(lm), lm.edited("L0.pattern[1] scale 0"):
            with pytest.raises(EditError):
                lm.run(IDS, "L0.pattern", Edit("L0.pattern", "set", Ref("nowhere")))
            close(lm, lm.run(IDS).logits, expected)


class TestValues:
    """An array of values for attention is one number for each head, or it is refused: never laid along the keys."""

    @pytest.mark.parametrize("shape", [(4,), (1, 1, 4), (2, 4, 4)])
    @pytest.mark.parametrize("name", ["pattern", "scores"])
    def test_one_for_each_head(self, name, shape, unchecked):
        lm = exact("llama")
        prompts = lm.prompts([ids[:4] for ids in IDS])  # as many keys as heads
        factor = np.ones(shape)
        factor[..., 0] = 0
        base = lm.run(prompts, f"L1.{name}")[f"L1.{name}"]
        try:
            run = lm.run(prompts, f"L1.{name}", Edit(f"L1.{name}", "scale", factor))[f"L1.{name}"]
        except EditError as error:
            assert "shape" in str(error)  # noqa: PT017
            return
        assert not run[:, 0][:, torch.ones(4, 4, dtype=torch.bool).tril()].any()
        close(lm, run[:, 1:], base[:, 1:])

    @pytest.mark.parametrize("name", ["pattern", "scores"])
    def test_a_tensor_as_it_is_read(self, name):
        lm = exact("llama")
        values = lm.run(OTHER, f"L1.{name}")[f"L1.{name}"]
        expected = lm.run(
            IDS, ["L1.head"], Edit(f"L1.{name}", "set", Ref("o")), runs={"o": lm.run(OTHER, f"L1.{name}")}
        )
        for value in (values, values.numpy()):
            run = lm.run(IDS, ["L1.head", f"L1.{name}"], Edit(f"L1.{name}", "set", value))
            assert torch.equal(run[f"L1.{name}"], values)
            assert torch.equal(run["L1.head"], expected["L1.head"])
        base = lm.run(IDS, f"L1.{name}")[f"L1.{name}"]
        one = values[:1, [3, 1]]
        run = lm.run(IDS, f"L1.{name}", Edit(f"L1.{name}[3,1]@2", "set", one))[f"L1.{name}"]
        assert torch.equal(run[:, [3, 1], 2], one[:, :, 2].expand(2, 2, 7))
        untouched_ = torch.ones(4, 7, dtype=torch.bool)
        untouched_[[3, 1], 2] = False
        close(lm, run[:, untouched_], base[:, untouched_])

    @pytest.mark.parametrize("shape", [(2, 4, 7, 6), (2, 4, 6, 7), (2, 3, 7, 7), (3, 4, 7, 7), (2, 4, 1, 7)])
    def test_a_tensor_of_another_shape_is_refused(self, shape, unchecked):
        with pytest.raises(EditError, match=r"fits L1\.pattern, \(2 4 7 7\) \(batch head query key\); got"):
            exact("llama").run(IDS, edit=Edit("L1.pattern", "set", np.ones(shape)))

    @pytest.mark.parametrize("name", ["pattern", "scores"])
    def test_noise_is_of_each_head_query_and_key(self, name):
        """And of no padding: a row has the noise that it has alone."""
        lm = exact("llama")
        edit = Edit(f"L1.{name}", "noise", Noise(0.5, 3))
        for side in SIDES:
            prompts = lm.prompts(RAGGED, padding=side)
            base, run = (lm.run(prompts, edit.site, given)[edit.site] for given in (None, edit))
            noises = []
            for row, mask in enumerate(prompts.mask.bool()):
                n = int(mask.sum())
                seen = torch.ones(n, n, dtype=torch.bool).tril()
                noises.append((run - base)[row][:, mask][:, :, mask][:, seen])
                assert abs(float(noises[-1].std()) - 0.5) < 0.12
                assert len(noises[-1].unique()) == noises[-1].numel()
            alone = lm.run(RAGGED[:1], edit.site, edit)[edit.site] - lm.run(RAGGED[:1], edit.site)[edit.site]
            close(lm, noises[0], alone[0][:, torch.ones(7, 7, dtype=torch.bool).tril()])

    @pytest.mark.parametrize("name", ["pattern", "scores"])
    @pytest.mark.parametrize(
        ("op", "value"),
        [
            ("affine", Affine(c=np.ones(4))),
            ("rotate", Rotation(np.eye(4)[0], np.eye(4)[1], 1.0)),
            ("gradient", Probe(np.ones((2, 4)), np.zeros(2), 0, 1.0)),
        ],
    )
    def test_what_needs_a_vector_is_refused(self, name, op, value):
        prompts = [ids[:4] for ids in IDS]  # as many keys as heads: laid along the keys it would not be noticed
        with pytest.raises(EditError, match=f"{op} turns vectors, and L1.{name} holds a number for each key"):
            exact("llama").run(prompts, edit=Edit(f"L1.{name}", op, value))

    def test_a_dictionary_is_refused(self):
        with pytest.raises(EditError, match=r"L1\.pattern has as many entries as there are keys"):
            exact("llama").run(IDS, edit="L1.pattern.feature@d scale 0", dictionaries={"d": None})

    def test_a_run_s_values_of_other_heads_are_refused(self):
        lm = exact("llama")
        run = lm.run(OTHER, ["L0.pattern", "L0.resid_post"])
        for ref, said in (
            (Ref("o", "L0.pattern[1]"), r"L0\.pattern\[1\] has 1 head, L1\.pattern has 4"),
            (Ref("o", "L0.resid_post"), r"L0\.resid_post has no keys"),
        ):
            with pytest.raises(EditError, match=said):
                lm.run(IDS, edit=Edit("L1.pattern", "set", ref), runs={"o": run})

    def test_another_number_is_refused(self):
        with pytest.raises(EditError, match="must have a shape that fits"):
            exact("llama").run(IDS, edit=Edit("L1.pattern", "scale", np.ones(7)))


class TestAttend:
    @given(seed=st.integers(0, 99), group=st.sampled_from([1, 2, 4]), n=st.integers(1, 5), past=st.integers(0, 3))
    def test_is_scaled_dot_product_attention(self, seed, group, n, past):
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(2, 4, n, 3, generator=generator, dtype=torch.float64)
        k, v = torch.randn(2, 2, 4 // group, n + past, 3, generator=generator, dtype=torch.float64)
        mask = torch.rand(2, 1, n, n + past, generator=generator) < 0.6
        mask[..., 0] = True
        for given_mask in (mask, torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -1e30)):
            out, pattern = attend(q, k, v, given_mask, 0.7, lambda _, x, seen=None: x)
            full = [x.repeat_interleave(group, dim=1) for x in (k, v)]
            expected = torch.nn.functional.scaled_dot_product_attention(q, *full, attn_mask=mask, scale=0.7)
            assert off(out, expected) < 1e-12
            assert off(pattern.sum(-1), torch.ones(2, 4, n, dtype=q.dtype)) < 1e-12

    def test_shows_every_intermediate_in_order(self):
        shown = []

        def act(name, x, seen=None):
            shown.append((name, None if seen is None else seen().shape))
            return x

        q = torch.randn(1, 2, 3, 4)
        attend(q, q, q, None, 1.0, act)
        square = torch.Size((1, 2, 3, 3))
        assert shown == [("rot_q", None), ("rot_k", None), ("scores", square), ("pattern", square)]


class TestMasked:
    lowest = torch.finfo(torch.float32).min

    def seen(self, scores):
        return scores[0, 0] > self.lowest / 2

    def test_none_is_causal_and_ends_at_the_last_key(self):
        assert torch.equal(self.seen(masked(torch.zeros(1, 1, 3, 3), None)), torch.ones(3, 3).tril().bool())
        expected = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
        assert torch.equal(self.seen(masked(torch.zeros(1, 1, 2, 5), None)), expected)
        assert bool(self.seen(masked(torch.zeros(1, 1, 1, 5), None)).all())

    def test_boolean_and_additive(self):
        mask = torch.tensor([[True, False, True], [False, True, True]])[None, None]
        scores = torch.randn(1, 1, 2, 3)
        assert torch.equal(self.seen(masked(scores, mask)), mask[0, 0])
        assert torch.equal(masked(scores, mask)[mask], scores[mask])
        added = torch.randn(1, 1, 2, 3)
        assert torch.equal(masked(scores, added), scores + added)

    def test_a_mask_longer_than_the_keys_is_cut(self):
        mask = torch.tensor([True, False, True, True, True]).expand(1, 1, 2, 5)
        assert torch.equal(self.seen(masked(torch.zeros(1, 1, 2, 3), mask)), mask[0, 0, :, :3])

    def test_a_padding_mask_hides_pads_and_the_future(self):
        scores = torch.zeros(2, 1, 3, 3)
        pads = torch.tensor([[0, 1, 1], [1, 1, 0]])
        found = masked(scores, pads) > self.lowest / 2
        assert found[0, 0].int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
        assert found[1, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
        late = masked(torch.zeros(2, 1, 1, 3), pads) > self.lowest / 2  # one new query, every key before it
        assert late[:, 0, 0].int().tolist() == pads.tolist()


def _padded(module, query, key, value, attention_mask, scaling=None, softcap=None, sliding_window=None, **_):
    """Attention that takes a padding mask (batch key) or none, as flash attention does, and the window as a number."""
    assert attention_mask is None or attention_mask.ndim == 2
    n, m = query.shape[2], key.shape[2]
    seen = torch.ones(n, m, dtype=torch.bool).tril(m - n)
    if sliding_window is not None:
        seen = seen.triu(m - n - sliding_window + 1)
    seen = seen[None, None]
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, -m:].bool()
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


class TestPaddingMasks:
    """Implementations such as flash attention get a mask (batch key), or none, and the window as an argument."""

    @pytest.fixture(autouse=True)
    def padded(self):
        AttentionInterface.register("padded", _padded)
        AttentionMaskInterface.register("padded", flash_attention_mask)
        yield
        AttentionInterface._global_mapping.pop("padded", None)
        AttentionMaskInterface._global_mapping.pop("padded", None)

    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
    def test_patterns(self, family):
        lm, eager = fresh(family, attention="padded", check=False), lm_of(family, attention="eager")
        for ids in (RAGGED, IDS):
            prompts = lm.prompts(ids)
            real = prompts.mask.bool()
            assert off(plain_logits(lm, prompts)[real], plain_logits(eager, prompts)[real]) < 1e-5
            ours, theirs = lm.run(prompts, "L*.pattern"), eager.run(prompts, "L*.pattern")
            for site in ours:
                x, y = (run[site].transpose(1, 2)[real] for run in (ours, theirs))
                assert off(x, y) < 1e-5, site
            assert off(ours.logits[real], theirs.logits[real]) < 1e-5

    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
    def test_the_anatomy_holds(self, family):
        lm = fresh(family, attention="padded", check=False)
        assert [i for i in identities(lm) if not i.holds] == []

    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
    @pytest.mark.parametrize("ids", [RAGGED, IDS])
    def test_counterfactuals(self, family, ids):
        """Such masks cannot be cut to a suffix as the others are: the engine does it right, or says that it did not."""
        lm = fresh(family, attention="padded", check=False)
        variants = ["L0.head[1]@3 scale 0", "L1.resid_pre@-1 scale 0", "L0.resid_pre@2 scale 2"]
        readout = logit_diff([3, 4], [5, 6])
        fast, naive = (lm.counterfactuals(ids, variants, readout, exact=how) for how in ("fast", "naive"))
        assert off(fast.values, naive.values) < 1e-5


def test_nothing_is_registered_for_long():
    """Our function may stay known to transformers, but no module goes on using it, and none is kept alive by it."""
    lm = lm_of("llama")
    lm.run(IDS, ["L*.pattern"])
    assert attention._ACTS == {}
    assert all(block.attn.config is lm.hf.config for block in lm.anatomy.blocks)
    assert lm.hf.config._attn_implementation == "sdpa"
