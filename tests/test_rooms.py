"""Which room may import which, and what an import may pull in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped

from tests.typecheck import checked

ROOT = Path(__file__).parents[1]


def test_rooms_import_downwards_only():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["trimtab", "trimtab.errors", "trimtab.values"])
def test_light_imports_stay_light(module):
    heavy = ("torch", "transformers", "xarray", "pandas")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_shapes_are_checked_in_tests():
    @jaxtyped(typechecker=checked)
    def add(
        left: Float[torch.Tensor, "pos"], right: Float[torch.Tensor, "pos"], name: str
    ) -> Float[torch.Tensor, "pos"]:
        return left + right

    add(torch.zeros(3), torch.zeros(3), 5)  # a wrong argument that is not an array is for the function itself to answer
    with pytest.raises(TypeCheckError):
        add(torch.zeros(3), torch.zeros(4), "sum")


def test_the_shape_check_can_be_switched_off(unchecked):
    @jaxtyped(typechecker=checked)
    def last(values: Float[torch.Tensor, "batch pos"]) -> float:
        return float(values[-1])

    assert last(torch.ones(2)) == 1
