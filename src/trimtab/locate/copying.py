"""Whether heads copy: does attending to a token make the model more likely to say that token, or less?

By weights (Elhage et al. 2021, https://transformer-circuits.pub/2021/framework, the sum of eigenvalues over the sum of
their sizes) and by the head's values on texts (the copy score of Wang et al. 2022, arXiv 2211.00593). Heads far below
zero suppress what they attend to (McDougall et al. 2023, arXiv 2310.04625). Both are of the direct path: what later
layers make of a head's output is not in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import TrimtabError, nearest
from trimtab.locate.circuits_qk_ov import Circuits
from trimtab.locate.pairing import alone
from trimtab.locate.patterns import Examples, Progress, Side, examples_of, head_scores, layers_of
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_copying, plan_weights
from trimtab.locate.units import places
from trimtab.locate.vocabulary import AT_ONCE
from trimtab.model.memory import held
from trimtab.model.prompts import Prompts
from trimtab.tasks.means import batches
from trimtab.tasks.repeated import RepeatedTokens
from trimtab.values.edit import Edit, Ref
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Statistic = Literal["z", "top", "bottom"]
Source = Literal["first", "run"]
UNITS = {"z": "std of the vocabulary", "top": "share of tokens", "bottom": "share of tokens"}


@planned_by(plan_weights)
def ov_copying_score(
    lm: LM, task: Examples = None, sites: Reads = "L*.head", *, circuits: Circuits | None = None
) -> Scores:
    """Σ λ / Σ |λ| over the eigenvalues of a head's token-to-token map W_E W_V W_O W_U: 1 copies, −1 suppresses.

    The eigenvalues are those of a d_head × d_head product. Embeddings and unembeddings are taken of the model's
    ordinary tokens, less what these have in common (which raises or lowers every token alike); embeddings as they enter
    the first block. Norms are folded in by their weight; biases, positions and the layers between are left out.

    Args:
        task: not looked at, since weights alone are; here so that every score is called alike.
        circuits: the matrices, where they have been read already.

    Returns:
        `Scores` (one example, layer, head, span "all"), −1 to 1. One example has no interval.

    >>> ov_copying_score(lm).top(5)  # doctest: +SKIP
    """
    where = places(lm, sites, "all", mapped="all")
    made = circuits or Circuits(lm)
    found = {"all": np.stack([made.copying(layer) for layer in layers_of(where)])[None]}
    one = RepeatedTokens(length=2, sequences=1, bos=False)
    scores = head_scores(where, found, lm, one, one.prompts(lm), "ov_copying_score", "share of eigenvalues", {})
    return scores.with_(options={}, groups=None)


@alone
@planned_by(plan_copying)
def copying_score(
    lm: LM,
    task: Examples = None,
    sites: Reads = "L*.head",
    *,
    statistic: Statistic = "z",
    k: int = 5,
    source: Source = "first",
    side: Side = "positive",
    batch_size: int = 16,
    circuits: Circuits | None = None,
    progress: Progress | None = None,
) -> Scores:
    """What attending fully to a position would do, directly, to the logit of the token there, over a text's positions.

    The head's value at the position goes through its output projection, the final norm (by its weight) and the
    unembedding. By `statistic`:

    "z": the token's own logit, less the mean over the vocabulary, in standard deviations over the vocabulary.
    "top": the share of positions whose token is among the `k` most raised; "bottom": the `k` most lowered.

    Args:
        task: texts of one `side`; with None, repeated random tokens.
        source: what the value is computed from: the stream after the "first" block, as in the paper, which says of a
            token's identity what the head would make of it; or the head's own input in this "run".
        circuits: the matrices, where they have been read already.

    Returns:
        `Scores` (example, layer, head, span "all"); a row's first token is left out, since its stream is that of a
        sink. Negative z suppresses.

    Raises ModelError as in `Circuits`.

    >>> copying_score(lm).top(5, by="value")  # doctest: +SKIP
    """
    if statistic not in UNITS:
        raise TrimtabError(f'no statistic "{statistic}"{nearest(str(statistic), UNITS)}: there are {", ".join(UNITS)}')
    if source not in ("first", "run"):
        raise TrimtabError(f'source is "first" or "run", got {source!r}')
    chosen, prompts = examples_of(lm, task, side)
    where = places(lm, sites, "all", mapped="all")
    made = circuits or Circuits(lm)
    own = [prompts.ids[row][prompts.mask[row].bool()].cpu().numpy() for row in range(len(prompts))]
    heads: dict[int, list[int]] = {layer: [] for layer in layers_of(where)}
    for block in where.blocks:
        assert block.layer is not None
        named = range(lm.anatomy.n_heads) if where.units is not None or block.index is None else block.index
        heads[block.layer] = sorted({*heads[block.layer], *named})
    (values,) = own_logits(
        lm,
        prompts,
        list(heads),
        [own],
        made,
        statistic,
        k=k,
        source=source,
        heads=list(heads.values()),
        batch_size=batch_size,
        progress=progress,
    )
    options = {"statistic": statistic, "source": source, "side": side} | ({} if statistic == "z" else {"k": k})
    return head_scores(where, {"all": values}, lm, chosen, prompts, "copying_score", UNITS[statistic], options)


@torch.no_grad()
def own_logits(
    lm: LM,
    prompts: Prompts,
    layers: Sequence[int],
    targets: Sequence[Sequence[np.ndarray]],
    circuits: Circuits,
    statistic: Statistic = "z",
    *,
    k: int = 5,
    source: Source = "first",
    heads: Sequence[Sequence[int]] | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[Float[np.ndarray, "row layer head"]]:
    """For each of several choices of a target token at every position, the statistic averaged over a row's positions.

    `targets`: (choice)(row)(pos) token ids. A row of one token is NaN. `heads`: (layer) those that are wanted, by
    default all; the others are NaN.
    """
    a = lm.anatomy
    group = a.n_heads // a.n_kv
    u = circuits.unembedding
    mean = u.mean(0)
    spread = (u - mean).T @ (u - mean) / len(u)
    found = [np.full((len(prompts), len(layers), a.n_heads), np.nan) for _ in targets]
    first, v = Site("resid_post", 0), [Site("v", layer) for layer in layers]
    edits = [Edit(Site("resid_pre", layer), "set", Ref("first", first)) for layer in layers]
    done = 0
    entries = len(layers) * a.n_kv * a.d_head + 2 * a.d_model + 3 * a.n_heads * a.d_head
    for rows in batches(prompts, entries, batch_size):
        part = prompts.rows(rows, trim=True)
        if source == "first":
            run = lm.run(part, v, edits, logits=False, runs={"first": lm.run(part, first, logits=False)})
        else:
            run = lm.run(part, v, logits=False)
        real = part.mask.bool().clone()
        real[torch.arange(len(rows)), part.start] = False
        owner = real.nonzero()[:, 0].cpu()
        ids = [torch.as_tensor(np.concatenate([each[row][1:] for row in rows]), device=u.device) for each in targets]
        counts = torch.bincount(owner, minlength=len(rows)).double()
        for number, (layer, site) in enumerate(zip(layers, v, strict=True)):
            which = list(range(a.n_heads) if heads is None else heads[number])
            values = run.whole(site)[real.to(run.whole(site).device)].to(u)[:, [head // group for head in which]]
            o = circuits.layer(layer).o[which]
            if statistic == "z":
                scores = _z(values, o, u, mean, spread, ids)
            else:
                scores = _ranked(values, o, u, k, statistic, ids)
            for each, into in zip(scores, found, strict=True):
                total = torch.zeros(len(rows), len(which), dtype=torch.float64).index_add_(
                    0, owner, each.double().cpu()
                )
                into[np.ix_(rows, [number], which)] = (total / counts[:, None]).numpy()[:, None]
        done += len(rows)
        if progress is not None:
            progress(done, len(prompts))
    return found


def _z(values: Tensor, o: Tensor, u: Tensor, mean: Tensor, spread: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    """Standardised logits (token head) of target tokens, without any other logit: their variance is a quadratic
    form."""
    small = o @ spread @ o.mT  # (head d_head d_head)
    size = torch.einsum("thd,hde,the->th", values, small, values).clamp(min=0).sqrt().clamp(min=1e-30)
    return [
        (values * torch.einsum("tm,hdm->thd", u[each] - mean, o)).sum(-1) / size  # toward each target
        for each in targets
    ]


def _ranked(
    values: Tensor, o: Tensor, u: Tensor, k: int, statistic: Statistic, targets: Sequence[Tensor]
) -> list[Tensor]:
    """Whether (token head) target tokens are among the k most raised (or lowered): one head and a few tokens at a
    time, so that no more than a block of logits is there at once."""
    sign = 1.0 if statistic == "top" else -1.0
    found = [torch.zeros(values.shape[:2], dtype=torch.float64, device=values.device) for _ in targets]
    at_once = max(1, held(AT_ONCE) // len(u))
    for head in range(values.shape[1]):
        for start in range(0, len(values), at_once):
            some = slice(start, start + at_once)
            logits = (values[some, head] @ o[head]) @ u.T * sign
            limit = logits.topk(min(k, len(u)), dim=-1).values[:, -1]
            for each, into in zip(targets, found, strict=True):
                into[some, head] = (logits.gather(1, each[some, None])[:, 0] >= limit).double()
    return found
