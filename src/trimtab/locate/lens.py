"""The logit lens: the residual stream of every layer read as if it were the last one's.

nostalgebraist 2020, "interpreting GPT: the logit lens", https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru; the final
norm is applied to each layer's stream, as there. Early layers write in a basis of their own, which the tuned lens
(Belrose et al. 2023, arXiv 2303.08112) translates; give one as `lens`. What a task's answer looks like in it is in
`logit_lens_scores`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import PromptError, SiteError, TrimtabError
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_prompt
from trimtab.locate.vocabulary import AT_ONCE, STREAM, Translator, cell_numbers, log_probabilities
from trimtab.model.memory import held
from trimtab.model.prompts import single_token
from trimtab.model.provenance import provenance
from trimtab.model.tokens import strings
from trimtab.values.edit import Intervention
from trimtab.values.lens import Lens
from trimtab.values.site import Site
from trimtab.values.tuned_lens import TunedLens

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Edits, Reads
    from trimtab.model.prompts import Prompts


@planned_by(plan_prompt)
def logit_lens(
    lm: LM,
    prompt: str | Prompts,
    *,
    top: int = 5,
    answer: str | int | None = None,
    edit: Edits = None,
    sites: Reads = "L*.resid_post",
    lens: TunedLens | None = None,
) -> Lens:
    """What the model would say next after each position, were each of these residual streams the last one.

    One forward pass, then for each site the final norm and the unembedding: layers × positions × vocabulary is never
    held. The row of the last `resid_post` is the model's own output.

    Args:
        prompt: one text, or `Prompts` of one row.
        top: how many tokens to keep of each cell.
        answer: a token to follow through the layers, as text (with its leading space) or id; by default, at each
            position, the token that the model itself ranks first there.
        edit: what to change in the model on the way.
        sites: residual streams, such as `"L*.resid_mid"` or `["embed", "L*.resid_post"]`.
        lens: translators to read through, from `train_tuned_lens` or a file of one.

    Returns:
        A `Lens`; probabilities of the whole vocabulary, entropy and divergence in nats, ranks from 1.

    Raises:
        PromptError: several rows, or an answer that is not one token. SiteError: a site that is no residual stream, or
        that `lens` does not have. ModelError: a lens of another model.

    >>> import trimtab
    ...
    ... lm = trimtab.load("smollm2-135m-instruct")  # doctest: +SKIP
    >>> logit_lens(lm, "The capital of France is").top("L29.resid_post")[0].token  # doctest: +SKIP
    ' Paris'
    """
    prompts = lm.prompts(prompt)
    if prompts.batch != 1:
        raise PromptError(f"a lens shows one prompt, got {prompts.batch}: give one text, or prompts.rows([0])")
    if not 1 <= top <= lm.anatomy.vocab:
        raise TrimtabError(f"top is how many tokens to keep, from 1 to the vocabulary's {lm.anatomy.vocab}, got {top}")
    streams = _streams(lm, sites)
    target, translated = _target(lm, answer), Translator(lm, lens, streams)
    run = lm.run(prompts, streams, edit)
    logits = run.tokens("logits")
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    size = max(1, held(AT_ONCE) // lm.anatomy.vocab)
    with torch.no_grad():
        for start in range(0, len(logits), size):
            own = log_probabilities(logits[start : start + size])
            targets = own.argmax(-1) if target is None else torch.full_like(own[:, 0], target, dtype=torch.long)
            blocks = (translated(site, run.tokens(site)[start : start + size]) for site in streams)
            cells = [
                _cells(log_probabilities(lm.unembed(lm.final(x))).to(own.device), own, targets, top) for x in blocks
            ]
            for name in cells[0]:
                found[name].append(np.stack([cell[name] for cell in cells]))
            found["targets"].append(targets.cpu().numpy())
    joined = {name: np.concatenate(parts, axis=0 if name == "targets" else 1) for name, parts in found.items()}
    ids = sorted({*joined["top_ids"].ravel().tolist(), *joined["targets"].tolist()})
    edits = tuple(str(part) for part in Intervention.of(edit))
    options = {"top": top, "answer": answer, "sites": [str(site) for site in streams], "edit": list(edits)}
    if lens is not None:
        options["lens"] = lens.digest
    return Lens(
        tokens=prompts.tokens[0],
        token_ids=prompts.ids[prompts.mask.bool()].cpu().numpy(),
        sites=tuple(map(str, streams)),
        words=dict(zip(map(str, ids), strings(lm.tokenizer, [ids])[0], strict=True)),
        answer=None if target is None else strings(lm.tokenizer, [[target]])[0][0],
        edits=edits,
        provenance=provenance(lm, prompts, "logit_lens", options),
        **joined,
    )


def _streams(lm: LM, sites: Reads) -> list[Site]:
    """The sites in order of computation; a `SiteError` for one that is not a whole residual stream."""
    found = sorted(lm.sites(sites), key=lambda site: site.depth)
    for site in found:
        if site.name not in STREAM or site != site.whole or site.view is not None:
            raise SiteError(f"{site}: a lens reads whole residual streams: {', '.join(STREAM)}, as in L*.resid_post")
    return found


def _target(lm: LM, answer: str | int | None) -> int | None:
    if answer is None or isinstance(answer, str):
        return None if answer is None else single_token(lm.tokenizer, answer)
    if not 0 <= answer < lm.anatomy.vocab:
        raise PromptError(f"token id {answer} is out of range: the vocabulary has ids 0 to {lm.anatomy.vocab - 1}")
    return int(answer)


def _cells(logp: Tensor, own: Tensor, targets: Tensor, top: int) -> dict[str, np.ndarray]:
    """The numbers of one site from its log probabilities and the model's own (pos vocab), and the targets (pos)."""
    best = logp.topk(top, dim=-1)
    followed = logp.gather(-1, targets[:, None])
    tensors = {
        "top_ids": best.indices,
        "top_probabilities": best.values.exp(),
        "rank": 1 + (logp > followed).sum(-1),
        "probability": followed.squeeze(-1).exp(),
        **cell_numbers(logp, own),
    }
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
