"""Contrasting the output with an earlier layer: what the layers in between added to it.

Chuang et al. 2023, "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", arXiv
2309.03883. The output's log-probabilities minus those read at an early layer favour what late layers bring in; the
early layer is the one whose distribution is furthest from the output's by the Jensen–Shannon divergence, or a fixed
one. As scores over layers it says where an answer's probability comes from; generating with it is steering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import PromptError, SiteError, TaskError
from trimtab.locate.lens_scores import ON, Progress, Reader, check_choice, per_example
from trimtab.locate.pairing import alone
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_contrast, plan_prompt
from trimtab.locate.units import places
from trimtab.locate.vocabulary import AT_ONCE, STREAM, Translator, check_readable, log_probabilities
from trimtab.model.memory import held
from trimtab.model.prompts import Prompts
from trimtab.model.provenance import provenance
from trimtab.model.tokens import strings
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure
from trimtab.tasks.metrics import BY_NAME
from trimtab.tasks.task import Task
from trimtab.values.dola import Dola
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Site
from trimtab.values.tuned_lens import TunedLens

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads, Text

Contrasted = Literal["metric", "logit_diff", "log_prob_diff", "log_prob", "prob", "prob_diff", "divergence"]


@alone
@planned_by(plan_contrast)
def layer_contrast(
    lm: LM,
    task: Task,
    sites: Reads = "L*.resid_post",
    *,
    quantity: Contrasted = "log_prob",
    on: Literal["clean", "corrupt"] = "clean",
    lens: TunedLens | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """How much more the output says for a task's answers than an earlier layer does.

    Args:
        sites: residual streams to contrast the output with.
        quantity: by default log q_output(answer) − log q_layer(answer), DoLa's contrast of the answer; the difference
            of another metric ("metric" is the task's own); or "divergence", the Jensen–Shannon divergence between the
            two distributions by which DoLa chooses the layer (nats, at most log 2).
        on: which prompts of a counterfactual task.
        lens: translators of residual streams, from `train_tuned_lens`.
        batch_size: prompts in a pass.
        progress: called with prompts done and prompts in all.

    Returns:
        `Scores` over layers, positive where later layers make for the answer; 0 at the last `resid_post`. The option
        "chosen" names for each example the site that is furthest from the output.

    Raises:
        SiteError: a site that is no residual stream. TaskError: an unknown quantity, a task without single answers.

    >>> layer_contrast(lm, task).options["chosen"][0]  # doctest: +SKIP
    'L0.resid_post@-1'
    """
    known = tuple(name for name in BY_NAME if name not in ("rank", "accuracy", "log_odds"))
    check_choice("quantity", quantity, ("metric", *known, "divergence"))
    check_choice("on", on, ON)
    measured = measure(lm, task, on=on, metric=None if quantity in ("metric", "divergence") else quantity)
    if measured.readout.ragged:
        raise TaskError(
            f"{task.name} is read as the log-likelihood of whole texts: give a task with answers of one token"
        )
    at = str(measured.readout.where)
    where = places(lm, sites, at, mapped=at, alone=at)
    check_readable([block.with_(at=None) for block in where.blocks], STREAM)

    def numbers(logits: Tensor, own: Tensor | None, rows: Tensor) -> Tensor:
        assert own is not None
        logp = log_probabilities(logits)
        apart = divergence(own[:, 0], logp[:, 0])
        if quantity == "divergence":
            return torch.stack([apart, apart], -1)
        gap = measured_of(own, rows) - measured_of(logp, rows)
        return torch.stack([gap.to(apart), apart], -1)

    reader = Reader(lm, measured, where, lens, own=True)
    measured_of = measured.readout.of
    found = reader.columns(numbers, joint=True, few=False, batch_size=batch_size, progress=progress, width=2)
    array = where.array(per_example(measured, column[..., 0]) for column in found)
    distances = np.stack([column[:, 0, 1] for column in found], -1)
    chosen = [str(where.blocks[i]) for i in distances.argmax(-1)]
    options = {"quantity": quantity, "on": on, "lens": None if lens is None else lens.digest, "chosen": chosen}
    unit = "nat" if quantity == "divergence" else measured.unit
    return where.scores(array, lm, task, measured.prompts, "layer_contrast", unit, options)


@planned_by(plan_prompt)
@torch.no_grad()
def dola(
    lm: LM,
    prompts: Text,
    sites: Reads = "L*.resid_post",
    *,
    alpha: float = 0.1,
    at: str = "last",
    top: int = 5,
    lens: TunedLens | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Dola:
    """Next-token probabilities by DoLa: softmax of log q_output − log q_early over the plausible tokens.

    Args:
        prompts: texts, ids or `Prompts`.
        sites: candidates for the early layer; each row takes the one furthest from the output. One site is a fixed
            choice. The last `resid_post` is the output and is left out. The paper restricts them to a bucket of layers
            chosen on validation data, such as "L0-14.resid_post".
        alpha: tokens below this share of the output's largest probability are left out.
        at: the position that is read, one in each row.
        top: tokens to name, at least 1.
        lens: translators of residual streams.
        batch_size: prompts whose runs are held together.

    Raises:
        SiteError: no candidate is left, or one is no residual stream. PromptError: several positions of a row.
        TaskError: an alpha outside 0 to 1, a top below 1.

    >>> dola(lm, "The capital of France is", "L0-14.resid_post").top()[0].token  # doctest: +SKIP
    ' Paris'
    """
    if not 0 <= alpha <= 1:
        raise TaskError(f"alpha is a share of the largest probability, from 0 to 1, got {alpha}")
    if top < 1:
        raise TaskError(f"top is how many of the likeliest tokens are named, at least 1, got {top}")
    prompts = lm.prompts(prompts)
    last = Site("resid_post", lm.anatomy.n_layers - 1)
    candidates = [site for site in lm.sites(sites) if site != last]
    check_readable(candidates, STREAM)
    if not candidates:
        raise SiteError(f"{last} is the output itself: name earlier residual streams to contrast it with")
    if not bool((prompts.columns(Scope.parse(at)).sum(1) == 1).all()):
        raise PromptError(f'dola reads one position of each row, and "{at}" is not one in every row')
    translated = Translator(lm, lens, candidates if lens else [])
    contrast = torch.empty(prompts.batch, lm.anatomy.vocab, dtype=torch.promote_types(lm.dtype, torch.float32))
    distances = np.empty((prompts.batch, len(candidates)))
    done, most = 0, max(1, min(batch_size, held(AT_ONCE) // lm.anatomy.vocab))
    for rows in batches(prompts, (len(candidates) + 1) * lm.anatomy.d_model, most):
        own, early, distances[rows] = _furthest(lm, prompts.rows(rows, trim=True), candidates, at, translated)
        implausible = own < own.amax(-1, keepdim=True) + (np.log(alpha) if alpha else -np.inf)
        contrast[rows] = torch.log_softmax((own - early).masked_fill(implausible, -torch.inf), -1).to(contrast)
        done += len(rows)
        if progress is not None:
            progress(done, prompts.batch)
    best = contrast.topk(min(top, contrast.shape[-1]), -1)
    known = sorted(set(best.indices.flatten().tolist()))
    options = {"sites": [str(site) for site in candidates], "alpha": alpha, "at": at}
    options |= {"lens": None if lens is None else lens.digest}
    return Dola(
        prompts.tokens,
        contrast.numpy(),
        tuple(map(str, candidates)),
        distances,
        tuple(str(candidates[number]) for number in distances.argmax(-1)),
        best.indices.numpy(),
        best.values.exp().numpy(),
        dict(zip(map(str, known), strings(lm.tokenizer, [known])[0], strict=True)),
        provenance(lm, prompts, "dola", options),
    )


def _furthest(
    lm: LM, prompts: Prompts, candidates: Sequence[Site], at: str, translated: Translator
) -> tuple[Float[Tensor, "row vocab"], Float[Tensor, "row vocab"], Float[np.ndarray, "row candidate"]]:
    """Log-probabilities of the output and of the candidate furthest from it, and how far each candidate is."""
    columns = prompts.columns(Scope.parse(at))
    last = Site("resid_post", lm.anatomy.n_layers - 1)
    run = lm.run(prompts, [*candidates, last], logits=False)
    own = log_probabilities(lm.unembed(lm.final(run.whole(last)[columns])))
    furthest, early = torch.full_like(own[:, 0], -1.0), torch.zeros_like(own)
    distances = []
    for site in candidates:
        logp = log_probabilities(lm.unembed(lm.final(translated(site, run.whole(site)[columns])))).to(own)
        apart = divergence(own, logp)
        better = apart > furthest
        furthest, early = torch.where(better, apart, furthest), torch.where(better[:, None], logp, early)
        distances.append(apart.cpu().numpy())
    return own, early, np.stack(distances, -1)


def divergence(a: Float[Tensor, "row vocab"], b: Float[Tensor, "row vocab"]) -> Float[Tensor, "row"]:
    """Jensen–Shannon divergence of two distributions given as log-probabilities, in nats: from 0 to log 2."""
    middle = torch.logaddexp(a, b) - np.log(2)
    parts = [torch.where(x > -torch.inf, x.exp() * (x - middle), 0.0).sum(-1) for x in (a, b)]
    return ((parts[0] + parts[1]) / 2).clamp(min=0)
