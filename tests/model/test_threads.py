"""Threads that share a model: each sees its own edits and no others, and nothing is left when they are done."""

from __future__ import annotations

import threading

import torch

from tests.model.tinies import IDS, exact, plain_logits
from trimtab.model.lm import LM


def test_two_threads_do_not_meet():
    lm: LM = exact("llama")
    prompts = lm.prompts(IDS)
    plain = plain_logits(lm, prompts)
    edited = lm.run(prompts, edit="L0.mlp_out scale 0", read="L1.pattern").logits
    wrong: list[str] = []

    def many(edit: str | None, expected: torch.Tensor) -> None:
        for _ in range(40):
            found = lm.run(prompts, edit=edit, read=() if edit is None else "L1.pattern").logits
            if not torch.equal(found, expected):
                wrong.append(str(edit))

    threads = [
        threading.Thread(target=many, args=("L0.mlp_out scale 0", edited)),
        threading.Thread(target=many, args=(None, plain)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert lm.frame is None
    with lm.edited("L0.mlp_out scale 0"):
        assert not torch.equal(plain_logits(lm, prompts), plain)
