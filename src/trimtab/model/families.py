"""One row of data per architecture family: the names under which each part lives.

This file knows names of submodules and a handful of yes/no facts; it holds no behaviour. What the names mean is in
`anatomy.py`, which turns a row and a model into sites and refuses a model for which the row does not hold. A new family
is one row here and one line in `tests/tiny.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedConfig

QKNorm = Literal["flat", "heads", "heads_first"]


@dataclass(frozen=True)
class Family:
    """Where the parts of one architecture live; paths are relative to the model, or to a block where marked (block).

    `None` means that the architecture has no such part.
    """

    name: str
    types: tuple[str, ...]
    """`config.model_type` values."""
    blocks: str = "model.layers"
    norm: str | None = "model.norm"
    project_in: str | None = None
    """What token embeddings of another width than the stream pass through, where there is such a module."""
    project_out: str | None = None
    unembed: str = "lm_head"
    attn: str = "self_attn"
    """(block) the attention module; its first argument or `hidden_states` is `attn_in`."""
    q: str | None = "self_attn.q_proj"
    k: str | None = "self_attn.k_proj"
    v: str | None = "self_attn.v_proj"
    qkv: str | None = None
    """(block) one projection for all three, packed as `packing` says."""
    packing: Literal["columns", "grouped"] = "columns"
    """columns: queries, then keys, then values; grouped: for each key-value head its queries, its key, its value."""
    q_norm: str | None = None
    k_norm: str | None = None
    qk_norm: QKNorm = "flat"
    """Layout at the output of the query and key norms: (batch pos head·d_head), (batch pos head d_head), (batch head
    pos d_head)."""
    o: str = "self_attn.o_proj"
    attn_post: str | None = None
    """(block) a norm between the output projection and the residual stream."""
    mlp: str | None = "mlp"
    mlp_in: str | None = None
    """(block) the module whose input the MLP reads, where there is no module for the whole MLP."""
    mlp_norm: str | None = "post_attention_layernorm"
    """(block) the norm that reads `resid_mid`; `None`: the MLP reads the residual stream itself."""
    mlp_post: str | None = None
    gate: str | None = "mlp.gate_proj"
    up: str | None = "mlp.up_proj"
    gate_up: str | None = None
    """(block) one projection for gate and up, gate first."""
    down: str = "mlp.down_proj"
    router: str | None = None
    experts: str | None = None
    shared: str | None = None
    parallel: bool = False
    """Attention and MLP both read `resid_pre`; there is no `resid_mid`."""
    stream_norm: tuple[str, str] | None = None
    """(block) norms applied to the whole stream after attention and after the MLP (post-norm of the first
    transformers)."""
    rotary: bool = True
    position_table: bool = False
    """Positions are looked up in a table of `max_position_embeddings` entries."""
    core: Literal["interface", "sdpa", "method", "softmax"] = "interface"
    """How attention scores are reached: transformers' attention interface, the call of scaled_dot_product_attention,
    the method `_attn`, the call of softmax."""
    cache: Literal["past_key_values", "layer_past"] = "past_key_values"
    residual_inside: bool = False
    """Attention and MLP modules take the residual stream as second argument and return the sum."""
    overwrites_mlp_out: bool = False
    """The block adds to the MLP's output in place, so a read must be a copy."""
    repeats_keys: bool = False
    """The attention module hands each key-value head to its attention function once for every query head."""
    when: Callable[[PreTrainedConfig], bool] = lambda config: True


