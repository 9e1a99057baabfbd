"""Whether the methods that a study names exist and can do what it asks of them, told before anything is computed."""

from __future__ import annotations

from trimtab.studies.locating import screener, validator
from trimtab.studies.settings import Settings
from trimtab.studies.steering import steerer


def check_methods(settings: Settings) -> None:
    """StudyError for the first of `screens`, `validator` and `steerers` that no study can use, with the reason."""
    for name in settings.screens:
        screener(name)
    if settings.validator is not None:
        validator(settings.validator)
    for name in settings.steerers:
        steerer(name)
