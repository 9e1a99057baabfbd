"""Another run's activations as the value of an edit, moved from that run's positions to those that the edit covers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trimtab.errors import EditError
from trimtab.model.edit_features import dictionary_of, seen_through
from trimtab.model.edit_target import ATTENTION, Target, Value, form
from trimtab.model.edit_values import of_columns
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Source
from trimtab.values.edit import Edit, Ref
from trimtab.values.site import Site


def from_run(
    target: Target,
    ref: Ref,
    runs: Mapping[str, Source],
    dictionaries: Mapping[str, Dictionary],
    resolve: Callable[[Site], Site],
) -> Value:
    """A run's activations at the edit's site, or at the site that `ref` names, as the edit's value.

    `EditError` for a run or dictionary that was not given, and for units, rows or positions that do not match.
    """
    edit, site = target.edit, target.site
    if ref.run not in runs:
        have = ", ".join(sorted(runs)) or "none"
        raise EditError(f'{edit}: no run named "{ref.run}" was given (runs: {have}); pass runs={{"{ref.run}": run}}')
    source = runs[ref.run]
    origin = resolve(ref.site) if ref.site is not None else site
    values = source.whole(origin.base.whole)
    if origin.view is not None:
        values = seen_through(dictionary_of(edit, origin, dictionaries), origin, values)
    if origin.index is not None:
        values = values[:, :, torch.as_tensor(origin.index, device=values.device)]
    if target.keyed:
        _check_heads(target, origin, values)
    elif tuple(values.shape[2:]) != target.shape:
        raise EditError(f"{edit}: {origin} has units {form(tuple(values.shape[2:]))}, {site} has {form(target.shape)}")
    if len(values) not in (1, target.prompts.batch):
        raise EditError(f'{edit}: run "{ref.run}" has {len(values)} rows, the prompts have {target.prompts.batch}')
    return of_columns(target, _aligned(target, ref, source.prompts, values))


def _aligned(target: Target, ref: Ref, origin: Prompts, values: Tensor) -> Tensor:
    """Values (rows pos …) with each row's source positions moved to its target columns."""
    edit, prompts = target.edit, target.prompts
    mine, theirs = prompts.positions(edit.where), origin.positions(ref.at or edit.where)
    if len(theirs) == 1:
        theirs = theirs * len(mine)
    same = mine == theirs and values.shape[1] == prompts.width
    if same and not (target.keyed and not torch.equal(origin.mask.cpu(), prompts.mask.cpu())):
        return values
    if target.keyed:
        values = _keys_moved(target, origin, values)
    out = values.new_zeros(len(mine), prompts.width, *values.shape[2:])
    here, there = prompts.start.tolist(), origin.start.tolist()
    for row, (to, at) in enumerate(zip(mine, theirs, strict=True)):
        if len(at) not in (1, len(to)):
            raise EditError(
                f'{edit}: row {row} has {len(to)} positions to set and run "{ref.run}" has {len(at)} there; '
                "compare prompts of different length by one position, or by a span with the same number of tokens"
            )
        source = row if len(values) > 1 else 0
        if to:
            out[row, to] = values[source, at]
        if to and target.site.name == "scores":
            moved = [column - here[row] + there[source] for column in to]
            _check_keys(edit, row, values[source], at, moved)
    return out


def _keys_moved(target: Target, origin: Prompts, values: Tensor) -> Tensor:
    """Attention values (rows query head key) with each row's keys in the columns of the edit's prompts."""
    mine, theirs = target.prompts.positions("prompt"), origin.positions("prompt")
    out = values.new_zeros(len(mine), *values.shape[1:3], target.prompts.width)
    if target.site.name == "scores":
        out += torch.finfo(out.dtype).min
    for row, to in enumerate(mine):
        at = theirs[row if len(theirs) > 1 else 0]
        if len(at) != len(to):
            raise EditError(
                f"{target.edit}: row {row} attends to {len(to)} tokens and the run it takes values from to {len(at)}; "
                "attention is patched between prompts of the same length"
            )
        out[row][:, :, to] = values[row if len(values) > 1 else 0][:, :, at]
    return out


def _check_heads(target: Target, origin: Site, values: Tensor) -> None:
    """`EditError` where another run's values (rows pos head key) are not attention of as many heads."""
    edit, site, heads = target.edit, target.site, target.shape[0]
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
