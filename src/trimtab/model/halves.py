"""A block run from inside: from head outputs, from the MLP's input or from its neurons to the block's output.

A counterfactual whose first change is a head's output need not run attention again in that layer. These functions call
the block's own modules in the block's own order, so hooks on those modules act as they do in the block; `identities.py`
proves at load that they give the block's output, and a model for which they do not starts such rows at the whole block.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trimtab.model.anatomy import Block
from trimtab.model.families import Family

Base = Mapping[str, Tensor]
"""Site name -> the base run's tensor of this layer, for the rows and columns in question, in the module's own shape."""

ENTRIES = ("resid_pre", "head", "mlp_in", "neuron", "resid_post")
"""Where a row can enter a block, in order."""

SEQUENTIAL: dict[str, tuple[str, ...]] = {
    "resid_pre": ("resid_pre",),
    "head": ("head", "resid_pre"),
    "mlp_in": ("resid_mid",),
    "neuron": ("neuron", "resid_mid"),
    "resid_post": ("resid_post",),
}
PARALLEL: dict[str, tuple[str, ...]] = SEQUENTIAL | {
    "head": ("head", "resid_pre", "mlp_out"),
    "mlp_in": ("mlp_in", "resid_pre", "attn_out"),
    "neuron": ("neuron", "resid_pre", "attn_out"),
}


def needs(family: Family, entry: str) -> tuple[str, ...]:
    """The sites of the base run that a row entering at `entry` starts from."""
    return (PARALLEL if family.parallel else SEQUENTIAL)[entry]


def entry_of(order: int, moe: bool) -> str:
    """Where a row enters its first block when its first change is at a site with this order."""
    if order < 60:
        return "resid_pre"
    if order <= 90:
        return "head"
    if order == 150:
        return "resid_post"
    return "neuron" if order >= 120 and not moe else "mlp_in"


def finish(block: Block, family: Family, entry: str, base: Base) -> Tensor:
    """The block's output (row pos d_model) for rows that enter at `entry`; tensors of `base` may be written to."""
    if entry == "resid_post":
        return base["resid_post"]
    if family.parallel:
        return _finish_parallel(block, entry, base)
    if entry == "head":
        return mlp_half(block, family, attention_end(block, base["head"], base["resid_pre"]))
    mid = base["resid_mid"]
    if entry == "neuron":
        assert block.down is not None
        return _add_mlp(block, mid, block.down(base["neuron"]))
    return mlp_half(block, family, mid)


def attention_end(block: Block, head: Tensor, resid_pre: Tensor) -> Tensor:
    """`resid_mid` from head outputs (row pos head·d_head) and `resid_pre`."""
    out = block.o(head)
    if block.attn_post is not None:
        out = block.attn_post(out)
    mid = resid_pre + out
    return mid if block.stream_norm is None else block.stream_norm[0](mid)


def mlp_half(block: Block, family: Family, mid: Tensor) -> Tensor:
    """`resid_post` from `resid_mid`, which is written to when an edit of `resid_mid` is on."""
    x = mid if block.mlp_norm is None else block.mlp_norm(mid)
    if family.residual_inside:
        assert block.mlp is not None
        return block.mlp(x, mid)
    return _add_mlp(block, mid, _mlp(block, x))


def _mlp(block: Block, x: Tensor) -> Tensor:
    if block.mlp is not None:
        return block.mlp(x)
    assert block.up is not None
    assert block.down is not None
    return block.down(block.module.activation_fn(block.up(x)))  # pyright: ignore[reportCallIssue]


def _add_mlp(block: Block, mid: Tensor, out: Tensor) -> Tensor:
    if block.mlp_post is not None:
        out = block.mlp_post(out)
    post = mid + out
    return post if block.stream_norm is None else block.stream_norm[1](post)


def _finish_parallel(block: Block, entry: str, base: Base) -> Tensor:
    if entry == "head":
        return base["mlp_out"] + block.o(base["head"]) + base["resid_pre"]
    assert block.down is not None
    out = block.down(base["neuron"]) if entry == "neuron" else _mlp(block, base["mlp_in"])
    return out + base["attn_out"] + base["resid_pre"]
