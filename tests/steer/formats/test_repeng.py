"""repeng's ControlVector: its numbers of blocks, there and back, and through its own GGUF files."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import pytest
import torch

from tests.model.tinies import IDS, lm_of, off
from tests.steer.formats.vectors import added, arrays, vectors
from trimtab.errors import EditError
from trimtab.steer.formats import from_repeng, load_vector, save_vector, to_repeng
from trimtab.values.edit import Edit, Intervention


@dataclass
class ControlVector:
    """As repeng has it."""

    model_type: str
    directions: dict[int, np.ndarray]


def test_there_and_back():
    before = ControlVector("mistral", vectors(0, 4, 9))
    intervention = from_repeng(before)
    after = ControlVector(*to_repeng(intervention))
    assert after.model_type == "mistral"
    assert after.directions.keys() == before.directions.keys()
    assert all(after.directions[n].tobytes() == before.directions[n].tobytes() for n in before.directions)
    assert to_repeng(added(1), "llama")[0] == "llama"
    assert to_repeng(added(1))[0] == "unknown"


def test_its_key_is_the_number_of_the_block_whose_output_it_read():
    """repeng takes direction n from hidden_states[n + 1], and adds it to what block n returns."""
    lm = lm_of("llama", torch.float64)
    hidden = lm.hf(torch.tensor(IDS), output_hidden_states=True).hidden_states
    block = 0
    direction = hidden[block + 1][0, -1].detach().float().numpy()
    (edit,) = from_repeng(ControlVector("llama", {block: direction})).edits
    assert off(lm.run(IDS, edit.site)[edit.site][0, -1], torch.from_numpy(direction)) < 1e-6

    got = lm.run(IDS, edit=from_repeng(ControlVector("llama", {block: direction}))).logits
    add = lm.hf.model.layers[block].register_forward_hook(lambda m, a, out: out + torch.tensor(direction))
    try:
        expected = lm.hf(torch.tensor(IDS)).logits
    finally:
        add.remove()
    assert off(got, expected.detach()) < 1e-10


def test_its_own_file_is_read(tmp_path):
    """Written as repeng's export_gguf does."""
    file, directions = tmp_path / "v.gguf", vectors(3, 1, 2)
    writer = gguf.GGUFWriter(file, "controlvector")
    writer.add_string("controlvector.model_hint", "qwen2")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_vector(file, form="repeng")
    assert {n: v.tobytes() for n, v in arrays(found).items()} == {n: v.tobytes() for n, v in directions.items()}
    again = tmp_path / "again.gguf"
    save_vector(found, again, "repeng")
    assert gguf.GGUFReader(again).get_field("controlvector.model_hint").contents() == "qwen2"


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({}, "no directions"),
        ({-1: np.ones(4)}, "block numbers"),
        ({"a": np.ones(4)}, "block numbers"),
        ({1: np.ones(4), 2: np.ones(5)}, "differ in width"),
        ({1: np.ones((2, 2))}, "1 dimension"),
        ({1: np.array([np.nan])}, "NaN"),
    ],
)
def test_what_is_no_control_vector(directions, message):
    with pytest.raises(EditError, match=message):
        from_repeng(ControlVector("llama", directions))


def test_what_repeng_cannot_hold():
    with pytest.raises(EditError, match=r"it is at L1\.mlp_out"):
        to_repeng(Intervention.of(Edit("L1.mlp_out", "add", np.ones(4))))
