"""Weight patches on a model for the length of a block; afterwards every weight is bitwise what it was.

A patch that is marked `untie` changes a token embedding alone: for the length of the block, an unembedding that shares
its weights has a copy of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
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
    for patch in patches:
        _check(parameters, patch)
    saved: dict[str, Tensor] = {}
    with untied(hf, {patch.parameter for patch in patches if patch.untie}) as copies:
        try:
            with torch.no_grad():
                for patch in patches:
                    weight, delta = parameters[patch.parameter], _delta(patch)  # one in memory at a time
                    saved.setdefault(patch.parameter, weight.detach().clone())
                    weight.add_(delta.to(weight.device))  # in the wider of the two types, rounded once
                    if patch.parameter in copies and not patch.untie:  # this one is meant for both
                        copies[patch.parameter].add_(delta.to(weight.device))
            yield saved
        finally:
            with torch.no_grad():
                for name, original in saved.items():
                    parameters[name].copy_(original)


@contextmanager
def untied(hf: PreTrainedModel, names: set[str]) -> Iterator[dict[str, nn.Parameter]]:
    """For the length of the block, the unembedding has a copy of its own of the weights that it shares, if these are
    among the parameters named.

    Gives the copy by the parameter's name; nothing where no weights are shared, or others than these.
    """
    head = hf.get_output_embeddings() if names else None
    shared = getattr(head, "weight", None)
    name = next((name for name, weight in hf.named_parameters() if weight is shared and name in names), None)
    if head is None or name is None or not _used_beside(hf, head):
        yield {}
        return
    assert isinstance(shared, nn.Parameter)
    copy = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    head.weight = copy
    try:
        yield {name: copy}
    finally:
        head.weight = shared


def _used_beside(hf: PreTrainedModel, head: nn.Module) -> bool:
    """Whether another module than the unembedding has its weight too."""
    others = (module for module in hf.modules() if module is not head)
    return any(weight is head.weight for module in others for weight in module.parameters(recurse=False))


def _check(parameters: dict[str, nn.Parameter], patch: WeightPatch) -> None:
    weight = parameters.get(patch.parameter)
    if weight is None:
        raise EditError(f'the model has no parameter "{patch.parameter}"{nearest(patch.parameter, parameters)}')
    if not weight.is_floating_point():
        raise EditError(
            f'"{patch.parameter}" is stored in {weight.dtype}: a quantised weight cannot be patched; load in bfloat16'
        )
    if patch.shape != tuple(weight.shape):
        raise EditError(f'patch of "{patch.parameter}" must have shape {tuple(weight.shape)}, got {patch.shape}')


def _delta(patch: WeightPatch) -> Tensor:
    if patch.left is None or patch.right is None:
        return torch.from_numpy(np.array(patch.delta))
    left, right = torch.from_numpy(np.array(patch.left)), torch.from_numpy(np.array(patch.right))
    both = torch.promote_types(left.dtype, right.dtype)
    return left.to(both) @ right.to(both)
