"""Weight patches on a model for the length of a block; afterwards every weight is bitwise what it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import EditError, nearest
from trimtab.values.edit import WeightPatch


@contextmanager
def patched(hf: PreTrainedModel, patches: Sequence[WeightPatch]) -> Iterator[dict[str, Tensor]]:
    """Adds each patch to its parameter; on leaving, also by exception, the saved originals are copied back.

    Gives the originals, by parameter.

    Raises `EditError` for an unknown parameter or a patch of the wrong shape, before anything is changed.
    """
    if not patches:
        yield {}
        return
    parameters = dict(hf.named_parameters())
    deltas = [(parameters, patch, _delta(parameters, patch)) for patch in patches]
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for _, patch, delta in deltas:
                weight = parameters[patch.parameter]
                saved.setdefault(patch.parameter, weight.detach().clone())
                weight.add_(delta.to(weight.device, weight.dtype))
        yield saved
    finally:
        with torch.no_grad():
            for name, original in saved.items():
                parameters[name].copy_(original)


def _delta(parameters: dict[str, torch.nn.Parameter], patch: WeightPatch) -> Tensor:
    weight = parameters.get(patch.parameter)
    if weight is None:
        raise EditError(f'the model has no parameter "{patch.parameter}"{nearest(patch.parameter, parameters)}')
    if not weight.is_floating_point():
        raise EditError(
            f'"{patch.parameter}" is stored in {weight.dtype}: a quantised weight cannot be patched; load in bfloat16'
        )
    if patch.delta is not None:
        delta = torch.from_numpy(np.array(patch.delta))
    else:
        assert patch.left is not None
        assert patch.right is not None
        delta = torch.from_numpy(np.array(patch.left)) @ torch.from_numpy(np.array(patch.right))
    if delta.shape != weight.shape:
        raise EditError(f'patch of "{patch.parameter}" must have shape {tuple(weight.shape)}, got {tuple(delta.shape)}')
    return delta
