"""Edits compiled against prompts: the pure functions behind each operation, and the weights of rows and positions.

At a site, x becomes where(w != 0, x + w·(op(x) − x), x): exactly x where nothing applies, exactly op(x) where w is one.
The weight w (batch pos) is strength × scope × rows × condition. This file knows tensors and frames; it does not know
where in a model a site is, nor who calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import EditError
from trimtab.model.frame import Frame
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.values.edit import Affine, Bounds, Condition, Edit, Noise, Probe, Ref, Rotation
from trimtab.values.scope import Scope
from trimtab.values.site import Site

ATTENTION = ("scores", "pattern")
"""Sites (batch pos head key): a number for each key, which no vector of the site's units has."""

Op = Callable[[Tensor, Tensor | None, Frame], Tensor]
"""(x: batch pos unit …, w: batch pos 1 … or None for one, frame) -> edited x."""


class Source(Protocol):
    """What an edit needs of another run: its prompts and its activations at a site (batch pos …)."""

    @property
    def prompts(self) -> Prompts:
        """What was run."""
        ...

    def whole(self, site: Site) -> Tensor:
        """A whole site, (batch pos unit …)."""
        ...


def blend(x: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """x where w is 0, y where w is 1, x + w·(y − x) between; w None is one everywhere."""
    if w is None:
        return y
    if w.dtype == torch.bool:
        return torch.where(w, y, x)
    return torch.where(w == 0, x, torch.where(w == 1, y, x + w * (y - x)))


def _wide(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _blend_wide(x: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """`blend` of x with what was computed of `_wide(x)`, in that type, and then in that of x."""
    w = w if w is None or w.dtype == torch.bool else w.to(y.dtype)
    return blend(x.to(y.dtype), y, w).to(x.dtype)


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


@dataclass
class Weight:
    """The weight of an edit at each row and column.

    `table` (rows width) covers the prompt: booleans when every weight is 0 or 1. `scale` (rows) is the strength, needed
    again for columns beyond the prompt. `everywhere` marks strength one, every row, every position.
    """

    scope: Scope
    table: Tensor
    scale: Tensor
    everywhere: bool
    condition: Condition | None
    largest: float = 1.0
    """The largest strength, without its sign."""
    prompt_only: bool = False
    """The value has an entry for each column of the prompt, so there is none for what is generated."""

    def __call__(self, frame: Frame) -> Tensor | None:
        """(batch pos), or None for one everywhere."""
        width = frame.prompts.width
        beyond = self.prompt_only and frame.stop > width
        if self.everywhere and self.condition is None and not beyond:
            return None
        parts = []
        if frame.start < width:
            parts.append(frame.of_rows(self.table[:, frame.start : min(frame.stop, width)]))
        if frame.stop > width:
            start = max(frame.start, width)
            ids = None if frame.ids is None else frame.ids[:, start : frame.stop]
            covered = frame.prompts.columns(self.scope, start, frame.stop, ids=ids) if frame.rows is None else None
            assert covered is not None, "generated columns are only seen in whole batches"
            covered = torch.zeros_like(covered) if self.prompt_only else covered
            parts.append(_table(covered, self.scale))
        w = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if self.condition is None:
            return w
        decided = frame.of_rows(frame.held[self.condition])[:, None]
        return w & decided if w.dtype == torch.bool else w * decided


@dataclass
class Compiled:
    """An edit ready to be applied to the tensor of its site, again and again, whatever frame is shown."""

    edit: Edit
    site: Site
    index: Tensor | slice | None
    weight: Weight
    op: Op

    def apply(self, x: Tensor, frame: Frame) -> Tensor:
        """The edited tensor (batch pos unit …)."""
        if self.index is None:
            return self._part(x, frame)
        out = x.clone()
        out[:, :, self.index] = self._part(x[:, :, self.index], frame)
        return out

    def moved(self, x: Tensor, frame: Frame) -> Tensor:
        """(batch pos) where this edit changes the tensor at all."""
        part = x if self.index is None else x[:, :, self.index]
        return (self._part(part, frame) != part).flatten(2).any(-1)

    def _part(self, part: Tensor, frame: Frame) -> Tensor:
        w = self.weight(frame)
        if w is not None:
            w = w.to(part.device)
            if w.dtype != torch.bool:
                check_range(self.edit, "the strength", self.weight.largest, part)
                w = w.to(part.dtype)
            w = w.view(*w.shape, *[1] * (part.ndim - 2))
        return self.op(part, w, frame)


@dataclass
class Compiler:
    """Turns edits into compiled ones for given prompts, runs and dictionaries.

    `shape(site)` is the shape after `batch pos` of the site's tensor. `given` are the prompts as the caller has them,
    where these are the same ones padded on the left: arrays with an entry for each column follow the caller's columns.
    """

    prompts: Prompts
    runs: Mapping[str, Source]
    dictionaries: Mapping[str, Dictionary]
    device: torch.device
    dtype: torch.dtype
    shape: Callable[[Site], tuple[int, ...]]
    resolve: Callable[[Site], Site]
    given: Prompts | None = None

    def __call__(self, edit: Edit) -> Compiled | None:
        """The compiled edit, or None when it can change nothing (strength zero)."""
        site = self.resolve(edit.site)
        weight = self.weigh(edit)
        if weight is None:
            return None
        if edit.when is not None and self.resolve(edit.when.site).depth >= site.depth:
            raise EditError(
                f"{edit}: the condition reads {edit.when.site}, which is not computed before {site}; choose an earlier "
                "site for the condition, or read it in a first run and give the edit rows="
            )
        if site.view is not None:
            if site.name in ATTENTION:
                raise EditError(f"{edit}: {site.base} has as many entries as there are keys, which no dictionary has")
            self._dictionary(edit, site)
        weight.prompt_only = self.for_each_column(edit, site)
        index = _index(site, self.device)
        if site.view is None:
            return Compiled(edit, site, index, weight, self.operation(edit, site))
        return Compiled(edit, site.base, None, weight, self._through_dictionary(edit, site, index))

    def weigh(self, edit: Edit) -> Weight | None:
        """The weights of an edit's rows and columns; None when they are all zero."""
        n = self.prompts.batch
        strength = torch.as_tensor(edit.strength, dtype=torch.float64)
        if strength.ndim and len(strength) != n:
            raise EditError(f"{edit}: {len(strength)} strengths for {n} rows; give one number, or one for each row")
        scale = strength.expand(n).clone()
        if edit.rows is not None:
            bad = [row for row in edit.rows if not 0 <= row < n]
            if bad:
                raise EditError(f"{edit}: row {bad[0]} is out of range; the prompts have rows 0 to {n - 1}")
            chosen = torch.zeros(n, dtype=torch.bool)
            chosen[list(edit.rows)] = True
            scale = torch.where(chosen, scale, 0.0)
        if not bool((scale != 0).any()):
            return None
        everywhere = edit.where.kind == "all" and bool((scale == 1).all()) and bool(self.prompts.mask.all())
        covered = self.prompts.columns(edit.where).cpu()
        table = (
            covered & (scale == 1)[:, None] if bool(((scale == 0) | (scale == 1)).all()) else covered * scale[:, None]
        )
        largest = float(scale.abs().max())
        return Weight(edit.where, table.to(self.device), scale.to(self.device), everywhere, edit.when, largest)

    def for_each_column(self, edit: Edit, site: Site) -> bool:
        """Whether a value is an array, or another run's values, with an entry for each column of the prompt."""
        if isinstance(edit.value, Ref):
            return True
        if not isinstance(edit.value, np.ndarray) or edit.value.ndim < 2:
            return False
        if site.name in ATTENTION and edit.value.ndim == 4:
            return True
        return edit.value.ndim == len(self._unit_shape(site)) + 2 and edit.value.shape[1] == self.prompts.width > 1

    def operation(self, edit: Edit, site: Site) -> Op:
        """The function behind an edit's operation and value."""
        value = edit.value
        if site.name in ATTENTION and edit.op in ("rotate", "affine", "gradient"):
            raise EditError(
                f"{edit}: {edit.op} turns vectors, and {site.whole} holds a number for each key; "
                "use set, add, scale, clamp or noise"
            )
        match edit.op, value:
            case "set", Ref():
                return _set(self._from_run(edit, site, value))
            case "add", Ref():
                return _add(self._from_run(edit, site, value))
            case "set", float() | int() | np.ndarray():
                return _set(self._placed(edit, site, value))
            case "add", float() | int() | np.ndarray():
                return _add(self._placed(edit, site, value))
            case "scale", float() | int() | np.ndarray():
                factor = self._placed(edit, site, value)
                return lambda x, w, frame: blend(x, x * factor(x, frame), w)
            case "clamp", Bounds():
                return self._clamp(edit, value)
            case "rotate", Rotation():
                return self._rotate(edit, site, value)
            case "affine", Affine():
                return self._affine(edit, site, value)
            case "noise", Noise():
                return _add(self._noise(edit, site, value))
            case "gradient", Probe():
                return self._gradient(edit, site, value)
        raise EditError(f"{edit}: {edit.op} does not take a value of type {type(value).__name__}")

    # Values
    # ------------------------------------------------------------------------------------------------------------

    def tensor(self, array: np.ndarray | float) -> Tensor:
        """A number or array as a tensor of the model's kind."""
        return torch.as_tensor(np.array(array), dtype=self.dtype, device=self.device)

    def _unit_shape(self, site: Site) -> tuple[int, ...]:
        shape = self.shape(site)
        if site.view is not None:
            shape = (math.prod(shape),)  # heads side by side
        if site.view == "feature":
            x = torch.zeros(1, 1, *shape, dtype=self.dtype, device=self.device)
            shape = (self.dictionaries[site.dictionary or ""].encode(x).shape[-1],)
        return shape if site.index is None else (len(site.index), *shape[1:])

    def _placed(self, edit: Edit, site: Site, value: np.ndarray | float) -> Callable[[Tensor, Frame], Tensor]:
        """A value that fits the site's units, one row each, or rows and positions."""
        tensor, shape = self.tensor(value), self._unit_shape(site)
        n, width = self.prompts.batch, self.prompts.width
        if site.name in ATTENTION and tensor.ndim == 4:
            return self._attention_placed(edit, site, tensor)
        full = tensor.ndim == len(shape) + 2 and tensor.shape[0] in (1, n) and tensor.shape[1] in (1, width)
        rows = tensor.ndim == len(shape) + 1 and tensor.shape[0] in (1, n)
        core = tensor.shape[2:] if full else tensor.shape[1:] if rows else tensor.shape
        if len(core) > len(shape) or any(a not in (1, b) for a, b in zip(core[::-1], shape[::-1], strict=False)):
            raise EditError(
                f"{edit}: value must have a shape that fits {site}, {_form(shape)} (or with batch, or batch and pos, "
                f"in front: {_form((n, width, *shape))}); got {_form(tuple(tensor.shape))}"
            )
        if site.name in ATTENTION:
            tensor = tensor.unsqueeze(-1) if tensor.ndim else tensor  # one number for each head, the same for every key
        tensor = self._columns_moved(tensor) if full else tensor
        # a score may be −∞, that of a key which is not seen
        largest = float(np.max(value if site.name == "scores" else np.abs(value)))

        def placed(x: Tensor, frame: Frame) -> Tensor:
            check_range(edit, "the value", largest, x)
            found = _window(tensor, frame) if full else _rows(tensor, frame).unsqueeze(1) if rows else tensor
            return found.to(x.device, x.dtype)

        return placed

    def _attention_placed(self, edit: Edit, site: Site, tensor: Tensor) -> Callable[[Tensor, Frame], Tensor]:
        """Attention values as they are read, (batch|1 head query key)."""
        n, width = self.prompts.batch, self.prompts.width
        shape = (n, *self._unit_shape(site), width, width)
        if (
            any(a not in (1, b) for a, b in zip(tensor.shape[:2], shape[:2], strict=True))
            or tensor.shape[2:] != shape[2:]
        ):
            raise EditError(
                f"{edit}: values for each query and key must have a shape that fits {site}, {_form(shape)} (batch head "
                f"query key); got {_form(tuple(tensor.shape))}"
            )
        queries = self._columns_moved(tensor.transpose(1, 2))
        return _of_columns(self._columns_moved(queries.transpose(1, 3)).transpose(1, 3), site)

    def _columns_moved(self, values: Tensor) -> Tensor:
        """Values (rows|1 width|1 …) in the order of these prompts' columns, from that of the caller's."""
        n, width = self.prompts.batch, self.prompts.width
        if self.given is None or self.given.side == self.prompts.side or values.shape[1] == 1:
            return values
        columns = (torch.arange(width) + self.given.lengths.cpu()[:, None]) % width
        return values.expand(n, *values.shape[1:])[torch.arange(n)[:, None], columns]

    def _from_run(self, edit: Edit, site: Site, ref: Ref) -> Callable[[Tensor, Frame], Tensor]:
        """Another run's activations, moved to the columns that this edit covers."""
        if ref.run not in self.runs:
            have = ", ".join(sorted(self.runs)) or "none"
            raise EditError(
                f'{edit}: no run named "{ref.run}" was given (runs: {have}); pass runs={{"{ref.run}": run}}'
            )
        source = self.runs[ref.run]
        origin = self.resolve(ref.site) if ref.site is not None else site
        values = source.whole(origin.base.whole)
        if origin.view is not None:
            dictionary = self._dictionary(edit, origin)
            values = values.flatten(2)
            features = dictionary.encode(values)
            values = features if origin.view == "feature" else values - dictionary.decode(features)
        if origin.index is not None:
            values = values[:, :, torch.as_tensor(origin.index, device=values.device)]
        shape = self._unit_shape(site)
        if site.name in ATTENTION:
            _check_heads(edit, origin, values, site, shape[0])
        elif tuple(values.shape[2:]) != shape:
            raise EditError(f"{edit}: {origin} has units {_form(tuple(values.shape[2:]))}, {site} has {_form(shape)}")
        if len(values) not in (1, self.prompts.batch):
            raise EditError(f'{edit}: run "{ref.run}" has {len(values)} rows, the prompts have {self.prompts.batch}')
        values = self._aligned(edit, ref, source.prompts, values)
        return _of_columns(values, site)

    def _aligned(self, edit: Edit, ref: Ref, origin: Prompts, values: Tensor) -> Tensor:
        """Values (rows pos …) with each row's source positions moved to its target columns."""
        mine = self.prompts.positions(edit.where)
        theirs = origin.positions(ref.at or edit.where)
        if len(theirs) == 1:
            theirs = theirs * len(mine)
        attention = edit.site.name in ATTENTION
        same = mine == theirs and values.shape[1] == self.prompts.width
        if same and not (attention and not torch.equal(origin.mask.cpu(), self.prompts.mask.cpu())):
            return values
        if attention:
            values = self._keys_moved(edit, origin, values)
        out = values.new_zeros(len(mine), self.prompts.width, *values.shape[2:])
        here, there = self.prompts.start.tolist(), origin.start.tolist()
        for row, (to, at) in enumerate(zip(mine, theirs, strict=True)):
            if len(at) not in (1, len(to)):
                raise EditError(
                    f'{edit}: row {row} has {len(to)} positions to set and run "{ref.run}" has {len(at)} there; '
                    "compare prompts of different length by one position, or by a span with the same number of tokens"
                )
            source = row if len(values) > 1 else 0
            if to:
                out[row, to] = values[source, at]
            if to and edit.site.name == "scores":
                moved = [column - here[row] + there[source] for column in to]
                _check_keys(edit, row, values[source], at, moved)
        return out

    def _keys_moved(self, edit: Edit, origin: Prompts, values: Tensor) -> Tensor:
        """Attention values (rows query head key) with each row's keys in the columns of these prompts."""
        mine, theirs = self.prompts.positions("prompt"), origin.positions("prompt")
        out = values.new_zeros(len(mine), *values.shape[1:3], self.prompts.width)
        if edit.site.name == "scores":
            out += torch.finfo(out.dtype).min
        for row, to in enumerate(mine):
            at = theirs[row if len(theirs) > 1 else 0]
            if len(at) != len(to):
                raise EditError(
                    f"{edit}: row {row} attends to {len(to)} tokens and the run it takes values from to {len(at)}; "
                    "attention is patched between prompts of the same length"
                )
            out[row][:, :, to] = values[row if len(values) > 1 else 0][:, :, at]
        return out

    def _noise(self, edit: Edit, site: Site, noise: Noise) -> Callable[[Tensor, Frame], Tensor]:
        """Gaussian noise that depends on seed, site, row and position alone: not on padding, caching or other rows.

        In attention it is (head key) for each query, whose keys are its own position and those before.
        """
        shape, width, keyed = self._unit_shape(site), self.prompts.width, site.name in ATTENTION
        sigma = torch.as_tensor(np.array(noise.sigma), dtype=torch.float64)
        if sigma.ndim and tuple(sigma.shape) != shape:
            raise EditError(
                f"{edit}: Noise.sigma must be one number, or have the shape of {site}, {_form(shape)}; got "
                f"{_form(tuple(sigma.shape))}"
            )
        name = crc32(str(site).encode())
        covered = self.prompts.columns(edit.where).tolist()
        first, lengths = self.prompts.start.tolist(), self.prompts.lengths.tolist()

        def entry(row: int, column: int) -> Tensor:
            drawn = torch.zeros(*shape, *[column + 1] * keyed, dtype=torch.float64)
            if column < width and not covered[row][column]:
                return drawn
            length = lengths[row]
            position = column - first[row] if column < width else length + column - width
            seed = ((noise.seed * 1_000_003 + name) * 1_000_003 + row) * 1_000_003 + position
            generator = torch.Generator().manual_seed(seed % (1 << 63))
            size = (*shape, *[position + 1] * keyed)
            values = torch.randn(size, generator=generator, dtype=torch.float64) * (
                sigma[..., None] if keyed else sigma
            )
            if not keyed:
                return values
            own = min(position + 1, length)
            drawn[..., first[row] : first[row] + own] = values[..., :own]
            drawn[..., width : width + position + 1 - own] = values[..., own:]
            return drawn

        @cache
        def column(c: int) -> Tensor:
            return torch.stack([entry(row, c) for row in range(self.prompts.batch)])

        largest = float(sigma.max())

        def draw(x: Tensor, frame: Frame) -> Tensor:
            check_range(edit, "Noise.sigma", largest, x)
            columns = [column(c) for c in range(frame.start, frame.stop)]
            if keyed:
                columns = [_of_keys(values, frame, x.shape[-1]) for values in columns]
            return frame.of_rows(torch.stack(columns, dim=1).to(x.device, x.dtype))

        return draw

    # Operations that need more than one array
    # ----------------------------------------------------------------------------

    def _last(self, edit: Edit, site: Site, array: np.ndarray, name: str) -> Tensor:
        width = self._unit_shape(site)[-1]
        if array.shape[-1] != width:
            raise EditError(
                f"{edit}: {name} must have {width} columns, the last axis of {site}; got shape {array.shape}"
            )
        return self.tensor(array)

    def _clamp(self, edit: Edit, value: Bounds) -> Op:
        reached = max(0.0 if value.low is None else value.low, 0.0 if value.high is None else -value.high)

        def clamp(x: Tensor, w: Tensor | None, frame: Frame) -> Tensor:
            check_range(edit, "a bound", reached, x)
            most = torch.finfo(x.dtype).max  # a bound beyond it bounds nothing, and torch refuses it
            low, high = (None if b is None else min(max(b, -most), most) for b in (value.low, value.high))
            return blend(x, x.clamp(low, high), w)

        return clamp

    def _rotate(self, edit: Edit, site: Site, value: Rotation) -> Op:
        b1 = self._last(edit, site, value.b1, "b1")
        b2 = self._last(edit, site, value.b2, "b2")

        def rotate(x: Tensor, w: Tensor | None, frame: Frame) -> Tensor:
            h = _wide(x)
            one, two = b1.to(h), b2.to(h)
            p, q = h @ one, h @ two
            angle = torch.atan2(q, p)
            turn = torch.remainder(value.angle - angle + math.pi, 2 * math.pi) - math.pi
            if w is not None:
                turn = turn * w.squeeze(-1)
            radius, angle = torch.hypot(p, q), angle + turn
            new_p, new_q = radius * torch.cos(angle), radius * torch.sin(angle)
            y = h + (new_p - p)[..., None] * one + (new_q - q)[..., None] * two
            return (y if w is None else torch.where(w == 0, h, y)).to(x.dtype)

        return rotate

    def _affine(self, edit: Edit, site: Site, value: Affine) -> Op:
        a = None if value.A is None else self._last(edit, site, value.A, "A")
        b = None if value.B is None else self._last(edit, site, value.B, "B")
        c = None if value.c is None else self._last(edit, site, value.c, "c")
        scale = None if value.scale is None else self._last(edit, site, value.scale, "scale")
        within = None if value.within is None else self._last(edit, site, value.within, "within")

        def affine(x: Tensor, w: Tensor | None, frame: Frame) -> Tensor:
            h = _wide(x)  # ωh and c are large, and nearly cancel: half types would round each of them
            y = h if scale is None else h * scale.to(h)
            if a is not None and b is not None:
                y = y + (h @ a.to(h).T) @ b.to(h)
            if c is not None:
                y = y + c.to(h)
            if within is not None:
                low, high = within.to(h)
                y = torch.where((h >= low) & (h <= high), y, h)
            return _blend_wide(x, y, w)

        return affine

    def _gradient(self, edit: Edit, site: Site, value: Probe) -> Op:
        weight, bias = self._last(edit, site, value.weight, "weight"), self.tensor(value.bias)

        def descend(x: Tensor, w: Tensor | None, frame: Frame) -> Tensor:
            h = _wide(x)
            m, b = weight.to(h), bias.to(h)
            return _blend_wide(x, h - value.step * (probe_slope(h @ m.T + b, value) @ m), w)

        return descend

    def _dictionary(self, edit: Edit, site: Site) -> Dictionary:
        name = site.dictionary or ""
        if name not in self.dictionaries:
            have = ", ".join(sorted(self.dictionaries)) or "none"
            raise EditError(f'{edit}: no dictionary named "{name}" was given (dictionaries: {have})')
        return self.dictionaries[name]

    def _through_dictionary(self, edit: Edit, site: Site, index: Tensor | slice | None) -> Op:
        dictionary = self._dictionary(edit, site)
        units = self._unit_shape(site.with_(index=None))[-1]
        if site.index is not None and max(site.index) >= units:
            raise EditError(
                f"{edit}: {site.unit} {max(site.index)} is out of range; there are {site.unit}s 0 to {units - 1}"
            )
        inner = self.operation(edit, site)

        def through(x: Tensor, w: Tensor | None, frame: Frame) -> Tensor:
            heads, x = x, x.flatten(2)
            features = dictionary.encode(x)
            seen = features if site.view == "feature" else x - dictionary.decode(features)
            w = w if w is None else w.view(*w.shape[:2], 1)
            if index is None:
                new = inner(seen, w, frame)
            else:
                new = seen.clone()
                new[:, :, index] = inner(seen[:, :, index], w, frame)
            changed = dictionary.decode(new) - dictionary.decode(seen) if site.view == "feature" else new - seen
            return torch.where((new != seen).any(-1, keepdim=True), x + changed, x).view_as(heads)

        return through


def probe_slope(z: Tensor, probe: Probe) -> Tensor:
    """(… class) the gradient of a probe's loss with respect to its logits z (… class)."""
    each = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    wanted, unwanted = (each[list(classes)] for classes in (probe.targets, probe.avoid))
    if probe.loss == "sigmoid":
        p = torch.sigmoid(z)
        slope = (p - 1) * wanted.mean(0) if len(wanted) else torch.zeros_like(z)
        return slope + p * unwanted.mean(0) if len(unwanted) else slope
    p = torch.softmax(z, dim=-1)
    slope = p - wanted.mean(0) if len(wanted) else torch.zeros_like(z)
    for one in unwanted:  # −log(1 − p) without dividing by 1 − p, which rounds to zero
        others = torch.softmax(z.masked_fill(one.bool(), -torch.inf), dim=-1)
        slope = slope + (p * one).sum(-1, keepdim=True) * (one - others) / len(unwanted)
    return slope


def _table(covered: Tensor, scale: Tensor) -> Tensor:
    """(row column) weights from what the scope covers and each row's strength; booleans where all are 0 or 1."""
    scale = scale.to(covered.device)
    plain = bool(((scale == 0) | (scale == 1)).all())
    return covered & (scale == 1)[:, None] if plain else covered * scale[:, None]


def evaluate(condition: Condition, x: Tensor, frame: Frame) -> None:
    """Decide a condition for each row from its site's tensor (batch pos d), on the prompt; kept in the frame."""
    if frame.start != 0:
        return
    real = frame.real()
    if condition.site.at is not None:
        real = real & frame.of_rows(frame.prompts.columns(condition.site.at))[:, : real.shape[1]]
    real = real.to(x.device)
    x = x[:, : real.shape[1]]
    x = x.float() if x.dtype.itemsize < 4 else x  # a threshold is finer than half types are
    if condition.pool == "mean":
        state = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    else:
        last = (real * torch.arange(1, real.shape[1] + 1, device=x.device)).argmax(1)
        state = x[torch.arange(len(x), device=x.device), last]
    direction = torch.as_tensor(np.array(condition.direction), dtype=x.dtype, device=x.device)
    cosine = torch.nn.functional.cosine_similarity(state, direction[None], dim=-1)
    frame.held[condition] = cosine > condition.threshold if condition.above else cosine < condition.threshold


def _of_columns(values: Tensor, site: Site) -> Callable[[Tensor, Frame], Tensor]:
    """Values (rows|1 pos unit …) of the frame's rows and columns; attention values of the keys that it has in hand."""
    fill = torch.finfo(values.dtype).min if site.name == "scores" else 0.0

    def placed(x: Tensor, frame: Frame) -> Tensor:
        part = _window(values, frame)
        if site.name in ATTENTION:
            part = _of_keys(part, frame, x.shape[-1], fill)
        return part.to(x.device, x.dtype)

    return placed


def _of_keys(values: Tensor, frame: Frame, keys: int, fill: float = 0.0) -> Tensor:
    """Values (… column) of the `keys` columns up to the frame's last: a sliding window's cache has dropped the others.

    `fill` stands for columns that have no value: they were generated since.
    """
    first = frame.stop - keys
    part = values[..., first : frame.stop]
    return torch.nn.functional.pad(part, (0, keys - part.shape[-1]), value=fill)


def _check_heads(edit: Edit, origin: Site, values: Tensor, site: Site, heads: int) -> None:
    """`EditError` where another run's values (rows pos head key) are not attention of as many heads."""
    if values.ndim != 4 or origin.name not in ATTENTION:
        raise EditError(
            f"{edit}: {origin} has no keys, {site} has; take scores from scores and a pattern from a pattern"
        )
    if (own := values.shape[2]) != heads:
        raise EditError(f"{edit}: {origin} has {own} head{'s' * (own != 1)}, {site} has {heads}")


def _check_keys(edit: Edit, row: int, scores: Tensor, source: Sequence[int], target: Sequence[int]) -> None:
    """`EditError` where a query sees no key (of scores (query head key)) that the query it takes scores from sees."""
    seen = (scores > torch.finfo(scores.dtype).min / 2).any(1)
    alike = (seen[source] & seen[target]).any(-1)
    if not bool(alike.all()):
        raise EditError(
            f"{edit}: in row {row} a query sees none of the keys that have scores in the run it takes them from: a "
            "sliding window has left them behind; take scores from a position less than the window's width away"
        )


def _set(value: Callable[[Tensor, Frame], Tensor]) -> Op:
    def set_to(x: Tensor, w: Tensor | None, frame: Frame) -> Tensor:
        v = value(x, frame).expand_as(x)
        return (
            v.clone() if w is None else blend(x, v, w)
        )  # a model may write into what it is given: never the source itself

    return set_to


def _add(value: Callable[[Tensor, Frame], Tensor]) -> Op:
    def add(x: Tensor, w: Tensor | None, frame: Frame) -> Tensor:
        v = value(x, frame)
        if w is None:
            return x + v
        return torch.where(w != 0, x + w * v, x)

    return add


def _index(site: Site, device: torch.device) -> Tensor | slice | None:
    if site.index is None:
        return None
    first, last = site.index[0], site.index[-1]
    if site.index == tuple(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.as_tensor(site.index, device=device)


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


def _form(shape: tuple[int, ...]) -> str:
    return "(" + " ".join(str(n) for n in shape) + ")"
