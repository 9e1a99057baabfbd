"""Causal tracing against the loop that its authors ran: a whole pass of 1 + samples rows, with hooks, for each cell.

16 facts that the model knows, 10 draws of the noise, every layer × the subject's last token and the last of all: the
stream, and MLPs and attention in windows of ten layers. Both loops are timed on cells drawn at random, in turns with
the whole trace, and counted up to all cells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import trimtab
from benchmarks.measure import Case, faster, ratio_of, say, seconds
from trimtab.locate.corrupted import Subject
from trimtab.locate.tracing import tracing_maps
from trimtab.model.lm import LM
from trimtab.tasks.builtin import task
from trimtab.tasks.fit import fit
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores
from trimtab.values.site import Site

FACTS, SAMPLES = 16, 10
SPANS = ("subject_last", "end")
KINDS = {"resid_post": ("", 1), "mlp_out": ("mlp", 10), "attn_out": ("self_attn", 10)}
"""Site -> the submodule of a block whose output it is, and its window."""
NOISE = {"noise": 3.0, "samples": SAMPLES, "seed": 0, "metric": "prob"}


class Loop:
    """Cells one by one, by hooks on the Hugging Face model's own modules (of the Llama family)."""

    def __init__(self, lm: LM, facts: Task) -> None:
        self.lm, self.about = lm, Subject.of(lm, facts, "subject", batch_size=16, **NOISE)
        self.answers = [lm.token(e.answers[0]) for e in facts.examples]
        self.prompts = [self.about.prompts.rows([row], trim=True) for row in range(len(facts))]
        drawn = [self.about.drawn([i], p.rows([0] * SAMPLES)).whole(Site("embed")) for i, p in enumerate(self.prompts)]
        self.noise = [torch.cat([torch.zeros_like(noise[:1]), noise]) for noise in drawn]

    def cell(self, row: int, kind: str, layer: int, span: str) -> float:
        """P of the answer with a window restored: row 0 of the batch is clean, the others copy from it."""
        (at,) = self.prompts[row].positions(span)[0]
        return float(self._pass(row, slice(None), self._restoring(kind, layer, at, lambda h: h[:1, at])).mean())

    def one(self, row: int, kind: str, layer: int, span: str, sample: int) -> None:
        """The same cost for one draw of the noise alone: a pass of one row, which takes a value kept from elsewhere."""
        (at,) = self.prompts[row].positions(span)[0]
        kept = torch.zeros(1, self.lm.anatomy.d_model)
        self._pass(row, slice(sample + 1, sample + 2), self._restoring(kind, layer, at, lambda h: kept, first=0))

    def nothing(self, row: int) -> float:
        """P of the answer with nothing restored."""
        return float(self._pass(row, slice(None), []).mean())

    def _restoring(
        self, kind: str, layer: int, at: int, value: Callable[[Tensor], Tensor], first: int = 1
    ) -> list[tuple[nn.Module, Callable[..., None]]]:
        part, window = KINDS[kind]

        def hook(module: nn.Module, args: object, out: Tensor | tuple[Tensor, ...]) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            hidden[first:, at] = value(hidden)

        blocks = self.lm.hf.model.layers
        layers = range(max(0, layer - window // 2), min(len(blocks), layer - (-window // 2)))
        return [(getattr(blocks[k], part) if part else blocks[k], hook) for k in layers]

    def _pass(self, row: int, which: slice, hooks: list[tuple[nn.Module, Callable[..., None]]]) -> Tensor:
        noise = self.noise[row][which]
        handles = [self.lm.hf.model.embed_tokens.register_forward_hook(lambda module, args, out: out + noise)]
        handles += [module.register_forward_hook(hook) for module, hook in hooks]
        try:
            with torch.no_grad():
                logits = self.lm.hf(self.prompts[row].ids.expand(len(noise), -1), use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return torch.softmax(logits[:, -1], -1)[-SAMPLES:, self.answers[row]]


def known_facts(lm: LM, most: int) -> Task:
    """Facts whose answer is the model's likeliest token, drawn evenly from the groups."""
    every = fit(lm, task("capitals")).task
    about = Subject.of(lm, every, "subject", batch_size=16, **NOISE)
    return every.only(about.counted("top")).take(most, 0)


def cases(quick: bool) -> list[Case]:
    say("tracing")
    lm = trimtab.load("smollm2-135m-instruct")
    facts = known_facts(lm, 4 if quick else FACTS)
    loop, layers = Loop(lm, facts), lm.anatomy.n_layers
    total = len(facts) * layers * len(SPANS) * len(KINDS)
    rng, kinds = np.random.default_rng(0), list(KINDS)
    # as many cells of each fact and kind, so that what is left to chance is the layer and the span
    order = rng.permutation(len(facts) * len(kinds))[:24].tolist()
    cells = [
        (i % len(facts), kinds[i // len(facts)], int(rng.integers(layers)), SPANS[int(rng.integers(len(SPANS)))])
        for i in order
    ]
    found: dict[str, Scores] = {}

    def trace() -> None:
        traced = tracing_maps(lm, facts, [f"L*.{kind}" for kind in KINDS], spans=SPANS)
        found.update(zip(KINDS, traced.values(), strict=True))

    def rome() -> list[float]:
        return [loop.cell(*cell) for cell in cells]

    def alone() -> None:
        for cell in cells:
            loop.one(*cell, 0)

    tracing_maps(lm, facts.only([0]), spans=SPANS)
    rome()
    alone()
    by_rome, by_pass = [], []
    for _ in range(1 if quick else 3):
        before, short, fast, after = seconds(rome), seconds(alone), seconds(trace), seconds(rome)
        by_rome.append((before + after) / 2 * total / len(cells) / fast)
        by_pass.append(short * SAMPLES * total / len(cells) / fast)
    error = max(
        abs(value - loop.nothing(row) - float(found[kind].array[row, layer, SPANS.index(span)]))
        for value, (row, kind, layer, span) in zip(rome(), cells, strict=True)
    )
    note = f"{len(facts)} facts, {total} cells of {SAMPLES} draws; the loop timed on {len(cells)} cells"
    return [
        faster("tracing", ratio_of(by_rome), 7, f"over a pass of {1 + SAMPLES} rows for each cell; {note}"),
        faster("tracing_passes", ratio_of(by_pass), 20, f"over a pass for each cell and draw; {note}"),
        Case("tracing_equal", error, "largest difference from the loop, in probability", 1e-5, error <= 1e-5),
    ]
