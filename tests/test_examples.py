"""The scripts in examples/ run, and say what their text promises."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.usefixtures("bundled")
def test_patch_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(EXAMPLES / "patch_a_prompt.py"))
    restored = names["restored"]
    assert restored.shape == (30, 14)
    assert restored[:, :9].abs().max() == 0  # nothing before the first token that differs
    assert restored[0, 9] > 0.99
    assert restored[27, 13] > 0.9  # late layers carry the name at the last token
    assert "420 cells" in capsys.readouterr().out


@pytest.mark.usefixtures("bundled")
def test_edit_and_generate(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "edit_and_generate.py"))
    plain, swapped, added, _ = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert "Paris" in plain
    assert "Rome" in swapped
    assert "Rome" in added
