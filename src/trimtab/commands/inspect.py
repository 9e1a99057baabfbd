"""`trimtab inspect MODEL`: the sizes of a model, and which sites it has with their shapes. It computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.commands.explain import shape_in
from trimtab.commands.options import (
    DEFAULT_MODEL,
    Device,
    Dtype,
    Json,
    ModelName,
    console,
    open_model,
    print_json,
)

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def inspect(
    model: ModelName = DEFAULT_MODEL, dtype: Dtype = None, device: Device = None, as_json: Json = False
) -> None:
    """Show a model's sizes and its sites."""
    lm = open_model(model, dtype, device, check=False)
    facts, sites = portrait(lm), table_of_sites(lm)
    if as_json:
        print_json({"model": lm.name, **facts, "sites": sites})
        return
    from rich.table import Table

    out = console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("model", lm.name)
    for name, value in facts.items():
        shown = (
            "yes" if value is True else "no" if value is False else f"{value:,}" if isinstance(value, int) else value
        )
        table.add_row(name.replace("_", " "), "–" if shown is None else str(shown))
    out.print(table)
    out.print()
    table = Table("site", "layers", "shape", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for site in sites:
        missing = site["absent"]
        where = site["layers"] or ("–" if missing else "")
        table.add_row(
            site["site"], where, site["shape"] or f"absent: {missing}", style="dim" if not site["shape"] else ""
        )
        if site["shape"] and missing:
            table.add_row("", "", f"elsewhere absent: {missing}", style="dim")
    out.print(table)


def portrait(lm: LM) -> dict[str, object]:
    """The sizes and kinds of a model's parts, by name."""
    a, config = lm.anatomy, lm.hf.config
    widths = sorted({block.d_mlp for block in a.blocks})
    experts = max(block.n_experts for block in a.blocks)
    return {
        "family": a.family.name,
        "architecture": type(lm.hf).__name__,
        "parameters": sum(p.numel() for p in lm.hf.parameters()),
        "layers": a.n_layers,
        "heads": a.n_heads,
        "key_value_heads": a.n_kv,
        "d_model": a.d_model,
        "d_head": a.d_head,
        "d_mlp": widths[0] if len(widths) == 1 else f"{widths[0]} to {widths[-1]}",
        "experts": experts or None,
        "vocabulary": a.vocab,
        "context": next(
            (n for k in ("max_position_embeddings", "n_positions") if (n := getattr(config, k, None))), None
        ),
        "norms": _norms(lm),
        "positions": _positions(lm),
        "blocks": "parallel attention and MLP" if a.family.parallel else "attention, then MLP",
        "attention": lm.attention,
        "tied_embeddings": a.tied,
        "logit_soft_cap": a.logit_cap,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
    }


def table_of_sites(lm: LM) -> list[dict[str, str | None]]:
    """Every kind of site: in which layers it is, its shape there, and why it is absent elsewhere."""
    from trimtab.values.numbers import write_runs
    from trimtab.values.site import SITES, Site

    rows: list[dict[str, str | None]] = []
    for kind in sorted(SITES.values(), key=lambda kind: (kind.name != "embed", kind.order)):
        expert = 0 if kind.name == "expert.neuron" else None
        if not kind.layered:
            rows.append({"site": kind.name, "layers": None, "shape": shape_in(lm, Site(kind.name)), "absent": None})
            continue
        sites = [Site(kind.name, layer, expert=expert) for layer in range(lm.anatomy.n_layers)]
        reasons = {site.layer: lm.anatomy.absence(site) for site in sites}
        present = [site for site in sites if reasons[site.layer] is None]
        layers = f"L{write_runs(tuple(site.layer or 0 for site in present))}" if present else None
        shape = shape_in(lm, present[0]) if present else None
        absent = next((reason for reason in reasons.values() if reason), None)
        if absent and not present:
            absent = absent.replace("layer 0", "every layer")
        name = (
            "expert[e].neuron" if kind.name == "expert.neuron" else "expert[e]" if kind.name == "expert" else kind.name
        )
        rows.append({"site": name, "layers": layers, "shape": shape, "absent": absent})
    return rows


def _norms(lm: LM) -> str:
    a = lm.anatomy
    family, block = a.family, a.blocks[0]
    if family.stream_norm is not None:
        where = "on the stream after each sublayer"
    elif family.attn_post is not None:
        where = "before and after each sublayer" if family.mlp_norm is not None else "after each sublayer"
    else:
        where = "before each sublayer"
    norm = a.norm or block.mlp_norm or (block.stream_norm[0] if block.stream_norm else None)
    kind = "none" if norm is None else type(norm).__name__
    queries = ", and of queries and keys" if family.q_norm is not None else ""
    final = "a final norm" if a.norm is not None else "no final norm"
    return f"{kind}, {where}{queries}; {final}"


def _positions(lm: LM) -> str:
    if lm.anatomy.family.rotary:
        return "rotary"
    if lm.hf.config.model_type == "bloom" or getattr(lm.hf.config, "alibi", False):
        return "alibi"
    return "learned"
