"""The table of sites: every kind of tensor that can be addressed inside a model, one row each.

A row says what the tensor is and how its axes are called, the same for every architecture. Where a given architecture
keeps that tensor is the anatomy's business; how an address is written is `site.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.values.site import Site


@dataclass(frozen=True)
class SiteKind:
    """One kind of site.

    `axes` are the names of the tensor's dimensions; `unit` names what an index picks (`L12.head[7]`: a head) and
    `unit_axis` the axis it picks from. `order` sorts the sites of one block by when they are computed. `sentence` says
    what the tensor is: `{units}` stands for the units meant, `{of}` for "channel 3 of" or nothing, `{layer}` for the
    layer, `{expert}` for the expert.
    """

    name: str
    layered: bool
    axes: tuple[str, ...]
    unit: str
    order: int
    sentence: str

    @property
    def unit_axis(self) -> str:
        """The axis that an index picks from: one of `axes`."""
        return self.axes[-1] if self.unit in ("channel", "neuron") else self.unit


_RESID = ("batch", "pos", "d_model")
_HEADS = ("batch", "pos", "head", "d_head")
_ATTENTION = ("batch", "head", "query", "key")
_MLP = ("batch", "pos", "d_mlp")

# fmt: off
_ROWS = (
    SiteKind("embed", False, _RESID, "channel", 0,
             "{of}the token embedding as it enters block 0, after any scale or position embedding"),
    SiteKind("resid_pre", True, _RESID, "channel", 0, "{of}the residual stream before layer {layer}"),
    SiteKind("attn_in", True, _RESID, "channel", 10, "{of}what attention reads in layer {layer}, after its norm"),
    SiteKind("q", True, _HEADS, "head", 20, "query of {units} in layer {layer}, after any QK norm and before rotary"),
    SiteKind("k", True, _HEADS, "head", 20,
             "key of {units} in layer {layer}, after any QK norm and before rotary (native key-value heads)"),
    SiteKind("v", True, _HEADS, "head", 20, "value of {units} in layer {layer} (native key-value heads)"),
    SiteKind("rot_q", True, _HEADS, "head", 30, "query of {units} in layer {layer}, after rotary"),
    SiteKind("rot_k", True, _HEADS, "head", 30,
             "key of {units} in layer {layer}, after rotary (native key-value heads)"),
    SiteKind("scores", True, _ATTENTION, "head", 40,
             "attention logits of {units} in layer {layer}, after scale, soft cap and mask"),
    SiteKind("pattern", True, _ATTENTION, "head", 50, "attention probabilities of {units} in layer {layer}"),
    SiteKind("head", True, _HEADS, "head", 60, "output of {units} in layer {layer} before the output projection (“z”)"),
    SiteKind("attn_neuron", True, ("batch", "pos", "d_attn"), "neuron", 60,
             "activation of {units} of attention in layer {layer}: the heads' outputs side by side, as the output "
             "projection reads them"),
    SiteKind("attn_raw", True, _RESID, "channel", 70,
             "{of}the output projection of attention in layer {layer}, before any post-norm"),
    SiteKind("attn_out", True, _RESID, "channel", 80,
             "{of}what attention in layer {layer} adds to the residual stream"),
    SiteKind("resid_mid", True, _RESID, "channel", 90,
             "{of}the residual stream between attention and MLP of layer {layer}"),
    SiteKind("mlp_in", True, _RESID, "channel", 100, "{of}what the MLP reads in layer {layer}, after its norm"),
    SiteKind("router", True, ("batch", "pos", "expert"), "expert", 105, "routing weight of {units} in layer {layer}"),
    SiteKind("gate_pre", True, _MLP, "neuron", 110,
             "pre-activation of {units} in layer {layer}: the gate, or the input projection of an MLP without one"),
    SiteKind("up", True, _MLP, "neuron", 110, "up projection of {units} in layer {layer}"),
    SiteKind("neuron", True, _MLP, "neuron", 120,
             "activation of {units} in layer {layer}, as the down projection reads it"),
    SiteKind("expert.neuron", True, _MLP, "neuron", 120,
             "activation of {units} of {expert} in layer {layer}, as its down projection reads it"),
    SiteKind("expert", True, _RESID, "expert", 125, "output of {expert} in layer {layer}"),
    SiteKind("mlp_raw", True, _RESID, "channel", 130,
             "{of}the down projection of the MLP in layer {layer}, before any post-norm"),
    SiteKind("mlp_out", True, _RESID, "channel", 140, "{of}what the MLP in layer {layer} adds to the residual stream"),
    SiteKind("resid_post", True, _RESID, "channel", 150, "{of}the residual stream after layer {layer}"),
    SiteKind("final", False, _RESID, "channel", 1000,
             "{of}the residual stream after the last norm, as the unembedding reads it"),
    SiteKind("logits", False, ("batch", "pos", "vocab"), "channel", 1010,
             "{of}the logits as the model returns them, soft cap and scale included"),
)
# fmt: on

SITES: dict[str, SiteKind] = {row.name: row for row in _ROWS}


def explain(site: Site) -> str:
    """What a site is, in a sentence, and its shape; an axis from which one unit is picked is gone, of several shows
    their number.

    >>> from trimtab.values.site import Site
    >>> print(explain(Site.parse("L12.head[7]")))
    L12.head[7]: output of head 7 in layer 12 before the output projection (“z”), shape batch pos d_head
    """
    kind = site.kind
    units = _units(site.unit, site.index)
    of = "" if site.index is None else f"{units} of "
    expert = "each expert" if site.expert is None else f"expert {site.expert}"
    if site.view is not None:
        whole = _units(kind.unit, None)
        base = kind.sentence.format(units=whole, of="", layer=site.layer, expert=expert)
        what = f"activation of {units} of dictionary “{site.dictionary}” on: {base}"
        if site.view == "error":
            what = f"{of}what dictionary “{site.dictionary}” misses of: {base}"
    elif site.input is not None:
        part = {"q": "query", "k": "key", "v": "value"}[site.input]
        what = f"the {part} that {units} in layer {site.layer} reads, as the end of a path into that head"
    else:
        what = kind.sentence.format(units=units, of=of, layer=site.layer, expert=expert)
    where = "" if site.at is None else f", {site.at.sentence}"
    return f"{site}: {what}{where}, shape {' '.join(shape(site))}"


def shape(site: Site) -> tuple[str, ...]:
    """The names of the dimensions of the tensor at a site: one picked unit drops its axis, several show their
    number."""
    axes, axis = site.kind.axes, site.kind.unit_axis
    if site.view == "feature":
        axes, axis = ("batch", "pos", "feature"), "feature"
    elif site.name == "expert" and site.expert is None:
        axes = ("batch", "pos", "expert", "d_model")
    elif site.name == "expert.neuron" and site.expert is None:
        axes = ("batch", "pos", "expert", "d_mlp")
    if site.index is None:
        return axes
    picked = () if len(site.index) == 1 else (str(len(site.index)),)
    return tuple(part for name in axes for part in (picked if name == axis else (name,)))


def _units(unit: str, index: tuple[int, ...] | None) -> str:
    if index is None:
        return f"each {unit}"
    if len(index) == 1:
        return f"{unit} {index[0]}"
    shown = [str(number) for number in index]
    if len(shown) > 8:
        shown = [*shown[:7], f"{len(shown) - 7} more"]
    return f"{unit}s {', '.join(shown[:-1])} and {shown[-1]}"
