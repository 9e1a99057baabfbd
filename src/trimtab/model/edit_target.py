"""What an edit's value has to fit: the units of a site, the columns of prompts, and the numbers that a type holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import EditError
from trimtab.model.frame import Frame
from trimtab.model.prompts import Prompts
from trimtab.values.edit import Edit
from trimtab.values.site import Site

ATTENTION = ("scores", "pattern")
"""Sites (batch pos head key): a number for each key, which no vector of the site's units has."""

Value = Callable[[Tensor, Frame], Tensor]
"""(x: batch pos unit …, frame) -> an edit's value for these rows and columns, in the type and on the device of x."""


@dataclass(frozen=True, eq=False)
class Target:
    """An edit, and the tensor that it is of.

    `site` is where the model has it, `shape` (unit …) that of the edited units at one position. `given` are the prompts
    as the caller has them, where `prompts` are the same ones padded on the left: arrays with an entry for each column
    follow the caller's columns.
    """

    edit: Edit
    site: Site
    shape: tuple[int, ...]
    prompts: Prompts
    given: Prompts | None
    device: torch.device
    dtype: torch.dtype

    @property
    def keyed(self) -> bool:
        """Whether each unit has a number for each key."""
        return self.site.name in ATTENTION

    def tensor(self, array: np.ndarray | float) -> Tensor:
        """A number or array as a tensor of the model's kind."""
        return torch.as_tensor(np.array(array), dtype=self.dtype, device=self.device)

    def vectors(self, array: np.ndarray, name: str) -> Tensor:
        """Vectors (… unit) along the site's last axis; `name` says which they are. `EditError` for another width."""
        width = self.shape[-1]
        if array.shape[-1] != width:
            raise EditError(
                f"{self.edit}: {name} must have {width} columns, the last axis of {self.site}; got shape {array.shape}"
            )
        return self.tensor(array)


def tensor_of(site: Site) -> Site:
    """The whole site whose tensor is changed where this one is edited.

    Attention neurons are the channels of the heads: edits of both are edits of one tensor, and keep their order.

    >>> tensor_of(Site.parse("L1.attn_neuron[5]@-1"))
    Site.parse("L1.head")
    """
    whole = site.base.whole
    return whole.with_(name="head") if whole.name == "attn_neuron" else whole


def check_range(edit: Edit, what: str, largest: float, x: Tensor) -> None:
    """`EditError` where a finite number of this size is infinite in the type of a site's tensor."""
    most = torch.finfo(x.dtype).max
    if largest <= most or bool(torch.tensor(largest, dtype=torch.float64).to(x.dtype).isfinite()):
        return
    kind = str(x.dtype).removeprefix("torch.")
    raise EditError(
        f"{edit}: {what} goes up to {largest:g}, and {kind}, in which the site is computed, to {most:g} only: give a "
        "smaller one, or load the model as bfloat16 or float32"
    )


def form(shape: tuple[int, ...]) -> str:
    """A shape as errors write it.

    >>> form((2, 7, 32))
    '(2 7 32)'
    """
    return "(" + " ".join(str(n) for n in shape) + ")"
