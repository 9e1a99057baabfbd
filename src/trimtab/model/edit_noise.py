"""Gaussian noise as the value of an edit: that of a token depends on seed, site, row and position alone.

Padding, caching, other rows and the order of passes change nothing, so a run can be made again in parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import EditError
from trimtab.model.edit_target import Target, Value, check_range, form
from trimtab.model.edit_values import of_keys
from trimtab.model.frame import Frame
from trimtab.values.edit import Noise


def drawn(target: Target, noise: Noise) -> Value:
    """Noise (unit …) of each token; in attention (head key) of each query, whose keys are its own position and those
    before. `EditError` where sigma does not fit the site."""
    sigma = torch.as_tensor(np.array(noise.sigma), dtype=torch.float64)
    if sigma.ndim and tuple(sigma.shape) != target.shape:
        raise EditError(
            f"{target.edit}: Noise.sigma must be one number, or have the shape of {target.site}, {form(target.shape)}; "
            f"got {form(tuple(sigma.shape))}"
        )
    largest, keyed, column = float(sigma.max()), target.keyed, _columns(target, noise.seed, sigma)

    def value_of(x: Tensor, frame: Frame) -> Tensor:
        check_range(target.edit, "Noise.sigma", largest, x)
        columns = [column(c) for c in range(frame.start, frame.stop)]
        if keyed:
            columns = [of_keys(values, frame, x.shape[-1]) for values in columns]
        return frame.of_rows(torch.stack(columns, dim=1).to(x.device, x.dtype))

    return value_of


def _columns(target: Target, seed: int, sigma: Tensor) -> Callable[[int], Tensor]:
    """The noise of a column, (rows unit …), drawn once; zero at prompt tokens that the edit does not cover.

    In attention it is (rows head column) up to the query's own: the keys of the prompt, then the generated ones.
    """
    prompts, width, keyed = target.prompts, target.prompts.width, target.keyed
    name = crc32(str(target.site).encode())
    covered = prompts.columns(target.edit.where).tolist()
    first, lengths = prompts.start.tolist(), prompts.lengths.tolist()

    def entry(row: int, column: int) -> Tensor:
        out = torch.zeros(*target.shape, *[column + 1] * keyed, dtype=torch.float64)
        if column < width and not covered[row][column]:
            return out
        length = lengths[row]
        position = column - first[row] if column < width else length + column - width
        own = ((seed * 1_000_003 + name) * 1_000_003 + row) * 1_000_003 + position
        generator = torch.Generator().manual_seed(own % (1 << 63))
        size = (*target.shape, *[position + 1] * keyed)
        values = torch.randn(size, generator=generator, dtype=torch.float64) * (sigma[..., None] if keyed else sigma)
        if not keyed:
            return values
        inside = min(position + 1, length)
        out[..., first[row] : first[row] + inside] = values[..., :inside]
        out[..., width : width + position + 1 - inside] = values[..., inside:]
        return out

    @cache
    def column(c: int) -> Tensor:
        return torch.stack([entry(row, c) for row in range(prompts.batch)])

    return column
