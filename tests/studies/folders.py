"""Values for runs to keep, and what the tests of their folders share."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from trimtab.values import Outcome, Scores
from trimtab.values.findings import Verdict

ASKED = {"task": "sentiment", "model": "tiny", "budget": {"points": 3, "share": 0.25}, "seeds": [1, 2], "limit": None}


FIRST = Outcome("logit_diff", "logits", np.array([1.0, 2.0, np.nan]), np.array([0.0, 2.0, 1.0]))


SECOND = Verdict("found", ("Found.", "It works."))


SCORES = Scores(np.arange(6.0).reshape(3, 2), ("example", "layer"), {}, "L{layer}.mlp_out")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


unix = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed otherwise there")


def begun(folder, **known):
    with folder.lock():
        folder.begin(**known)
    return folder


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def code(text):
    """Python in a process of its own."""
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    return [sys.executable, "-c", textwrap.dedent(text)], env
