"""Direct logit attribution: what each component writes towards a token, straight through the residual stream.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", https://transformer-circuits.pub/2021/framework;
Wang et al. 2022, arXiv 2211.00593, for heads and a logit difference. The last residual stream is the sum of what the
embedding, every attention and every MLP added to it; with the scale of the final norm frozen at its value in this run,
the logit before any soft cap is linear in that sum, so it splits into one term for each of them. It counts direct paths
only: what a component does by way of later ones is theirs here.

Weights are never read or folded: modules are applied, and differentiated where their transpose is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.errors import ModelError, PromptError, SiteError, nearest
from trimtab.locate.frozen import FrozenNorm
from trimtab.model.prompts import single_token
from trimtab.model.provenance import provenance
from trimtab.model.tokens import strings
from trimtab.values.provenance import Provenance
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.model.lm import LM, Text

Parts = Literal["head", "sublayer"]
Tokens = str | int | Sequence[str | int]

NORM_BIAS, UNEMBED_BIAS = "norm bias", "unembedding bias"


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """The terms of a logit, or of a logit difference, of each row.

    `values` (example component) in logits: "embed", then for each layer its heads ("L3.head[5]") and "L3.attn bias", or
    "L3.attn_out", and "L3.mlp_out"; last "norm bias" and "unembedding bias". `total` (example) is the model's own logit
    before any soft cap, and `residual` (example) what the terms leave unexplained: rounding, or what a layer that
    quantises its activations adds. `tokens` and `distractors` are the texts of each row.
    """

    components: tuple[str, ...]
    values: np.ndarray
    total: np.ndarray
    tokens: tuple[str, ...]
    distractors: tuple[str, ...] | None
    at: str
    provenance: Provenance | None = None

    @property
    def residual(self) -> np.ndarray:
        """(example) the total less the sum of the terms."""
        return self.total - self.values.sum(1)

    @property
    def method(self) -> str:
        """The method's name, as scores made from this carry it."""
        return "logit_attribution"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, component: str) -> np.ndarray:
        """(example) the term of one component. SiteError for one that is not there."""
        if component not in self.components:
            raise SiteError(f'"{component}" is no term of this attribution{nearest(component, self.components)}')
        return self.values[:, self.components.index(component)]

    def scores(self, name: str) -> Scores:
        """The terms of all "head", "attn_out" or "mlp_out" as `Scores` over layers (and heads)."""
        chosen = [c for c in self.components if c.partition(".")[2].partition("[")[0] == name]
        if not chosen:
            have = sorted({c.partition(".")[2].partition("[")[0] for c in self.components if "." in c} - {"attn bias"})
            raise SiteError(
                f'no term of this attribution is a "{name}"{nearest(name, have)}: there are {", ".join(have)}'
            )
        values = self.values[:, [self.components.index(c) for c in chosen]]
        layers = tuple(dict.fromkeys(int(c[1:].partition(".")[0]) for c in chosen))
        values = values.reshape(len(self), len(layers), -1)
        heads = name == "head"
        return Scores(
            values if heads else values[..., 0],
            ("example", "layer", "head") if heads else ("example", "layer"),
            {"layer": layers},
            "L{layer}.head[{head}]" if heads else f"L{{layer}}.{name}",
            unit="logit",
            method=self.method,
            provenance=self.provenance,
        )

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each example and component: example, component, value (logits)."""
        import pandas as pd

        index = pd.MultiIndex.from_product([range(len(self)), self.components], names=["example", "component"])
        return index.to_frame(index=False).assign(value=self.values.ravel())

    def __repr__(self) -> str:
        order = np.argsort(-np.abs(self.values.mean(0)))[:3]
        top = ", ".join(f"{self.components[i]} {self.values[:, i].mean():+.2f}" for i in order)
        what = self.tokens[0] if self.distractors is None else f"{self.tokens[0]} − {self.distractors[0]}"
        return f"<Attribution of {what!r}: {len(self)} rows × {len(self.components)} terms, most: {top}>"


@torch.no_grad()
def logit_attribution(
    lm: LM,
    prompts: Text,
    tokens: Tokens,
    *,
    distractors: Tokens | None = None,
    at: str | Scope = "last",
    parts: Parts = "head",
) -> Attribution:
    """The logit of a token, split into what each component writes towards it directly.

    Args:
        prompts: texts, ids or `Prompts`.
        tokens: the token of each row, as text or id; one stands for every row.
        distractors: with them, the terms are those of logit(token) − logit(distractor).
        at: the position that is read, one for each row.
        parts: "head": each head, and what is in the attention of a layer whatever its heads say (the bias of the output
            projection) as a term of its own. "sublayer": each attention as one term.

    Returns:
        An `Attribution` whose terms sum to the logit before any soft cap: exactly, to rounding, also where weights are
        quantised. Post-norms inside blocks are frozen like the final norm. Unit: logits.

    Raises:
        ModelError: the architecture norms the residual stream itself, so that it is no sum (OPT-350m). PromptError: a
        token that is several, or positions that are not one for each row.

    >>> import trimtab
    ...
    ... lm = trimtab.load("smollm2-135m-instruct")  # doctest: +SKIP
    >>> logit_attribution(lm, "The capital of France is", " Paris").scores("head").top(3)  # doctest: +SKIP
    """
    a = lm.anatomy
    if parts not in ("head", "sublayer"):
        raise SiteError(f'parts are "head" or "sublayer", got {parts!r}{nearest(str(parts), ["head", "sublayer"])}')
    check_sum(lm)
    prompts = lm.prompts(prompts)
    scope = Scope.parse(at)
    if any(len(positions) != 1 for positions in prompts.positions(scope)):
        raise PromptError(f'an attribution reads one position of each row, and "{scope}" is not one in every row')
    answers = _ids(lm, tokens, prompts.batch)
    others = None if distractors is None else _ids(lm, distractors, prompts.batch)
    inner = ("head", "attn_raw", "mlp_out") if parts == "head" else ("attn_out", "mlp_out")
    last = f"L{a.n_layers - 1}.resid_post"
    names = ["embed", last, *(f"L{layer}.{name}" for layer in range(a.n_layers) for name in inner)]
    run = lm.run(prompts, [f"{name}@{scope}" for name in names], logits=False)
    read = {name: run[f"{name}@{scope}"].reshape(prompts.batch, *lm.shape(lm.sites(name)[0])) for name in names}
    finite = torch.isfinite(read[last]).all(-1)
    if not bool(finite.all()):
        row = int(finite.int().argmin())
        raise ModelError(
            f"the residual stream of row {row} is not finite at {scope}: the model itself overflows in {lm.dtype}"
        )

    norm = FrozenNorm(a.norm, read[last])
    total, toward = _direction(lm, read[last], answers, others)
    direction = norm.back(toward)
    terms: dict[str, Tensor] = {"embed": _dot(read["embed"], direction)}
    for layer in range(a.n_layers):
        if parts == "head":
            terms |= _heads(lm, layer, read[f"L{layer}.head"], read[f"L{layer}.attn_raw"], direction)
        else:
            terms[f"L{layer}.attn_out"] = _dot(read[f"L{layer}.attn_out"], direction)
        terms[f"L{layer}.mlp_out"] = _dot(read[f"L{layer}.mlp_out"], direction)
    terms[NORM_BIAS] = _dot(norm.bias.expand_as(toward), toward)
    terms[UNEMBED_BIAS] = _exact(_logit(lm, torch.zeros_like(norm(read[last])), answers, others))
    options = {"tokens": answers.tolist(), "distractors": None if others is None else others.tolist(), "at": str(scope)}
    return Attribution(
        components=tuple(terms),
        values=torch.stack(list(terms.values()), dim=1).numpy(),
        total=_exact(total).numpy(),
        tokens=strings(lm.tokenizer, [answers.tolist()])[0],
        distractors=None if others is None else strings(lm.tokenizer, [others.tolist()])[0],
        at=str(scope),
        provenance=provenance(lm, prompts, "logit_attribution", options | {"parts": parts}),
    )


def check_sum(lm: LM) -> None:
    """ModelError where the last residual stream is no sum of what was written to it."""
    a = lm.anatomy
    if any(block.stream_norm is not None for block in a.blocks):
        raise ModelError(
            f"{lm.name} ({a.family.name}) norms the residual stream itself after every sublayer, so its last stream is "
            "no sum of what the sublayers wrote and no logit splits into them; measure effects by patching instead"
        )


def _ids(lm: LM, tokens: Tokens, rows: int) -> Tensor:
    """(row) token ids."""
    given = [tokens] if isinstance(tokens, str | int) else list(tokens)
    ids = [single_token(lm.tokenizer, token) if isinstance(token, str) else int(token) for token in given]
    if len(ids) not in (1, rows):
        raise PromptError(f"one token for all rows or one for each of the {rows}, got {len(ids)}")
    if wrong := [token for token in ids if not 0 <= token < lm.anatomy.vocab]:
        raise PromptError(f"token id {wrong[0]} is out of range: the vocabulary has ids 0 to {lm.anatomy.vocab - 1}")
    return torch.tensor(ids * (rows if len(ids) == 1 else 1), device=lm.device)


def _logit(lm: LM, normed: Tensor, answers: Tensor, others: Tensor | None) -> Tensor:
    """(row) logit of the answers, less that of the others, before any soft cap, from the normed stream (row d)."""
    a = lm.anatomy
    z = a.unembed(normed if a.project_out is None else a.project_out(normed))
    chosen = z.gather(-1, answers.to(z.device)[:, None])
    return (chosen if others is None else chosen - z.gather(-1, others.to(z.device)[:, None])).squeeze(-1)


def _direction(lm: LM, resid: Tensor, answers: Tensor, others: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logit (row), and its gradient at the normed stream (row d_model): the unembedding is linear there."""
    normed = resid if lm.anatomy.norm is None else lm.anatomy.norm(resid)
    with torch.enable_grad():
        normed = normed.detach().requires_grad_()
        total = _logit(lm, normed, answers, others)
        (toward,) = torch.autograd.grad(total.sum(), normed)
    return total.detach(), toward


