"""Where a result comes from: the model, the prompts and the call, as one `Provenance`.

Hashing the weights takes a second and more. So a result keeps the `Call` that made it, which costs nothing, and its
provenance is worked out when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import torch

from trimtab.values.edit import Intervention
from trimtab.values.provenance import Provenance

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts
    from trimtab.model.protocols import Readout, Source


def provenance(
    lm: LM, prompts: Prompts, method: str, options: Mapping[str, object], *, seed: int | None = None
) -> Provenance:
    """The provenance of what `method` with `options` finds out about `lm` on these prompts."""
    return Provenance.now(
        lm.name,
        model_hash=lm.hash,
        data_hash=prompts.digest,
        method=method,
        options=options,
        seed=seed,
        threads=torch.get_num_threads(),
        dtype=str(lm.dtype).removeprefix("torch."),
        attention=lm.attention,
        bos=prompts.bos,
        chat=prompts.chat,
    )


class Call:
    """A call that has made a result: what its provenance is worked out from, once, when it is first asked for.

    `options()` gives the call's own options as plain values; edits, runs and the blocks of `lm.edited` around are added
    to them. The hash is that of the weights at the time of asking: ask before you train the model further. A deep copy
    is the call itself; what is sent to another process holds the provenance and no model.
    """

    def __init__(
        self,
        lm: LM,
        prompts: Prompts,
        method: str,
        options: Callable[[], Mapping[str, object]],
        *,
        edit: Intervention | None = None,
        runs: Mapping[str, Source] | None = None,
        seed: int | None = None,
    ) -> None:
        self.lm, self.prompts, self.method, self.options, self.seed = lm, prompts, method, options, seed
        self.edit, self.inside = edit, tuple(block.intervention for block in lm.active)
        self.runs = {name: source.prompts for name, source in (runs or {}).items()}  # and not their activations
        self.created = datetime.now(UTC)
        self.found: Provenance | None = None

    @property
    def provenance(self) -> Provenance:
        """Model, weights, prompts, method and options, and when the call was made."""
        if self.found is None:
            options = dict(self.options())
            if self.edit is not None:
                options["edit"] = _written(self.edit)
            if self.inside:
                options["inside"] = [_written(intervention) for intervention in self.inside]
            if self.runs:
                options["runs"] = {name: prompts.digest for name, prompts in self.runs.items()}
            known = provenance(self.lm, self.prompts, self.method, options, seed=self.seed)
            self.found = known.with_(created=self.created.isoformat(timespec="seconds"))
        return self.found

    def __deepcopy__(self, memo: object) -> Call:
        return self

    def __getstate__(self) -> dict[str, object]:
        return {"found": self.provenance}


def about(readout: Readout) -> dict[str, object]:
    """A readout as plain values: its name, where it reads, and the tokens where it has them."""
    known: dict[str, object] = {"name": readout.name, "where": str(readout.where)}
    return known if readout.tokens is None else known | {"tokens": readout.tokens.tolist()}


def _written(intervention: Intervention) -> dict[str, object]:
    """Edits and patches as text, and the digest that also covers their arrays."""
    lines = [str(part) for part in (*intervention.edits, *intervention.patches)]
    return {"edits": lines, "digest": intervention.digest}
