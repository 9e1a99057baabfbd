"""How a site's tensor lies inside a module's input or output.

A `Tap` names a module, the side on which the tensor passes, and a layout: how to read the site's tensor, with axes
`batch pos unit …`, out of the module's own tensor, and how to put an edited one back. Nothing here knows about
architectures or about hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn


class Layout(Protocol):
    """How a site's tensor lies in a module's tensor."""

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        """The site's tensor (batch pos …); shares memory with `tensor` wherever that is possible."""
        ...

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        """A tensor like `tensor` with `value` in the site's place; `tensor` itself is unchanged."""
        ...

    def gradient(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        """The site's gradient (batch pos …) from that of the module's tensor."""
        return self.read(tensor, batch, pos)

    def settled(self, tensor: Tensor) -> Tensor:
        """The module's tensor as the model goes on with it, before anything else is done to it."""
        return tensor


@dataclass(frozen=True)
class Plain(Layout):
    """(batch pos d), also where a module flattens it to (batch·pos d)."""

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        return tensor.view(batch, pos, tensor.shape[-1]) if tensor.ndim == 2 else tensor

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return value.view_as(tensor) if tensor.ndim == 2 else value


@dataclass(frozen=True)
class Heads(Layout):
    """(batch pos head·d_head) read as (batch pos head d_head)."""

    n: int

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        return tensor.view(batch, pos, self.n, -1)

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return value.reshape(tensor.shape)


@dataclass(frozen=True)
class HeadsFirst(Layout):
    """(batch head pos d) read as (batch pos head d); attention scores (batch head query key) likewise."""

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        return tensor.transpose(1, 2)

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return value.transpose(1, 2)


@dataclass(frozen=True)
class Repeated(Layout):
    """(batch head pos d) in which each key-value head stands `group` times, read as (batch pos kv d)."""

    group: int

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        return tensor.transpose(1, 2)[:, :, :: self.group]

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return value.repeat_interleave(self.group, dim=2).transpose(1, 2)

    def gradient(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        return tensor.transpose(1, 2).unflatten(2, (-1, self.group)).sum(3)


@dataclass(frozen=True)
class Columns(Layout):
    """`n` heads from column `start` of a fused projection (batch pos columns)."""

    start: int
    n: int
    d_head: int

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        stop = self.start + self.n * self.d_head
        return tensor.view(batch, pos, -1)[..., self.start : stop].unflatten(-1, (self.n, self.d_head))

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        out = tensor.clone()
        out.view(batch, pos, -1)[..., self.start : self.start + self.n * self.d_head] = value.flatten(-2)
        return out


@dataclass(frozen=True)
class Grouped(Layout):
    """Queries, keys or values of a projection packed as (key-value head, its queries + key + value, d_head)."""

    kv: int
    group: int
    part: Literal["q", "k", "v"]

    def _place(self) -> slice:
        return {"q": slice(0, self.group), "k": slice(-2, -1), "v": slice(-1, None)}[self.part]

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        packed = tensor.view(batch, pos, self.kv, self.group + 2, -1)
        return packed[..., self._place(), :].flatten(2, 3)

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        out = tensor.clone()
        packed = out.view(batch, pos, self.kv, self.group + 2, -1)
        packed[..., self._place(), :] = value.unflatten(2, (self.kv, -1))
        return out


@dataclass(frozen=True)
class Half(Layout):
    """The first or the second half of the last axis (gate and up in one projection)."""

    which: Literal[0, 1]

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        return tensor.view(batch, pos, -1).chunk(2, dim=-1)[self.which]

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        out = tensor.clone()
        width = tensor.shape[-1] // 2
        out.view(batch, pos, -1)[..., self.which * width : (self.which + 1) * width] = value
        return out


@dataclass(frozen=True)
class Clipped(Layout):
    """Another layout, whose tensor the model clamps before it goes on."""

    inner: Layout
    limit: float

    def read(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        return self.inner.read(tensor, batch, pos).clamp(-self.limit, self.limit)

    def write(self, tensor: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return self.inner.write(tensor, value, batch, pos)

    def gradient(self, tensor: Tensor, batch: int, pos: int) -> Tensor:
        return self.inner.gradient(tensor, batch, pos)

    def settled(self, tensor: Tensor) -> Tensor:
        return tensor.clamp(-self.limit, self.limit)


Side = Literal["in", "out", "core", "router", "expert", "root"]


@dataclass(frozen=True)
class Tap:
    """One site's place: a side of a module and a layout.

    `side`: "in" and "out" are the module's first input and output; "core" is inside the attention module (scores,
    pattern, rotated queries and keys), "router" and "expert" inside a mixture of experts, "root" the model's logits.
    """

    module: nn.Module
    side: Side
    layout: Layout = Plain()
    in_place: bool = False
    """Later code holds this very tensor (a residual stream), so an edit must write into it."""
    copy: bool = False
    """Later code overwrites this tensor, so a read must be a copy."""
