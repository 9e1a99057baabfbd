"""The exceptions of trimtab: one small tree, whose every message says what was given, what was expected and what to do.

    TrimtabError
     ├ SiteError        (ValueError)    an unknown site, a layer or unit out of range, a site that this model lacks
     ├ PromptError      (ValueError)    spans, positions, alignment, chat templates, token lengths
     ├ TaskError        (ValueError)    an example that is broken, a task too small, parts that share a group
     ├ StudyError       (ValueError)    an unknown setting of a study, a budget too small, a run that is in use
     ├ EditError        (ValueError)    an operation and its value do not fit, a condition that comes after its edit
     ├ ModelError       (RuntimeError)  loading, an unsupported architecture, identities that fail
     │   └ ModelFileError  (OSError)    a model file that is missing, truncated or of another hash
     ├ Busy             (RuntimeError)  as many requests wait as may: try again later
     ├ FileError        (OSError)       a file of our own of the wrong kind, of a newer version, or damaged
     └ MissingExtra     (ImportError)   an optional part is not installed

It knows nothing of the rest of the package, so every room can raise these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrimtabError(Exception):
    """Everything that trimtab raises on purpose."""


class SiteError(TrimtabError, ValueError):
    """A site is misspelt, out of range, or absent from the model."""


class PromptError(TrimtabError, ValueError):
    """Prompts, spans or positions do not fit."""


class TaskError(TrimtabError, ValueError):
    """A task or one of its examples cannot be used as it is."""


class StudyError(TrimtabError, ValueError):
    """A study cannot be run as it was asked for."""


class EditError(TrimtabError, ValueError):
    """An edit cannot mean what it says: operation, value, shape or condition do not fit."""


class ModelError(TrimtabError, RuntimeError):
    """A model cannot be loaded, or is not one that trimtab reads correctly."""


class ModelFileError(ModelError, OSError):
    """A model file is missing, truncated, or not the file it should be."""


class Busy(TrimtabError, RuntimeError):
    """As many requests wait as may."""


class FileError(TrimtabError, OSError):
    """A file of trimtab is of the wrong kind, from a newer version, or damaged."""


class MissingExtra(TrimtabError, ImportError):
    """An optional part of trimtab is needed and not installed.

    >>> print(MissingExtra("quant", "loading in 4 bit"))
    loading in 4 bit needs an optional part of trimtab: pip install "trimtab[quant]"
    """

    def __init__(self, extra: str, purpose: str = "this") -> None:
        self.extra = extra
        super().__init__(f'{purpose} needs an optional part of trimtab: pip install "trimtab[{extra}]"')


def nearest(word: str, valid: Iterable[str]) -> str:
    """A suggestion to append to an error message, or an empty string where nothing valid is close to `word`.

    >>> nearest("resid_pst", ["resid_pre", "resid_post", "head"])
    ' (did you mean "resid_post"?)'
    >>> nearest("zebra", ["resid_pre"])
    ''
    """
    by_lower = {name.lower(): name for name in valid}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f' (did you mean "{by_lower[close[0]]}"?)' if close else ""
