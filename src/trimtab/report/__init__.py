"""Reports: values made into pages that need no network and no model."""

from trimtab.report.lens import lens_html
from trimtab.report.study import study_html
from trimtab.report.study_markdown import study_markdown

__all__ = ["lens_html", "study_html", "study_markdown"]
