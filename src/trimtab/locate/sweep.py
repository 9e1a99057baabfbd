"""The sweep behind every exact method here; it lives where `evaluate.verify` can use it too."""

from trimtab.evaluate.sweep import (
    Exact,
    Make,
    Progress,
    Variants,
    does_intervene,
    intervenes,
    sweep,
    window_around,
)

__all__ = ["Exact", "Make", "Progress", "Variants", "does_intervene", "intervenes", "sweep", "window_around"]
