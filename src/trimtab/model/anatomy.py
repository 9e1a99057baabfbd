"""Where each site lives in a given model: a family's row of names turned into modules, sizes and taps.

The anatomy knows modules and shapes; it runs nothing and registers no hook (that is `hooks.py`), and it does not prove
itself (that is `identities.py`, which `load` calls). Every site of the table in `trimtab.values.site` either has a tap
here or is absent for this architecture, in which case the error says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from trimtab.errors import ModelError, SiteError, nearest
from trimtab.model.families import ROWS, Family
from trimtab.model.taps import Clipped, Columns, Grouped, Half, Heads, HeadsFirst, Layout, Plain, Repeated, Tap
from trimtab.values.alias import check_alias
from trimtab.values.site import SITES, Selection, Site

NO_MID = "attention and MLP read the same stream in this architecture's parallel blocks"
NO_ROTARY = "this architecture has no rotary position embedding"
IS_MOE = "layer {layer} is a mixture of experts: use L{layer}.expert[e].neuron"
NOT_MOE = "layer {layer} has no experts"
NO_GATE = "this architecture's MLP has no gate: its pre-activation is L{layer}.gate_pre"


@dataclass(frozen=True)
class Block:
    """The parts of one block; a part that the architecture lacks is None."""

    module: nn.Module
    attn: nn.Module
    q: nn.Module | None
    k: nn.Module | None
    v: nn.Module | None
    qkv: nn.Module | None
    o: nn.Module
    attn_post: nn.Module | None
    mlp: nn.Module | None
    mlp_in: nn.Module
    mlp_norm: nn.Module | None
    mlp_post: nn.Module | None
    gate: nn.Module | None
    up: nn.Module | None
    gate_up: nn.Module | None
    down: nn.Module | None
    router: nn.Module | None
    experts: nn.Module | None
    shared: nn.Module | None
    stream_norm: tuple[nn.Module, nn.Module] | None
    d_mlp: int
    n_experts: int

    @property
    def mlp_raw(self) -> nn.Module:
        """The module whose output is `mlp_raw`."""
        part = self.down if self.experts is None else self.mlp
        assert part is not None
        return part


class Anatomy:
    """Sizes of a model, its blocks, and a tap for every site.

    Raises `ModelError` when no row fits the model's architecture or a named part is missing.
    """

    def __init__(self, hf: PreTrainedModel) -> None:
        config = hf.config
        self.hf = hf
        self.family = family_of(config)
        blocks = _at(hf, self.family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        self.n_layers = len(blocks)
        self.d_model: int = config.hidden_size
        self.n_heads: int = config.num_attention_heads
        self.n_kv: int = _kv_heads(config, blocks[0])
        self.vocab: int = config.vocab_size
        self.blocks = [_block(self.family, block) for block in blocks]
        self.d_head = in_features(self.blocks[0].o) // self.n_heads
        self.norm = _optional(hf, self.family.norm)
        self.project_in = _optional(hf, self.family.project_in)
        self.project_out = _optional(hf, self.family.project_out)
        self.unembed = _at(hf, self.family.unembed)
        self.embedding: nn.Module = hf.get_input_embeddings()
        text = config.get_text_config()
        self.logit_cap: float | None = getattr(text, "final_logit_softcapping", None)

    def __repr__(self) -> str:
        return (
            f"Anatomy({self.family.name}: {self.n_layers} layers, {self.n_heads} heads, {self.n_kv} key-value heads, "
            f"d_model {self.d_model}, d_head {self.d_head})"
        )

    @cached_property
    def tied(self) -> bool:
        """Whether the unembedding is the token embedding's own weight."""
        return getattr(self.unembed, "weight", None) is getattr(self.embedding, "weight", None)

    # Sites -----------------------------------------------------------------------------------------------------------

    def check(self, site: Site) -> Site:
        """The site itself, or a `SiteError` when this model has no such layer, unit or tensor."""
        check_alias(site, qk_norm=self.family.q_norm is not None, logit_cap=self.logit_cap is not None)
        if site.layer is not None and not 0 <= site.layer < self.n_layers:
            raise SiteError(
                f"{site}: layer {site.layer} is out of range; this model has layers 0 to {self.n_layers - 1}"
            )
        reason = self.absence(site)
        if reason:
            raise SiteError(f"{site} does not exist here: {reason}")
        if site.expert is not None and site.expert >= self.blocks[site.layer or 0].n_experts:
            last = self.blocks[site.layer or 0].n_experts - 1
            raise SiteError(f"{site}: expert {site.expert} is out of range; layer {site.layer} has experts 0 to {last}")
        if site.index and site.view != "feature":
            units = self.units(site.base if site.view else site)
            bad = [i for i in site.index if i >= units]
            if bad:
                raise SiteError(
                    f"{site}: {site.unit} {bad[0]} is out of range; there are {site.unit}s 0 to {units - 1}"
                )
        return site

    def absence(self, site: Site) -> str | None:
        """Why this model has no such tensor, or None when it has it."""
        family, layer = self.family, site.layer
        block = self.blocks[layer] if layer is not None else None
        name = site.name
        if name == "resid_mid" and family.parallel:
            return NO_MID
        if name in {"rot_q", "rot_k"} and not family.rotary:
            return NO_ROTARY
        if block is None:
            return None
        if name in {"gate_pre", "up", "neuron"} and block.experts is not None:
            return IS_MOE.format(layer=layer)
        if name in {"router", "expert", "expert.neuron"} and block.experts is None:
            return NOT_MOE.format(layer=layer)
        if name == "up" and block.gate is None and block.gate_up is None:
            return NO_GATE.format(layer=layer)
        return None

    def units(self, site: Site) -> int:
        """How many units a site has along its unit axis (heads, neurons, experts, channels)."""
        layer = site.layer or 0
        match site.name:
            case "head" | "q" | "rot_q" | "scores" | "pattern":
                return self.n_heads
            case "k" | "v" | "rot_k":
                return self.n_kv
            case "attn_neuron":
                return self.n_heads * self.d_head
            case "gate_pre" | "up" | "neuron":
                return self.blocks[layer].d_mlp
            case "router":
                return self.blocks[layer].n_experts
            case "expert" if site.expert is None:
                return self.blocks[layer].n_experts
            case "expert.neuron":
                return self.blocks[layer].d_mlp
            case "logits":
                return self.vocab
            case "final":
                return in_features(self.unembed)
        return self.d_model

    def resolve(self, site: Site) -> Site:
        """A head's own query, key or value (`L9.head[6].q`) as the projection's site, checked.

        Under grouped-query attention a head's key is shared by its group: `L9.head[6].k` is refused, because an edit
        of `L9.k[…]` would move the whole group.
        """
        if site.name == "head" and site.input is not None:
            if site.input != "q" and self.n_kv != self.n_heads:
                group = self.n_heads // self.n_kv
                kv = ",".join(map(str, sorted({i // group for i in site.index or range(self.n_heads)})))
                raise SiteError(
                    f"{site}: {group} heads share one key-value head here; use L{site.layer}.{site.input}[{kv}], "
                    "which moves its whole group"
                )
            site = site.with_(name=site.input, input=None)
        return self.check(site)

    def sites(self, pattern: str | Site) -> list[Site]:
        """The sites that a selection names, layer by layer; absent ones are left out when the selection spans layers.

        Raises `SiteError` when nothing is left.
        """
        if isinstance(pattern, Site):
            return [self.resolve(pattern)]
        found = Selection.parse(pattern).expand(self.n_layers, self.units)
        kept = [s for s in found if self.absence(s) is None] if len(found) > 1 else found
        if not kept:
            raise SiteError(f"{pattern}: no such site in this model: {self.absence(found[0])}" if found else pattern)
        return [self.resolve(s) for s in kept]

    def present(self, layer: int) -> list[str]:
        """Names of the sites that exist in one layer, in the order in which they are computed."""
        rows = sorted((kind for kind in SITES.values() if kind.layered), key=lambda kind: kind.order)
        return [
            k.name for k in rows if self.absence(Site(k.name, layer, expert=0 if "expert" in k.name else None)) is None
        ]

    # Taps ------------------------------------------------------------------------------------------------------------

    def tap(self, site: Site) -> Tap:
        """Where a site's tensor passes; index and position are not looked at."""
        site = self.resolve(site)
        if site.layer is None:
            return self._outer(site.name)
        return self._inner(site.name, self.blocks[site.layer])

    def _outer(self, name: str) -> Tap:
        match name:
            case "embed":
                return Tap(self.blocks[0].module, "in", in_place=False)
            case "final":
                return Tap(self.unembed, "in")
            case "logits":
                return Tap(self.hf, "root")
        raise SiteError(f"{name} needs a layer: L0.{name}")

    def _inner(self, name: str, block: Block) -> Tap:
        family = self.family
        match name:
            case "resid_pre":
                return Tap(block.module, "in")
            case "resid_post":
                return Tap(block.module, "out")
            case "resid_mid":
                return Tap(block.mlp_norm or block.mlp_in, "in", in_place=True)
            case "attn_in":
                return Tap(block.attn, "in")
            case "mlp_in":
                return Tap(block.mlp_in, "in")
            case "q" | "k" | "v":
                return self._projection(name, block)
            case "rot_k" if family.repeats_keys:
                return Tap(block.attn, "core", Repeated(self.n_heads // self.n_kv))
            case "rot_q" | "rot_k" | "scores" | "pattern":
                return Tap(block.attn, "core", HeadsFirst())
            case "head":
                return Tap(block.o, "in", Heads(self.n_heads))
            case "attn_neuron":
                return Tap(block.o, "in")
            case "attn_raw":
                return Tap(block.o, "out")
            case "attn_out":
                return Tap(block.attn_post or block.o, "out")
            case "mlp_raw":
                return Tap(block.mlp_raw, "out", copy=family.overwrites_mlp_out)
            case "mlp_out":
                return Tap(block.mlp_post or block.mlp_raw, "out", copy=family.overwrites_mlp_out)
            case "gate_pre":
                return Tap(block.gate_up, "out", Half(0)) if block.gate_up else Tap(_one(block.gate, block.up), "out")
            case "up":
                return Tap(block.gate_up, "out", Half(1)) if block.gate_up else Tap(_one(block.up), "out")
            case "neuron":
                return Tap(_one(block.down), "in")
            case "router":
                return Tap(_one(block.router), "router")
            case "expert" | "expert.neuron":
                return Tap(_one(block.experts), "expert")
        raise SiteError(f"unknown site {name!r}{nearest(name, SITES)}")

    def _projection(self, name: str, block: Block) -> Tap:
        tap = self._unclipped(name, block)
        limit = getattr(self.hf.config, "clip_qkv", None)
        return tap if limit is None else replace(tap, layout=Clipped(tap.layout, float(limit)))

    def _unclipped(self, name: str, block: Block) -> Tap:
        family, n = self.family, self.n_heads if name == "q" else self.n_kv
        if block.qkv is not None:
            if family.packing == "grouped":
                group = self.n_heads // self.n_kv
                return Tap(block.qkv, "out", Grouped(self.n_kv, group, name))  # pyright: ignore[reportArgumentType]
            start = {"q": 0, "k": self.n_heads, "v": self.n_heads + self.n_kv}[name] * self.d_head
            return Tap(block.qkv, "out", Columns(start, n, self.d_head))
        norm = {"q": family.q_norm, "k": family.k_norm}.get(name)
        if norm is None:
            return Tap(_one(getattr(block, name)), "out", Heads(n))
        layout: Layout = {"flat": Heads(n), "heads": Plain(), "heads_first": HeadsFirst()}[family.qk_norm]
        return Tap(_at(block.module, norm), "out", layout)


# Finding parts
# ---------------------------------------------------------------------------------------------------------


def family_of(config: PreTrainedConfig) -> Family:
    """The row for a configuration; `ModelError` names the supported architectures when there is none."""
    for row in ROWS:
        if config.model_type in row.types and row.when(config):
            return row
    known = sorted({t for row in ROWS for t in row.types})
    if config.model_type in known:
        raise ModelError(
            f"this variant of {config.model_type} is not supported: its options change what the sites mean"
        )
    raise ModelError(
        f"architecture {config.model_type!r} is not supported{nearest(config.model_type, known)}; "
        f"supported: {', '.join(known)}. A new family is one row in trimtab/model/families.py"
    )


def in_features(linear: nn.Module) -> int:
    """Input width of a Linear, a Conv1D or a quantised linear layer."""
    width = getattr(linear, "in_features", None) or getattr(linear, "nx", None)
    if width is None:
        raise ModelError(f"expected a linear layer, got {type(linear).__name__}")
    return int(width)


def apply_linear(linear: Callable[[Tensor], Tensor], width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """A linear module's weight as (in out) and its bias (out), read by calling it, so also when it is quantised."""
    eye = torch.eye(width, dtype=like.dtype, device=like.device)
    bias = linear(torch.zeros_like(eye[:1]))[0]
    return linear(eye) - bias, bias


def _block(family: Family, block: nn.Module) -> Block:
    def part(path: str | None) -> nn.Module | None:
        return _at(block, path) if path else None

    moe = family.experts is not None and _has(block, family.experts)
    experts = part(family.experts) if moe else None
    down = None if moe else part(family.down)
    mlp = part(family.mlp)
    if experts is not None:
        n_experts, _, d_mlp = _parameter(experts, "down_proj").shape
    else:
        d_mlp, n_experts = in_features(_one(down)), 0
    return Block(
        module=block,
        attn=_at(block, family.attn),
        q=part(family.q),
        k=part(family.k),
        v=part(family.v),
        qkv=part(family.qkv),
        o=_at(block, family.o),
        attn_post=part(family.attn_post),
        mlp=mlp,
        mlp_in=_one(part(family.mlp_in), mlp),
        mlp_norm=None if family.parallel else part(family.mlp_norm),
        mlp_post=part(family.mlp_post),
        gate=None if moe else part(family.gate),
        up=None if moe else part(family.up),
        gate_up=None if moe else part(family.gate_up),
        down=down,
        router=part(family.router) if moe else None,
        experts=experts,
        shared=part(family.shared) if moe else None,
        stream_norm=tuple(_at(block, p) for p in family.stream_norm) if family.stream_norm else None,  # pyright: ignore[reportArgumentType]
        d_mlp=d_mlp,
        n_experts=n_experts,
    )


def _parameter(module: nn.Module, name: str) -> Tensor:
    parameter = getattr(module, name, None)
    if not isinstance(parameter, Tensor):
        raise ModelError(f"{type(module).__name__} has no parameter {name!r}: its experts are not kept in one tensor")
    return parameter


def _kv_heads(config: PreTrainedConfig, block: nn.Module) -> int:
    if config.model_type == "falcon":  # its configuration keeps num_kv_heads also where one head is used
        return int(getattr(_at(block, "self_attention"), "num_kv_heads"))  # noqa: B009
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _at(root: nn.Module, path: str) -> nn.Module:
    module = root
    for step in path.split("."):
        found = getattr(module, step, None)
        if found is None:
            have = [name for name, _ in module.named_children()]
            raise ModelError(
                f"{type(root).__name__} has no part {path!r}: {type(module).__name__} has {', '.join(have)}. "
                "The architecture's row in trimtab/model/families.py does not fit this model"
            )
        module = found
    return module


def _has(root: nn.Module, path: str) -> bool:
    try:
        _at(root, path)
    except ModelError:
        return False
    return True


def _optional(root: nn.Module, path: str | None) -> nn.Module | None:
    return _at(root, path) if path and _has(root, path) else None


def _one(*modules: nn.Module | None) -> nn.Module:
    return next(m for m in modules if m is not None)
