"""Knowledge neurons: how much of an answer's probability each MLP neuron at the last position brings about.

Dai et al. 2022, "Knowledge Neurons in Pretrained Transformers", arXiv 2104.08696: integrated gradients of p(answer)
along the path on which a layer's neurons grow from 0 to what they are, and, of the neurons with a large share, those
that the prompts of one fact have in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import ModelError, SiteError, TrimtabError
from trimtab.locate.pairing import alone
from trimtab.locate.plans import plan_onward, planned_by
from trimtab.locate.slopes import at_once, entries
from trimtab.locate.units import Places, places
from trimtab.locate.written import LAST
from trimtab.model.onward import Onward
from trimtab.model.protocols import Readout
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.scores import Label, Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads


@alone
@planned_by(plan_onward)
def knowledge_neurons(
    lm: LM,
    task: Task,
    sites: Reads = "L*.neuron",
    *,
    metric: Literal["prob", "log_prob"] = "prob",
    steps: int = 20,
    on: Literal["clean", "corrupt"] = "clean",
    exact: Literal["fast", "naive"] = "fast",
    batch_size: int = 16,
    memory: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Integrated gradients of p(answer) at each MLP neuron of the last position.

    w·(1/m) Σ_k ∂p/∂w at ((k − ½)/m)·w, k = 1 … m: as in the paper all neurons of one layer grow together, layer by
    layer, the other layers as they come. The attributions of a layer sum to p less what p is with the layer's neurons
    at 0 (the largest error of this sum in each layer is the option `completeness_error`); those of different layers do
    not add up to anything. The paper takes the ends of the steps (k/m); their middle converges faster.

    Args:
        sites: a map such as `"L10-20.neuron"`, or candidates such as `["L12.neuron[3,17]"]`, whose neurons' shares are
            summed. Always at the last position of the prompt.
        metric: what is integrated: the probability of any of the answers, or its logarithm.
        steps: m.
        on: which prompts of a counterfactual task; contrast tasks are read after their questions.
        exact: "fast" runs only the last token of the layers above; "naive" is a whole pass for each step.
        batch_size: prompts whose runs are held together, fewer where they do not fit into `memory`.
        memory: bytes that a pass with its gradients may take beyond the model; by default a share of what is free.

    Returns:
        `Scores` in probability (or nats); `shared_neurons` refines them. Positive: the neuron makes for the answer.

    Raises SiteError for other sites than neurons, TaskError for answers of several tokens, ModelError where a post-norm
    stands behind the MLP (Gemma, OLMo-2): it undoes the common factor, so the path says nothing.

    >>> knowledge_neurons(lm, task).top(5)  # doctest: +SKIP
    """
    if steps < 1:
        raise TrimtabError(f"an integral takes one step or more, got steps={steps}")
    where = at_last(places(lm, sites, None, mapped="last", alone="last"), "knowledge_neurons", ("neuron",))
    if any(lm.anatomy.blocks[block.layer or 0].mlp_post is not None for block in where.blocks):
        raise ModelError(
            f"{lm.name} ({lm.anatomy.family.name}) norms what its MLPs write, so neurons that grow together change "
            "nothing but at the very start of the path, where no step looks; use attribution_patching or ablation"
        )
    measured = measure(lm, task, on=on, metric=metric)
    layers = sorted({block.layer or 0 for block in where.blocks})
    found: dict[int, np.ndarray] = {
        layer: np.zeros((len(measured.prompts), lm.anatomy.blocks[layer].d_mlp)) for layer in layers
    }
    held = entries(lm, ())
    most = at_once(lm, memory)
    errors, done = np.zeros(len(layers)), 0
    for rows in batches(measured.prompts, held, batch_size, most):
        prompts, readout = measured.prompts.rows(rows, trim=True), measured.readout.of_rows(rows)
        onward = Onward(lm, prompts, layers, exact=exact)
        size = max(1, most // onward.numbers)
        for i, layer in enumerate(layers):
            w = onward.neurons[layer]
            values, slopes = _path(onward, layer, w, steps, readout, size)
            shares = w.double().cpu() * slopes
            found[layer][rows] = shares.numpy()
            errors[i] = max(errors[i], float((shares.sum(1) - values).abs().max()))
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    columns = [measured.per_example(torch.as_tensor(_of(block, found)).T).T for block in where.blocks]
    options = {"metric": metric, "steps": steps, "on": on, "completeness_error": errors.tolist()}
    return where.scores(where.array(columns), lm, task, measured.prompts, "knowledge_neurons", measured.unit, options)


def shared_neurons(
    scores: Scores,
    *,
    threshold: float = 0.2,
    share: float = 0.7,
    facts: Sequence[Label] | None = None,
) -> dict[Label, list[Site]]:
    """The neurons that the prompts of one fact have in common, for each fact, the strongest first.

    A neuron counts for an example where it has at least `threshold` of the example's largest attribution, and for a
    fact where it counts for at least `share` of the fact's examples (Dai et al. 2022, section 3.3). `facts` says of
    which fact each example is; without it a fact is a group of the task, which is right where the examples of a group
    are paraphrases of one statement. A task whose groups hold several facts gives a label to each:
    `facts=[example.answers[0] for example in task.examples]`.

    >>> shared_neurons(knowledge_neurons(lm, task))  # doctest: +SKIP
    """
    if not 0 < threshold <= 1 or not 0 < share <= 1:
        raise TrimtabError(f"threshold and share are shares above 0 and up to 1, got {threshold} and {share}")
    labels = list(scores.groups or range(len(scores)) if facts is None else facts)
    if len(labels) != len(scores):
        raise TrimtabError(f"facts has one label for each of the {len(scores)} examples, got {len(labels)}")
    members: dict[Label, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        members[label].append(i)
    flat = scores.array.reshape(len(scores), -1)
    most = np.nanmax(flat, axis=1, keepdims=True, initial=0.0)
    counts = (flat >= threshold * most) & (flat > 0)
    sites = list(scores.sites()) if counts.size else []
    found: dict[Label, list[Site]] = {}
    for label, which in members.items():
        kept = np.flatnonzero(counts[which].sum(0) >= share * len(which) - 1e-9)
        strength = flat[which].mean(0)
        found[label] = [sites[i] for i in kept[np.argsort(-strength[kept], kind="stable")]]
    return found


def at_last(where: Places, method: str, names: tuple[str, ...]) -> Places:
    """Places that are neurons (or heads) at the last position alone, or a SiteError."""
    for block in only(where, method, names).blocks:
        if block.at not in LAST:
            raise SiteError(f"{block}: {method} looks at the last position alone; leave @{block.at} out")
    return where


def only(where: Places, method: str, names: tuple[str, ...]) -> Places:
    """Places that are neurons (or heads), or a SiteError."""
    for block in where.blocks:
        if block.name not in names or block.view is not None or block.input is not None:
            wanted = " or ".join(f"L*.{name}" for name in names)
            raise SiteError(f"{block}: {method} takes {wanted}, or units of these such as L5.{names[0]}[3]")
    return where


def _path(
    onward: Onward, layer: int, w: Tensor, steps: int, readout: Readout, size: int
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row d_mlp"]]:
    """What the whole path changes, and the mean slope along it, in double precision; `size` values go together."""
    middles = (torch.arange(steps, dtype=w.dtype, device=w.device) + 0.5) / steps
    scale = torch.cat([middles.new_tensor([0.0, 1.0]), middles])  # the ends, for the check, and the steps
    each = torch.arange(len(w), device=w.device).repeat_interleave(len(scale))
    scale = scale.repeat(len(w))
    values: list[Tensor] = []
    slopes = torch.zeros(w.shape, dtype=torch.float64)
    for start in range(0, len(each), size):
        part = slice(start, start + size)
        value, slope = onward.gradient(layer, each[part], w[each[part]] * scale[part, None], readout)
        inner = torch.arange(len(each))[part] % (steps + 2) >= 2
        slopes.index_add_(0, each[part].cpu()[inner], slope.double().cpu()[inner])
        values.append(value.double().cpu())
    ends = torch.cat(values).view(len(w), steps + 2)
    return ends[:, 1] - ends[:, 0], slopes / steps


def _of(block: Site, found: dict[int, np.ndarray]) -> np.ndarray:
    """(row unit) of a block's layer, or (row 1) the sum of a candidate's neurons."""
    values = found[block.layer or 0]
    return values if block.index is None else values[:, list(block.index)].sum(1, keepdims=True)
