"""What methods that read gradients share: numbers at every entry of a tensor, summed to one for each place.

A place is a unit of a tensor at a span (`units.Places`). Numbers of every position and entry, such as activation times
gradient, are made once for each tensor and then summed over the span's positions and the unit's entries. Nothing here
runs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.model.memory import SHARE, budget, free_memory, limit
from trimtab.model.prompts import Prompts
from trimtab.model.run import Run
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Method = TypeVar("Method", bound=Callable[..., Any])
GRAPH = 1 << 28
"""Numbers that a backward pass on a CPU holds at most, unless told otherwise."""


def differentiates(method: Method) -> Method:
    """Mark a method that takes the gradient of the task's number, which a metric that moves in steps has not.

    >>> @differentiates
    ... def saliency(lm, task, sites): ...
    >>> does_differentiate(saliency)
    True
    """
    setattr(method, "differentiates", True)  # noqa: B010
    return method


def does_differentiate(method: Callable[..., Any]) -> bool:
    """Whether a method is marked by `differentiates`."""
    return getattr(method, "differentiates", False) is True


def check_choice(name: str, given: object, choices: Sequence[str]) -> None:
    """TrimtabError where an option is none of its choices."""
    if given not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise TrimtabError(f"{name} is {listed}, got {given!r}{nearest(str(given), choices)}")


def check_gradients(lm: LM, sites: Reads) -> None:
    """SiteError for features, which no gradient reaches."""
    if features := [site for site in lm.sites(sites) if site.view is not None]:
        raise SiteError(
            f"{features[0]}: features are no tensor of the model's own, so no gradient reaches them; score "
            f"{features[0].base}, or give the features to patching"
        )


def at_once(lm: LM, memory: float | None) -> int:
    """Numbers that a backward pass may hold: those of `memory` bytes; else a share of what is free, on a CPU at most
    `GRAPH`."""
    each = max(lm.dtype.itemsize, 4)
    memory = limit() if memory is None else memory
    if memory is not None or lm.device.type == "cuda":
        return max(1, int(budget(lm, memory) // each))
    return max(1, min(GRAPH, int(SHARE * free_memory() // each)))


def values(run: Run, tensor: Site) -> Tensor:
    """(batch pos unit …) of a whole tensor in a run, in float32 at least."""
    found = run.whole(tensor)
    return found.float() if found.dtype.itemsize < 4 else found


def place_sums(
    blocks: Iterable[Site], units: int | None, prompts: Prompts, number: Callable[[Site], Tensor]
) -> dict[Site, Float[np.ndarray, "row unit"]]:
    """Of each block, `number(tensor)` (batch pos unit …) summed over its positions and the entries of its units."""
    by_tensor: dict[Site, list[Site]] = {}
    for block in blocks:
        by_tensor.setdefault(block.whole, []).append(block)
    real = prompts.mask.bool()
    covered: dict[Scope | None, Bool[Tensor, "batch pos"]] = {}
    out: dict[Site, np.ndarray] = {}
    for tensor, members in by_tensor.items():
        x = number(tensor)
        x = x.flatten(3).sum(3) if x.ndim > 3 else x
        if units is None and all(block.index is None for block in members):
            x = x.sum(2, keepdim=True)
        x = torch.where(real.to(x.device)[..., None], x, 0.0)  # what pads hold may be anything
        for block in members:
            if block.at not in covered:
                covered[block.at] = prompts.columns(Scope("all") if block.at is None else block.at)
        masks = torch.stack([covered[block.at] for block in members], 1).to(x)
        for block, sums in zip(members, (masks @ x).unbind(1), strict=True):
            out[block] = gathered(sums, block, units)
    return out


def gathered(sums: Float[Tensor, "batch unit"], block: Site, units: int | None) -> Float[np.ndarray, "batch chosen"]:
    """A block's units apart, where there are `units`, or those that it names together."""
    chosen = sums if block.index is None else sums[:, list(block.index)]
    chosen = chosen if units is not None else chosen.sum(1, keepdim=True)
    return chosen.double().cpu().numpy()


def entries(lm: LM, tensors: Iterable[Site]) -> int:
    """Numbers that are held of each token: at the sites, for the backward pass in every layer, and of the logits."""
    a = lm.anatomy
    sites = sum(int(np.prod(lm.shape(site))) for site in tensors)
    graph = sum(10 * a.d_model + 4 * block.d_mlp for block in a.blocks)
    return 4 * sites + graph + 3 * a.vocab
