"""Where a result of this room comes from: the model, the prompts and the call, as one `Provenance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from trimtab.values.provenance import Provenance

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts


def provenance(lm: LM, prompts: Prompts, method: str, options: Mapping[str, object]) -> Provenance:
    """The provenance of what `method` with `options` finds out about `lm` on these prompts."""
    return Provenance.now(
        lm.name,
        model_hash=lm.hash,
        data_hash=prompts.digest,
        method=method,
        options=options,
        threads=torch.get_num_threads(),
        dtype=str(lm.dtype).removeprefix("torch."),
        attention=lm.attention,
        bos=prompts.bos,
        chat=prompts.chat,
    )
