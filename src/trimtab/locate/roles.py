"""What heads do by themselves, and how they are wired: a first account of attention as a system.

Every head is scored in roles known from the literature and compared with a null that has the same tokens and no
structure to find: Elhage et al. 2021 (transformer-circuits.pub/2021/framework), Olsson et al. 2022 (arXiv 2209.11895),
Wang et al. 2022 (arXiv 2211.00593), Xiao et al. 2023 (arXiv 2309.17453), McDougall et al. 2023 (arXiv 2310.04625). A
role says what a head does on random tokens; what it does elsewhere, and whether a task needs it, is for interventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.errors import ModelError, TrimtabError, nearest
from trimtab.locate.circuits_qk_ov import Circuits, Kind, composition, heads_of
from trimtab.locate.copying import own_logits
from trimtab.locate.patterns import (
    Look,
    Pairs,
    Progress,
    averaged,
    duplicate_pairs,
    induction_pairs,
    looked_at,
    previous_pairs,
    row_ids,
    sink_pairs,
    summed,
)
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_roles, plan_weights
from trimtab.model.prompts import Prompts
from trimtab.model.provenance import provenance
from trimtab.tasks.repeated import RepeatedTokens
from trimtab.values.roles import RoleGraph, RoleTable
from trimtab.values.scores import Scores
from trimtab.values.site import Edge, Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

ABOUT = {
    "previous_token": "attention to the token before; null: to a random earlier token that is not the row's first",
    "duplicate_token": "attention to the same token earlier; null: to the same distance where nothing is repeated",
    "induction": "attention to what followed the same token earlier; null: to the same distance, nothing repeated",
    "sink": "attention to the row's first token; null: attention spread evenly",
    "copying": "logit of the attended token, in standard deviations of the vocabulary; null: of another token",
    "suppression": "minus the score of copying",
}
"""Each role's score and null."""


