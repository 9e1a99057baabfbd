"""Training at sites: modules of torch in the place of edits, for forward passes whose gradients go to them alone.

What is trained, on what and for how long is not known here: a caller puts modules on sites, takes a loss of the logits,
and freezes what it has found as edits. The model's own parameters stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import PromptError, SiteError
from trimtab.model.frame import Frame
from trimtab.model.gradient import frozen
from trimtab.model.hooks import Step
from trimtab.model.prompts import Prompts
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Module = Callable[[Tensor, Tensor], Tensor]
"""(a site's units (batch pos unit …), places (batch pos)) -> what takes their place. A place is a token's position in
its row, −1 where the module does not act."""


@contextmanager
def trainable(
    lm: LM, prompts: Prompts, modules: Mapping[Site, Module], where: str | Scope | Mapping[Site, Scope] = "all"
) -> Iterator[None]:
    """For the length of the block, modules at sites, at the positions of `where`, with the model's parameters frozen:
    where gradients are on, `lm.call(prompts).logits` depends on the modules' parameters and on nothing else.

    A module gets the site's tensor, of the units that the site names, in the model's type; what it gives is cast to
    that type, and taken at covered positions only. Edits of `lm.edited` around come first.

    >>> with trainable(lm, prompts, {Site.parse("L5.resid_post"): module}):  # doctest: +SKIP
    ...     lm.call(prompts).logits.mean().backward()

    Raises SiteError for a site with a view or positions of its own, or inside attention or a mixture of experts, where
    no edit that is made of such a module could act.
    """
    steps = []
    for site, module in modules.items():
        check_trainable(site)
        scope = where[site] if isinstance(where, Mapping) else where
        places = torch.where(prompts.columns(Scope.parse(scope)), prompts.position_ids, -1)
        steps.append(Step(lm.anatomy.resolve(site).whole, change=_change(site, module, places)))
    with frozen(lm), lm.on(steps, Frame.whole(prompts)):
        yield


def check_trainable(site: Site) -> None:
    """SiteError for a site at which nothing can be trained."""
    if site.view is not None:
        raise SiteError(f"{site}: train at {site.base}, the tensor itself, and not in a dictionary's features")
    if site.at is not None:
        raise SiteError(f"{site}: leave the positions out, and give them as where={str(site.at)!r}")
    if site.name in ("scores", "pattern"):
        raise SiteError(f"{site} holds a number for each key; train at the head's output, a sublayer's or the stream")
    if site.name in ("router", "expert", "expert.neuron"):
        raise SiteError(f"{site}: experts run as one fused operation, with no gradient at single ones; use mlp_out")


def continuation_log_probs(
    lm: LM,
    prompts: Prompts,
    lengths: Sequence[int],
    modules: Mapping[Site, Module] | None = None,
    where: str | Scope | Mapping[Site, Scope] = "all",
) -> Float[Tensor, "row"]:
    """log p of the last `lengths` (row) tokens of each row given those before, in nats, with modules at sites as in
    `trainable`. Where gradients are on, they go to the modules.

    The prompts are padded on the left. PromptError where a row has no token before its last ones.
    """
    if prompts.side != "left":
        raise PromptError("continuations are read at the ends of rows: pad them on the left")
    if any(not 0 < n < len(tokens) for n, tokens in zip(lengths, prompts.tokens, strict=True)):
        raise PromptError("a continuation has one token or more, and something before it to predict it from")
    most = max(lengths)
    options = {"logits_to_keep": most + 1} if lm.takes_kept else {}
    with trainable(lm, prompts, modules or {}, where):
        logits = lm.call(prompts, **options).logits[:, -most - 1 : -1]
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    targets = prompts.ids[:, -most:].to(logits.device)
    picked = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    ends = torch.tensor(list(lengths), device=logits.device)
    real = torch.arange(most, device=logits.device) >= most - ends[:, None]
    return torch.where(real, picked, 0.0).sum(1)


def _change(site: Site, module: Module, places: Tensor) -> Callable[[Tensor, Frame], Tensor]:
    index = None if site.index is None else torch.tensor(site.index)

    def change(x: Tensor, frame: Frame) -> Tensor:
        # a copy: the model may write into its tensor, and the way back needs what the module saw
        part = x.clone() if index is None else x[:, :, index.to(x.device)]
        here = places[:, frame.start : frame.stop].to(x.device)
        new = module(part, here).to(x.dtype)
        new = torch.where((here >= 0).view(*here.shape, *[1] * (part.ndim - 2)), new, part)
        if index is None:
            return new
        return x.index_copy(2, index.to(x.device), new)

    return change
