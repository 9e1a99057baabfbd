"""K-steering: activations go a step down the loss of one probe of several labels, towards some and away from others.

Oozeer et al. 2025, arXiv 2505.24535. They train a small network and descend on its logits; this probe is linear, whose
logits have the same gradient everywhere, so it is the log loss that is descended on: the step is long where a wanted
label is missing, and fades where it is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import EditError, TaskError, nearest
from trimtab.model.operations import probe_slope
from trimtab.steer.both_sides import BothSides, both_sides, one_vector
from trimtab.steer.methods import scope_free
from trimtab.steer.probes import logistic
from trimtab.steer.recorded import recorded
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention, Probe
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Loss = Literal["softmax", "sigmoid"]


@scope_free
@recorded
def k_steering(
    lm: LM,
    task: Task | Sequence[Task],
    sites: Reads,
    *,
    strength: float = 1.0,
    where: str | Scope = "all",
    read: str | Scope | None = None,
    target: str | tuple[str, ...] | None = None,
    avoid: str | tuple[str, ...] = (),
    loss: Loss = "softmax",
    C: float = 0.1,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Intervention:
    """Moves activations by −α ∇ₕ L, L the loss of a linear probe of several labels at each site.

    K-steering (Oozeer et al. 2025, arXiv 2505.24535). The labels are the sides of a task, by the words of its `poles`;
    of several tasks, every side of each, as "task:pole". L is the mean of −log p over the labels of `target` plus
    the mean of −log(1 − p) over those of `avoid`.

    Args:
        task: a task, or several.
        sites: sites or selections; several heads are named one by one.
        strength: α, in a unit such that at 1 the activations that the probe was trained on, those of the sides to be
            left, move on average as far as the means of the sides to be left and to be reached lie apart. These are
            `avoid` and `target`; where only one is given, the other is all other labels, with "sigmoid" those of the
            same tasks, since how far the texts of two tasks lie apart says nothing of their sides.
        where: positions that are moved.
        read: where activations are averaged, by default each task's own `read`.
        target: labels to reach; by default, without `avoid`, the positive side of every task.
        avoid: labels to leave.
        loss: "softmax": one multinomial probe, of whose labels one holds. "sigmoid": a probe for each task, of its
            two sides; labels of different tasks may hold together.
        C: inverse of the probe's L2 penalty, on standardised features.
        batch_size: prompts that go through the model together.

    Returns:
        One edit for each site, of the operation "gradient".

    Raises EditError for labels that are not there, or where there is nothing to leave or to reach; TaskError for tasks
    of one name.

    >>> k_steering(lm, [formality, sentiment], "L12.resid_post", target="formality:formal")  # doctest: +SKIP
    """
    tasks = [task] if isinstance(task, Task) else list(task)
    if loss not in get_args(Loss):
        raise EditError(f"loss is one of {', '.join(get_args(Loss))}, got {loss!r}{nearest(str(loss), get_args(Loss))}")
    names = labels_of(tasks)
    given = target if target is not None else () if avoid else tuple(names[::2])
    towards, away = _numbers(given, names, "target"), _numbers(avoid, names, "avoid")
    _check(towards, away, names)
    found = _by_site(lm, tasks, sites, read, batch_size, progress)
    edits = []
    for at in found:
        probe = probe_of(at, towards, away, loss, C)
        edits.append(at[0].edit(probe, "gradient", strength=strength, where=where))
    wanted = [names[i] for i in towards] + [f"not {names[i]}" for i in away]
    return Intervention(tuple(edits), name=f"K-steering to {', '.join(wanted)}")


def labels_of(tasks: Sequence[Task]) -> list[str]:
    """The labels of some tasks: both sides of each, the positive one first. TaskError without tasks, or for two of one
    name."""
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise TaskError(f"labels are named by their tasks, which need names of their own; got {names or 'no tasks'}")
    if len(tasks) == 1:
        return list(tasks[0].poles)
    return [f"{task.name}:{pole}" for task in tasks for pole in task.poles]


def probe_of(at: Sequence[BothSides], towards: list[int], away: list[int], loss: Loss, C: float = 0.1) -> Probe:
    """The probe of one site and the step of strength 1; `at` has the two sides of every task there.

    EditError where the sides to be left and to be reached do not differ.
    """
    rows = [side for both in at for side in (both.positive, both.negative)]
    weight, bias = _fitted(rows, loss, C)
    left = away or _others(towards, len(rows), loss)
    reached = towards or _others(away, len(rows), loss)
    apart = np.mean([rows[i].mean(0) for i in reached], axis=0) - np.mean([rows[i].mean(0) for i in left], axis=0)
    distance = float(np.linalg.norm(apart))
    if distance <= max(both.rounding for both in at):
        raise EditError(
            f"{at[0].site}: what is to be left and what is to be reached have the same mean there; read them where "
            "they differ (read=), or leave the site out"
        )
    unit = Probe(weight.astype(np.float32), bias.astype(np.float32), tuple(towards), 1.0, tuple(away), loss)
    logits = np.concatenate([rows[i] for i in left]) @ weight.T + bias
    lengths = np.linalg.norm(probe_slope(torch.from_numpy(logits), unit).numpy() @ weight, axis=1)
    return unit.with_(step=distance / float(lengths.mean()))


def _others(named: list[int], labels: int, loss: Loss) -> list[int]:
    """The labels that are not named: with a probe for each task those of the same tasks, if there are any."""
    others = [i for i in range(labels) if i not in named]
    beside = [i for i in others if i // 2 in {j // 2 for j in named}]  # a task's two sides stand together
    return beside if beside and loss == "sigmoid" else others


def _fitted(
    rows: Sequence[Float[np.ndarray, "_ d"]], loss: Loss, C: float
) -> tuple[Float[np.ndarray, "label d"], Float[np.ndarray, "label"]]:
    """Weights and biases of every label: of all sides together, or of the two sides of each task by themselves."""
    if loss == "softmax":
        return logistic(np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(side) for side in rows]), C)
    weights, biases = [], []
    for positive, negative in zip(rows[::2], rows[1::2], strict=True):
        weight, bias = logistic(np.concatenate([negative, positive]), np.repeat([0, 1], len(positive)), C)
        odds, offset = weight[1] - weight[0], bias[1] - bias[0]
        weights += [odds, -odds]
        biases += [offset, -offset]
    return np.stack(weights), np.array(biases)


def _by_site(
    lm: LM,
    tasks: Sequence[Task],
    sites: Reads,
    read: str | Scope | None,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[list[BothSides]]:
    """At each site, both sides of every task."""
    total, before = 2 * sum(map(len, tasks)), 0
    found: dict[Site, list[BothSides]] = {}
    for task in tasks:

        def report(done: int, _: int, start: int = before) -> None:
            if progress is not None:
                progress(start + done, total)

        for both in both_sides(lm, task, sites, read=read, batch_size=batch_size, progress=report):
            one_vector(both, "a gradient step")
            found.setdefault(both.site, []).append(both)
        before += 2 * len(task)
    return list(found.values())


def _numbers(labels: str | Sequence[str], names: list[str], what: str) -> list[int]:
    """The places of labels among all of them. EditError for one that is not there."""
    listed = [labels] if isinstance(labels, str) else list(dict.fromkeys(labels))
    if wrong := [label for label in listed if label not in names]:
        raise EditError(f'{what}: no label "{wrong[0]}"{nearest(str(wrong[0]), names)}: there are {", ".join(names)}')
    return [names.index(label) for label in listed]


def _check(towards: list[int], away: list[int], names: list[str]) -> None:
    if both := set(towards) & set(away):
        raise EditError(f'"{names[min(both)]}" is both in target and in avoid: it is wanted or it is not')
    if len(towards) == len(names) or len(away) == len(names):
        what, other = ("target", "avoid") if towards else ("avoid", "target")
        raise EditError(f"{what} names every label there is ({', '.join(names)}): {other} one, or leave one out")
    if not towards and not away:
        raise EditError(f"target and avoid are empty: name a label to reach or to leave, of {', '.join(names)}")
