"""Edits that do the same to different units of one tensor, made ready together and applied to all their rows at once.

A map of neurons is tens of thousands of edits such as "zero neuron n of layer l": one by one, making them ready and
applying them takes as long as the model does. Where an operation looks at each unit alone, doing it to the whole tensor
and keeping each row's own unit is the same, bit by bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.model.edit_target import ATTENTION
from trimtab.model.edits import Compiled, Compiler
from trimtab.model.frame import Frame
from trimtab.values.edit import Edit, Ref
from trimtab.values.site import Site

BY_UNIT = ("set", "add", "scale")
"""Operations that give each unit a value from that unit alone."""
APART = (*ATTENTION, "rot_q", "rot_k", "router", "expert", "expert.neuron", "final", "logits")
"""Sites that are not edited as (batch pos unit …) inside one module's own tensor."""


@dataclass
class Alike:
    """One operation on a whole tensor, and the unit that each of its edits means by it."""

    whole: Compiled
    units: Mapping[int, int]
    """Number of the edit -> unit."""

    def moved(self, x: Tensor, frame: Frame) -> Tensor:
        """(batch pos unit) where the edit of each unit changes the tensor (batch pos unit …) at all."""
        apart = self._by_unit(self.whole.apply(x, frame) != x)
        return apart if apart.ndim == 3 else apart.flatten(3).any(-1)

    def apply(self, x: Tensor, frame: Frame, units: Tensor) -> Tensor:
        """The tensor (batch pos unit …) with one unit of each row (batch) edited."""
        rows = torch.arange(len(x), device=x.device)
        out = self._by_unit(x).clone()
        out[rows, :, units] = self._by_unit(self.whole.apply(x, frame))[rows, :, units]
        return out.view_as(x)

    def _by_unit(self, x: Tensor) -> Tensor:
        """The tensor with the edits' units as its third axis: attention neurons are the heads' channels."""
        return x.flatten(2) if self.whole.edit.site.name == "attn_neuron" else x


def alike(edits: Sequence[Edit], compiler: Compiler) -> tuple[list[Alike], set[int]]:
    """The edits that go together, two or more, and the numbers of all of these."""
    families: dict[Hashable, dict[int, int]] = defaultdict(dict)
    for number, edit in enumerate(edits):
        key = _key(edit)
        if key is not None and edit.site.index is not None:
            families[key][number] = edit.site.index[0]
    found: list[Alike] = []
    together: set[int] = set()
    for members in families.values():
        first = edits[next(iter(members))]
        site = first.site.with_(index=None)
        shape = compiler.shape(compiler.resolve(site))
        value = _whole_value(first, {members[n]: edits[n] for n in members}, len(members), shape)
        if len(members) < 2 or max(members.values()) >= shape[0] or value is None:
            continue  # one by one, also where a unit does not exist, which is for the compiler to say
        whole = compiler(first.with_(site=site, value=value))
        if whole is not None:
            found.append(Alike(whole, members))
            together |= members.keys()
    return found, together


def _key(edit: Edit) -> Hashable:
    """What edits have in common that go together; None for one that goes with no other."""
    site: Site = edit.site
    if edit.op not in BY_UNIT or edit.when is not None or site.index is None or len(site.index) != 1:
        return None
    if site.name in APART or site.view is not None or site.input is not None or site.alias is not None:
        return None
    value = edit.value
    if isinstance(value, Ref):
        kind: Hashable = value if value.site is None else None
    elif isinstance(value, np.ndarray):
        kind = value.shape
    else:
        kind = value if isinstance(value, float | int) else None
    return None if kind is None else (site.name, site.layer, edit.op, kind, edit.where, edit.strength, edit.rows)


def _whole_value(
    first: Edit, by_unit: Mapping[int, Edit], members: int, shape: tuple[int, ...]
) -> float | int | Ref | np.ndarray | None:
    """The value for the whole tensor; None where arrays do not fit one unit each, or two are for the same unit."""
    if not isinstance(first.value, np.ndarray):
        return first.value  # pyright: ignore[reportReturnType]
    if first.value.shape != (1, *shape[1:]) or len(by_unit) < members:
        return None
    value = np.zeros(shape, first.value.dtype)
    for unit, edit in by_unit.items():
        if unit >= len(value):
            return None
        assert isinstance(edit.value, np.ndarray)
        value[unit] = edit.value[0]
    return value
