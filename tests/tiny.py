"""Random two-layer models of every family, small enough for float64 and for loops over every cell.

Sizes are all different (d_model 32, d_mlp 40, d_head 8 or 12, 4 heads, 2 key-value heads, vocabulary 97), so that a
transposed or mis-sliced tensor cannot pass for the right one. Weights are larger than at initialisation, norms have
weights away from one and every bias is non-zero, so that an identity that forgets one of them fails.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 97

_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WIDE = _LLAMA | {"head_dim": 12}
_FALCON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 40,
    "bias": True,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "ffn_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
} | _IDS
_NEOX = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"} | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "hidden_dropout": 0.0,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "decoder_sparse_step": 1}
_SLIDE = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "gpt2": lambda: tf.GPT2Config(**_GPT, **_IDS),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_NEOX),
    "gpt_neox-sequential": lambda: tf.GPTNeoXConfig(**_NEOX, use_parallel_residual=False),
    "opt": lambda: tf.OPTConfig(**_OPT),
    "opt-350m": lambda: tf.OPTConfig(**_OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    "llama": lambda: tf.LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "llama-bias": lambda: tf.LlamaConfig(**_WIDE, attention_bias=True, mlp_bias=True),
    "mistral": lambda: tf.MistralConfig(**_LLAMA, sliding_window=4),
    "qwen2": lambda: tf.Qwen2Config(**_LLAMA),
    "qwen3": lambda: tf.Qwen3Config(**_WIDE),
    "gemma2": lambda: tf.Gemma2Config(
        **_WIDE,
        sliding_window=4,
        layer_types=_SLIDE,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
        query_pre_attn_scalar=10,
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_WIDE, sliding_window=4, layer_types=_SLIDE, query_pre_attn_scalar=10, final_logit_softcapping=None
    ),
    "phi3": lambda: tf.Phi3Config(**_LLAMA, sliding_window=None),
    "olmo2": lambda: tf.Olmo2Config(**_LLAMA),
    "falcon": lambda: tf.FalconConfig(**_FALCON, multi_query=True, parallel_attn=True),
    "falcon-40b": lambda: tf.FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-rw": lambda: tf.FalconConfig(**_FALCON, alibi=True, multi_query=False, parallel_attn=False),
    "gptj": lambda: tf.GPTJConfig(**_GPT, **_IDS, rotary_dim=4),
    "bloom": lambda: tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **_IDS),
    "mixtral": lambda: tf.MixtralConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(**_LLAMA, **_MOE, shared_expert_intermediate_size=24, mlp_only_layers=[0]),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**_WIDE, **_MOE, norm_topk_prob=True),
    "olmoe": lambda: tf.OlmoeConfig(**_LLAMA, num_experts=4, num_experts_per_tok=2, clip_qkv=4.0),
}
DENSE = [name for name in FAMILIES if name not in {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"}]


def tiny(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, attention: str | None = None
) -> PreTrainedModel:
    """A random model of one of `FAMILIES`, in eval mode; the same seed gives the same weights in every dtype."""
    torch.manual_seed(seed)
    options = {} if attention is None else {"attn_implementation": attention}
    model = tf.AutoModelForCausalLM.from_config(FAMILIES[family](), **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (1.0 if "embed" in name or "wte" in name else 0.25))
            elif "norm" in name or ".ln" in name or "layernorm" in name:
                bias = name.endswith("bias") or family.startswith("gemma")
                parameter.copy_(noise * 0.2 + (0.0 if bias else 1.0))
            else:
                parameter.copy_(noise * 0.2)
    return model.to(dtype).eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: `w3`..`w96` and three special tokens; adds no BOS, pads with `<pad>`."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def words(*ids: int) -> str:
    """The text whose tokens are these ids: `words(5, 6)` is `"w5 w6"`."""
    return " ".join(f"w{i}" for i in ids)
