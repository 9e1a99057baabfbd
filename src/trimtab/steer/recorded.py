"""Where an intervention comes from, attached to what a method returns: the model's weights, the task, the options.

It is what a file needs to be refused on another model (`check_vector`), and what a model card tells. A method is
marked, and knows nothing of it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec

import numpy as np
import torch

from trimtab.model.lm import LM
from trimtab.model.prompts import Prompts
from trimtab.tasks.task import Task
from trimtab.values.content import Content, digest_of
from trimtab.values.edit import Intervention
from trimtab.values.provenance import Provenance
from trimtab.values.scope import Scope
from trimtab.values.site import Site

P = ParamSpec("P")
APART = ("lm", "task", "texts", "progress", "batch_size")
LISTED = 16
"""Numbers of a list that are written; of more of them the digest."""


def recorded(method: Callable[P, Intervention]) -> Callable[P, Intervention]:
    """The method, its intervention with provenance: model and weights, the digest of its task or texts, where it has
    any, and options as they were given.

    An intervention that has its own is left as it is.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def made(*args: P.args, **options: P.kwargs) -> Intervention:
        found = method(*args, **options)
        if found.provenance is not None:
            return found
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        given = {name: _plain(value) for name, value in bound.arguments.items() if name not in APART}
        given = {name: value for name, value in given.items() if value is not _NOTHING}
        data = bound.arguments.get("task", bound.arguments.get("texts"))
        return found.with_(provenance=origin(bound.arguments["lm"], data, method.__name__, given))

    return made


def origin(lm: LM, data: Task | Iterable[Task | str] | None, method: str, options: Mapping[str, object]) -> Provenance:
    """The provenance of what a method makes on a model of a task, of several, of texts, or of neither."""
    parts = [] if data is None else [data] if isinstance(data, Task) else list(data)
    digests = [part.digest if isinstance(part, Task) else digest_of(part) for part in parts]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    names = [part.name for part in parts if isinstance(part, Task)]
    return Provenance.now(
        lm.name,
        model_hash=lm.hash,
        data_hash=digest if parts else None,
        method=method,
        options={**({"task": " + ".join(names)} if names else {}), **options},
        threads=torch.get_num_threads(),
        dtype=str(lm.dtype).removeprefix("torch."),
        attention=lm.attention,
    )


_NOTHING = object()


def _plain(value: object) -> object:
    """An option as it can be written; arrays and values by their digests, and `_NOTHING` for what cannot be."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Site | Scope):
        return str(value)
    if isinstance(value, Content | Prompts):
        return value.digest
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else value)
        return hashlib.sha256(array.tobytes()).hexdigest()
    if isinstance(value, Mapping) or callable(value) or not isinstance(value, Iterable):
        return _NOTHING
    parts = [_plain(part) for part in value]
    if len(parts) > LISTED and all(isinstance(part, int | float) for part in parts):
        return digest_of(parts)
    return _NOTHING if any(part is _NOTHING for part in parts) else parts
