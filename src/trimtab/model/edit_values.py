"""Numbers and arrays as the values of edits: for all tokens alike, one for each row, or one for each row and column.

Attention values have an entry for each key, and of these the ones that a forward pass has in hand.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import EditError
from trimtab.model.edit_target import Target, Value, check_range, form
from trimtab.model.frame import Frame
from trimtab.values.edit import Ref


def placed(target: Target, value: np.ndarray | float) -> Value:
    """A value that fits the site's units, with rows, or rows and positions, in front where it has those.

    `EditError` for one that does not fit.
    """
    edit, site, shape, prompts = target.edit, target.site, target.shape, target.prompts
    tensor, n, width = target.tensor(value), prompts.batch, prompts.width
    if target.keyed and tensor.ndim == 4:
        return _attention_placed(target, tensor)
    full = tensor.ndim == len(shape) + 2 and tensor.shape[0] in (1, n) and tensor.shape[1] in (1, width)
    rows = tensor.ndim == len(shape) + 1 and tensor.shape[0] in (1, n)
    core = tensor.shape[2:] if full else tensor.shape[1:] if rows else tensor.shape
    if len(core) > len(shape) or any(a not in (1, b) for a, b in zip(core[::-1], shape[::-1], strict=False)):
        raise EditError(
            f"{edit}: value must have a shape that fits {site}, {form(shape)} (or with batch, or batch and pos, "
            f"in front: {form((n, width, *shape))}); got {form(tuple(tensor.shape))}"
        )
    if target.keyed:
        tensor = tensor.unsqueeze(-1) if tensor.ndim else tensor  # one number for each head, the same for every key
    tensor = _columns_moved(target, tensor) if full else tensor
    # a score may be −∞, that of a key which is not seen
    largest = float(np.max(value if site.name == "scores" else np.abs(value)))

    def value_of(x: Tensor, frame: Frame) -> Tensor:
        check_range(edit, "the value", largest, x)
        found = _window(tensor, frame) if full else _rows(tensor, frame).unsqueeze(1) if rows else tensor
        return found.to(x.device, x.dtype)

    return value_of


def for_each_column(target: Target) -> bool:
    """Whether an edit's value is an array, or another run's values, with an entry for each column of the prompt."""
    value = target.edit.value
    if isinstance(value, Ref):
        return True
    if not isinstance(value, np.ndarray) or value.ndim < 2:
        return False
    if target.keyed and value.ndim == 4:
        return True
    return value.ndim == len(target.shape) + 2 and value.shape[1] == target.prompts.width > 1


def of_columns(target: Target, values: Tensor) -> Value:
    """Values (rows|1 pos unit …) of the frame's rows and columns; attention values of the keys that it has in hand."""
    fill, keyed = torch.finfo(values.dtype).min if target.site.name == "scores" else 0.0, target.keyed

    def value_of(x: Tensor, frame: Frame) -> Tensor:
        part = _window(values, frame)
        if keyed:
            part = of_keys(part, frame, x.shape[-1], fill)
        return part.to(x.device, x.dtype)

    return value_of


def of_keys(values: Tensor, frame: Frame, keys: int, fill: float = 0.0) -> Tensor:
    """Values (… column) of the `keys` columns up to the frame's last: a sliding window's cache has dropped the others.

    `fill` stands for columns that have no value: they were generated since.
    """
    first = frame.stop - keys
    part = values[..., first : frame.stop]
    return torch.nn.functional.pad(part, (0, keys - part.shape[-1]), value=fill)


def _attention_placed(target: Target, tensor: Tensor) -> Value:
    """Attention values as they are read, (batch|1 head query key)."""
    n, width = target.prompts.batch, target.prompts.width
    shape = (n, *target.shape, width, width)
    if any(a not in (1, b) for a, b in zip(tensor.shape[:2], shape[:2], strict=True)) or tensor.shape[2:] != shape[2:]:
        raise EditError(
            f"{target.edit}: values for each query and key must have a shape that fits {target.site}, {form(shape)} "
            f"(batch head query key); got {form(tuple(tensor.shape))}"
        )
    queries = _columns_moved(target, tensor.transpose(1, 2))
    return of_columns(target, _columns_moved(target, queries.transpose(1, 3)).transpose(1, 3))


def _columns_moved(target: Target, values: Tensor) -> Tensor:
    """Values (rows|1 width|1 …) in the order of these prompts' columns, from that of the caller's."""
    prompts, given = target.prompts, target.given
    if given is None or given.side == prompts.side or values.shape[1] == 1:
        return values
    n, width = prompts.batch, prompts.width
    columns = (torch.arange(width) + given.lengths.cpu()[:, None]) % width
    return values.expand(n, *values.shape[1:])[torch.arange(n)[:, None], columns]


def _window(values: Tensor, frame: Frame) -> Tensor:
    """(rows|1, width|1, …) -> the frame's rows and columns."""
    rows = values if len(values) == 1 else _rows(values, frame)
    if rows.shape[1] == 1:
        return rows
    part = rows[:, frame.start : frame.stop]
    if part.shape[1] == frame.length:
        return part
    pad = part.new_zeros(len(part), frame.length - part.shape[1], *part.shape[2:])
    return torch.cat([part, pad], dim=1)  # generated columns, which no edit with a value for each position covers


def _rows(values: Tensor, frame: Frame) -> Tensor:
    return values if len(values) == 1 else frame.of_rows(values)