LLAMA = Family("llama", ("llama", "mistral", "qwen2"))
QWEN3 = replace(
    LLAMA,
    name="qwen3",
    types=("qwen3",),
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    qk_norm="heads",
)
PHI3 = replace(
    LLAMA,
    name="phi3",
    types=("phi3",),
    q=None,
    k=None,
    v=None,
    qkv="self_attn.qkv_proj",
    gate=None,
    up=None,
    gate_up="mlp.gate_up_proj",
)
GEMMA2 = replace(
    LLAMA,
    name="gemma2",
    types=("gemma2",),
    attn_post="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post="post_feedforward_layernorm",
)
GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    types=("gemma3_text",),
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    qk_norm="heads_first",
)
OLMO2 = replace(
    LLAMA,
    name="olmo2",
    types=("olmo2",),
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    attn_post="post_attention_layernorm",
    mlp_norm=None,
    mlp_post="post_feedforward_layernorm",
)
MIXTRAL = replace(LLAMA, name="mixtral", types=("mixtral",), router="mlp.gate", experts="mlp.experts")
QWEN2_MOE = replace(MIXTRAL, name="qwen2_moe", types=("qwen2_moe",), shared="mlp.shared_expert")
QWEN3_MOE = replace(QWEN3, name="qwen3_moe", types=("qwen3_moe",), router="mlp.gate", experts="mlp.experts")
OLMOE = replace(
    MIXTRAL, name="olmoe", types=("olmoe",), q_norm="self_attn.q_norm", k_norm="self_attn.k_norm", qk_norm="flat"
)
GPT2 = Family(
    "gpt2",
    ("gpt2",),
    blocks="transformer.h",
    norm="transformer.ln_f",
    attn="attn",
    q=None,
    k=None,
    v=None,
    qkv="attn.c_attn",
    o="attn.c_proj",
    mlp_norm="ln_2",
    gate=None,
    up="mlp.c_fc",
    down="mlp.c_proj",
    rotary=False,
    position_table=True,
)
GPTJ = Family(
    "gptj",
    ("gptj",),
    blocks="transformer.h",
    norm="transformer.ln_f",
    attn="attn",
    q="attn.q_proj",
    k="attn.k_proj",
    v="attn.v_proj",
    o="attn.out_proj",
    mlp_norm=None,
    gate=None,
    up="mlp.fc_in",
    down="mlp.fc_out",
    parallel=True,
    position_table=True,
    core="method",
    cache="layer_past",
)
NEOX = Family(
    "gpt_neox",
    ("gpt_neox",),
    blocks="gpt_neox.layers",
    norm="gpt_neox.final_layer_norm",
    attn="attention",
    q=None,
    k=None,
    v=None,
    qkv="attention.query_key_value",
    packing="grouped",
    o="attention.dense",
    gate=None,
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    parallel=True,
    cache="layer_past",
    when=lambda config: config.use_parallel_residual,
)
NEOX_SEQUENTIAL = replace(NEOX, name="gpt_neox-sequential", parallel=False, when=lambda config: True)
BLOOM = Family(
    "bloom",
    ("bloom",),
    blocks="transformer.h",
    norm="transformer.ln_f",
    attn="self_attention",
    q=None,
    k=None,
    v=None,
    qkv="self_attention.query_key_value",
    packing="grouped",
    o="self_attention.dense",
    gate=None,
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    rotary=False,
    core="softmax",
    cache="layer_past",
    residual_inside=True,
    when=lambda config: not config.apply_residual_connection_post_layernorm,
)
FALCON = replace(
    BLOOM,
    name="falcon",
    types=("falcon",),
    parallel=True,
    rotary=True,
    core="sdpa",
    residual_inside=False,
    overwrites_mlp_out=True,
    when=lambda config: (config.parallel_attn or config.new_decoder_architecture) and not config.alibi,
)
FALCON_GROUPED = replace(
    FALCON,
    name="falcon-grouped",
    repeats_keys=True,
    when=lambda config: config.new_decoder_architecture and not config.alibi,
)
FALCON_ALIBI = replace(
    FALCON,
    name="falcon-alibi",
    rotary=False,
    when=lambda config: config.parallel_attn or config.new_decoder_architecture,
)
FALCON_SEQUENTIAL = replace(
    FALCON, name="falcon-sequential", parallel=False, overwrites_mlp_out=False, when=lambda config: not config.alibi
)
FALCON_RW = replace(FALCON_SEQUENTIAL, name="falcon-rw", rotary=False, when=lambda config: True)
OPT = Family(
    "opt",
    ("opt",),
    blocks="model.decoder.layers",
    norm="model.decoder.final_layer_norm",
    o="self_attn.out_proj",
    mlp=None,
    mlp_in="fc1",
    mlp_norm="final_layer_norm",
    gate=None,
    up="fc1",
    down="fc2",
    rotary=False,
    position_table=True,
    project_in="model.decoder.project_in",
    project_out="model.decoder.project_out",
    when=lambda config: config.do_layer_norm_before and not config._remove_final_layer_norm,
)
OPT_NO_FINAL_NORM = replace(OPT, name="opt-no-final-norm", norm=None, when=lambda config: config.do_layer_norm_before)
OPT_350M = replace(
    OPT,
    name="opt-350m",
    norm=None,
    mlp_norm=None,
    stream_norm=("self_attn_layer_norm", "final_layer_norm"),
    when=lambda config: True,
)

ROWS: tuple[Family, ...] = (
    LLAMA,
    QWEN3,
    PHI3,
    GEMMA2,
    GEMMA3,
    OLMO2,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    OLMOE,
    GPT2,
    GPTJ,
    NEOX,
    NEOX_SEQUENTIAL,
    BLOOM,
    FALCON_GROUPED,
    FALCON,
    FALCON_ALIBI,
    FALCON_SEQUENTIAL,
    FALCON_RW,
    OPT,
    OPT_NO_FINAL_NORM,
    OPT_350M,
)
"""In order: the first row whose `types` and `when` fit is taken."""
