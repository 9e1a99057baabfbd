"""EasySteer's JSON: payloads, steering specs of each version of its clause, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc

import numpy as np
import pytest

from tests.steer.formats.vectors import added, arrays, gguf, vectors
from trimtab.errors import EditError, FileError
from trimtab.steer.formats.easysteer import load_easysteer, save_easysteer
from trimtab.values.edit import Intervention


def payload(directions, **changes):
    """A payload of kind "direction", written out as EasySteer documents it."""
    tensors, digest = {}, hashlib.sha256(b"direction:1")
    for name, vector in sorted((f"layer.{n}", v.astype("<f4")) for n, v in directions.items()):
        tensors[name] = {"shape": list(vector.shape), "data": base64.b64encode(vector.tobytes()).decode("ascii")}
        digest.update(name.encode())
        digest.update(str(tuple(vector.shape)).encode())
        digest.update(vector.tobytes())
    wire = {"version": 1, "kind": "direction", "tensors": tensors, "extra": {}, "sha256": digest.hexdigest()}
    return wire | changes


@pytest.fixture
def file(tmp_path):
    return tmp_path / "happy.json"


def loaded(file, value):
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return load_easysteer(file)


def vector_of(**more):
    return {
        "data": payload(vectors(1, 2)),
        "algorithm": "direct",
        "apply": {"prompt": "all", "generation": "all"},
    } | more


class TestPayload:
    def test_read_and_written_back(self, file):
        directions = vectors(0, 2, 13)
        found = loaded(file, payload(directions))
        assert found.name == "happy"
        assert {n: v.tobytes() for n, v in arrays(found).items()} == {n: v.tobytes() for n, v in directions.items()}
        again = file.with_name("again.json")
        save_easysteer(found, again)
        assert json.loads(again.read_text()) == payload(directions)

    def test_strengths_are_multiplied_in(self, file):
        save_easysteer(added(3, strength=2.0), file)
        assert np.array_equal(arrays(load_easysteer(file))[3], 2 * vectors(3)[3])

    def test_what_it_cannot_hold(self, file):
        with pytest.raises(EditError, match=r"it is at L1\.mlp_out"):
            save_easysteer(Intervention.of("L1.mlp_out add 1.5"), file)


CLAUSES = [
    (None, "all"),
    ({"prompt": "all", "generation": "all"}, "all"),
    ({"prompt": "all"}, "prompt"),
    ({"generation": "all", "prompt": None}, "generated"),
    ({"prompt_positions": [-1]}, "-1"),
    ({"prompt_positions": [-1], "generation": "all"}, "-1:"),
    ({"prompt_positions": [3]}, "3"),
    ({"prompt_window": [2, 5]}, "2:5"),
    ({"prompt_window": [-3, None], "generation": "all"}, "-3:"),
    ({"prompt_tokens": [5, 6], "generation_tokens": [6, 5]}, "tokens{5,6}"),
    ({"phases": ["prompt", "generation"]}, "all"),
    ({"phases": ["generation"]}, "generated"),
    ({"phases": ["prompt"], "positions": [-1]}, "-1"),
    ({"phases": ["prompt", "generation"], "tokens": [7]}, "tokens{7}"),
]
NO_CLAUSES = [
    ({"prompt": "all", "exclude_prompt_positions": [0]}, "exclude_prompt_positions"),
    ({"generation_window": [0, 3]}, "generation_window"),
    ({"prompt_positions": [0, 2]}, "prompt_positions"),
    ({"prompt_positions": [2], "generation": "all"}, "two scopes"),
    ({"prompt_window": [-3, None]}, "goes on into what is generated"),
    ({"prompt_window": [0, 3], "generation": "all"}, "two scopes"),
    ({"prompt_tokens": [5]}, "prompt_tokens"),
    ({"generation": [1]}, "generation"),
    ({}, "nothing"),
    ([], "JSON object"),
    ({"phases": []}, "phases"),
    ({"phases": ["prompt"], "tokens": [7]}, "these phases"),
    ({"prompt_positions": ["a"]}, "whole numbers"),
    ({"prompt_tokens": [-5], "generation_tokens": [-5]}, "list token ids"),
    *(({"triggers": value}, "triggers") for value in (False, [], 3, "all", {"prefill_trigger_tokens": [-1]})),
    ({"triggers": None}, "nothing"),
]


class TestSpec:
    @pytest.mark.parametrize(("clause", "scope"), CLAUSES)
    def test_clauses(self, file, clause, scope):
        found = loaded(file, {"vectors": [vector_of(apply=clause, scale=-1.5, name="sad")]})
        assert {str(edit.where) for edit in found.edits} == {scope}
        assert {edit.strength for edit in found.edits} == {-1.5}
        assert found.name == "sad"

    @pytest.mark.parametrize(("clause", "message"), NO_CLAUSES)
    def test_clauses_that_no_scope_can_say(self, file, clause, message):
        with pytest.raises(FileError, match=message):
            loaded(file, {"vectors": [vector_of(apply=clause)]})

    @pytest.mark.parametrize("triggers", ["false", "null", "[]", "[[]]", "3", "-1.5", '"all"', "{}", '{"a": 1}'])
    def test_words_of_the_first_version_in_a_clause(self, file, triggers):
        with pytest.raises(FileError, match="cannot be read as EasySteer's JSON"):
            loaded(file, f'{{"vectors":[{{"apply":{{"triggers":{triggers}}}}}]}}')

    def test_layers_and_several_vectors(self, file):
        one, two = vector_of(layers=[1]), vector_of(layers=[2], apply={"prompt": "all"})
        found = loaded(file, {"vectors": [one, two]})
        assert [str(edit.address) for edit in found.edits] == ["L1.resid_post", "L2.resid_post@prompt"]
        with pytest.raises(FileError, match="meet in one block"):
            loaded(file, {"vectors": [one, one]})
        assert len(loaded(file, {"vectors": [one, one], "conflict": "sequential"})) == 2

    def test_a_file_beside_it(self, file):
        (file.parent / "vectors").mkdir()
        (file.parent / "vectors" / "v.gguf").write_bytes(gguf(vectors(4)))
        spec = {"vectors": [{"source": "vectors/v.gguf", "apply": {"prompt": "all", "generation": "all"}}]}
        assert np.array_equal(arrays(loaded(file, spec))[4], vectors(4)[4])

    def test_the_first_version(self, file):
        (file.parent / "v.gguf").write_bytes(gguf(vectors(10, 11)))
        config = {
            "model": {"path": "m", "normalize_sv": False},
            "sampling": {"temperature": "0.0"},
            "steer_vector": {
                "name": "emotion",
                "path": "v.gguf",
                "scale": "2.0",
                "algorithm": "direct",
                "target_layers": "11",
                "prefill_trigger_tokens": "-1",
                "generate_trigger_tokens": "-1",
            },
        }
        (edit,) = loaded(file, config).edits
        assert (str(edit.address), edit.strength) == ("L11.resid_post", 2.0)
        several = {
            "steer_vector": {"name": "r", "conflict_resolution": "sequential"},
            "vector_configs": [
                {"path": "v.gguf", "scale": "1", "target_layers": "10,11", "prefill_trigger_positions": str(-p)}
                for p in (1, 2)
            ],
        }
        assert [str(edit.where) for edit in loaded(file, several).edits] == ["-1", "-1", "-2", "-2"]


ONE = payload(vectors(1))
NAN = payload({1: np.full(4, np.nan, np.float32)})
SHORT = {"layer.1": {"shape": [9], "data": ONE["tensors"]["layer.1"]["data"]}}
BAD = {
    "no JSON": ("{", "no JSON"),
    "list": ("[]", "no JSON object"),
    "deep": ("[" * 100_000, "no JSON"),
    "bomb": ('{"vectors": [' + "[]," * 200_000 + "[]]}", "parts"),
    "long number": ('{"vectors": 1' + "0" * 10_000 + "}", "no JSON"),
    "NaN": ('{"vectors": [{"scale": NaN}]}', "finite"),
    "twice": ('{"kind": "direction", "kind": "direction"}', "twice"),
    "nothing known": ({"layers": {}}, "its keys"),
    "version": (payload(vectors(1), version=2), "version is 2"),
    "kind": (payload(vectors(1), kind="reft"), "'reft'"),
    "extra": (payload(vectors(1), extra={"layer": 1}), "extra"),
    "altered": (payload(vectors(1), sha256="0" * 64), "altered"),
    "no vectors": (payload({}), "no vectors"),
    "name": (payload(vectors(1), tensors={"h1.layer.1": ONE["tensors"]["layer.1"]}, sha256=None), "h1.layer.1"),
    "leading zero": (payload(vectors(1), tensors={"layer.01": ONE["tensors"]["layer.1"]}, sha256=None), "layer.01"),
    "sizes": (payload(vectors(1), tensors=SHORT), "declares 9 numbers"),
    "huge": (payload(vectors(1), tensors={"layer.1": {"shape": [1 << 60], "data": ""}}), "declares"),
    "shape": (payload(vectors(1), tensors={"layer.1": {"shape": [2, 2], "data": ""}}), "one vector"),
    "base64": (payload(vectors(1), tensors={"layer.1": {"shape": [1], "data": "&&&&"}}), "base64"),
    "no data": (payload(vectors(1), tensors={"layer.1": {}}), "no data"),
    "not finite": (NAN, "NaN or infinity"),
    "widths": (payload({1: np.ones(4, np.float32), 2: np.ones(8, np.float32)}), "differ in width"),
    "algorithm": ({"vectors": [vector_of(algorithm="erase")]}, "'erase'"),
    "normalize": ({"vectors": [vector_of(normalize=True)]}, "normalize"),
    "params": ({"vectors": [vector_of(params={"topk": 8})]}, "params"),
    "scale": ({"vectors": [vector_of(scale="big")]}, "scale"),
    "infinite scale": ('{"vectors": [{"scale": 1e999}]}', "scale"),
    "layers": ({"vectors": [vector_of(layers=["1"])]}, "layers"),
    "other layers": ({"vectors": [vector_of(layers=[7])]}, "none of them"),
    "no source": ({"vectors": [{"apply": None}]}, '"data" or'),
    "both": ({"vectors": [vector_of(source="v.gguf")]}, '"data" or'),
    "absolute": ({"vectors": [{"source": "/etc/passwd"}]}, "outside its folder"),
    "above": ({"vectors": [{"source": "a/../../v.gguf"}]}, "outside its folder"),
    "windows": ({"vectors": [{"source": "C:\\v.gguf"}]}, "outside its folder"),
    "missing": ({"vectors": [{"source": "v.gguf"}]}, "not there"),
    "no list": ({"vectors": {}}, "list"),
    "triggers": ({"steer_vector": {"path": "v.gguf", "generate_trigger_positions": "3"}}, "generate_trigger_positions"),
    "numbers": ({"steer_vector": {"path": "v.gguf", "target_layers": "a,b"}}, "no numbers"),
    "renormalised": ({"model": {"normalize_sv": True}, "steer_vector": {"path": "v.gguf"}}, "normalize_sv"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name, file):
    value, message = BAD[name]
    tracemalloc.start()
    try:
        with pytest.raises(FileError) as caught:
            loaded(file, value)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_link_out_of_its_folder_is_not_followed(file, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "v.gguf"
    outside.write_bytes(gguf(vectors(4)))
    (file.parent / "v.gguf").symlink_to(outside)
    with pytest.raises(FileError, match="leads outside"):
        loaded(file, {"vectors": [{"source": "v.gguf"}]})
