"""The check-up: identities by kind, the engine against whole passes, and what jobs cost."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import tiny, tokenizer
from trimtab.model import doctor
from trimtab.model.doctor import Checkup, Deviation, checkup, grouped
from trimtab.model.identities import Identity
from trimtab.model.lm import LM


def model(family="llama", dtype=torch.float32):
    return LM(tiny(family, dtype), tokenizer(), name=family, check=False)


def test_identities_of_all_layers_are_one_line_that_of_the_worst():
    found = grouped(
        [
            Identity("L0.a = b", 1e-6, 1e-4),
            Identity("whole", 0.0, 0.0),
            Identity("L1.a = b", 2e-6, 1e-4),
            Identity("L0.b = c", 1e-9, 1e-4),
            Identity("L1.b = c", math.nan, 1e-4),
        ]
    )
    assert [(c.name, c.layers, c.worst, c.holds) for c in found] == [
        ("a = b", 2, 1, True),
        ("whole", 1, None, True),
        ("b = c", 2, 1, False),
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_sound_model(family):
    stages = []
    lm = model(family)
    before = {name: p.clone() for name, p in lm.hf.state_dict().items()}
    found = checkup(lm, progress=stages.append)
    assert found.healthy
    assert stages[0] == "identities"
    assert [d.dtype for d in found.deviations] == ["float32", "bfloat16"]
    exact, rounded = found.deviations
    assert exact.holds
    assert exact.relative < 1e-5
    assert exact.rounding is None
    assert rounded.rounding > 0
    names = [job.name for job in found.jobs]
    assert names[:3] == ["one pass of 14 tokens", "one pass of 64 tokens", "residual patching, 2 x 14"]
    assert {"ablation of every head", "generation, one token", "harvest of 1M tokens"} < set(names)
    assert all(job.seconds > 0 and job.bytes > 0 for job in found.jobs)
    assert next(job for job in found.jobs if "residual" in job.name).detail.startswith("10 of 28 cells")
    after = lm.hf.state_dict()
    assert lm.dtype == torch.float32
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_in_bfloat16_is_compared_with_a_copy_in_float32():
    found = checkup(model(dtype=torch.bfloat16))
    assert (found.dtype, [d.dtype for d in found.deviations]) == ("bfloat16", ["float32", "bfloat16"])
    assert found.deviations[1].rounding > 0


def test_what_cannot_be_copied_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 1000.0)
    found = checkup(model())
    assert [d.dtype for d in found.deviations] == ["float32"]
    assert "deviation in bfloat16 was not measured: a copy takes 0.0 GB" in found.notes[0]


def test_one_identity_that_fails_is_enough():
    bad = grouped([Identity("L0.a = b", 1.0, 1e-4)])
    assert not Checkup("m", "float32", "cpu", bad, (), ()).healthy
    off = Deviation("float32", 3, 1.0, 0.5, None, False)
    assert not Checkup("m", "float32", "cpu", (), (off,), ()).healthy
