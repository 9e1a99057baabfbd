"""Inside a mixture of experts: routing weights, single experts and their neurons, read and edited as if each expert
were a module of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.tinies import IDS, MOE, OTHER, close, exact, fresh, lm_of, off, untouched
from trimtab.errors import SiteError
from trimtab.model.experts import as_choices, routing
from trimtab.values.edit import Edit, Ref
from trimtab.values.site import Site

N = 4
"""Experts of each tiny mixture, of which two see each token."""


def outputs(block, x):
    """(expert, neurons and unweighted output) of every expert on every token (… d_model), from the parameters alone."""
    gate, up = torch.einsum("...d,eod->e...o", x, block.experts.gate_up_proj).chunk(2, dim=-1)
    neurons = block.experts.act_fn(gate) * up
    return neurons, torch.einsum("e...o,edo->e...d", neurons, block.experts.down_proj)


def shared(block, x):
    """What the expert that sees every token adds, where there is one."""
    if block.shared is None:
        return torch.zeros_like(x)
    return torch.sigmoid(block.mlp.shared_expert_gate(x)) * block.shared(x)


@pytest.mark.parametrize("family", MOE)
class TestEveryFamily:
    def parts(self, lm):
        experts = [f"L1.expert[{e}]" for e in range(N)]
        return lm.run(IDS, ["L1.mlp_in", "L1.router", "L1.mlp_raw", *experts, *(f"{e}.neuron" for e in experts)])

    def test_routing_weights_are_of_two_experts(self, family):
        lm = exact(family)
        router = self.parts(lm)["L1.router"]
        assert router.shape == (2, 7, N)
        assert bool(((router > 0).sum(-1) == 2).all())
        assert bool((router >= 0).all())
        if family in ("mixtral", "qwen3_moe"):  # these norm the weights that are left
            assert off(router.sum(-1), torch.ones_like(router.sum(-1))) < 1e-6

    def test_experts_are_their_parameters(self, family):
        lm = exact(family)
        run, block = self.parts(lm), lm.anatomy.blocks[1]
        with torch.no_grad():
            neurons, out = outputs(block, run["L1.mlp_in"])
        for e in range(N):
            weight = run["L1.router"][..., [e]]
            close(lm, run[f"L1.expert[{e}]"], out[e] * weight, f"expert {e}")
            close(
                lm, run[f"L1.expert[{e}].neuron"], torch.where(weight != 0, neurons[e], 0.0), f"neurons of expert {e}"
            )

    def test_experts_sum_to_the_output(self, family):
        lm = exact(family)
        run, block = self.parts(lm), lm.anatomy.blocks[1]
        with torch.no_grad():
            total = sum((run[f"L1.expert[{e}]"] for e in range(N)), shared(block, run["L1.mlp_in"]))
        close(lm, total, run["L1.mlp_raw"])

    @pytest.mark.parametrize("where", ["all", "3", "-1"])
    def test_the_router_takes_any_weights(self, family, where):
        """Also of experts that it had not chosen; the output is then theirs by these weights."""
        lm = exact(family)
        block = lm.anatomy.blocks[1]
        weights = np.array([0.1, 0.0, 0.7, 0.4])
        run = lm.run(IDS, ["L1.mlp_in", "L1.router", "L1.mlp_raw"], Edit("L1.router", "set", weights, where=where))
        base = self.parts(lm)
        expected = base["L1.router"].clone()
        columns = lm.prompts(IDS).columns(where)
        expected[columns] = torch.tensor(weights).to(expected)
        assert off(run["L1.router"], expected) < 1e-6
        with torch.no_grad():
            _, out = outputs(block, run["L1.mlp_in"])
            total = torch.einsum("ebpd,bpe->bpd", out, expected.to(out)) + shared(block, run["L1.mlp_in"])
        assert off(run["L1.mlp_raw"], total) < 1e-6

    def test_one_routing_weight(self, family):
        lm = exact(family)
        base = self.parts(lm)
        run = lm.run(IDS, "L1.mlp_raw", "L1.router[2] scale 0")
        expected = base["L1.mlp_raw"] - base["L1.expert[2]"]
        assert off(run["L1.mlp_raw"], expected) < 1e-6
        assert base["L1.expert[2]"].any()

    def test_an_expert_off_is_its_output_off(self, family):
        lm = exact(family)
        base = self.parts(lm)
        for e in range(N):
            run = lm.run(IDS, ["L1.mlp_raw", f"L1.expert[{e}]"], f"L1.expert[{e}]@2 scale 0")
            expected = base["L1.mlp_raw"].clone()
            expected[:, 2] -= base[f"L1.expert[{e}]"][:, 2]
            close(lm, run["L1.mlp_raw"], expected)
            assert not run[f"L1.expert[{e}]"][:, 2].any()
            assert torch.equal(run[f"L1.expert[{e}]"][:, 3:], base[f"L1.expert[{e}]"][:, 3:])

    def test_two_experts_at_once(self, family):
        lm = exact(family)
        base = self.parts(lm)
        run = lm.run(IDS, "L1.mlp_raw", ["L1.expert[0] scale 3", "L1.expert[3] scale -1", "L1.expert[3] add 0.5"])
        expected = base["L1.mlp_raw"] + 2 * base["L1.expert[0]"] - 2 * base["L1.expert[3]"] + 0.5
        close(lm, run["L1.mlp_raw"], expected)

    def test_a_neuron_off_is_the_same_as_in_the_weights(self, family):
        lm = fresh(family, torch.float64, check=False)
        edits = ["L1.expert[2].neuron[3,7] scale 0", "L1.expert[0].neuron[0] set 0"]
        edited = lm.run(IDS, "L1.mlp_raw", edits)
        down = lm.anatomy.blocks[1].experts.down_proj
        with torch.no_grad():
            down[2][:, [3, 7]] = 0
            down[0][:, 0] = 0
        changed = lm.run(IDS, "L1.mlp_raw")
        close(lm, edited["L1.mlp_raw"], changed["L1.mlp_raw"])
        close(lm, edited.logits, changed.logits)
        assert off(edited.logits, exact(family).run(IDS).logits) > 1e-4

    def test_neurons_and_output_of_one_expert(self, family):
        """The output that an edit sees is that which the edited neurons give."""
        lm = exact(family)
        block = lm.anatomy.blocks[1]
        edits = ["L1.expert[1].neuron scale 2", "L1.expert[1] add 1"]
        run, base = lm.run(IDS, ["L1.expert[1]", "L1.expert[1].neuron", "L1.mlp_raw"], edits), self.parts(lm)
        close(lm, run["L1.expert[1].neuron"], 2 * base["L1.expert[1].neuron"])
        close(lm, run["L1.expert[1]"], 2 * base["L1.expert[1]"] + 1)
        close(lm, run["L1.mlp_raw"], base["L1.mlp_raw"] + base["L1.expert[1]"] + 1)
        assert block.n_experts == N

    def test_tokens_that_an_expert_does_not_see_are_not_moved_by_its_neurons(self, family):
        lm = exact(family)
        base = self.parts(lm)
        routed = (base["L1.router"] != 0).flatten(0, 1).sum(0)
        expert = int(((routed > 0) & (routed < 14)).int().argmax())
        run = lm.run(IDS, "L1.mlp_raw", f"L1.expert[{expert}].neuron set 5")
        unseen = base["L1.router"][..., expert] == 0
        assert 0 < int(unseen.sum()) < 14
        assert torch.equal(run["L1.mlp_raw"][unseen], base["L1.mlp_raw"][unseen])
        assert off(run["L1.mlp_raw"][~unseen], base["L1.mlp_raw"][~unseen]) > 1e-2

    def test_patching_experts(self, family):
        """All experts and the router of another run give its output, but for the expert that sees every token."""
        lm = exact(family)
        names = [f"L1.expert[{e}]" for e in range(N)]
        other = lm.run(OTHER, [*names, "L1.mlp_raw", "L1.mlp_in"])
        run = lm.run(IDS, ["L1.mlp_raw", "L1.mlp_in"], [Edit(n, "set", Ref("o")) for n in names], runs={"o": other})
        block = lm.anatomy.blocks[1]
        with torch.no_grad():
            expected = other["L1.mlp_raw"] - shared(block, other["L1.mlp_in"]) + shared(block, run["L1.mlp_in"])
        close(lm, run["L1.mlp_raw"], expected)

    def test_in_float32_as_transformers_computes_experts(self, family):
        """The grouped product that transformers uses by default, and its plain loop."""
        grouped, plain = lm_of(family), fresh(family, check=False)
        plain.hf.set_experts_implementation("eager")
        for edit in ("L1.router[1] scale 0", "L1.expert[2] scale 2", "L1.expert[0].neuron[3] set 1"):
            with untouched(grouped), untouched(plain):
                assert off(grouped.run(IDS, edit=edit).logits, plain.run(IDS, edit=edit).logits) < 2e-5


class TestAddresses:
    def test_without_a_number(self):
        for options in ({"read": "L1.expert"}, {"edit": "L1.expert scale 0"}, {"read": Site("expert.neuron", 1)}):
            with pytest.raises(SiteError, match=r"name one expert, L1\.expert\[0\], or select all: expert\[\*\]"):
                lm_of("mixtral").run(IDS, **options)

    def test_selections(self):
        run = lm_of("qwen2_moe").run(IDS, "L*.expert[*]", logits=False)
        assert [str(site) for site in run] == [f"L1.expert[{e}]" for e in range(N)]

    def test_units(self):
        lm = lm_of("olmoe")
        run = lm.run(IDS, ["L0.expert[1].neuron[3,8]", "L0.expert[1].neuron", "L1.router[2]@-1"])
        assert torch.equal(run["L0.expert[1].neuron[3,8]"], run["L0.expert[1].neuron"][:, :, [3, 8]])
        assert run["L1.router[2]@-1"].shape == (2, 1)


class TestRouting:
    @given(seed=st.integers(0, 99), n=st.integers(2, 6), k=st.integers(1, 2))
    def test_dense_and_back(self, seed, n, k):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(5, k, generator=generator)
        chosen = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(5)])
        dense = routing(weights, chosen, n)
        for token in range(5):
            for expert in range(n):
                mine = weights[token][chosen[token] == expert]
                assert dense[token, expert] == (mine[0] if len(mine) else 0)
        assert torch.equal(routing(*as_choices(dense), n), dense)
