"""Lenses on the bundled model: what reading a task costs, what is held in memory, and how long a tuned lens takes."""

from __future__ import annotations

import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trimtab
from benchmarks.measure import Case, paired
from trimtab.locate.layer_contrast import layer_contrast
from trimtab.locate.lens import logit_lens
from trimtab.locate.lens_scores import logit_lens_scores
from trimtab.locate.tuned_lens import train_tuned_lens
from trimtab.tasks import fit
from trimtab.tasks.builtin import task
from trimtab.tasks.measure import measure

MODEL = "smollm2-135m-instruct"
MINUTES = 12.0
TOKENS, STEPS = 20_000, 250


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation gave."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


def cases(quick: bool) -> list[Case]:
    """`quick`: a twentieth of the tuned lens's steps, and its time extrapolated."""
    lm = trimtab.load(MODEL)
    return [*memory(lm), *passes(lm, 3 if quick else 7), *tuned(lm, quick)]


def memory(lm: trimtab.LM, tokens: int = 1024) -> list[Case]:
    """The largest tensor while 1,024 tokens are read at every layer, next to the model's own logits."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, lm.anatomy.vocab, (1, tokens), generator=generator)
    str(lm.hash)  # reads the weights as bytes, which is no activation: made before anything is counted
    with Largest() as seen:
        logit_lens(lm, lm.prompts(ids))
    own = tokens * lm.anatomy.vocab
    note = f"layers × positions × vocabulary would be {lm.anatomy.n_layers}"
    return [Case("lens_memory", seen.entries / own, "× positions × vocabulary", 1.0, seen.entries <= own, note=note)]


def passes(lm: trimtab.LM, rounds: int) -> list[Case]:
    """A lens over a task at all layers, next to one pass over its prompts."""
    ioi = fit.fit(lm, task("ioi")).task.take(16, 0)
    prompts = measure(lm, ioi, on="clean").prompts

    def plain() -> object:
        return lm.run(prompts)

    found = []
    for name, work in (
        ("lens_logit_diff", lambda: logit_lens_scores(lm, ioi, quantity="logit_diff")),
        ("lens_rank", lambda: logit_lens_scores(lm, ioi, quantity="rank")),
        ("lens_heads", lambda: logit_lens_scores(lm, ioi, "L*.head", quantity="logit_diff")),
        ("layer_contrast", lambda: layer_contrast(lm, ioi)),
    ):
        ratio = paired(work, plain, rounds)
        found.append(Case(name, ratio.value, "passes", None, None, ratio.low, ratio.high, "16 prompts, all layers"))
    return found


def tuned(lm: trimtab.LM, quick: bool) -> list[Case]:
    """Minutes for a translator at every layer from 20,000 positions drawn, held-out check included."""
    share = 0.05 if quick else 1.0
    steps = round(STEPS * share)
    began = time.monotonic()
    lens = train_tuned_lens(lm, steps=steps, tokens=round(TOKENS * share), check=64 if quick else 512)
    minutes = (time.monotonic() - began) / 60 / share
    note = (
        f"{lens.trained['positions']} positions drawn, {lens.trained['different']} different, {len(lens.sites)} sites"
    )
    note += ", extrapolated" if quick else ""
    free = lens.sites.index(f"L{lm.anatomy.n_layers - 1}.resid_post")
    lower = bool((lens.after[:free] < lens.before[:free]).all())
    before, after = float(lens.before[:free].mean()), float(lens.after[:free].mean())
    told = f"{before:.3g} nats as the logit lens, on {lens.held_out} held-out positions; target: lower at every layer"
    return [
        Case("tuned_lens", minutes, "min", MINUTES, minutes < MINUTES, note=note),
        Case("tuned_lens_kl", after, "nat/token", before, lower, note=told),
    ]
