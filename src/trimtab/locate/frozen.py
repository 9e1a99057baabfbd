"""A norm with its scale frozen: the linear map that it was for the vectors of one run.

A LayerNorm or an RMSNorm gives (x − m)·s·w + b, where only the mean m and the scale s depend on x. w and b, and
whether there is a mean, are found by applying the module to known vectors, so that no weight is read and Gemma's
(1 + w) and any epsilon need no rule of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.errors import ModelError

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}


class FrozenNorm:
    """y = (x − m)·s·w + b with s as it was for `x` (row d); without a module, the identity.

    `bias` (d) is b. Raises `ModelError` for a norm that is no such map.
    """

    def __init__(self, module: nn.Module | None, x: Tensor) -> None:
        self.module = module
        self.bias = torch.zeros_like(x[0])
        if module is None:
            return
        with torch.no_grad():
            d = x.shape[-1]
            self.bias = module(torch.zeros_like(x[:1]))[0]
            probe = torch.ones_like(x[:1])
            probe[:, 1::2] = -1.0
            if d % 2:
                probe[:, -1] = 0.0  # of mean zero
            self.weight = (module(probe)[0] - self.bias) * probe[0]  # times a constant, which the scale takes up
            shifted = module(probe + 3.0)[0]
            self.centred = _close(shifted, module(probe)[0])
            if d % 2:  # the entry that was zero says nothing of its weight
                other = probe.roll(1, -1)
                self.weight[-1] = ((module(other)[0] - self.bias) * other[0])[-1]
            self.weight = self.weight.cpu().double()  # in double precision from here on, which not every device has
            y, exact, bias = module(x), x.cpu().double(), self.bias.cpu().double()
            moved = (exact - exact.mean(-1, keepdim=True) if self.centred else exact) * self.weight
            out = y.cpu().double() - bias
            self.scale = (moved * out).sum(-1, keepdim=True) / (moved * moved).sum(-1, keepdim=True).clamp(min=1e-30)
            if not _close((moved * self.scale + bias).to(y.dtype), y.cpu()):
                raise ModelError(
                    f"{type(module).__name__} is neither a LayerNorm nor an RMSNorm: with its scale frozen it is not "
                    "linear, so logits do not split into terms"
                )

    def __call__(self, x: Tensor) -> Tensor:
        """What the norm gives for the vectors that it was frozen at."""
        return x if self.module is None else self.module(x)

    def back(self, direction: Tensor) -> Tensor:
        """The direction (row d) whose product with x is that of `direction` with y − b: on the CPU, in float64."""
        if self.module is None:
            return direction.cpu().double()
        turned = direction.cpu().double() * self.weight * self.scale
        return turned - turned.mean(-1, keepdim=True) if self.centred else turned


def _close(a: Tensor, b: Tensor) -> bool:
    limit = TOLERANCE.get(a.dtype, 1e-4)
    return float((a - b).abs().max()) <= limit * float(b.abs().max())
