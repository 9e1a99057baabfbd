"""Path patching the long way: forward passes of the whole model for each path, which the fast way is held against.

Wang et al. 2022, arXiv 2211.00593, appendix B, step by step. It shares no code with `trimtab.model.paths`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout
from trimtab.model.run import Run
from trimtab.values.edit import Edit, Ref
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def naive_paths(
    lm: LM,
    prompts: Prompts,
    twins: Prompts,
    readout: Readout,
    senders: Sequence[Site],
    receivers: Sequence[Site],
    freeze: bool,
    progress: Callable[[int], None],
) -> Float[Tensor, "row sender receiver"]:
    """The change of the readout for each path, in two or three passes each; NaN where there is no path."""
    kept = [site for name in ("head", "mlp_out") if name == "head" or freeze for site in lm.sites(f"L*.{name}")]
    base = lm.run(prompts, kept)
    runs = {"base": base, "other": lm.run(twins, lm.sites("L*.head"), logits=False)}
    frozen = [Edit(site, "set", Ref("base")) for site in kept]
    before = _read(readout, base)
    out = before.new_full((prompts.batch, len(senders), len(receivers)), torch.nan)
    for i, sender in enumerate(senders):
        sent = [*frozen, Edit(sender, "set", Ref("other"))]
        for j, receiver in enumerate(receivers):
            if receiver.layer is None:
                out[:, i, j] = _read(readout, lm.run(prompts, edit=sent, runs=runs)) - before
            elif receiver.layer > (sender.layer or 0):
                tensor = Site(receiver.input or "", receiver.layer)
                changed = lm.run(prompts, tensor, sent, runs=runs, logits=False)
                out[:, i, j] = _read(readout, _received(lm, receiver, tensor, changed)) - before
            else:
                continue
            progress(prompts.batch)
    return out


def _received(lm: LM, receiver: Site, tensor: Site, changed: Run) -> Run:
    """A normal run in which the receiver alone reads what came along the path."""
    prompts, heads = changed.prompts, receiver.index or ()
    if tensor.name == "q" or lm.anatomy.n_kv == lm.anatomy.n_heads:
        edit = Edit(tensor.with_(index=heads), "set", Ref("changed"))
        return lm.run(prompts, edit=edit, runs={"changed": changed})
    # its own copy of a key that others share: what it gives when all read the new one, put into a run where none does
    output = Site("head", receiver.layer)
    alone = lm.run(prompts, output, Edit(tensor, "set", Ref("changed")), runs={"changed": changed}, logits=False)
    return lm.run(prompts, edit=Edit(output.with_(index=heads), "set", Ref("alone")), runs={"alone": alone})


def _read(readout: Readout, run: Run) -> Tensor:
    assert run.logits is not None
    columns = readout.columns(run.prompts).to(run.logits.device)
    at = run.logits.gather(1, columns[..., None].expand(-1, -1, run.logits.shape[-1]))
    return readout.of(at, torch.arange(run.prompts.batch, device=run.logits.device))
