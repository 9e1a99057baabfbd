"""Language neurons: those that are active in one language and hardly ever in the others.

Tang et al. 2024, "Language-Specific Neurons: The Key to Multilingual Capabilities in Large Language Models" (LAPE),
arXiv 2402.16438: in each language the share p of tokens at which a neuron's gate is open; low entropy of these shares
over the languages marks a neuron that few of them use. Nothing here says what happens when such a neuron is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_languages
from trimtab.locate.units import places
from trimtab.model.provenance import provenance
from trimtab.tasks.example import Contrast
from trimtab.tasks.means import batches
from trimtab.tasks.task import Task
from trimtab.values.scores import Label, Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads


@planned_by(plan_languages)
def activation_probability(
    lm: LM,
    task: Mapping[str, Sequence[str]] | Task,
    sites: Reads = "L*.neuron",
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """The share of each language's tokens at which a neuron's gate is open.

    The gate is open where `gate_pre` is above 0: SiLU and GELU have the sign of what they are given. In models without
    a gate `gate_pre` is the neuron's own pre-activation, whose sign is the neuron's own (ReLU: where it is not 0).

    Args:
        task: language -> texts, or a contrast task whose examples have answers: then the positive texts of examples
            with the same answers are one language, named by the first answer, and the negative ones, by their
            distractors, another (so with the built-in task `language`, of which five languages are found).
        sites: a map of neurons.
        batch_size: texts that go through the model together.

    Returns:
        `Scores` whose "examples" are the languages, named by `groups`: a share of tokens, all of them, first ones too.

    Raises TaskError with fewer than two languages, SiteError for other sites than a map of neurons.
    """
    languages = dict(task) if isinstance(task, Mapping) else _by_answers(task)
    if len(languages) < 2 or not all(len(found) for found in languages.values()):
        raise TaskError(f"give texts of two languages or more, got {', '.join(languages) or 'none'}")
    where = places(lm, sites, None, mapped="all")
    if where.units is None or any(block.name != "neuron" for block in where.blocks):
        raise SiteError(f"languages are compared over a map of neurons, such as L*.neuron, got {sites}")
    gates = [Site("gate_pre", block.layer) for block in where.blocks]
    flat = [(label, text) for label, found in languages.items() for text in found]
    prompts = lm.prompts([text for _, text in flat])
    names = list(languages)
    owner = np.array([names.index(label) for label, _ in flat])
    above = np.zeros((len(names), len(gates), where.units))
    tokens = np.zeros(len(names))
    done = 0
    for rows in batches(prompts, len(gates) * where.units, batch_size):
        part = prompts.rows(rows, trim=True)
        run = lm.run(part, gates, logits=False)
        mask = part.mask.bool()
        np.add.at(tokens, owner[rows], mask.sum(1).cpu().numpy())
        for i, gate in enumerate(gates):
            x = run.whole(gate)
            counts = ((x > 0) & mask.to(x.device)[..., None]).sum(1).cpu().numpy()
            np.add.at(above[:, i], owner[rows], counts)
        done += len(rows)
        if progress is not None:
            progress(done, len(prompts))
    layers = tuple(gate.layer for gate in gates if gate.layer is not None)
    made = {"languages": names, "texts": [len(found) for found in languages.values()], "tokens": tokens.tolist()}
    return Scores(
        above / tokens[:, None, None],
        ("example", "layer", "neuron"),
        {"layer": layers},
        "L{layer}.neuron[{neuron}]",
        unit="share",
        method="activation_probability",
        options=made,
        groups=tuple(names),
        provenance=provenance(lm, prompts, "activation_probability", made),
    )


@planned_by(plan_languages)
def language_entropy(
    lm: LM,
    task: Mapping[str, Sequence[str]] | Task,
    sites: Reads = "L*.neuron",
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Entropy over the languages of each neuron's activation probability (LAPE), one number for each neuron.

    p_l is the share of a language's tokens at which the gate is open (`activation_probability`, which keeps what
    `language_neurons` needs to choose by); the score is −Σ q_l log q_l with q = p/Σp. Low: few languages open it.

    Returns:
        `Scores` of a single row, in nats, between 0 and the logarithm of the number of languages; NaN for neurons that
        no token opens.

    >>> language_entropy(lm, {"French": french, "English": english})  # doctest: +SKIP
    """
    return entropy(activation_probability(lm, task, sites, batch_size=batch_size, progress=progress))


def entropy(probabilities: Scores) -> Scores:
    """The entropy over languages of `activation_probability`'s shares, normalised to sum to 1, in nats."""
    return probabilities.with_(
        array=_entropy(probabilities.array)[None],
        coords={dim: probabilities.coords[dim] for dim in probabilities.places},
        unit="nat",
        method="language_entropy",
        groups=None,
        order="low",
    )


def language_neurons(probabilities: Scores, *, lowest: float = 0.01, active: float = 0.95) -> dict[Label, list[Site]]:
    """The neurons of each language, those of lowest entropy first, from `activation_probability`.

    Of the neurons with some p above the `active` quantile of all p (all neurons, all languages), those of lowest
    entropy are chosen, `lowest` of all neurons; each belongs to the languages in which its p is above that quantile.
    """
    if not 0 < lowest <= 1 or not 0 <= active < 1:
        raise TrimtabError(f"lowest is a share of the neurons and active a quantile, got {lowest} and {active}")
    if probabilities.method != "activation_probability" or probabilities.groups is None:
        raise TrimtabError(f"language_neurons chooses by activation_probability, got {probabilities!r}")
    p = probabilities.array.reshape(len(probabilities), -1)
    bar = np.quantile(p, active)
    sizes = np.where((p > bar).any(0), _entropy(p), np.inf)
    order = np.argsort(sizes, kind="stable")[: max(1, round(lowest * p.shape[1]))]
    order = order[np.isfinite(sizes[order])]
    neurons = probabilities.array.shape[2]
    layers = probabilities.coords["layer"]
    return {
        label: [
            probabilities.site_at(layer=layers[i // neurons], neuron=int(i % neurons)) for i in order if shares[i] > bar
        ]
        for label, shares in zip(probabilities.groups, p, strict=True)
    }


def _entropy(p: Float[np.ndarray, "language ..."]) -> Float[np.ndarray, "..."]:
    """−Σ q log q over the first axis with q = p/Σp; NaN where all are 0."""
    total = p.sum(0)
    q = np.divide(p, total, out=np.full(p.shape, np.nan), where=total > 0)
    return -(q * np.log(np.where(q > 0, q, 1.0))).sum(0) + 0.0


def _by_answers(task: Task) -> dict[str, list[str]]:
    """The texts of a contrast task by language: the sides of examples that are answered with the same words."""
    found: dict[str, list[str]] = defaultdict(list)
    names: dict[tuple[str, ...], str] = {}
    for example in task.examples:
        if not isinstance(example, Contrast) or not example.answers:
            raise TaskError(
                f"{task.name} does not say of which language its texts are: give them as a mapping of language to texts"
            )
        for words, text in ((example.answers, example.positive), (example.distractors, example.negative)):
            names.setdefault(words, words[0].strip() if words[0].strip() not in names.values() else "/".join(words))
            found[names[words]].append(text)
    return dict(found)
