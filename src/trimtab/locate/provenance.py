"""The same `provenance` as in `trimtab.model.provenance`, where it lives."""

from trimtab.model.provenance import provenance

__all__ = ["provenance"]
