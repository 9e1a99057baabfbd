"""repeng's ControlVector: a model type, and a direction for each of some blocks (Vogel 2024, github.com/vgel/repeng).

Its keys are numbers of blocks: repeng takes direction n from `hidden_states[n + 1]`, which is the output of block n,
and adds it there. So n is our `L{n}.resid_post`. One reading differs: Hugging Face passes its last hidden state through
the final norm, so the direction of the last block was measured behind the norm that it is then added before.

Its files are GGUF control vectors (`gguf.py`); nothing of repeng is imported here, and pickled ones are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from trimtab.errors import EditError
from trimtab.steer.formats.directions import Directions, directions_of, intervention_of
from trimtab.values.edit import Intervention
from trimtab.values.numbers import whole
from trimtab.values.operands import array_of
from trimtab.values.provenance import Provenance


class Repeng(Protocol):
    """What repeng's ControlVector has."""

    @property
    def model_type(self) -> str:
        """The Hugging Face model type, such as "mistral"."""
        ...

    @property
    def directions(self) -> Mapping[int, np.ndarray]:
        """Block number -> direction (d_model)."""
        ...


def from_repeng(vector: Repeng) -> Intervention:
    """A `repeng.ControlVector` as an intervention: each direction added at its block's output with strength 1.

    Raises EditError for keys that are no block numbers, and for directions that are no finite vectors of one width.
    """
    directions: Directions = {}
    for key, direction in vector.directions.items():
        layer = whole(key)
        if layer is None or layer < 0:
            raise EditError(f"the keys of repeng's directions are block numbers from 0, got {key!r}")
        directions[layer] = array_of(direction, f"repeng's direction {layer}", ndim=1).astype(np.float32)
    if not directions:
        raise EditError("repeng's vector has no directions")
    widths = {len(direction) for direction in directions.values()}
    if len(widths) > 1:
        raise EditError(f"repeng's directions differ in width: {sorted(widths)}")
    hint = str(vector.model_type)
    return intervention_of(directions, provenance=Provenance("", method="imported", options={"model_hint": hint}))


def to_repeng(intervention: Intervention, model_type: str = "") -> tuple[str, Directions]:
    """What `repeng.ControlVector(*to_repeng(intervention))` is made of: the model type, and block -> direction.

    repeng steers the blocks that its ControlModel wraps, and each of those needs a direction. Raises EditError as
    `save_gguf` does, but takes block 0 too.
    """
    made = intervention.provenance
    hint = model_type or str(made.options.get("model_hint", "") if made else "")
    return hint or "unknown", directions_of(intervention)
