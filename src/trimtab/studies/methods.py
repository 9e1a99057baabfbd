"""Whether the methods that a study names exist and can do what it asks of them, and whether the metric of its task can
read its parts, told before anything is computed."""

from __future__ import annotations

from trimtab.errors import StudyError
from trimtab.model.protocols import Readout
from trimtab.studies.locating import screener, validator
from trimtab.studies.settings import Settings
from trimtab.studies.steering import steerer
from trimtab.tasks.metrics import DEFAULT, Metric


def check_methods(settings: Settings) -> None:
    """StudyError for the first of `screens`, `validator` and `steerers` that no study can use, with the reason."""
    for name in settings.screens:
        screener(name)
    if settings.validator is not None:
        validator(settings.validator)
    for name in settings.steerers:
        steerer(name)


def check_parts(metric: Metric) -> None:
    """StudyError for a readout that was made for its rows, such as KL to the clean run: parts have other examples."""
    if isinstance(metric, Readout) and metric.rows is not None:
        raise StudyError(
            f"{metric.name} was made for {metric.rows} examples, and a study parts its task, so that none of its "
            f"numbers would be of the example it is given for: give a metric by name, such as {DEFAULT}, or a function "
            "of logits and rows. As it is it can be read by locate's methods on the task it was made for"
        )
