"""Reports: values made into pages that need no network and no model."""

from trimtab.report.lens import lens_html

__all__ = ["lens_html"]
