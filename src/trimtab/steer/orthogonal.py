"""Weight orthogonalisation: a direction that no weight can write any more is ablated for good, without a hook.

Arditi et al. 2024 (arXiv 2406.11717), appendix E: W ← W − r̂ r̂ᵀW and b ← b − r̂ r̂ᵀb for every matrix and bias that
writes to the residual stream, embeddings of tokens and positions too. The model then is the one that
`steer.ablate_direction` makes with hooks. Which parameters these are is the model room's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import EditError, ModelError
from trimtab.model.identities import probe_prompts
from trimtab.model.writers import Writer, writers
from trimtab.steer.directional import Directions, basis, dimensions
from trimtab.values.edit import Intervention, WeightPatch
from trimtab.values.provenance import Provenance

if TYPE_CHECKING:
    from trimtab.model.lm import LM

LEFT = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Part of the embeddings that may lie along a direction that was taken out of them, by rounding: half types have
3e-3."""


def orthogonalise(lm: LM, directions: Directions, untie: bool = False) -> Intervention:
    """Weight patches after which the model writes nothing along the directions: W ← W − r̂ r̂ᵀW, b ← b − r̂ r̂ᵀb.

    The patches are of low rank and belong to the weights that they were made from. They are on the model for as long
    as the intervention is (`lm.run(…, edit=…)`, `lm.edited`), and equal `ablate_direction` at strength 1. Other
    strengths scale the patches; there are no positions, since weights have none.

    Args:
        directions: (d_model), (k, d_model), or an intervention that adds vectors in the residual stream.
        untie: where the token embedding is the unembedding's weight too, change the embedding and leave the unembedding
            as it was; while the patches are on, the model has two matrices.

    Raises EditError for directions that are zero or of another width, and for tied embeddings without `untie`;
    ModelError where a norm stands behind the weights, or weights are quantised.

    >>> orthogonalise(lm, difference_of_means(lm, task, "L12.resid_post"), untie=True)  # doctest: +SKIP
    """
    rows = basis(directions, lm.anatomy.d_model)
    found = writers(lm.anatomy)
    if any(writer.shared for writer in found) and not untie:
        raise EditError(
            f"the token embedding of {lm.name} is its unembedding too (tied weights): without the direction in it the "
            "logits would change in ways that ablation does not; untie=True (on the command line, --untie) keeps the "
            "unembedding as it is, for which the model needs a second matrix while the intervention is on"
        )
    patches = [_patch(writer, rows) for writer in found]
    before = [patch for patch, writer in zip(patches, found, strict=True) if writer.layer is None]
    _check_embeddings(lm, Intervention(patches=tuple(before)), rows)
    options = {"dimensions": len(rows), "untie": untie}
    known = Provenance.now(lm.name, model_hash=lm.hash, method="orthogonalise", options=options)
    return Intervention((), tuple(patches), f"weights without {dimensions(rows)}", known)


def _patch(writer: Writer, rows: Float[np.ndarray, "k d_model"]) -> WeightPatch:
    """What takes from a parameter all that it writes along the rows of a basis."""
    dtype = np.float64 if writer.weight.dtype == torch.float64 else np.float32
    along = writer.along(torch.from_numpy(rows)).numpy()
    if writer.weight.ndim == 1:
        return WeightPatch(writer.parameter, delta=-(rows.T @ along).astype(dtype))
    if writer.axis == -2:
        return WeightPatch(writer.parameter, left=-rows.T.astype(dtype), right=along.astype(dtype))
    return WeightPatch(writer.parameter, left=-along.astype(dtype), right=rows.astype(dtype), untie=writer.shared)


def _check_embeddings(lm: LM, patches: Intervention, rows: Float[np.ndarray, "k d_model"]) -> None:
    """ModelError where the first block reads something along the rows although no embedding has it any more."""
    read = lm.run(probe_prompts(lm), "embed", patches, logits=False)["embed"].to("cpu", torch.float64)
    left = (read @ torch.from_numpy(rows).T).norm(dim=-1) / read.norm(dim=-1)
    if float(left.max()) > LEFT.get(lm.dtype, 3e-3):
        raise ModelError(
            f"the first block of {lm.name} reads something along the direction although no embedding has any: a norm "
            "stands between them (as in BLOOM), so weights alone cannot ablate it; use hooks, steer.ablate_direction"
        )
