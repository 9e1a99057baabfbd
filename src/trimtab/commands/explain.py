"""`trimtab explain SITE`: what an address means, in a sentence and a shape; with a model, whether it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.commands.options import Device, Dtype, Json, complete_model, open_model, print_json
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.values.site import Site

MOST = 6


def explain(
    site: Annotated[
        str, typer.Argument(metavar="SITE", help='A site, selection or edge: "L12.head[7]", "L*.mlp_out".')
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Say the sizes it has in this model.", autocompletion=complete_model),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say what a site is: a sentence and a shape."""
    from trimtab.values.site import Edge, Selection
    from trimtab.values.site import explain as explained

    try:
        edge = Edge.parse(site) if "->" in site else None
        selection = None if edge else Selection.parse(site)
    except TrimtabError as error:
        raise typer.BadParameter(str(error)) from error
    lm = None if model is None else open_model(model, dtype, device, check=False)
    if edge is not None:
        sites, more = [edge.source, edge.target], 0
    else:
        assert selection is not None
        several = not selection.single
        sites = lm.sites(site) if lm and several else [selection.site]  # without a model, the first stands for all
        sites, more = sites[:MOST], len(sites) - MOST
    if as_json:
        print_json({"sites": [_document(each, lm) for each in sites], "more": max(0, more)})
        return
    if selection is not None and not selection.single and lm is None:
        typer.echo(f"{selection}: several sites, such as")
    lines = []
    for each in sites:
        lines.append(explained(each))
        if lm is not None:
            lines.append(f"  in {lm.name}: {shape_in(lm, each)}")
    typer.echo("\n".join(lines))
    if more > 0:
        typer.echo(f"… and {more} more")


def _document(site: Site, lm: LM | None) -> dict[str, object]:
    from trimtab.values.kinds import explain, shape

    sentence = explain(site).removeprefix(f"{site}: ").rpartition(", shape ")[0]
    document: dict[str, object] = {"site": str(site), "sentence": sentence, "axes": list(shape(site))}
    return document if lm is None else document | {"model": lm.name, "shape": shape_in(lm, site)}


def shape_in(lm: LM, site: Site) -> str:
    """The axes of a site with their sizes in a model: `batch pos d_head=64`. `SiteError` where the model lacks it."""
    from trimtab.values.kinds import shape

    resolved = lm.anatomy.resolve(site)
    axes = shape(resolved)
    if site.view is not None:
        return " ".join(axes)
    sizes = dict(zip(resolved.whole.kind.axes[-len(lm.shape(resolved.whole)) :], lm.shape(resolved.whole), strict=True))
    if resolved.name in ("scores", "pattern"):
        sizes = {"head": lm.anatomy.n_heads}
    return " ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
