"""A twin of a model that has learned nothing: the same architecture and tokenizer, weights drawn anew.

What a probe reads from such a model was in the words, not in what training made of them (Zhang and Bowman 2018, arXiv
1809.10040; Hewitt and Liang 2019, arXiv 1909.03368).
"""

from __future__ import annotations

import copy

import torch

from trimtab.errors import ModelError
from trimtab.model.lm import LM


def untrained(lm: LM, seed: int = 0) -> LM:
    """A model of `lm`'s configuration whose weights its architecture's own initialisation has drawn, embeddings too.

    It has `lm`'s dtype, device, tokenizer and attention, and needs as much memory again; torch's own random state is
    left as it was. ModelError for a quantised model, or one spread over devices.

    >>> untrained(lm, seed=1).hash != lm.hash  # doctest: +SKIP
    """
    if getattr(lm.hf, "is_quantized", False) or len({p.device for p in lm.hf.parameters()}) > 1:
        raise ModelError(
            f"{lm.name} is quantised or spread over devices, and an untrained twin of it cannot be drawn: "
            "load it whole, in a floating point dtype"
        )
    config = copy.deepcopy(lm.hf.config)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(lm.dtype)  # and not .to(dtype), which would round rotary tables too
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            hf = type(lm.hf)(config)
    finally:
        torch.set_default_dtype(before)
    hf.to(device=lm.device).eval()  # pyright: ignore[reportCallIssue]
    return LM(hf, lm.tokenizer, name=f"{lm.name} (untrained)", check=False)
