"""The base run of the engine: what is kept of it, and how a block is run again on a suffix of some rows.

Each block's arguments are captured once from a real forward pass of the model. To run a block on the columns from p
on, position embeddings and ids are cut to those columns, the mask to those queries, and the cache is an object that
puts the base run's keys and values of the columns before p in front of the new ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from trimtab.errors import ModelError
from trimtab.model.hooks import Step
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Source
from trimtab.model.run import Stop, reader
from trimtab.model.steps import Edits
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

PLAIN = (type(None), bool, int, float, str)
CORE = ("rot_q", "rot_k", "scores", "pattern")
BY_ROW = {"position_ids": 0, "position_embeddings": 0}


@dataclass
class Prefix:
    """Stands for a cache: the base run's keys and values before column `start`, in front of those of a suffix."""

    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    start: int
    rows: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keys and values of all columns, from those of the suffix (row head pos d_head)."""
        if self.start == 0:
            return key, value
        return self._join(self.keys[layer_idx], key), self._join(self.values[layer_idx], value)

    def _join(self, base: Tensor, new: Tensor) -> Tensor:
        head = base[:, :, : self.start].to(new.device)
        head = head.expand(len(new), -1, -1, -1) if self.rows is None else head[self.rows.to(head.device)]
        return torch.cat([head, new], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before the suffix."""
        return self.start


@dataclass
class BaseRun:
    """Activations of the base run, and what its blocks were called with."""

    lm: LM
    prompts: Prompts
    activations: dict[Site, Tensor]
    calls: list[dict[str, Any]]
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def whole(self, site: Site) -> Tensor:
        """(batch pos unit …) of a whole site."""
        if site.name not in ("final", "logits"):
            return self.activations[site]
        final = self.lm.final(self.activations[Site("resid_post", self.lm.anatomy.n_layers - 1)])
        return final if site.name == "final" else self.lm.unembed(final)

    def suffix(self, name: str, layer: int, rows: Tensor, start: int) -> Tensor:
        """A copy of a site's columns from `start` on, in the module's own shape (row pos d)."""
        values = self.activations[Site(name, layer)].flatten(2)[:, start:]
        return values[rows.to(values.device)]

    def block(self, layer: int, hidden: Tensor, rows: Tensor, start: int) -> Tensor:
        """The block's output for `hidden` (row pos d_model), the columns from `start` on of some rows."""
        many = rows if self.prompts.batch > 1 else None
        call = self.calls[layer]
        cache_name = self.lm.anatomy.family.cache
        arguments = {
            name: self._cut(name, value, many, start, len(hidden)) for name, value in call.items() if name != cache_name
        }
        arguments[cache_name] = Prefix(self.keys, self.values, start, many)
        if "attention_mask" in call:
            arguments["attention_mask"] = self._mask(call["attention_mask"], many, start, hidden)
        output = self.lm.anatomy.blocks[layer].module(hidden, **arguments)
        return output[0] if isinstance(output, tuple) else output

    def _cut(self, name: str, value: Any, rows: Tensor | None, start: int, n: int) -> Any:
        if isinstance(value, PLAIN) or name == "attention_mask":
            return value
        if name == "position_embeddings":
            return tuple(self._cut("position_ids", part, rows, start, n) for part in value)
        if name == "position_ids":
            return value[:, start:] if rows is None or len(value) == 1 else value[rows.to(value.device), start:]
        if name == "alibi":  # (batch·head, 1, key) or (batch, head, 1, key): whole keys, so only rows are chosen
            heads = self.lm.anatomy.n_heads
            shaped = value.view(self.prompts.batch, heads, 1, -1)
            shaped = shaped.expand(n, -1, -1, -1) if rows is None else shaped[rows.to(value.device)]
            return shaped.reshape(n * heads, *value.shape[1:]) if value.ndim == 3 else shaped
        raise ModelError(
            f"a block was called with {name}={type(value).__name__}, which the engine does not know how to cut"
        )

    def _mask(self, mask: Tensor | None, rows: Tensor | None, start: int, hidden: Tensor) -> Tensor | None:
        width = self.prompts.width
        if mask is None:
            if start == 0 or hidden.shape[1] == 1:
                return None  # causal by the attention kernel's own rule; one last query sees every key
            return torch.ones(width, width, dtype=torch.bool, device=hidden.device).tril()[None, None, start:]
        part = mask[:, :, start:]
        return part if rows is None or len(part) == 1 else part[rows.to(part.device)]


def base_run(
    lm: LM,
    prompts: Prompts,
    sites: Iterable[Site],
    edit: Edits = None,
    runs: Mapping[str, Source] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> BaseRun:
    """One forward pass up to the last block, keeping these sites, keys and values, and every block's arguments.

    `edit` is on during the pass, with `runs` and `dictionaries` as in `lm.run`. Raises `ModelError` when a block is
    called with something that cannot be cut to a suffix.
    """
    found: dict[Site, Tensor] = {}
    wanted = set(sites)
    core = {site for site in wanted if site.name in CORE}
    wanted -= core  # read in a pass of their own: the base run keeps the kernel that plain runs have
    steps = [reader(site, lm.anatomy, prompts, {}, found, set()) for site in wanted]
    calls: list[dict[str, Any]] = []
    handles = [
        block.module.register_forward_pre_hook(_captured(calls), with_kwargs=True) for block in lm.anatomy.blocks
    ]
    last = Site("resid_post", lm.anatomy.n_layers - 1)

    def stop(*_: object) -> None:
        raise Stop

    cache = DynamicCache()
    try:
        with torch.no_grad(), lm.hooked(prompts, edit, runs, dictionaries, [*steps, Step(last, look=stop)]):
            options = {"position_ids": prompts.position_ids} if lm.takes_positions else {}
            lm.hf(input_ids=prompts.ids, attention_mask=prompts.mask, past_key_values=cache, use_cache=True, **options)
    except Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for call in calls:
        for name, value in call.items():
            known = isinstance(value, PLAIN) or name in (*BY_ROW, "attention_mask", "alibi", lm.anatomy.family.cache)
            if not known:
                raise ModelError(
                    f"a block takes {name}={type(value).__name__}, which the engine cannot cut to a suffix"
                )
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    for i, layer in enumerate(cache.layers):
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None and layer.values is not None  # noqa: PT018
        keys[i], values[i] = layer.keys, layer.values
    if core:
        found |= lm.run(prompts, core, edit, logits=False, runs=runs, dictionaries=dictionaries).activations
    return BaseRun(lm, prompts, found, calls, keys, values)


def _captured(calls: list[dict[str, Any]]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        named = dict(bound.arguments)
        named |= named.pop("kwargs", {})
        named.pop("hidden_states", None)
        calls.append(named)

    return hook
