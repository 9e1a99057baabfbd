"""A forward pass that is looked at while it runs: each tensor is shown once as it passes, and nobody keeps it.

`lm.run` holds what it reads until the pass is over, which attention patterns of all layers over a long prompt do not
allow: layer × head × query × key numbers. Shown one after the other, one layer's are there at a time. It knows nothing
of what is looked for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.model.frame import Frame
from trimtab.model.hooks import Step
from trimtab.model.prompts import Prompts
from trimtab.model.run import Stop
from trimtab.model.taps import Tap
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

See = Callable[[Site, Tensor], None]


def visit(lm: LM, prompts: Prompts, sites: Reads, see: See) -> None:
    """One forward pass in which `see(site, tensor)` is called for every site, as soon as its tensor is there.

    Args:
        sites: whole tensors, such as `"L*.pattern"` or `"L*.resid_post"`.
        see: is given (batch pos unit …), attention scores and patterns as (batch head query key). The tensor is the
            model's own: take from it what is needed and leave it as it is.

    The pass ends after the last site. What `see` raises ends it too, and no hook is left.

    >>> visit(lm, prompts, "L*.pattern", lambda site, x: print(site, x.shape))  # doctest: +SKIP
    """
    wanted = sorted(lm.sites(sites), key=lambda site: site.depth)
    left = set(wanted)

    def step(site: Site) -> Step:
        def look(raw: Tensor, tap: Tap, frame: Frame) -> None:
            x = tap.layout.read(raw, frame.batch, raw.shape[2] if site.name == "rot_k" else frame.length)
            see(site, x.transpose(1, 2) if site.name in ("scores", "pattern") else x)
            left.discard(site)
            if not left:
                raise Stop

        return Step(site, look=look)

    steps = [step(site.whole) for site in wanted]
    with torch.no_grad(), suppress(Stop), lm.hooked(prompts, None, None, None, steps):
        lm.call(prompts)
