"""Where results come from: of this model, these prompts and this call, worked out when somebody asks."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch

from tests.model.tinies import IDS, OTHER, RAGGED, fresh, lm_of
from trimtab.model.lm import LM
from trimtab.model.protocols import log_prob, logit_diff
from trimtab.model.run import Run
from trimtab.values.edit import Edit, Ref, WeightPatch
from trimtab.values.provenance import Provenance

READOUT = logit_diff([3, 4], [5, 6])
VARIANTS = ["L0.head[1] scale 0", ["L1.mlp_out@-1 set 0", "L0.q scale 2"]]
EDIT = "L0.mlp_out@-1 scale 0.5"

CALLS = {
    "run": lambda lm, **options: lm.run(RAGGED, ["L0.head", "L1.resid_post"], **options),
    "gradients": lambda lm, **options: lm.gradients(RAGGED, READOUT, "L0.head", **options),
    "counterfactuals": lambda lm, **options: lm.counterfactuals(RAGGED, VARIANTS, READOUT),
    "generate": lambda lm, **options: lm.generate(RAGGED, max_new_tokens=2, temperature=1.0, seed=7, **options),
}


@pytest.mark.parametrize("method", CALLS)
class TestEveryResult:
    def test_names_model_data_and_call(self, method):
        lm = lm_of("llama")
        before = datetime.now(UTC) - timedelta(seconds=1)
        found = CALLS[method](lm).provenance
        assert isinstance(found, Provenance)
        assert (found.model, found.model_hash, found.method) == ("llama", lm.hash, method)
        assert found.data_hash == lm.prompts(RAGGED).digest
        assert (found.dtype, found.attention, found.bos, found.chat) == ("float32", "sdpa", "as given", "none")
        assert before <= datetime.fromisoformat(found.created) <= datetime.now(UTC)
        assert "edit" not in found.options
        assert Provenance.from_json(found.to_json()) == found

    def test_hashes_nothing_until_it_is_asked(self, method, monkeypatch):
        lm = lm_of("llama")
        with monkeypatch.context() as patch:
            patch.setattr(LM, "hash", property(lambda _: pytest.fail("the weights were hashed, and nobody asked")))
            result = CALLS[method](lm)
            repr(result)
            copy.deepcopy(result.made)
        assert result.provenance.model_hash == lm.hash
        assert result.provenance is result.provenance

    def test_edits_and_blocks_around_are_told(self, method):
        lm = lm_of("llama")
        with lm.edited(Edit("L1.resid_post", "add", np.linspace(-1, 1, 32))):
            one = CALLS[method](lm, edit=EDIT)
        with lm.edited(Edit("L1.resid_post", "add", np.linspace(1, -1, 32))):
            two = CALLS[method](lm, edit=EDIT)
        (a,), (b,) = one.provenance.options["inside"], two.provenance.options["inside"]
        assert a["edits"] == b["edits"] == ["L1.resid_post add array(32,)"]
        assert a["digest"] != b["digest"]
        if method != "counterfactuals":
            assert one.provenance.options["edit"]["edits"] == [EDIT]
        assert one.provenance.model_hash == lm.hash

    def test_what_goes_to_another_process_has_it_and_not_the_model(self, method):
        made = CALLS[method](lm_of("llama")).made
        again = copy.copy(made)  # the same protocol
        assert again.provenance == made.provenance
        assert not hasattr(again, "lm")


class TestOptions:
    lm = property(lambda self: lm_of("llama"))

    def test_of_runs(self):
        other = self.lm.run(OTHER, "L0.head")
        edit = ["L0.head@2 set from o", WeightPatch("model.norm.weight", delta=np.ones(32))]
        run = self.lm.run(IDS, "L*.head", edit, runs={"o": other})
        options = run.provenance.options
        assert options["read"] == ["L0.head", "L1.head"]
        assert options["edit"]["edits"][0] == edit[0]
        assert len(options["edit"]["edits"]) == 2
        assert options["runs"] == {"o": other.prompts.digest}
        assert run.provenance.model_hash == self.lm.hash
        assert Run(run.prompts, run.logits).provenance is None

    def test_of_gradients(self):
        found = self.lm.gradients(IDS, READOUT, ["L0.head", "embed"])
        assert found.provenance.options == {
            "readout": {"name": "logit_diff", "where": "-1", "tokens": [[3, 5], [4, 6]]},
            "sites": ["L0.head", "embed"],
        }
        assert found.activations.provenance is found.gradients.provenance is found.provenance

    @pytest.mark.parametrize("exact", ["fast", "naive"])
    def test_of_counterfactuals(self, exact):
        def options(variants, readout=READOUT):
            return self.lm.counterfactuals(IDS, variants, readout, exact=exact).provenance.options

        found = options(VARIANTS)
        assert (found["variants"], found["exact"], found["readout"]["name"]) == (2, exact, "logit_diff")
        grouped = [VARIANTS[1], VARIANTS[0]], [[VARIANTS[0], VARIANTS[1][0]], VARIANTS[1][1]]
        digests = {options(variants)["digest"] for variants in (VARIANTS, *grouped)}
        assert len(digests) == 3
        assert options([list(v) if isinstance(v, list) else [v] for v in VARIANTS])["digest"] == found["digest"]
        assert options(VARIANTS, log_prob([3, 4]))["readout"] == {"name": "log_prob", "where": "-1"}

    def test_of_generation(self):
        found = self.lm.generate(
            ["w5 w6", "w7"], EDIT, max_new_tokens=2, seed=[3, 4], stop="w9", spans={"s": ["w6", "w7"]}
        )
        assert {k: v for k, v in found.provenance.options.items() if k != "edit"} == {
            "max_new_tokens": 2,
            "seed": [3, 4],
            "stop": "w9",
        }
        assert found.provenance.seed is None
        assert self.lm.generate(IDS, max_new_tokens=1).provenance.seed == 0
        assert self.lm.generate(IDS, max_new_tokens=1, seed=5).provenance.seed == 5
        json.loads(found.provenance.to_json())


def test_a_result_keeps_no_run_that_it_took_values_from():
    lm = lm_of("llama")
    other = lm.run(OTHER, "L0.resid_post")
    edit = Edit("L0.resid_post@2", "set", Ref("o"))
    results = [
        lm.run(IDS, edit=edit, runs={"o": other}),
        lm.counterfactuals(IDS, [edit], READOUT, runs={"o": other}),
        lm.generate(IDS, edit, runs={"o": other}, max_new_tokens=1),
        lm.gradients(IDS, READOUT, "L0.resid_post", edit=edit, runs={"o": other}),
    ]
    kept = weakref.ref(other.activations[next(iter(other.activations))])
    del other
    gc.collect()
    assert kept() is None, "the activations of a run that is gone are still held"
    assert len({result.provenance.method for result in results}) == 4


def test_made_once_it_stays():
    """Also when the model is trained further: the result is that of the weights it was asked about first."""
    lm = fresh("llama", check=False)
    run = lm.run(IDS)
    first = run.provenance
    with torch.no_grad():
        lm.hf.model.norm.weight += 1
    assert run.provenance is first
    assert lm.run(IDS).provenance.model_hash == lm.hash != first.model_hash
