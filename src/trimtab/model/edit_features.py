"""Edits of what a dictionary makes of a site: of its sparse features, or of the part that they do not explain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trimtab.errors import EditError
from trimtab.model.frame import Frame
from trimtab.model.operations import Op
from trimtab.model.protocols import Dictionary
from trimtab.values.edit import Edit
from trimtab.values.site import Site


def dictionary_of(edit: Edit, site: Site, dictionaries: Mapping[str, Dictionary]) -> Dictionary:
    """The dictionary that a site is seen through; `EditError` where it was not given."""
    name = site.dictionary or ""
    if name not in dictionaries:
        have = ", ".join(sorted(dictionaries)) or "none"
        raise EditError(f'{edit}: no dictionary named "{name}" was given (dictionaries: {have})')
    return dictionaries[name]


def seen_through(dictionary: Dictionary, site: Site, x: Tensor) -> Tensor:
    """Features (batch pos feature) of a whole site's tensor (batch pos unit …), or what they miss of it."""
    x = x.flatten(2)  # heads side by side
    features = dictionary.encode(x)
    return features if site.view == "feature" else x - dictionary.decode(features)


def through(dictionary: Dictionary, site: Site, inner: Op) -> Op:
    """An operation on features or on what they miss as one on the site's tensor (batch pos unit).

    The tensor moves by the difference that the changed features make; where none changes, it is exactly what it was.
    """

    def edited(x: Tensor, w: Tensor | None, frame: Frame) -> Tensor:
        seen = seen_through(dictionary, site, x)
        new = inner(seen, w, frame)
        changed = dictionary.decode(new) - dictionary.decode(seen) if site.view == "feature" else new - seen
        return torch.where((new != seen).any(-1, keepdim=True), x + changed, x)

    return edited
