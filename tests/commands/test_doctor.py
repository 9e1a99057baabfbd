"""`trimtab doctor`: the check-up is printed, and an identity that fails is exit code 1."""

from __future__ import annotations

import json

import pytest

from tests.commands.calls import call, document, said
from trimtab.commands.doctor import duration
from trimtab.model.doctor import Check, Checkup, Deviation, Job

SICK = Checkup(
    "m",
    "float32",
    "cpu",
    (Check("a = b", 2, 1, 0.5, 1e-4, False), Check("b = c", 2, 0, 0.0, 1e-4, True)),
    (Deviation("float32", 3, 1e-5, 1e-6, None, True),),
    (Job("one pass of 14 tokens", 0.07, 3_000_000, True),),
    ("something was left out",),
)


def test_a_sound_model(folder):
    found = document(call("doctor", folder, "--json"))
    assert found["healthy"] is True
    assert {check["name"] for check in found["checks"]} > {"resid_pre + attn_out = resid_mid", "pattern is causal"}
    assert [row["dtype"] for row in found["deviations"]] == ["float32", "bfloat16"]
    assert any("residual patching" in job["name"] for job in found["jobs"])


def test_a_sick_one(folder, monkeypatch):
    monkeypatch.setattr("trimtab.model.doctor.checkup", lambda lm, progress: SICK)
    done = call("doctor", folder)
    assert done.exit_code == 1
    assert said(done) == "error: m fails: a = b. Its sites would be wrong tensors\n"
    assert "NO" in done.stdout
    assert "70 ms" in done.stdout
    assert "note: something was left out" in done.stdout
    done = call("doctor", folder, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["healthy"] is False


@pytest.mark.parametrize(("seconds", "shown"), [(0.0123, "12 ms"), (3.44, "3.4 s"), (300, "5 min"), (7600, "2.1 h")])
def test_times_to_be_read(seconds, shown):
    assert duration(seconds) == shown
