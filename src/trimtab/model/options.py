"""How a model is to be loaded: dtype, device, quantisation, and whether what they need is installed.

Everything is checked before anything is read. This file does not know what is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from trimtab.errors import MissingExtra, ModelError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
QUANTIZE = ("4bit", "8bit")

DeviceMap = str | Mapping[str, int | str | torch.device]
Stored = Literal["auto"]
"""The dtype in which the weights are stored."""


@dataclass(frozen=True)
class Options:
    """Everything that `load` was asked for but the source; made and checked by `Options.of`."""

    tokenizer: PreTrainedTokenizerBase | str | Path | None = None
    dtype: torch.dtype | Stored | None = None
    device: torch.device | None = None
    device_map: DeviceMap | None = None
    quantize: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False

    @staticmethod
    def of(
        *,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: DeviceMap | None = None,
        quantize: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
    ) -> Options:
        """The options of `load`, strings made what they name. Raises ModelError for one that is unknown or not here."""
        if device is not None and device_map is not None:
            raise ModelError(f"device={str(device)!r} and device_map={device_map!r} were both given: give one of them")
        if quantize is not None and quantize not in QUANTIZE:
            near = nearest(str(quantize), QUANTIZE)
            raise ModelError(f'unknown quantize={quantize!r}{near}: expected "4bit" or "8bit"')
        return Options(
            tokenizer=tokenizer,
            dtype=_dtype(dtype),
            device=_device(device),
            device_map=device_map,
            quantize=quantize,
            attn_implementation=attn_implementation,
            revision=revision,
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
        )

    def refuse(self, source: str, *names: str) -> None:
        """Raise ModelError where one of these options was given: it means nothing for this kind of source."""
        for name in names:
            if (value := getattr(self, name)) is not None:
                raise ModelError(f"{name}={value!r} does not apply to {source}: leave it out")

    def keywords(self, default: torch.dtype | Stored) -> dict[str, object]:
        """The keyword arguments of `from_pretrained` that these options ask for.

        `default` is the dtype where none was given. Raises MissingExtra where what they need is not installed.
        """
        keywords: dict[str, object] = {"dtype": self.dtype or default}
        if self.attn_implementation is not None:
            keywords["attn_implementation"] = self.attn_implementation
        if self.device_map is not None:
            need("accelerate", "big", f"device_map={self.device_map!r}")
            keywords["device_map"] = self.device_map
        if self.quantize is not None:
            keywords |= self._quantization(default)
        return keywords

    def _quantization(self, default: torch.dtype | Stored) -> dict[str, object]:
        need("bitsandbytes", "quant", f'quantize="{self.quantize}"')
        need("accelerate", "big", f'quantize="{self.quantize}"')
        from transformers import BitsAndBytesConfig

        dtype = next((d for d in (self.dtype, default) if isinstance(d, torch.dtype)), torch.bfloat16)
        if self.quantize == "4bit":
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        else:
            config = BitsAndBytesConfig(load_in_8bit=True)
        keywords: dict[str, object] = {"quantization_config": config, "dtype": dtype}
        if self.device_map is None:
            keywords["device_map"] = {"": self.device or ("cuda" if torch.cuda.is_available() else "cpu")}
        return keywords


def need(package: str, extra: str, purpose: str) -> None:
    """Raise MissingExtra, naming the extra that brings it, where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(extra, purpose)


def _dtype(value: torch.dtype | str | None) -> torch.dtype | Stored | None:
    if value is None or value == "auto":
        return value
    dtype = DTYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype):
        near, known = nearest(str(value), DTYPES), ", ".join(DTYPES)
        raise ModelError(f"unknown dtype {value!r}{near}: expected one of {known}, auto, or a torch.dtype")
    if not dtype.is_floating_point:
        raise ModelError(f'dtype {value} holds no fractions: for fewer bits give quantize="8bit" or quantize="4bit"')
    return dtype


def _device(value: torch.device | str | None) -> torch.device | None:
    """The device of that name, where it is there."""
    if value is None:
        return None
    here = ["cpu"]
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here += ["mps", "mps:0"]
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        device = None
    if device is None or (device.type in ("cuda", "mps") and str(device) not in here):
        near, known = nearest(str(value), here), ", ".join(here)
        raise ModelError(f"there is no device {str(value)!r} here{near}: expected one of {known}")
    return device
