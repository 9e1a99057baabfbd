"""Folds: which examples a classifier is trained on, which labels it is taught, and what it gets right on the others.

A task's examples have two sides, labelled 1 and 0. The controls of a probe are other labels (Hewitt and Liang 2019,
arXiv 1909.03368); what is fitted is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from trimtab.errors import TaskError
from trimtab.locate.classifiers import Classifier
from trimtab.tasks.measure import Sides
from trimtab.tasks.task import Task
from trimtab.values.site import Site

Score = Literal["correct", "margin"]
Control = Literal["shuffled", "groups", "tokens", "untrained"]
Split = Sequence[tuple[np.ndarray, np.ndarray]]
Fit = Callable[[np.ndarray, np.ndarray], Classifier]
"""(rows (row unit d), labels (row)) -> a classifier."""
PARTS = 10
"""Sets of whole groups that have draws of their own, at most: their differences are what an interval goes by."""
UNEVEN = 0.75
"""Largest share of the rows that one type may have, for labels drawn for each type to say anything."""
TRUE = np.array([[1], [0]])
"""(side, any example) the labels of the positive and of the negative side."""


def crossed(
    x: Float[np.ndarray, "2 example unit d"],
    taught: Int[np.ndarray, "2 example"],
    asked: Int[np.ndarray, "2 example"],
    split: Split,
    fitted: Fit,
    score: Score = "correct",
    weight: Float[np.ndarray, "2 example"] | None = None,
) -> Float[np.ndarray, "example unit"]:
    """What each example scores under the classifier of its fold: trained on `taught` labels, tested on `asked` ones.

    An asked label of −1 is left out: an example without any is NaN, and so is a fold that is taught one label only.
    `weight` is what each side counts.
    """
    out = np.full((x.shape[1], x.shape[2]), np.nan)
    for train, test in split:
        rows, labels = x[:, train].reshape(-1, *x.shape[2:]), taught[:, train].ravel()
        if len(set(labels.tolist())) < 2:
            continue
        classifier = fitted(rows, labels)
        margins = classifier.margins(x[:, test].reshape(-1, *x.shape[2:])).reshape(2, len(test), -1)
        signs = np.where(asked[:, test] < 0, np.nan, 2 * asked[:, test] - 1)[..., None]
        if score == "correct":
            each = (1 + signs * np.sign(margins)) / 2  # on the border counts half
        else:
            spread = classifier.margins(rows).std(0)
            each = signs * np.divide(margins, spread, out=np.zeros_like(margins), where=spread > 0)
        each = each if weight is None else each * weight[:, test, None]
        known = (~np.isnan(each)).sum(0)
        out[test] = np.divide(np.nansum(each, 0), known, out=np.full(known.shape, np.nan), where=known > 0)
    return out


def group_split(task: Task, folds: int, seed: int) -> Split:
    """Folds of whole groups. TaskError with fewer than two."""
    from sklearn.model_selection import GroupKFold

    groups = np.array(task.groups)
    return list(GroupKFold(parts_of(task, folds), shuffle=True, random_state=seed).split(groups, groups=groups))


def true_labels(examples: int) -> Int[np.ndarray, "2 example"]:
    """1 for every positive side, 0 for every negative one."""
    return np.repeat(TRUE, examples, axis=1)


def shuffled_labels(examples: int, rng: np.random.Generator) -> Int[np.ndarray, "2 example"]:
    """The labels with the two sides of half of the examples swapped."""
    flip = rng.permutation(np.arange(examples) % 2 == 0)
    return np.where(flip, TRUE[::-1], TRUE)


def balanced(asked: Int[np.ndarray, "2 example"]) -> Float[np.ndarray, "2 example"]:
    """What each side counts where both asked labels are to weigh alike however often each was drawn.

    The mean over examples of the sides' weighted scores is then the mean of the two labels' mean scores, and 0.5 for
    whoever always says the same. NaN where one of the labels is never asked.
    """
    known = asked >= 0
    counts = np.bincount(asked[known], minlength=2)
    if not counts.all():
        return np.full(asked.shape, np.nan)
    return known.sum(0) * known.any(0).sum() / (2 * counts[asked])


@dataclass(frozen=True, eq=False)
class Drawn:
    """What probes are taught and asked, on which examples, and what each side of these counts."""

    taught: Int[np.ndarray, "2 example"]
    asked: Int[np.ndarray, "2 example"]
    split: Split
    weight: Float[np.ndarray, "2 example"] | None = None

    def scores(self, x: Float[np.ndarray, "2 example unit d"], fitted: Fit, score: Score) -> np.ndarray:
        """(example unit), NaN for the examples that are in no test part of the split."""
        return crossed(x, self.taught, self.asked, self.split, fitted, score, self.weight)


@dataclass(frozen=True, eq=False)
class Labels:
    """What probes are taught and asked, and on which examples.

    Labels are drawn independently for each of the `parts`, sets of whole groups. Examples that are judged by probes of
    one draw err together; parts do not, so that an interval over parts has the scatter between draws in it.
    """

    task: Task
    prompts: Sides
    control: Control | None
    draws: int
    folds: int
    seed: int

    @property
    def is_drawn(self) -> bool:
        """Whether labels are drawn at all."""
        return self.control not in (None, "untrained")

    @cached_property
    def parts(self) -> Int[np.ndarray, "example"]:
        """The part of each example: whole groups, several of one fold of groups where there are many."""
        groups = np.array(self.task.groups)
        found = np.zeros(len(groups), dtype=int)
        split = group_split(self.task, self.folds, self.seed)
        each = -(-PARTS // len(split))
        for number, (_, test) in enumerate(split):
            names = list(dict.fromkeys(groups[test].tolist()))
            order = {name: i for i, name in enumerate(np.random.default_rng([self.seed, number]).permutation(names))}
            found[test] = [number * each + order[name] % each for name in groups[test]]
        return np.unique(found, return_inverse=True)[1]

    def of(self, block: Site) -> list[list[Drawn]]:
        """Of each draw what every part is taught and asked at one place; together its splits test every example."""
        n, rng = len(self.task), np.random.default_rng(self.seed)
        true = true_labels(n)
        if not self.is_drawn:
            return [[Drawn(true, true, group_split(self.task, self.folds, self.seed))]]
        names = range(int(self.parts.max()) + 1)
        if self.control == "shuffled":
            split = group_split(self.task, self.folds, self.seed)
            within = [_inside(split, self.parts == part) for part in names]
            return [[Drawn(shuffled_labels(n, rng), true, some) for some in within] for _ in range(self.draws)]
        types = self._types(block)
        split = self._of_examples(n)
        within = [_inside(split, self.parts == part) for part in names]
        known = np.zeros_like(types, dtype=bool)
        for train, test in split:
            known[:, test] = np.isin(types[:, test], types[:, train])

        def drawn(some: Split) -> Drawn:
            labels = rng.permutation(np.arange(types.max() + 1) % 2)[types]
            asked = np.where(known, labels, -1)
            return Drawn(labels, asked, some, balanced(asked))

        return [[drawn(some) for some in within] for _ in range(self.draws)]

    def _types(self, block: Site) -> np.ndarray:
        """(2 example) a number for the group of each example, or for the last token that is read of each side."""
        if self.control == "groups":
            found = np.repeat([self.task.groups], 2, axis=0)
        else:
            assert block.at is not None
            found = np.array(
                [
                    [int(ids[at[-1]]) for ids, at in zip(side.ids, side.positions(block.at), strict=True)]
                    for side in self.prompts
                ]
            )
        names, numbers = np.unique(found, return_inverse=True)
        if len(names) < 2:
            what = "group" if self.control == "groups" else f"last token at {block}"
            raise TaskError(
                f"{self.task.name} has one {what}, and a label is drawn for each: there must be two or more"
            )
        share = np.bincount(numbers.ravel()).max() / numbers.size
        if share > UNEVEN:
            what = "group" if self.control == "groups" else f"last token at {block}"
            raise TaskError(
                f"one {what} has {share:.0%} of what {self.task.name} shows, so nearly everything would have the label "
                f'drawn for it: take fewer examples of it, or control="shuffled"'
            )
        return numbers.reshape(found.shape)

    def _of_examples(self, examples: int) -> Split:
        from sklearn.model_selection import KFold

        parts = min(max(self.folds, 2), examples)
        return list(KFold(parts, shuffle=True, random_state=self.seed).split(np.arange(examples)))


def _inside(split: Split, wanted: Bool[np.ndarray, "example"]) -> Split:
    """The same training examples, tested on some only."""
    return [(train, test[wanted[test]]) for train, test in split if wanted[test].any()]


def parts_of(task: Task, folds: int) -> int:
    """How many folds of whole groups there are: `folds`, or as many as groups. TaskError with fewer than two."""
    parts = min(folds, len(set(task.groups)))
    if parts < 2:
        raise TaskError(
            f"a probe is tested on groups that it was not trained on, so two groups and two folds are needed: "
            f"{task.name} has {len(set(task.groups))} group(s), and folds is {folds}"
        )
    return parts