def _heads(lm: LM, layer: int, head: Tensor, raw: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """The term of each head (row head d_head) of a layer, and that of what its attention adds without them."""
    block = lm.anatomy.blocks[layer]
    post = FrozenNorm(block.attn_post, raw)
    toward = post.back(direction)
    with torch.enable_grad():
        flat = head.detach().flatten(1).requires_grad_()
        (back,) = torch.autograd.grad((_apply(block.o, flat) * toward.to(flat)).sum(), flat)
    each = (_exact(head) * _exact(back).view_as(head)).sum(-1)
    bias = _dot(_apply(block.o, torch.zeros_like(flat).detach()), toward) + _dot(
        post.bias.expand_as(direction), direction
    )
    terms = {f"L{layer}.head[{i}]": each[:, i] for i in range(each.shape[1])}
    return terms | {f"L{layer}.attn bias": bias}


def _apply(linear: nn.Module, x: Tensor) -> Tensor:
    """A linear module on (row d): some take nothing but (batch pos d)."""
    return linear(x[:, None]).squeeze(1)


def _dot(x: Tensor, direction: Tensor) -> Tensor:
    """(row) inner products, summed in double precision."""
    return (_exact(x) * _exact(direction)).sum(-1)


def _exact(x: Tensor) -> Tensor:
    """In double precision, on the CPU: not every accelerator has it, and these are a few vectors."""
    return x.detach().cpu().double()
