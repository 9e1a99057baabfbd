"""A name, a folder, a file or a module of yours -> the Hugging Face model and its tokenizer, and from these an `LM`.

This file decides what kind of source it was given. How each is read is in `pretrained.py` and `bundled.py`, what the
options mean in `options.py`; whether trimtab reads the model correctly is not known here (see `anatomy.py`).
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from trimtab.errors import ModelError, ModelFileError, nearest
from trimtab.model.bundled import BUNDLED
from trimtab.model.options import DeviceMap, Options
from trimtab.model.pretrained import (
    PICKLES,
    bundled_folder,
    no_pickles,
    pretrained,
    pretrained_gguf,
    quiet,
    tokenizer_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trimtab.model.lm import LM

    Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase, str]


def load(
    source: str | Path | nn.Module,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    quantize: Literal["4bit", "8bit"] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    check: bool = True,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> LM:
    """Load a causal language model to look into and to change, in eval mode, its parameters as they are stored.

    >>> import trimtab
    >>> lm = trimtab.load("smollm2-135m-instruct")  # doctest: +SKIP

    Args:
        source: the name of a bundled model (fetched and converted on first use, offline from then on), a Hugging Face
            hub id, a folder with config.json and safetensors, a .gguf file, or a model of yours with its `tokenizer`.
        tokenizer: one to use instead of the source's own, or where to load it from; needed with an `nn.Module`.
        dtype: of the weights: "float32", "bfloat16", "float16", "float64", "auto" (as stored), or a `torch.dtype`. By
            default a bundled model and a GGUF file are float32 and anything else is as stored.
        device: where the model is put, such as "cuda" or "cuda:1"; by default it stays on the CPU.
        device_map: how accelerate spreads the model, such as "auto"; instead of `device`. Needs the extra `big`.
        quantize: "4bit" (NF4, arXiv 2305.14314) or "8bit" (LLM.int8, arXiv 2208.07339), by bitsandbytes; computes in
            `dtype`, by default float32 for a bundled model and bfloat16 for others. Goes to the GPU where there is one
            and no device was given. Needs the extras `quant` and `big`.
        attn_implementation: "sdpa", "eager", "flash_attention_2", …; by default what transformers chooses.
        revision: branch, tag or commit of a hub id.
        check: check by identities, on a handful of tokens, that every site is what it should be.
        gguf_file: the file's name, where `source` is a folder or a hub id with GGUF files.
        trust_remote_code: run model code that comes with the source: only where you trust it as you trust your own.

    Returns:
        An `LM`; `lm.hf` is the Hugging Face model itself, `lm.tokenizer` its tokenizer. An `nn.Module` is used as it
        is, not copied: it is put in eval mode, and moved where `device` or `dtype` say so.

    Raises:
        ModelError: an unknown name, dtype or architecture, or options that do not go together.
        ModelFileError: a file that is missing, truncated, of another hash, a pickle, or that lacks weights.
        MissingExtra: an optional part is not installed.
    """
    from trimtab.model.lm import LM

    options = Options.of(
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantize=quantize,
        attn_implementation=attn_implementation,
        revision=revision,
        gguf_file=gguf_file,
        trust_remote_code=trust_remote_code,
    )
    hf, found, name = load_parts(source, options)
    return LM(hf, found, name=name, check=check)


def load_parts(source: str | Path | nn.Module, options: Options | None = None) -> Parts:
    """`load` without the LM: the Hugging Face model in eval mode, its tokenizer, and a name for both."""
    options = options or Options()
    if isinstance(source, nn.Module):
        return _of_module(source, options)
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise ModelError(
            f"cannot load {source!r}: expected the name of a bundled model ({', '.join(BUNDLED)}), a hub id, a folder, "
            "a .gguf file, or an nn.Module with its tokenizer"
        )
    if source in BUNDLED:
        options.refuse("a bundled model", "revision", "gguf_file")
        with quiet():
            return *pretrained(bundled_folder(str(source)), options, torch.float32), str(source)
    path, name = Path(source).expanduser(), str(source)
    if path.exists():
        options.refuse("files of your own", "revision")
        return _of_folder(path, options) if path.is_dir() else _of_file(path, options)
    hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and path.suffix not in (".gguf", ".safetensors")
    if not isinstance(source, str) or not hub_id:
        raise ModelFileError(f'there is no file or folder "{source}": check the path{nearest(name, BUNDLED)}')
    if "/" not in name and (near := nearest(name, BUNDLED)):
        raise ModelError(f'no bundled model is called "{name}"{near}, and no file or folder here is')
    return _of_hub(name, options)


def _of_module(module: nn.Module, options: Options) -> Parts:
    what = "an nn.Module, which is already built"
    options.refuse(what, "quantize", "device_map", "gguf_file", "attn_implementation", "revision")
    kind = type(module).__name__
    if options.tokenizer is None:
        raise ModelError(
            f"a model of your own ({kind}) needs its tokenizer: load(model, tokenizer=...), with a transformers "
            "tokenizer or the hub id or folder of one"
        )
    config = getattr(module, "config", None)
    if not hasattr(config, "model_type"):
        raise ModelError(f"expected a model of transformers, with a config, and got an nn.Module without one ({kind})")
    name = str(getattr(config, "name_or_path", "") or kind)
    tokenizer = tokenizer_of(name, options)
    dtype = options.dtype if isinstance(options.dtype, torch.dtype) else None
    if dtype is not None or options.device is not None:
        module.to(device=options.device, dtype=dtype)
    return cast("PreTrainedModel", module.eval()), tokenizer, name


def _of_folder(folder: Path, options: Options) -> Parts:
    if options.gguf_file is not None:
        return _of_file(folder / options.gguf_file, options)
    files = sorted(path.name for path in folder.iterdir())
    if "config.json" not in files:
        held = ", ".join(files[:8]) or "nothing"
        ggufs = [name for name in files if name.endswith(".gguf")]
        if ggufs:
            advice = f'name the GGUF file: load("{folder}", gguf_file="{ggufs[0]}")'
        elif "adapter_config.json" in files:
            advice = "it holds a PEFT adapter: merge it into its base model (merge_and_unload) and save that"
        else:
            advice = "a model written by save_pretrained has one"
        raise ModelFileError(f'the folder "{folder}" has no config.json ({advice}). It holds: {held}')
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in files):
        for name in files:
            if any(Path(name).match(pattern) for pattern in PICKLES):
                raise ModelFileError(no_pickles(folder, name))
        raise ModelFileError(f'the folder "{folder}" has no weights: expected model.safetensors beside config.json')
    return *pretrained(folder, options, "auto"), folder.resolve().name


def _of_file(path: Path, options: Options) -> Parts:
    options.refuse("a GGUF file, which is dequantised (safetensors can be quantised)", "quantize")
    if path.suffix == ".safetensors":
        raise ModelFileError(f'"{path}" holds weights without their config: give its folder, "{path.parent}"')
    if any(path.match(pattern) for pattern in PICKLES):
        raise ModelFileError(no_pickles(path.parent, path.name))
    return *pretrained_gguf(path, options), path.stem


def _of_hub(name: str, options: Options) -> Parts:
    label = name if options.revision is None else f"{name}@{options.revision}"
    if options.gguf_file is None:
        return *pretrained(name, options, "auto"), label
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(name, options.gguf_file, revision=options.revision))
    except (OSError, ValueError) as error:
        raise ModelError(f'cannot get {options.gguf_file} of "{name}" from the Hugging Face hub: {error}') from error
    hf, tokenizer, _ = _of_file(path, replace(options, revision=None))
    return hf, tokenizer, label
