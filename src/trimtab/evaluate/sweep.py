"""Many interventions on what a task is measured on, a few prompts at a time: the engine behind every exact method.

The base run and the runs that values are taken from are held for one batch of prompts and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import SiteError
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Source
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure
from trimtab.values.edit import Edit
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Exact = Literal["fast", "naive"]
Progress = Callable[[int, int], None]
Variants = Sequence[Edit | Sequence[Edit]]
Method = TypeVar("Method", bound=Callable[..., Any])
Make = Callable[[list[int], Prompts], tuple[Variants, Mapping[str, Source]]]
"""(rows, their prompts) -> the variants, as many for every batch, and the runs that they take values from."""

SUBLAYERS = ("attn_raw", "attn_out", "mlp_raw", "mlp_out")
"""The sites that several layers have alike: whole outputs of sublayers, which add up in the stream."""

_MARK = "intervenes"


def intervenes(method: Method) -> Method:
    """Mark a method that intervenes at the sites it is given, exactly: such a one may put a proposal to the test.

    >>> @intervenes
    ... def patching(lm, task, sites): ...
    >>> does_intervene(patching)
    True
    """
    setattr(method, _MARK, True)
    return method


def does_intervene(method: Callable[..., Any]) -> bool:
    """Whether a method is marked by `intervenes`."""
    return getattr(method, _MARK, False) is True


def window_around(lm: LM, site: Site, width: int) -> list[Site]:
    """A site and its like in the layers l − width/2 up to, not including, l + width/2, as far as they have it.

    SiteError for windows of anything but the whole output of a sublayer: head 3 of one layer has nothing to do with
    head 3 of the next, nor have neurons or a dictionary's features, and of several streams the last undoes the others.
    """
    if width == 1:
        return [site]
    if site.layer is None or site.name not in SUBLAYERS or site.index is not None or site.view is not None:
        raise SiteError(
            f"{site}: a window of {width} layers is of what whole sublayers give, one of {', '.join(SUBLAYERS)}, and "
            "nothing else has its like in the layers around it: take one of these, or window=1"
        )
    first, stop = max(0, site.layer - width // 2), min(lm.anatomy.n_layers, site.layer + (width + 1) // 2)
    around = [site.with_(layer=layer) for layer in range(first, stop)]
    return [s for s in around if lm.anatomy.absence(s) is None]


def sweep(
    lm: LM,
    measured: Measure,
    make: Make,
    tensors: Sequence[Site],
    *,
    exact: Exact = "fast",
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "example variant"]:
    """The change of a task's number that each variant makes, in the readout's unit.

    `tensors` are the sites that are edited, which are held for a batch; `progress(done, total)` counts variants times
    prompts.
    """
    entries = 2 * sum(int(np.prod(lm.shape(site))) for site in tensors)
    changes: torch.Tensor | None = None
    done, rows_in_all = 0, len(measured.prompts)
    for rows in batches(measured.prompts, entries, batch_size):
        prompts = measured.prompts.rows(rows, trim=True)
        variants, runs = make(rows, prompts)
        cells = len(variants) * len(rows)

        def report(now: int, total: int, before: int = done, cells: int = cells, n: int = len(variants)) -> None:
            if progress is not None and total:
                progress(before + now * cells // total, n * rows_in_all)

        found = lm.counterfactuals(
            prompts,
            variants,
            measured.readout.of_rows(rows),
            runs=runs,
            dictionaries=dictionaries,
            exact=exact,
            progress=report,
        )
        if changes is None:
            changes = torch.zeros(len(variants), rows_in_all, dtype=torch.float64)
        changes[:, rows] = found.effects.double().cpu()
        done += cells
        if progress is not None:
            progress(done, len(variants) * rows_in_all)
    assert changes is not None
    return measured.per_example(changes).T
