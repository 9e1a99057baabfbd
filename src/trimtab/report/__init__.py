"""Reports: values made into pages that need no network and no model."""

from trimtab.report.lens import lens_html
from trimtab.report.scores import scores_html
from trimtab.report.steering import steering_html
from trimtab.report.study import study_html
from trimtab.report.study_markdown import study_markdown
from trimtab.report.value import value_html

__all__ = ["lens_html", "scores_html", "steering_html", "study_html", "study_markdown", "value_html"]
