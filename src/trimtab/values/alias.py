"""Hook names of TransformerLens as sites: `blocks.5.hook_resid_pre` is `L5.resid_pre`.

Both sets of names are read: those of `HookedTransformer` (`hook_resid_pre`, `attn.hook_z`, `mlp.hook_post`) and those
of the bridges of version 3 and later (`hook_in`, `attn.o.hook_in`, `mlp.out.hook_in`). Checked against the sources of
4.3.0. The tensors are those of an unprocessed model: nothing is folded or centred here.

An edit of `hook_resid_mid` is one of the residual stream here; in the bridges it is one of the MLP's input alone, so
such edits do not carry over as they are.

A name whose tensor is not one of our sites is refused with a sentence on what to use. A few names are the same tensor
in some models only; those sites remember the name they came from (`Site.alias`), and `check_alias` refuses the others.
"""

from __future__ import annotations

import re

from trimtab.errors import SiteError, nearest
from trimtab.values.site import Site

# Names inside a block
BLOCK = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_in": "attn_in",
    "attn.q.hook_in": "attn_in",
    "attn.k.hook_in": "attn_in",
    "attn.v.hook_in": "attn_in",
    "attn.qkv.hook_in": "attn_in",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.q.hook_out": "q",
    "attn.k.hook_out": "k",
    "attn.v.hook_out": "v",
    "attn.hook_q_normed": "q",
    "attn.hook_k_normed": "k",
    "attn.q_norm.hook_out": "q",
    "attn.k_norm.hook_out": "k",
    "attn.hook_rot_q": "rot_q",
    "attn.hook_rot_k": "rot_k",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "head",
    "attn.o.hook_in": "head",
    "attn.o.hook_out": "attn_raw",
    "mlp.hook_in": "mlp_in",
    "mlp.in.hook_in": "mlp_in",
    "mlp.gate.hook_in": "mlp_in",
    "mlp.hook_pre": "gate_pre",
    "mlp.gate.hook_out": "gate_pre",
    "mlp.hook_pre_linear": "up",
    "mlp.hook_post": "neuron",
    "mlp.out.hook_in": "neuron",
    "mlp.out.hook_out": "mlp_raw",
}
# Names outside the blocks
MODEL = {"ln_final.hook_out": "final", "unembed.hook_out": "logits", "hook_unembed": "logits"}

_NORMED = "it is taken before or after the norm's weight and bias, according to version and folding"
_SPLIT = "it is a copy of the residual stream for each head, before the norm"
_DEPENDS = "it is another tensor from one architecture to the next"
_NO_SITE = "there is no site for it"
# Names that are none of our sites: why, and what to use instead
REFUSED_BLOCK = {
    "ln1.hook_normalized": (_NORMED, "L{l}.attn_in, what attention reads"),
    "ln2.hook_normalized": (_NORMED, "L{l}.mlp_in, what the MLP reads"),
    "ln1_post.hook_normalized": (_NORMED, "L{l}.attn_out, what attention adds to the residual stream"),
    "ln2_post.hook_normalized": (_NORMED, "L{l}.mlp_out, what the MLP adds to the residual stream"),
    "ln1.hook_scale": (_NO_SITE, "L{l}.resid_pre and L{l}.attn_in, between which it lies"),
    "ln2.hook_scale": (_NO_SITE, "L{l}.resid_mid and L{l}.mlp_in, between which it lies"),
    "ln1.hook_in": (_DEPENDS, "L{l}.resid_pre"),
    "ln2.hook_in": (_DEPENDS, "L{l}.resid_mid"),
    "ln1.hook_out": (_DEPENDS, "L{l}.attn_in, what attention reads"),
    "ln2.hook_out": (_DEPENDS, "L{l}.mlp_in, what the MLP reads"),
    "ln1_post.hook_out": (_DEPENDS, "L{l}.attn_out, what attention adds to the residual stream"),
    "ln2_post.hook_out": (_DEPENDS, "L{l}.mlp_out, what the MLP adds to the residual stream"),
    "attn.hook_out": (
        "in some architectures it holds the residual stream too",
        "L{l}.attn_raw before any post-norm, or L{l}.attn_out after it",
    ),
    "mlp.hook_out": (
        "in some architectures it holds the residual stream too",
        "L{l}.mlp_raw before any post-norm, or L{l}.mlp_out after it",
    ),
    "mlp.in.hook_out": (_DEPENDS, "L{l}.up in a gated MLP, L{l}.gate_pre in one without a gate"),
    "attn.hook_result": (
        "it is each head's output after the output projection",
        "L{l}.head, the same before that projection",
    ),
    "attn.qkv.hook_out": ("it holds query, key and value in one", "L{l}.q, L{l}.k or L{l}.v"),
    "hook_attn_in": (_SPLIT, "L{l}.resid_pre, or L{l}.attn_in after the norm"),
    "hook_mlp_in": (
        "it is a copy of the residual stream for the MLP, before the norm",
        "L{l}.resid_mid, or L{l}.mlp_in",
    ),
    "hook_q_input": (_SPLIT, "L{l}.head[0].q, the end of a path into a head, or L{l}.resid_pre"),
    "hook_k_input": (_SPLIT, "L{l}.head[0].k, the end of a path into a head, or L{l}.resid_pre"),
    "hook_v_input": (_SPLIT, "L{l}.head[0].v, the end of a path into a head, or L{l}.resid_pre"),
}
REFUSED_BLOCK |= {f"attn.{name}": REFUSED_BLOCK[name] for name in REFUSED_BLOCK if name.endswith("_input")}
REFUSED_BLOCK["attn.hook_attn_in"] = REFUSED_BLOCK["hook_attn_in"]
_WITHOUT_POSITION = "it lacks the position embedding, and in some architectures the scale, that embed has"
REFUSED_MODEL = {
    "hook_embed": (_WITHOUT_POSITION, "embed, the embedding as it enters block 0"),
    "embed.hook_out": (_WITHOUT_POSITION, "embed, the embedding as it enters block 0"),
    "hook_pos_embed": (_NO_SITE, "embed, which holds token and position embedding"),
    "pos_embed.hook_out": (_NO_SITE, "embed, which holds token and position embedding"),
    "ln_final.hook_normalized": (_NORMED, "final, what the unembedding reads"),
    "ln_final.hook_scale": (_NO_SITE, "final, what the unembedding reads"),
    "ln_final.hook_in": (_DEPENDS, "the last layer's resid_post"),
    "unembed.hook_in": (_DEPENDS, "final"),
}

