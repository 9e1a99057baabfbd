"""Gradients with one layer at a time left out of the way back: what GradDrop averages over.

Kramár et al. 2024, arXiv 2403.00745, section 3.2. The forward pass is made once. To leave out a layer, the gradient of
what its attention and its MLP add to the stream is set to zero, so nothing flows through the layer but the stream.
Whatever comes after a layer has the gradient it always had, so each way back starts at that layer's output: all of them
together cost about half as much as one whole backward pass for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.model.gradient import Gradients, trace
from trimtab.model.protocols import Readout
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads, Text

ADDED = ("attn_out", "mlp_out")
"""What a layer adds to the stream."""
RAW = ("attn_raw", "mlp_raw")
"""The same, where no norm comes after: a tensor that is asked for is given before it is set to zero."""


def dropped_gradients(lm: LM, prompts: Text, readout: Readout, sites: Reads) -> Iterator[tuple[int | None, Gradients]]:
    """First (None, the gradients themselves), then (layer, gradients with that layer left out), from the last layer
    down.

    Those of a layer are given at the sites that it changes, those before its output; at the others they are as without
    it. Layers before all of the sites are left out: they change nothing. Activations come with each, the same ones.

    Raises as `gradients` does.
    """
    wanted = lm.sites(sites)
    layers = range(min((_layer(lm, site) for site in wanted), default=0), lm.anatomy.n_layers)
    ends = {layer: Site("resid_post", layer) for layer in layers}
    added = {layer: [Site(name, layer) for name in ADDED] for layer in layers}
    every = list(dict.fromkeys([*wanted, *ends.values(), *(site for both in added.values() for site in both)]))
    with trace(lm, prompts, readout, every) as traced:  # nothing is patched, so its graph outlives the block
        plain = traced.gradients(list(dict.fromkeys([*wanted, *ends.values()])), keep=True)
        activations = traced.activations(wanted)
    yield (
        None,
        Gradients(traced.value, activations, traced.run({site: plain[site] for site in wanted}), traced.made),
    )
    for layer in reversed(layers):
        end, top = ends[layer], plain[ends[layer]]
        below = [site for site in wanted if site.depth < end.depth]
        if top is None or not below:
            continue
        stops = [traced.held[site][0].register_hook(_nothing) for site in added[layer]]
        try:
            found = traced.gradients(below, start=(end, top), keep=True)
        finally:
            for stop in stops:
                stop.remove()
        found |= {site: None for site in below if site.layer == layer and site.name in (*ADDED, *RAW)}
        yield layer, Gradients(traced.value, activations, traced.run(found), traced.made)


def _nothing(gradient: Tensor) -> Tensor:
    return torch.zeros_like(gradient)


def _layer(lm: LM, site: Site) -> int:
    """The first layer that a site comes before the end of."""
    if site.layer is not None:
        return site.layer
    return 0 if site.name == "embed" else lm.anatomy.n_layers