@planned_by(plan_roles)
def head_roles(
    lm: LM,
    task: RepeatedTokens | None = None,
    sites: Reads = "L*.head",
    *,
    attention: float = 0.2,
    sink: float = 0.5,
    copying: float = 1.0,
    level: float = 0.95,
    batch_size: int = 16,
    circuits: Circuits | None = None,
    progress: Progress | None = None,
) -> RoleTable:
    """The roles of each head: previous token, duplicate token, induction, sink, copying, suppression.

    A role is assigned where the score exceeds its null by a threshold, and the lower end of the interval of the
    difference, over sequences, is above zero. A head may have several roles, or none. Intervals are Student's, and
    corrected (Bonferroni) for all the heads and roles that are looked at: all hold at once with probability `level`.

    Args:
        task: repeated random tokens; by default those of `RepeatedTokens()`.
        sites: heads.
        attention: least excess of the three roles that look at other tokens, a share of attention.
        sink: least excess of attention to the first token.
        copying: least excess of copying and of suppression, in standard deviations over the vocabulary.
        level: of all intervals together.
        circuits: the matrices, where they have been read already.

    Returns:
        A `RoleTable`. Copying and suppression are NaN where the architecture has no direct path (OPT-350m).

    >>> head_roles(lm).heads_of("induction")  # doctest: +SKIP
    """
    chosen = task or RepeatedTokens()
    if not isinstance(chosen, RepeatedTokens):
        raise TrimtabError(f"roles are measured on RepeatedTokens, whose null is known, got {type(chosen).__name__}")
    heads = heads_of(lm, sites)
    layers = sorted({layer for layer, _ in heads})
    prompts, unrelated = chosen.prompts(lm), chosen.unrelated(lm)
    ids = [row_ids(prompts, row) for row in range(len(prompts))]
    done = 0

    def report(now: int, total: int) -> None:
        if progress is not None:
            progress(done + now, 3 * total)

    def passed(given: Prompts, kinds: Sequence[str]) -> dict[str, np.ndarray]:
        def prepare(rows: list[int], part: Prompts) -> list[Look]:
            return [summed([averaged(_pairs(kind, ids[row], row)) for row in rows], part) for kind in kinds]

        return dict(zip(kinds, looked_at(lm, given, layers, prepare, batch_size, report), strict=True))

    found = passed(prompts, ["previous_token", "duplicate_token", "induction", "sink", "elsewhere"])
    done = len(prompts)
    nulls = passed(unrelated, ["duplicate_token", "induction"])
    nulls["previous_token"] = found.pop("elsewhere")
    even = [averaged(_pairs("sink", each, 0), "uniform")[1] for each in ids]
    nulls["sink"] = np.broadcast_to(np.array(even)[:, None, None], found["sink"].shape)
    done = 2 * len(prompts)
    others = [np.roll(each, chosen.length // 2) for each in ids]
    try:
        made = circuits or Circuits(lm)
        copied = own_logits(lm, prompts, layers, [ids, others], made, batch_size=batch_size, progress=report)
    except ModelError:
        copied = [np.full_like(found["sink"], np.nan)] * 2
    found["copying"], nulls["copying"] = copied
    found["suppression"], nulls["suppression"] = -copied[0], -copied[1]

    which = ([layers.index(layer) for layer, _ in heads], [head for _, head in heads])
    score, null = (np.stack([side[role][:, which[0], which[1]] for role in ABOUT], axis=-1) for side in (found, nulls))
    low = least(score - null, level)
    thresholds = dict.fromkeys(ABOUT, attention) | {"sink": sink, "copying": copying, "suppression": copying}
    options = {"thresholds": thresholds, "level": level, "sequences": len(chosen), "length": chosen.length}
    return RoleTable(
        tuple(str(Site("head", layer, index=(head,))) for layer, head in heads),
        tuple(ABOUT),
        score.mean(0),
        null.mean(0),
        low,
        thresholds,
        ABOUT,
        len(chosen),
        provenance(lm, prompts, "head_roles", options, seed=chosen.seed),
    )


def least(values: Float[np.ndarray, "example head role"], level: float) -> Float[np.ndarray, "head role"]:
    """The lower ends of the intervals of the means, which all hold at once with probability `level`.

    Student's however many examples there are: resampling says nothing of tails as thin as a correction asks for.
    """
    from scipy.stats import t as student

    if not 0 < level < 1:
        raise TrimtabError(f"level is a probability between 0 and 1, such as 0.95, got {level!r}")
    n, tests = len(values), int(np.isfinite(values).all(0).sum())
    if n < 2 or not tests:
        return np.full(values.shape[1:], np.nan)
    error = values.std(0, ddof=1) / np.sqrt(n)
    return values.mean(0) - student.isf((1 - level) / 2 / tests, n - 1) * error


@planned_by(plan_weights)
def role_graph(
    lm: LM,
    table: RoleTable,
    *,
    roles: tuple[str, ...] = ("previous_token", "duplicate_token", "induction", "copying", "suppression"),
    kinds: tuple[Kind, ...] = ("q", "k", "v"),
    edges: Scores[Edge] | None = None,
    least: float = 2.0,
    circuits: Circuits | None = None,
) -> RoleGraph:
    """How the heads of a table that have one of these roles read one another.

    Every pair of such heads in different layers is an edge, with the composition score of the receiver's query, key or
    value input; or, given `edges`, with the mean size of an effect that an intervention found (path patching). An edge
    stands out where it is `least` standard deviations above the other heads of the sender's own layer, so that what all
    heads of a layer have in common, such as how near it is, makes no edge.

    Args:
        table: from `head_roles`.
        roles: heads with any of these are the nodes; a sink is left out, since many heads rest there.
        kinds: inputs of the receivers that are looked at; not with `edges`.
        edges: scores over (layer, head, receiver), with one span at most, as of `composition` or path patching.
        circuits: the matrices, where they have been read already.

    Returns:
        A `RoleGraph`, whose `between_roles()` sums up pairs of roles, such as previous token → key of induction.

    >>> role_graph(lm, head_roles(lm)).between_roles().head(3)  # doctest: +SKIP
    """
    if wrong := [role for role in roles if role not in table.roles]:
        raise TrimtabError(f'no role "{wrong[0]}" in this table{nearest(wrong[0], table.roles)}')
    having = [head for head in table.heads if set(table.roles_of(head)) & set(roles)]
    if edges is not None:
        given = [edges]
    else:
        made = circuits or Circuits(lm)
        given = [composition(lm, kind=kind, receivers=having, circuits=made) for kind in kinds] if having else []
    names: list[str] = []
    values: list[float] = []
    z: list[float] = []
    for scores in given:
        one_span = "span" in scores.places and len(scores.coords["span"]) == 1
        if tuple(dim for dim in scores.places if dim != "span" or not one_span) != ("layer", "head", "receiver"):
            raise TrimtabError(
                f"edges are scores over layer, head and receiver, got {', '.join(scores.places)}: give those of "
                "composition, or of path patching between heads"
            )
        mean = scores.mean() if edges is None else np.abs(scores.mean())
        mean = mean.squeeze(scores.places.index("span")) if one_span else mean
        deviations = standing_out(mean)
        for cell in np.argwhere(np.isfinite(deviations)):
            layer, head, receiver = (
                scores.coords[dim][i] for dim, i in zip(("layer", "head", "receiver"), cell.tolist(), strict=True)
            )
            edge = Edge.parse(f"L{layer}.head[{head}]->{receiver}")
            if str(edge.source) in having and str(edge.target.with_(input=None, at=None)) in having:
                names.append(str(edge))
                values.append(float(mean[tuple(cell)]))
                z.append(float(deviations[tuple(cell)]))
    unit = "composition" if edges is None else edges.unit
    return RoleGraph(table, tuple(roles), tuple(names), np.array(values), np.array(z), least, unit, table.provenance)


def standing_out(
    values: Float[np.ndarray, "layer head receiver"],
) -> Float[np.ndarray, "layer head receiver"]:
    """How far each sender is above the other heads of its layer, in standard deviations of these differences over all
    senders to the same receiver; NaN where there is nothing to compare with."""
    n = values.shape[1]
    if n < 2:
        return np.full(values.shape, np.nan)
    others = (values.sum(1, keepdims=True) - values) / (n - 1)
    gap = values - others
    present = np.isfinite(gap)
    count = present.sum((0, 1))
    spread = np.sqrt(np.square(np.where(present, gap, 0.0)).sum((0, 1)) / np.maximum(count, 1))
    return np.where(spread > 0, gap / np.where(spread > 0, spread, 1.0), np.nan)


def _pairs(kind: str, ids: np.ndarray, row: int) -> Pairs:
    match kind:
        case "previous_token":
            return previous_pairs(ids)
        case "duplicate_token":
            return duplicate_pairs(ids)
        case "induction":
            return induction_pairs(ids)
        case "sink":
            return sink_pairs(ids)
    pairs = np.zeros((len(ids), len(ids)), dtype=bool)
    rng = np.random.default_rng([0, row])
    for query in range(3, len(ids)):
        pairs[query, rng.integers(1, query - 1)] = True
    return pairs
