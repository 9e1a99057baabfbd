"""`trimtab inspect`: sizes and sites of any family."""

from __future__ import annotations

import pytest

from tests.commands.calls import call, document
from tests.tiny import tiny, tokenizer
from trimtab.commands.inspect import portrait, table_of_sites
from trimtab.model.lm import LM


def test_one_document_says_it_all(folder):
    found = document(call("inspect", folder, "--json"))
    assert (found["model"], found["family"], found["architecture"]) == ("tiny-llama", "llama", "LlamaForCausalLM")
    assert (found["layers"], found["heads"], found["key_value_heads"], found["d_model"]) == (2, 4, 2, 32)
    assert (found["d_head"], found["d_mlp"], found["vocabulary"], found["context"]) == (8, 40, 97, 64)
    assert (found["tied_embeddings"], found["positions"], found["dtype"]) == (True, "rotary", "float32")
    assert found["parameters"] == sum(p.numel() for p in tiny("llama").parameters())
    sites = {site["site"]: site for site in found["sites"]}
    assert sites["k"] == {"site": "k", "layers": "L0,1", "shape": "batch pos head=2 d_head=8", "absent": None}
    assert sites["router"]["absent"] == "every layer has no experts"
    assert sites["logits"] == {"site": "logits", "layers": None, "shape": "batch pos vocab=97", "absent": None}


def test_the_table_fits_a_terminal(folder):
    done = call("inspect", folder, env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "absent: every layer has no experts" in done.stdout


@pytest.mark.parametrize(
    ("family", "norms", "positions"),
    [
        ("gpt2", "LayerNorm, before each sublayer; a final norm", "learned"),
        ("bloom", "LayerNorm, before each sublayer; a final norm", "alibi"),
        ("falcon-rw", "LayerNorm, before each sublayer; a final norm", "alibi"),
        ("gemma3", "Gemma3RMSNorm, before and after each sublayer, and of queries and keys; a final norm", "rotary"),
        ("olmo2", "Olmo2RMSNorm, after each sublayer, and of queries and keys; a final norm", "rotary"),
        ("opt-350m", "LayerNorm, on the stream after each sublayer; no final norm", "learned"),
    ],
)
def test_norms_and_positions(family, norms, positions):
    found = portrait(LM(tiny(family), tokenizer(), check=False))
    assert (found["norms"], found["positions"]) == (norms, positions)


def test_sites_that_some_layers_lack():
    rows = {row["site"]: row for row in table_of_sites(LM(tiny("qwen2_moe"), tokenizer(), check=False))}
    assert (rows["router"]["layers"], rows["router"]["absent"]) == ("L1", "layer 0 has no experts")
    assert rows["router"]["shape"] == "batch pos expert=4"
    assert rows["neuron"]["layers"] == "L0"
    assert rows["expert[e]"]["shape"]
    parallel = {row["site"]: row for row in table_of_sites(LM(tiny("gptj"), tokenizer(), check=False))}
    assert "parallel blocks" in parallel["resid_mid"]["absent"]
