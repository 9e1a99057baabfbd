"""What `load` is asked for: every unknown or impossible wish is one error that names the nearest possible one."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from trimtab.errors import MissingExtra, ModelError
from trimtab.model.options import DTYPES, Options


@pytest.fixture
def without(monkeypatch):
    """Pretend that a package is not installed."""
    find = importlib.util.find_spec

    def pretend(missing):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))

    return pretend


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_has_many_names(dtype):
    assert Options.of(dtype=dtype).dtype is torch.bfloat16


def test_auto_and_none_are_kept_apart():
    assert Options.of(dtype="auto").keywords(torch.float32)["dtype"] == "auto"
    assert Options.of().keywords(torch.float32)["dtype"] is torch.float32
    assert Options.of().keywords("auto")["dtype"] == "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat6"}, r"unknown dtype 'bfloat6' \(did you mean \"bfloat16\"\?\): expected one of float32"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": torch.int8}, 'holds no fractions: for fewer bits give quantize="8bit"'),
        ({"dtype": 16}, "unknown dtype 16"),
        ({"quantize": "4-bit"}, r"unknown quantize='4-bit' \(did you mean \"4bit\"\?\): expected \"4bit\" or \"8bit\""),
        ({"quantize": 4}, "unknown quantize=4"),
        ({"device": "gpu"}, r"there is no device 'gpu' here \(did you mean \"cpu\"\?\): expected one of cpu"),
        ({"device": "cpu:banana"}, "there is no device 'cpu:banana' here"),
        ({"device": "cuda:99"}, "there is no device 'cuda:99' here"),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto' were both given"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ModelError, match=message):
        Options.of(**options)


def test_the_device_is_a_device():
    assert Options.of(device="cpu").device == torch.device("cpu")
    assert Options.of(device=torch.device("cpu")).device == torch.device("cpu")


def test_what_does_not_apply_is_refused():
    options = Options.of(revision="main")
    options.refuse("a thing", "gguf_file", "quantize")
    with pytest.raises(ModelError, match="revision='main' does not apply to a thing: leave it out"):
        options.refuse("a thing", "gguf_file", "revision")


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("accelerate", {"device_map": "auto"}, "big"),
        ("bitsandbytes", {"quantize": "4bit"}, "quant"),
        ("bitsandbytes", {"quantize": "8bit"}, "quant"),
    ],
)
def test_a_missing_package_names_its_extra(without, package, options, extra):
    without(package)
    with pytest.raises(MissingExtra, match=rf"pip install .trimtab\[{extra}\]") as raised:
        Options.of(**options).keywords("auto")
    assert raised.value.extra == extra


def test_every_name_of_a_dtype_is_a_floating_point_type():
    assert all(dtype.is_floating_point for dtype in DTYPES.values())
