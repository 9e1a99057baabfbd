"""Inside attention: rotated queries and keys, scores and pattern of chosen layers, in every family.

Fused attention kernels never form the scores, so a layer whose scores are wanted runs the plain formula instead, and
that layer alone: its attention module gets a copy of its configuration that names our function, the other layers keep
theirs. Families whose attention does not go through transformers' interface have routes of their own (`Family.core`).
Registering our function for the whole model would lose the mask, because masks are made from the model's
configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trimtab.model.families import Family

NAME = "trimtab"

Seen = Callable[[], Tensor]
"""() -> (batch head query key) booleans: which keys each query sees. It is asked only where something is changed."""


class Act(Protocol):
    """What is shown every intermediate of attention."""

    def __call__(self, name: str, tensor: Tensor, seen: Seen | None = None) -> Tensor:
        """(site name, tensor (batch head pos d), or (batch head query key) with `seen`) -> the tensor to go on with."""
        ...


_ACTS: dict[int, list[Act]] = {}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    act: Act,
    softcap: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention written out, with `act` called on every intermediate.

    query (batch head pos d_head), key and value (batch kv key d_head); mask and window as in `masked`. Gives the heads'
    outputs (batch head pos d_head) and the pattern (batch head pos key).
    """
    query, key = act("rot_q", query), act("rot_k", key)
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = masked(scores, mask, window)
    seen = _seen(scores, scores.dtype if mask is None or not mask.is_floating_point() else mask.dtype)
    scores = act("scores", scores, seen)
    exact = torch.float32 if scores.dtype.itemsize < 4 else scores.dtype
    pattern = act("pattern", torch.softmax(scores, dim=-1, dtype=exact).to(value.dtype), seen)
    return pattern @ value, pattern


def _seen(scores: Tensor, dtype: torch.dtype) -> Seen:
    """Which keys are not masked, from scores to which a mask of this type was applied."""
    lowest = torch.finfo(dtype).min
    return lambda: scores > lowest / 2


def masked(scores: Tensor, mask: Tensor | None, window: int | None = None) -> Tensor:
    """Scores (batch head pos key) with the mask applied.

    `mask`: boolean (True: attend) or additive, (batch|1 head|1 pos key); or what kernels with a causal rule of their
    own get, None or (batch key) with 0 at pads, together with the width of a sliding window. The last query sees the
    last key.
    """
    lowest = torch.finfo(scores.dtype).min
    if mask is None or mask.ndim == 2:
        n, m = scores.shape[-2:]
        seen = torch.ones(n, m, dtype=torch.bool, device=scores.device).tril(m - n)
        if window is not None:
            seen = seen.triu(m - n - window + 1)
        mask = seen if mask is None else seen & mask[:, None, None, -m:].bool()
    mask = mask[..., : scores.shape[-1]]
    return torch.where(mask, scores, lowest) if mask.dtype == torch.bool else scores + mask


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Our entry in transformers' attention interface."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    acts = _ACTS[id(module)]

    out, pattern = attend(query, key, value, attention_mask, scale, _chain(acts), softcap, sliding_window)
    return out.transpose(1, 2).contiguous(), pattern


class _OnCall(TorchFunctionMode):
    """Replaces one torch function while a module's forward runs."""

    def __init__(self, function: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.replacement = function, replacement

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.function:
            return self.replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def opened(module: nn.Module, family: Family, act: Act) -> Iterator[None]:
    """While open, this attention module runs the plain formula and shows `act` its intermediates.

    A module can be opened again while it is open; the first one in is shown the tensors first.
    """
    acts = _ACTS.get(id(module))
    if acts is not None:
        acts.append(act)
        try:
            yield
        finally:
            acts.remove(act)
        return
    acts = _ACTS[id(module)] = [act]
    try:
        with _route(module, family, _chain(acts)):
            yield
    finally:
        del _ACTS[id(module)]


def _chain(acts: list[Act]) -> Act:
    """One after the other."""

    def chain(name: str, tensor: Tensor, seen: Seen | None = None) -> Tensor:
        for act in acts:
            tensor = act(name, tensor, seen)
        return tensor

    return chain


def _route(module: nn.Module, family: Family, act: Act) -> AbstractContextManager[None]:
    match _core(module, family):
        case "interface":
            ALL_ATTENTION_FUNCTIONS.register(NAME, _interface)
            return _config(module, NAME)
        case "sdpa":
            function, replacement = nn.functional.scaled_dot_product_attention, _sdpa(act)
            return _forward_under(module, lambda: _OnCall(function, replacement), "sdpa")
        case "method":
            return _method(module, act)
        case _:
            return _forward_under(module, lambda: _OnCall(nn.functional.softmax, _softmax(act)))


def _core(module: nn.Module, family: Family) -> str:
    """The family's route; Falcon's own eager formula counts ALiBi otherwise than its fused one, so it is kept."""
    eager = getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager"
    return "softmax" if family.core == "sdpa" and not family.rotary and eager else family.core


def _sdpa(act: Act) -> Callable[..., Tensor]:
    def call(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor:
        if attn_mask is None and not is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        scaling = query.shape[-1] ** -0.5 if scale is None else scale
        return attend(query, key, value, attn_mask, scaling, act)[0].contiguous()

    return call


def _softmax(act: Act) -> Callable[..., Tensor]:
    def call(scores: Tensor, dim: int = -1, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        exact = scores.dtype if dtype is None or dtype.itemsize < scores.dtype.itemsize else dtype
        seen = _seen(scores, scores.dtype)
        pattern = torch.softmax(act("scores", scores, seen), dim=dim, dtype=exact).to(scores.dtype)
        return act("pattern", pattern, seen).contiguous()  # the callers view it as another shape

    return call


@contextmanager
def _config(module: nn.Module, implementation: str) -> Iterator[None]:
    before: Any = module.config
    own = copy.copy(before)
    own._attn_implementation_internal = implementation
    module.config = own
    try:
        yield
    finally:
        module.config = before


@contextmanager
def _forward_under(
    module: nn.Module, mode: Callable[[], TorchFunctionMode], implementation: str | None = None
) -> Iterator[None]:
    before = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return before(*args, **kwargs)

    with _attribute(module, "forward", forward), _config(module, implementation) if implementation else nullcontext():
        yield


@contextmanager
def _method(module: nn.Module, act: Act) -> Iterator[None]:
    scaling = 1 / float(module.scale_attn)  # pyright: ignore[reportArgumentType]

    def method(
        query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float32 if query.dtype.itemsize < 4 else query.dtype
        out, pattern = attend(query.to(exact), key.to(exact), value, attention_mask, scaling, act)
        return out.to(value.dtype), pattern

    with _attribute(module, "_attn", method):
        yield


@contextmanager
def _attribute(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """An attribute of this one object, taken away (or put back) on leaving."""
    own = module.__dict__.get(name)
    module.__dict__[name] = value
    try:
        yield
    finally:
        if own is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = own
