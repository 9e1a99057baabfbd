import numpy as np
import pytest

from trimtab.errors import FileError
from trimtab.values import Intervention, Outcome, Scores
from trimtab.values.files import write_safetensors

OUTCOME = Outcome("logit_diff", "logits", np.array([1.0, 2.0]), np.array([0.0, 2.0]))


def test_one_kind_is_not_read_as_another(tmp_path):
    OUTCOME.save(tmp_path / "outcome")
    with pytest.raises(FileError, match="holds 'outcome', and 'scores' was expected"):
        Scores.load(tmp_path / "outcome")


@pytest.mark.parametrize("meta", [{}, [], {"content": {}}, 3])
def test_a_file_without_its_description_is_refused(tmp_path, meta):
    write_safetensors(tmp_path / "it", {}, "intervention", meta)
    with pytest.raises(FileError, match="its description is incomplete"):
        Intervention.load(tmp_path / "it")


def test_contents_of_another_class_are_refused_with_the_file_named(tmp_path):
    content = {"is": "Bounds", "low": 0.0, "high": None}
    write_safetensors(tmp_path / "it", {}, "intervention", {"content": content, "digest": ""})
    with pytest.raises(FileError, match="it: the file should hold a Intervention and holds a Bounds"):
        Intervention.load(tmp_path / "it")


def test_a_changed_description_is_noticed(tmp_path):
    OUTCOME.save(tmp_path / "it")
    data = (tmp_path / "it").read_bytes()
    assert data.count(b"logit_diff") == 1
    (tmp_path / "it").write_bytes(data.replace(b"logit_diff", b"logit_dift"))
    with pytest.raises(FileError, match="was altered after it was written"):
        Outcome.load(tmp_path / "it")
