"""trimtab: find the small part of a language model that carries a behaviour, change only that, show what it cost.

    import trimtab

    lm = trimtab.load("smollm2-135m-instruct")
    run = lm.run("The capital of France is", read=["L*.resid_post@-1"])

The names below are imported when they are first used, so that `import trimtab` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab import evaluate, locate, report, steer, tasks
    from trimtab.model.lm import LM
    from trimtab.model.load import load
    from trimtab.model.memory import memory_limit
    from trimtab.model.prompts import Prompts
    from trimtab.model.protocols import Readout, log_prob, logit_diff
    from trimtab.model.run import Run
    from trimtab.studies.study import Study, study
    from trimtab.tasks.task import Task
    from trimtab.values.edit import Edit, Intervention, Ref
    from trimtab.values.lens import Lens
    from trimtab.values.outcome import Outcome
    from trimtab.values.provenance import Provenance
    from trimtab.values.scope import Scope
    from trimtab.values.scores import Scores
    from trimtab.values.site import Edge, Selection, Site
    from trimtab.values.span import Span

__version__ = "0.1.0"

__all__ = [
    "LM",
    "Edge",
    "Edit",
    "Intervention",
    "Lens",
    "Outcome",
    "Prompts",
    "Provenance",
    "Readout",
    "Ref",
    "Run",
    "Scope",
    "Scores",
    "Selection",
    "Site",
    "Span",
    "Study",
    "Task",
    "__version__",
    "evaluate",
    "load",
    "locate",
    "log_prob",
    "logit_diff",
    "memory_limit",
    "report",
    "steer",
    "study",
    "tasks",
]

_HOME = {
    "LM": "model.lm",
    "Edge": "values.site",
    "Edit": "values.edit",
    "Intervention": "values.edit",
    "Lens": "values.lens",
    "Outcome": "values.outcome",
    "Prompts": "model.prompts",
    "Provenance": "values.provenance",
    "Ref": "values.edit",
    "Readout": "model.protocols",
    "Run": "model.run",
    "Scope": "values.scope",
    "Scores": "values.scores",
    "Selection": "values.site",
    "Site": "values.site",
    "Span": "values.span",
    "Study": "studies.study",
    "Task": "tasks.task",
    "load": "model.load",
    "log_prob": "model.protocols",
    "logit_diff": "model.protocols",
    "memory_limit": "model.memory",
    "study": "studies.study",
}


_STAGES = ("evaluate", "locate", "report", "steer", "tasks")


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _STAGES:
        return import_module(f"trimtab.{name}")
    if name in _HOME:
        value = getattr(import_module(f"trimtab.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name.startswith("__"):
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    from trimtab.errors import nearest

    raise AttributeError(f"module 'trimtab' has no attribute {name!r}{nearest(name, __all__)}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
