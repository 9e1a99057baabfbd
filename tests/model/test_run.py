"""One forward pass: nothing changes where nothing is asked, every site reads and takes what its name says, batches and
padding change nothing, and what was read is found by its address."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model.tinies import (
    CORE,
    IDS,
    MOE,
    OTHER,
    RAGGED,
    SIDES,
    close,
    every_site,
    exact,
    lm_of,
    off,
    plain_logits,
    real,
    site_names,
    tolerance,
    untouched,
)
from tests.tiny import FAMILIES
from trimtab.errors import EditError, SiteError
from trimtab.model.run import Run
from trimtab.values.edit import Condition, Edit, Intervention, Noise, Ref
from trimtab.values.site import Site

SEQUENTIAL = [family for family in FAMILIES if family not in ("gpt_neox", "falcon", "falcon-40b", "gptj")]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
class TestNoEdit:
    def test_logits_are_bitwise_those_of_transformers(self, family, side):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED, padding=side)
        expected = plain_logits(lm, prompts)
        assert torch.equal(lm.run(prompts).logits, expected)
        assert not lm.run(prompts).edited
        with untouched(lm):
            assert torch.equal(lm.run(prompts, every_site(lm, core=False)).logits, expected)

    def test_no_effect_is_bitwise_none(self, family, side):
        """An empty intervention, edits of strength zero, of no row, or of rows with strength zero, at every site."""
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED, padding=side)
        expected = plain_logits(lm, prompts)
        zero = [Edit(site, "set", 7.0, strength=0.0) for site in every_site(lm)]
        rowless = [edit.with_(strength=1.0, rows=()) for edit in zero]
        for edits in ([], Intervention(), zero, rowless, [edit.with_(strength=(0.0, 0.0)) for edit in zero]):
            assert torch.equal(lm.run(prompts, edit=edits).logits, expected)

    def test_no_effect_in_a_block_is_bitwise_none(self, family, side):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED, padding=side)
        expected = plain_logits(lm, prompts)
        zero = [Edit(site, "set", 7.0, strength=0.0) for site in every_site(lm, core=False)]
        inside_attention = [Edit(site, "set", 7.0, strength=0.0) for site in every_site(lm) if site.name in CORE]
        for edits in ([], zero, [edit.with_(strength=1.0, rows=()) for edit in zero], inside_attention):
            with lm.edited(edits):
                assert torch.equal(lm.run(prompts).logits, expected)
                assert torch.equal(plain_logits(lm, prompts), expected)

    def test_rows_without_the_edit_are_bitwise_as_without(self, family, side):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED, padding=side)
        expected = plain_logits(lm, prompts)
        if family in MOE:
            return  # the grouped product of experts sums in an order that depends on all rows
        for site in every_site(lm, core=False):
            for edit in (Edit(site, "scale", 3.0, rows=(1,)), Edit(site, "scale", 3.0, strength=(0.0, 0.5))):
                logits = lm.run(prompts, edit=edit).logits
                assert torch.equal(logits[0], expected[0]), edit
                assert not torch.equal(logits[1], expected[1]), edit


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neox", "falcon", "opt", "phi3"])
def test_bitwise_under_either_attention(family, attention):
    lm = lm_of(family, attention=attention)
    assert lm.attention == attention
    prompts = lm.prompts(RAGGED)
    assert torch.equal(lm.run(prompts, every_site(lm, core=False)).logits, plain_logits(lm, prompts))


@pytest.mark.parametrize("family", FAMILIES)
class TestEverySite:
    def values(self, lm, site, rng):
        """Values of one position, small enough that no model clips them."""
        return torch.tensor(rng.uniform(-1, 1, lm.shape(site)))

    def test_takes_what_is_set_where_it_is_set(self, family):
        """At position 2 the site holds what was set, elsewhere what it was, and the model goes on with it."""
        lm = exact(family)
        prompts = lm.prompts(IDS)
        base = lm.run(prompts, every_site(lm))
        rng = np.random.default_rng(0)
        for site in every_site(lm):
            if site.name in ("scores", "pattern"):  # (head key) at each position: see test_attention
                continue
            value = self.values(lm, site, rng)
            run = lm.run(prompts, [site], Edit(site, "set", value, where="2"))
            near = 1e-6 if site.name == "router" else tolerance(lm)  # transformers takes it in float32
            assert off(run[site][:, 2], value.expand_as(run[site][:, 2]).to(run[site])) <= near, site
            kept = [0, 1, 3, 4, 5, 6]
            close(lm, run[site][:, kept], base[site][:, kept], site)
            late = run.logits[:, 2:] - base.logits[:, 2:]
            routed = site.expert is None or bool(base[f"L{site.layer}.router"][:, 2, site.expert].any())
            if routed or site.name == "expert":
                assert late.abs().max() > 1e-3, f"{site}: nothing came of the edit"
            close(lm, run.logits[:, :2], base.logits[:, :2], site)

    def test_one_unit_of_it(self, family):
        lm = exact(family)
        prompts = lm.prompts(IDS)
        base = lm.run(prompts, every_site(lm))
        for site in every_site(lm):
            units = lm.anatomy.units(site)
            if site.name in ("expert", "scores", "pattern") or units == 1:
                continue
            for index in (((1,) if site.layer else (units - 1, 0)),):  # in a row, and not
                part = site.with_(index=index)
                run = lm.run(prompts, [site, part], Edit(part, "set", 0.5, where="-1"))
                expected = base[site].clone()
                expected[:, -1, list(index)] = 0.5
                close(lm, run[site], expected, part)
                assert torch.equal(run[part], run[site][:, :, list(index)]), part

    def test_patching_a_run_into_itself_changes_nothing(self, family):
        lm = exact(family)
        prompts = lm.prompts(RAGGED) if lm.dtype == torch.float32 else lm.prompts(IDS)
        base = plain_logits(lm, prompts)
        own = lm.run(prompts, every_site(lm, core=False))
        core = lm.run(prompts, [site for site in every_site(lm) if site.name in CORE])
        for site in every_site(lm):
            source = core if site.name in CORE else own
            for where in ("all", "-2"):
                run = lm.run(prompts, edit=Edit(site, "set", Ref("own"), where=where), runs={"own": source})
                if site.name in CORE or family in MOE:
                    close(lm, real(prompts, run.logits), real(prompts, base), site)
                else:
                    assert torch.equal(run.logits, base), site

    def test_patching_every_position_of_the_stream_gives_the_other_run(self, family):
        lm = exact(family)
        other = lm.run(OTHER, ["embed", *(f"L*.{n}" for n in lm.anatomy.present(0) if n.startswith("resid")), "final"])
        assert off(lm.run(IDS).logits, other.logits) > 1e-2
        for site in other:
            run = lm.run(IDS, edit=Edit(site, "set", Ref("other")), runs={"other": other})
            close(lm, run.logits, other.logits, site)

    def test_a_patch_leaves_the_positions_before_it(self, family):
        lm = exact(family)
        prompts = lm.prompts(IDS)
        base = lm.run(prompts).logits
        other = lm.run(OTHER, [f"L*.{name}" for name in site_names(lm)])
        for site in other:
            logits = lm.run(prompts, edit=Edit(site, "set", Ref("other"), where="3"), runs={"other": other}).logits
            close(lm, logits[:, :3], base[:, :3], site)
            if site.name not in CORE and family not in MOE:
                assert torch.equal(logits[:, :3], base[:, :3]), site
            assert not torch.equal(logits[:, 3:], base[:, 3:]), site

    def test_all_heads_are_the_output_of_attention(self, family):
        lm = exact(family)
        other = lm.run(OTHER, ["L*.head", "L*.attn_raw"])
        for layer in (0, 1):
            patched = [
                lm.run(IDS, edit=Edit(f"L{layer}.{name}", "set", Ref("other")), runs={"other": other}).logits
                for name in ("head", "attn_raw")
            ]
            one_by_one = [Edit(f"L{layer}.head[{h}]", "set", Ref("other")) for h in range(lm.anatomy.n_heads)]
            patched.append(lm.run(IDS, edit=one_by_one, runs={"other": other}).logits)
            close(lm, patched[0], patched[1])
            close(lm, patched[2], patched[1])
            assert off(patched[0], lm.run(IDS).logits) > 1e-3

    def test_a_key_value_head_moves_only_its_group(self, family):
        lm = exact(family)
        a = lm.anatomy
        base = lm.run(IDS, "L1.head")["L1.head"]
        group = a.n_heads // a.n_kv
        sites = ["k", "v"] + (["rot_k"] if a.family.rotary else [])
        for name in sites:
            for kv in range(a.n_kv):
                run = lm.run(IDS, "L1.head", Edit(f"L1.{name}[{kv}]", "add", 0.7, where="1"))
                for head in range(a.n_heads):
                    change = off(run[f"L1.head[{head}]"], base[:, :, [head]])
                    assert (change > 1e-4) == (head // group == kv), f"L1.{name}[{kv}] and head {head}: {change}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
class TestHalfPrecision:
    def test_every_site_takes_what_is_set(self, family, dtype):
        lm = lm_of(family, dtype)
        for site in every_site(lm):
            if site.name in ("scores", "pattern"):
                continue
            run = lm.run(IDS, site, Edit(site, "set", 0.5, where="-1"))
            assert bool((run[site][:, -1] == 0.5).all()), site
            assert torch.isfinite(run.logits).all()
        prompts = lm.prompts(RAGGED)
        for name in ("scores", "pattern"):
            run = lm.run(prompts, f"L1.{name}", f"L1.{name}[1]@2 scale 0.5")
            assert torch.isfinite(real(prompts, run.logits)).all()
            assert not torch.equal(real(prompts, run.logits), real(prompts, plain_logits(lm, prompts)))

    def test_nothing_read_or_changed_is_bitwise_the_model(self, family, dtype):
        lm = lm_of(family, dtype)
        prompts = lm.prompts(RAGGED)
        run = lm.run(prompts, every_site(lm, core=False))
        assert torch.equal(run.logits, plain_logits(lm, prompts))
        assert all(run[site].dtype in (dtype, torch.float32) for site in run)


@pytest.mark.parametrize("family", FAMILIES)
class TestBatches:
    def mixture(self, lm):
        """Edits of which every row has its own: strengths, rows, positions, and a condition that one row meets."""
        first = lm.run(RAGGED[:1], "L0.resid_post@-1")["L0.resid_post@-1"][0]
        condition = Condition("L0.resid_post@-1", first, 0.9, "last")
        return [
            Edit("L0.mlp_out", "scale", 2.0, strength=(0.5, -1.0, 0.0)),
            Edit("L1.head[2]", "set", 0.3, where="-1", rows=(1, 2)),
            Edit("L1.resid_pre", "add", np.linspace(-1, 1, 32), where="1:3", rows=(2,)),
            Edit("L1.attn_out", "scale", -1.0, when=condition),
        ]

    @pytest.mark.parametrize("side", SIDES)
    def test_a_mixed_batch_is_its_requests_one_by_one(self, family, side):
        lm = exact(family, padded=True)
        rows = [*RAGGED, [20, 21, 22]]
        edits = self.mixture(lm)
        batch = lm.prompts(rows, padding=side)
        together = lm.run(batch, "L1.resid_post", edits)
        plain = lm.run(batch)
        for row, ids in enumerate(rows):
            single = []
            for edit in edits:
                strength = edit.strength[row] if isinstance(edit.strength, tuple) else edit.strength
                if edit.rows is None or row in edit.rows:
                    single.append(edit.with_(strength=strength, rows=None))
            alone = lm.run([ids], "L1.resid_post", single)
            mask = batch.mask[row].bool()
            close(lm, together.logits[row, mask], alone.logits[0])
            close(lm, together["L1.resid_post"][row, mask], alone["L1.resid_post"][0])
            assert off(together.logits[row, mask], plain.logits[row, mask]) > 1e-3

    def test_padding_changes_nothing(self, family):
        """Left, right and no padding: the same logits and activations of every real token."""
        lm = exact(family, padded=True)
        names = [name for name in site_names(lm) if name not in ("scores", "pattern")]
        edits = [
            None,
            ["L0.attn_out@-2 scale -1", "L1.k@1:3 scale 2", Edit("L0.resid_post", "add", np.linspace(0, 1, 32))],
        ]
        for edit in edits:
            runs = {side: lm.run(lm.prompts(RAGGED, padding=side), [f"L1.{n}" for n in names], edit) for side in SIDES}
            for row, ids in enumerate(RAGGED):
                alone = lm.run([ids], [f"L1.{n}" for n in names], edit)
                for run in runs.values():
                    mask = run.prompts.mask[row].bool()
                    close(lm, run.logits[row, mask], alone.logits[0])
                    for site in alone:
                        close(lm, run[site][row, mask], alone[site][0], site)

    @pytest.mark.parametrize("side", SIDES)
    def test_noise_is_drawn_for_positions_and_not_for_columns(self, family, side):
        """The same noise whatever the padding, and whatever rows come after."""
        lm = exact(family, padded=True)
        edit = Edit("embed", "noise", Noise(1.0, 3), where="1:3")
        short = lm.prompts(RAGGED[1:])
        alone = lm.run(short, edit=edit).logits[0]
        first = lm.prompts([RAGGED[1], RAGGED[0]], padding=side)
        close(lm, lm.run(first, edit=edit).logits[0, first.mask[0].bool()], alone)
        assert off(alone, lm.run(short).logits[0]) > 1e-3


class TestStopping:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_ends_after_the_last_tensor_that_is_read(self, family):
        lm = lm_of(family)
        reached = []
        handles = [
            block.module.register_forward_hook(lambda *_, layer=layer: reached.append(layer))
            for layer, block in enumerate(lm.anatomy.blocks)
        ]
        handles.append(lm.anatomy.unembed.register_forward_hook(lambda *_: reached.append("unembedding")))
        try:
            full = lm.run(IDS, every_site(lm, core=False))
            assert reached == [0, 1, "unembedding"]
            for site in every_site(lm):
                reached.clear()
                run = lm.run(IDS, site, logits=False)
                assert (run.logits is None) == (site.name != "logits")
                if site.name not in ("logits", *CORE):
                    assert torch.equal(run[site], full[site]), site
                allowed = (
                    [] if site.name == "embed" else [0, 1, "unembedding"][: 3 if site.layer is None else site.layer + 1]
                )
                assert len(reached) <= len(allowed), f"{site}: the pass went on to {reached}"
                if site.layer == 1:
                    assert 0 in reached
        finally:
            for handle in handles:
                handle.remove()

    def test_everything_that_is_asked_for_is_read(self):
        lm = lm_of("qwen2_moe")
        sites = every_site(lm, experts=(0, 1, 2, 3))
        run = lm.run(IDS, sites, logits=False)
        assert set(run) == set(sites) - {Site("logits")}

    def test_nothing_to_read_runs_nothing(self):
        lm = lm_of("llama")
        reached = []
        handle = lm.hf.register_forward_pre_hook(lambda *_: reached.append(1))
        try:
            assert len(lm.run(IDS, logits=False)) == 0
        finally:
            handle.remove()
        assert reached == []


class TestAddresses:
    lm = property(lambda self: lm_of("llama"))

    def run_of(self, read, ids=RAGGED, **options):
        prompts = self.lm.prompts(ids, **options)
        return prompts, self.lm.run(prompts, read)

    def test_units_and_positions_of_what_was_read_whole(self):
        prompts, run = self.run_of(["L0.resid_post", "L1.head"])
        whole = run["L1.head"]
        assert torch.equal(run["L1.head[2]"], whole[:, :, [2]])
        assert torch.equal(run["L1.head[3,0]"], whole[:, :, [3, 0]])
        assert torch.equal(run["L1.head@-1"], whole[:, -1])
        assert torch.equal(run["L1.head[2]@0"], torch.stack([whole[0, 0, [2]], whole[1, 2, [2]]]))
        assert torch.equal(run["L0.resid_post@1:3"][1], run["L0.resid_post"][1, 3:5])
        assert run["L0.resid_post@1:3"].shape == (2, 2, 32)
        assert torch.equal(run["L0.resid_post[5]@-1"], run["L0.resid_post"][:, -1, [5]])
        assert prompts.side == "left"

    def test_positions_and_units_read_alone(self):
        for site in (
            "L1.head[2]@-1",
            "L1.head@0",
            "L0.resid_post@1:3",
            "L0.neuron[7,3]",
            "embed@-2",
            "final@-1",
            "L1.q[1]",
        ):
            _, alone = self.run_of(site)
            _, whole = self.run_of(str(Site.parse(site).whole))
            assert torch.equal(alone[site], whole[site]), site
            assert list(alone) == [Site.parse(site)]
        _, run = self.run_of("L0.resid_post@1:3")
        assert torch.equal(run["L0.resid_post[4]@1:3"], run["L0.resid_post@1:3"][:, :, [4]])

    def test_attention_by_position(self):
        """(batch head query key), and (batch head key) where one query is named."""
        for name in ("pattern", "scores"):
            _, run = self.run_of([f"L0.{name}", f"L1.{name}@-1"])
            _, full = self.run_of([f"L0.{name}", f"L1.{name}"])
            assert torch.equal(run[f"L0.{name}@-1"], run[f"L0.{name}"][:, :, -1])
            assert torch.equal(run[f"L0.{name}[2]"], run[f"L0.{name}"][:, [2]])
            assert torch.equal(run[f"L0.{name}[2]@-1"], run[f"L0.{name}"][:, [2], -1])
            assert torch.equal(run[f"L0.{name}@1:3"][0], run[f"L0.{name}"][0, :, 1:3])
            assert torch.equal(run[f"L0.{name}@1:3"][1], run[f"L0.{name}"][1, :, 3:5])
            assert torch.equal(run[f"L1.{name}@-1"], full[f"L1.{name}"][:, :, -1])

    def test_spans(self):
        prompts = self.lm.prompts(["w5 w6 w7 w8", "w9 w6 w7 w10 w11"], spans={"middle": "w6 w7"})
        run = self.lm.run(prompts, ["L1.resid_post", "L0.mlp_out@middle"])
        assert run["L0.mlp_out@middle"].shape == (2, 2, 32)
        assert torch.equal(run["L1.resid_post@middle"][0], run["L1.resid_post"][0, 2:4])
        assert torch.equal(run["L1.resid_post@end"], run["L1.resid_post@-1"][:, None])

    def test_positions_that_make_no_rectangle(self):
        prompts, run = self.run_of("L0.resid_post")
        for read in (lambda: run["L0.resid_post@all"], lambda: self.lm.run(prompts, "L0.resid_post@prompt")):
            with pytest.raises(SiteError, match=r"has 5 to 7 tokens in different rows.*use run\.tokens"):
                read()

    def test_logits(self):
        _, run = self.run_of("logits")
        assert torch.equal(run["logits"], run.logits)
        assert torch.equal(run["logits@-1"], run.logits[:, -1])
        assert torch.equal(run["logits[3,5]"], run.logits[:, :, [3, 5]])
        assert "logits" in run

    def test_tokens_leave_out_the_padding(self):
        for side in SIDES:
            prompts, run = self.run_of(["L0.resid_post", "L1.head"], padding=side)
            assert torch.equal(run.tokens("L0.resid_post"), real(prompts, run["L0.resid_post"]))
            assert run.tokens("L1.head").shape == (12, 4, 8)

    def test_tokens_of_a_unit(self):
        prompts, run = self.run_of(["L1.head", "L0.neuron[3,9]"])
        assert torch.equal(run.tokens("L1.head[2]"), real(prompts, run["L1.head[2]"]))
        assert torch.equal(run.tokens("L0.neuron[3,9]"), real(prompts, run["L0.neuron[3,9]"]))

    def test_tokens_of_a_position(self):
        """Those of that position, or refused: never all of them."""
        _, run = self.run_of("L1.head")
        try:
            tokens = run.tokens("L1.head@-1")
        except SiteError:
            return
        assert torch.equal(tokens, run["L1.head@-1"])

    def test_a_unit_that_is_not_there(self):
        _, run = self.run_of(["L1.head", "L0.k"])
        for site, last in (("L1.head[9]", 3), ("L0.k[2]", 1), ("logits[97]", 96)):
            with pytest.raises(SiteError, match=rf"out of range.*0 to {last}"):
                run[site]

    def test_what_was_not_read(self):
        _, run = self.run_of(["L0.resid_post", "L1.head[2]", "L0.mlp_out@-1"])
        with pytest.raises(
            SiteError, match=r'"L1\.resid_post" was not read in this run .*read: L0\.resid_post, L1\.head\[2\]'
        ):
            run["L1.resid_post"]
        for site in ("L1.head[1]", "L1.head", "L0.mlp_out", "L0.mlp_out@0", "logits@3x"):
            with pytest.raises(ValueError, match=r"\w"):
                run[site]
        assert "L0.resid_post[3]" in run
        assert "L0.resid_post@-1" in run
        assert "L1.head[2]" in run
        assert "L1.head[1]" not in run
        assert "L0.mlp_out" not in run
        assert 5 not in run

    def test_a_long_list_is_cut_short_in_messages(self):
        run = self.lm.run(IDS, ["L*.resid_post", "L*.head", "L*.mlp_out", "L*.attn_out"])
        with pytest.raises(SiteError, match=r"… \(8 sites\)"):
            run["embed"]
        assert repr(run).startswith("Run(Prompts(2 rows of 7 tokens")
        assert repr(run).endswith("… (8 sites), with logits)")
        assert len(run) == 8

    def test_does_not_say_edited_where_it_was_not(self):
        assert self.lm.run(IDS, edit="L0.head scale 0").edited
        with self.lm.edited("L0.head scale 0"):
            assert self.lm.run(IDS).edited
        assert not self.lm.run(IDS, edit=[]).edited


class TestViews:
    """Sparse features of a site, and what a dictionary misses, read."""

    class Relu:
        def __init__(self, d, n):
            generator = torch.Generator().manual_seed(0)
            self.w = torch.randn(d, n, generator=generator, dtype=torch.float64) / d**0.5

        def encode(self, x):
            return torch.relu(x @ self.w.to(x))

        def decode(self, features):
            return features @ self.w.T.to(features)

    def test_features_and_error(self):
        lm, relu = exact("llama"), self.Relu(32, 50)
        sites = ["L0.resid_post", "L0.resid_post.feature@d", "L0.resid_post.feature@d[7]@-1", "L0.resid_post.error@d"]
        run = lm.run(IDS, sites, dictionaries={"d": relu})
        x, features = run["L0.resid_post"], run["L0.resid_post.feature@d"]
        assert torch.equal(features, relu.encode(x))
        assert torch.equal(run["L0.resid_post.feature@d[7]@-1"], features[:, -1, [7]])
        assert off(relu.decode(features) + run["L0.resid_post.error@d"], x) < 1e-12
        assert torch.equal(run["L0.resid_post.error@d[3]"], run["L0.resid_post.error@d"][:, :, [3]])
        assert torch.equal(run.logits, plain_logits(lm, run.prompts))

    def test_of_the_logits(self):
        lm, relu = exact("llama"), self.Relu(97, 50)
        run = lm.run(IDS, "logits.feature@d", dictionaries={"d": relu})
        assert off(run["logits.feature@d"], relu.encode(run.logits)) < 1e-12

    def test_a_dictionary_that_was_not_given(self):
        for given in (None, {"other": self.Relu(32, 50)}):
            with pytest.raises((SiteError, EditError), match=r'no dictionary named "d".*dictionaries: (none|other)'):
                exact("llama").run(IDS, "L0.resid_post.feature@d", dictionaries=given)

    def test_of_heads_are_of_what_all_heads_put_out(self):
        """(batch pos feature) of the heads side by side, as the table of sites has it; a feature is no head."""
        lm, relu = exact("llama"), self.Relu(32, 50)
        heads = lm.run(IDS, "L0.head")["L0.head"].flatten(2)
        run = lm.run(IDS, ["L0.head.feature@d", "L0.head.feature@d[7]"], dictionaries={"d": relu})
        assert off(run["L0.head.feature@d"], relu.encode(heads)) < 1e-12
        assert off(run["L0.head.feature@d[7]"], relu.encode(heads)[:, :, [7]]) < 1e-12
        features = relu.encode(heads)
        new = features.clone()
        new[:, :, 7] = 2
        changed = heads + relu.decode(new) - relu.decode(features)
        run = lm.run(IDS, "L0.head", "L0.head.feature@d[7] set 2", dictionaries={"d": relu})
        assert off(run["L0.head"].flatten(2), changed) < 1e-12

    def test_a_feature_that_does_not_exist(self):
        with pytest.raises((SiteError, EditError), match="feature 50 is out of range; there are features 0 to 49"):
            exact("llama").run(IDS, "L0.resid_post.feature@d[50]", dictionaries={"d": self.Relu(32, 50)})


def test_a_run_can_be_made_by_hand():
    """An edit takes values from anything that has prompts and `whole`."""
    lm = exact("llama")
    prompts = lm.prompts(IDS)
    values = torch.randn(2, 7, 32, dtype=torch.float64)
    made = Run(prompts, None, {Site("resid_post", 0): values})
    run = lm.run(prompts, "L0.resid_post", "L0.resid_post set from made", runs={"made": made})
    assert torch.equal(run["L0.resid_post"], values)
    assert "Run(" in repr(made)