# Names that are our site only in models without something: what it is, and what to use
ONLY_WITHOUT = {
    **dict.fromkeys(
        ("attn.hook_q", "attn.q.hook_out"), ("qk_norm", "is the query before the QK norm", "L{l}.q is after it")
    ),
    **dict.fromkeys(
        ("attn.hook_k", "attn.k.hook_out"), ("qk_norm", "is the key before the QK norm", "L{l}.k is after it")
    ),
    **dict.fromkeys(
        ("unembed.hook_out", "hook_unembed"),
        ("logit_cap", "is the logits before the soft cap or scale", "logits is after it"),
    ),
}

_NAME = re.compile(r"\s*(?:(?:blocks\.|L)([\d*][\d,\s*\-]*)\.)?([A-Za-z_][\w.]*)(.*)", re.DOTALL)


def from_transformer_lens(text: str) -> tuple[str, str | None]:
    """A TransformerLens hook name as the text of a site, and the name itself where it holds in some models only.

    The layer may be written `blocks.5.` or `L5.`; units and positions may follow as in a site:
    `blocks.5.attn.hook_z[7]@subject`. Raises SiteError for an unknown name, and for one whose tensor is none of our
    sites.

    >>> from_transformer_lens("blocks.5.attn.hook_z[7]")
    ('L5.head[7]', None)
    """
    match = _NAME.fullmatch(text)
    layer, name, rest = match.groups() if match else (None, text, "")
    known, refused = (MODEL, REFUSED_MODEL) if layer is None else (BLOCK, REFUSED_BLOCK)
    if name in known:
        site = known[name] if layer is None else f"L{layer}.{known[name]}"
        return site + rest, name if name in ONLY_WITHOUT else None
    if name in refused:
        why, instead = refused[name]
        raise SiteError(f'the hook "{text}" is no site: {why}; use {instead.format(l=layer)}')
    if name in BLOCK or name in REFUSED_BLOCK:
        raise SiteError(f'the hook "{text}" needs its layer: write blocks.0.{name}')
    if name in MODEL or name in REFUSED_MODEL:
        raise SiteError(f'the hook "{text}" belongs to no layer: write {name}')
    raise SiteError(f'"{text}" is no hook name of TransformerLens that is known here{nearest(name, known)}')


def check_alias(site: Site, *, qk_norm: bool, logit_cap: bool) -> None:
    """Refuse a site that was written as a hook name which, in this model, is another tensor. SiteError then.

    `qk_norm`: queries and keys are normed after their projection. `logit_cap`: logits are capped or scaled after the
    unembedding.
    """
    if site.alias is None:
        return
    condition, what, instead = ONLY_WITHOUT[site.alias]
    if (condition == "qk_norm" and qk_norm) or (condition == "logit_cap" and logit_cap):
        raise SiteError(
            f'"{site.alias}" of TransformerLens {what} of this model; {instead.format(l=site.layer)}: write that'
        )
