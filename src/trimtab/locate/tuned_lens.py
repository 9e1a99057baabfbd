"""The tuned lens: an affine map for each layer, trained so that the layer says early what the model will say.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv 2303.08112. Each
site's map x + A x + b starts as the identity, so as the logit lens, and minimises KL(model's output ‖ lens). Sites
share the forward pass, the positions and the model's own distribution and nothing else: positions and their order are
the same whichever sites are trained, so the lens of a layer does not depend on the others. The unembedding is frozen;
its exact gradient is one product for each site (`trimtab.model.divergence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import SiteError, TrimtabError
from trimtab.evaluate.texts import part
from trimtab.locate.lens_training import Batch, Checkpoint, Nesterov, Positions, windows
from trimtab.locate.plans import Cost, planned_by
from trimtab.locate.plans_reading import unembedded
from trimtab.locate.vocabulary import AT_ONCE, STREAM, cell_numbers, check_readable, log_probabilities
from trimtab.model.divergence import Precision, Target, kl_and_gradient, way_back
from trimtab.model.memory import held
from trimtab.model.provenance import provenance
from trimtab.values.site import Site
from trimtab.values.tuned_lens import TunedLens

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads, Text
    from trimtab.model.prompts import Prompts

Progress = Callable[[int, int], None]
SAVE_EVERY = 25
"""Steps between two checkpoints."""


def _plan(
    lm: LM,
    texts: Text | None,
    *,
    held_out: Text | None,
    sites: Reads,
    tokens: int,
    steps: int,
    lr: float,
    context: int,
    check: int,
    batch_size: int,
    seed: int,
    **_: object,
) -> Cost:
    """Of the rows that the drawn positions are in, of each position at each site through the unembedding and back, and
    of the held-out positions through it twice."""
    _check(tokens=tokens, steps=steps, lr=lr, context=context - 1, check=check, batch_size=batch_size)
    rows = _rows(lm, texts, held_out, context, seed)[0]
    each = float(rows.lengths.double().mean()) - 1
    read = math.ceil(tokens / steps) * steps + check
    vectors = read * (2 * len(_streams(lm, sites)) + 1)
    return Cost(passes=read / each + unembedded(lm, vectors, each))


@planned_by(_plan)
def train_tuned_lens(
    lm: LM,
    texts: Text | None = None,
    *,
    held_out: Text | None = None,
    sites: Reads = "L*.resid_post",
    tokens: int = 20_000,
    steps: int = 250,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-3,
    clip: float = 1.0,
    context: int = 256,
    check: int = 512,
    precision: Precision = "float32",
    batch_size: int = 8,
    seed: int = 0,
    checkpoint: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> TunedLens:
    """Train a translator for each residual stream, and say on held-out text how much nearer to the output it comes.

    Stochastic gradient descent with Nesterov momentum in torch's convention (its lr 0.1 at momentum 0.9 is the paper's
    1.0), falling linearly to zero; each site's gradient is clipped by itself. The bias is kept in units of the
    stream's root mean square, so that layers with long streams learn it as fast as others. Left out are the first
    position of every row and positions with massive activations (above 100 and 1000 times their row's median after any
    of the model's blocks; Sun et al. 2024, arXiv 2402.17762). The last `resid_post` is the model's own output
    and stays as it is.

    Args:
        texts: what to train on: texts, rows of ids or `Prompts`, cut into rows of `context` tokens. By default the
            neutral passages shipped for choosing things on, which are few: they come round several times.
        held_out: what to judge it on; by default a fifth of `texts`, or the shipped passages for judging.
        sites: residual streams.
        tokens: positions drawn in all, `tokens / steps` (rounded up) for each step; rows are visited in a random order
            and as often as needed. `trained` says how many different positions that were.
        steps: updates. lr, momentum, weight_decay (towards the identity), clip: of the optimiser.
        check: held-out positions, at most.
        precision: of the product that leads back through the unembedding; "bfloat16" is faster on some processors.
        batch_size: rows in a forward pass.
        seed: of the order of rows and positions.
        checkpoint: a file that is written every 25 steps and gone on from; removed at the end.
        progress: called with steps done and steps in all.

    Returns:
        A `TunedLens` with its held-out divergences before and after, in nats.

    Raises:
        SiteError: a site that is no residual stream. TrimtabError: too little text, or numbers out of range.
        FileError: a checkpoint of another training.

    >>> lens = train_tuned_lens(lm, texts, steps=100, tokens=8000)  # doctest: +SKIP
    >>> logit_lens(lm, "The capital of France is", lens=lens)  # doctest: +SKIP
    """
    _check(tokens=tokens, steps=steps, lr=lr, context=context - 1, check=check, batch_size=batch_size)
    lens = _Translators.zero(lm, _streams(lm, sites))
    rows, apart = _rows(lm, texts, held_out, context, seed)
    size = math.ceil(tokens / steps)
    options = {
        "sites": [str(site) for site in lens.wanted],
        "tokens": size * steps,
        "steps": steps,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "clip": clip,
        "context": context,
        "precision": precision,
    }
    rule = Nesterov((lens.weight, lens.bias), lr, momentum, weight_decay, clip, steps)
    source = Positions(lm, rows, lens.read, size, batch_size, seed)
    losses = np.zeros((steps, len(lens.wanted)))
    key = options | {"model": lm.hash, "data": rows.digest, "seed": seed}
    kept = Checkpoint(checkpoint, key, [lens.weight, lens.bias, *rule.momenta], losses)
    different = _descend(lm, lens, source, rule, kept, way_back(lm, precision), progress)
    before, after, judged = _judge(lm, apart, lens, check, batch_size, seed)
    kept.remove()
    return TunedLens(
        sites=tuple(map(str, lens.wanted)),
        weight=lens.spread(lens.weight.float().cpu().numpy()),
        bias=lens.spread(lens.bias.float().cpu().numpy()),
        model=lm.name,
        model_hash=lm.hash,
        before=lens.spread(before),
        after=lens.spread(after),
        held_out=judged,
        trained={
            "positions": size * steps,
            "different": different,
            "rows": rows.batch,
            "per_step": size,
            "steps": steps,
        },
        losses=losses,
        provenance=provenance(lm, rows, "train_tuned_lens", options, seed=seed),
    )


@dataclass(eq=False)
class _Translators:
    """The maps in training: `weight` (free d d) and `bias` (free d) of all `wanted` sites but the `last`."""

    wanted: list[Site]
    free: list[Site]
    last: Site
    weight: Tensor
    bias: Tensor

    @classmethod
    def zero(cls, lm: LM, wanted: list[Site]) -> _Translators:
        """Those of the logit lens."""
        last = Site("resid_post", lm.anatomy.n_layers - 1)
        free = [site for site in wanted if site != last]
        n, d = len(free), lm.anatomy.d_model
        wide = torch.promote_types(lm.dtype, torch.float32)
        weight, bias = (torch.zeros(n, *shape, dtype=wide, device=lm.device) for shape in ((d, d), (d,)))
        return cls(wanted, free, last, weight, bias)

    @property
    def read(self) -> list[Site]:
        """The sites to read: those to translate, and the model's own output."""
        return [*self.free, self.last]

    @property
    def columns(self) -> list[int]:
        """Where the free sites stand among all."""
        return [self.wanted.index(site) for site in self.free]

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(wanted …) from (free …): the last stream is the output, with nothing to add to it and no divergence."""
        found = np.zeros((len(self.wanted), *values.shape[1:]), values.dtype)
        found[self.columns] = values
        return found


def _descend(
    lm: LM,
    lens: _Translators,
    source: Positions,
    rule: Nesterov,
    kept: Checkpoint,
    back: Tensor | None,
    progress: Progress | None,
) -> int:
    """Every step of the training that the checkpoint has not done yet; how many different positions were drawn.

    The bias is in units of the streams' root mean square until the end, and in the streams' own then.
    """
    done = kept.load()
    unit = torch.ones(len(lens.free), dtype=lens.bias.dtype, device=lens.bias.device)
    seen: set[tuple[int, int]] = set()
    for step, batch in zip(range(rule.steps), source.forever(), strict=False):
        seen.update(batch.places)
        if step == 0:
            unit = batch.streams[:-1].square().mean((1, 2)).sqrt().clamp(min=1e-6)
        if step < done:
            continue
        for some, slopes, kl in gradients(lm, batch, lens.weight, lens.bias * unit[:, None], back):
            slopes[1].mul_(unit[some, None])
            rule.step(step, some, slopes)
            kept.losses[step, lens.columns[some]] = kl
        if progress is not None:
            progress(step + 1, rule.steps)
        if step + 1 < rule.steps and (step + 1) % SAVE_EVERY == 0:
            kept.save(step + 1)
    lens.bias *= unit[:, None]
    return len(seen)


def gradients(
    lm: LM, batch: Batch, weight: Tensor, bias: Tensor, back: Tensor | None = None
) -> Iterator[tuple[slice, tuple[Tensor, Tensor], np.ndarray]]:
    """A few sites at a time: which, the gradients of their A (site d d) and b (site d), and their divergence (site).

    Both are means over the batch's positions; `batch.streams` ends with the last layer's, which makes the targets.
    """
    n, rows = weight.shape[0], batch.streams.shape[1]
    with torch.no_grad():
        own = Target.of(lm, log_probabilities(lm.unembed(lm.final(batch.streams[-1].to(lm.dtype)))))
    group = max(1, held(AT_ONCE) // (rows * lm.anatomy.vocab))
    for start in range(0, n, group):
        some = slice(start, min(n, start + group))
        x = batch.streams[some]
        with torch.no_grad():
            h = (x + torch.baddbmm(bias[some, None], x, weight[some].mT)).requires_grad_()
        with torch.enable_grad():
            final = lm.final(h.to(lm.dtype))
        kl, slope = kl_and_gradient(lm, final.detach(), own, back)
        (moved,) = torch.autograd.grad(final, h, slope / rows)
        yield some, (moved.mT @ x, moved.sum(1)), kl.mean(1).cpu().numpy()


def _judge(
    lm: LM, prompts: Prompts, lens: _Translators, check: int, batch_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean held-out divergence (free) as the logit lens and as the tuned lens, and over how many positions."""
    n = len(lens.free)
    totals, count = np.zeros((2, n)), 0
    size = max(1, AT_ONCE // 2 // lm.anatomy.vocab)  # whatever the limit: pools, so what is drawn, go by it
    each = max(1, held(AT_ONCE) // 2 // lm.anatomy.vocab)
    plain = torch.zeros_like(lens.weight[:1]), torch.zeros_like(lens.bias[:1])
    drawn = Positions(lm, prompts, lens.read, size, batch_size, seed).once(check)
    for streams in (some for batch in drawn for some in batch.streams.split(each, 1)):
        with torch.no_grad():
            own = log_probabilities(lm.unembed(lm.final(streams[-1].to(lm.dtype))))
            for i in range(n):
                for which, (a, b) in enumerate((plain, (lens.weight[i : i + 1], lens.bias[i : i + 1]))):
                    x = streams[i]
                    h = x + x @ a[0].T + b[0]
                    logp = log_probabilities(lm.unembed(lm.final(h.to(lm.dtype))))
                    totals[which, i] += float(cell_numbers(logp, own)["kl"].sum())
        count += streams.shape[1]
    return totals[0] / count, totals[1] / count, count


def _streams(lm: LM, sites: Reads) -> list[Site]:
    """The residual streams to translate, in the order of computation."""
    wanted = sorted(lm.sites(sites), key=lambda site: site.depth)
    check_readable(wanted, STREAM)
    if placed := [site for site in wanted if site.at is not None]:
        raise SiteError(f"{placed[0]}: a translator serves all positions; write {placed[0].with_(at=None)}")
    return wanted


def _rows(lm: LM, texts: Text | None, held_out: Text | None, context: int, seed: int) -> tuple[Prompts, Prompts]:
    """What to train and what to judge on, cut into rows of at most `context` tokens."""
    if texts is None:
        texts = [passage.text for passage in part("search")]
        held_out = [passage.text for passage in part("test")] if held_out is None else held_out
    prompts = lm.prompts(texts)
    if held_out is not None:
        return windows(lm, prompts, context), windows(lm, lm.prompts(held_out), context)
    if prompts.batch < 2:
        raise TrimtabError("a tuned lens is judged on text that it was not trained on: give two texts or more")
    order = np.random.default_rng(seed).permutation(prompts.batch)
    cut = max(1, round(0.2 * prompts.batch))
    parts = (prompts.rows(sorted(some.tolist())) for some in (order[cut:], order[:cut]))
    train, apart = (windows(lm, some, context) for some in parts)
    return train, apart


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if value <= 0:
            raise TrimtabError(f"{name} of a training must be above zero, got {value}")
