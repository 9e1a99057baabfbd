"""Locating methods, one file per family: plain functions from a model and prompts to a value."""

from trimtab.locate.attribution import Attribution, direct_logit_attribution
from trimtab.locate.lens import logit_lens

__all__ = ["Attribution", "direct_logit_attribution", "logit_lens"]
