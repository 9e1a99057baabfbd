import hashlib

import numpy as np
import pytest

from trimtab.errors import FileError
from trimtab.values import Bounds, Edge, Edit, Ref, Scope, Selection, Site
from trimtab.values.content import decode, digest_of, encode


def test_values_come_back():
    value = {
        "site": Site.parse("L3.head[2]@S1"),
        "edge": Edge.parse("L3.head[2]->L9.head[6].q"),
        "selection": Selection.parse("L*.head[*]"),
        "scope": Scope.parse("tokens{1,2}"),
        "array": np.arange(3),
        "nested": (1, 2.5, None, True, "text", (), {"is": "not a class", "key": Bounds(0, 1)}),
        "ref": Ref("clean", "L4.head[2]", "S1"),
    }
    arrays = {}
    again = decode(encode(value, arrays), arrays, dict)
    assert again.pop("array").tolist() == [0, 1, 2]
    del value["array"]
    assert again == value


def test_the_digest_is_sha256_of_json_and_bytes():
    array = np.array([1.0, 2.0], dtype=np.float32)
    text = '{"is":"array","key":"a0"}' + "\na0 <f4 (2,)\n"
    assert digest_of(array) == hashlib.sha256(text.encode() + array.tobytes()).hexdigest()


@pytest.mark.parametrize("other", [np.zeros(4), np.zeros((2, 2), np.float32), np.zeros((4, 1)), -np.zeros((2, 2))])
def test_the_digest_sees_dtype_shape_and_bits(other):
    assert digest_of(np.zeros((2, 2))) != digest_of(other)


def test_the_digest_does_not_see_memory_order_or_the_order_of_keys():
    array = np.arange(6.0).reshape(2, 3)
    assert digest_of(np.asfortranarray(array)) == digest_of(array)
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


def test_only_our_own_classes_are_made():
    for name in ("os.system", "Path", "object", "Content2"):
        with pytest.raises(FileError, match=f'holds a "{name}", which this version'):
            decode({"is": name, "command": "true"}, {}, object)


@pytest.mark.parametrize(
    "value",
    [
        {"is": "array", "key": "a7"},
        {"is": "Site", "text": "L3.hed"},
        {"is": "Site"},
        {"is": "Site", "text": 3},
        {"is": "Bounds", "low": 2, "high": 1},
        {"is": "Bounds", "lower": 2},
        {"is": "map", "items": 3},
        {"is": ["Site"]},
    ],
)
def test_damaged_contents_are_a_file_error(value):
    with pytest.raises(FileError):
        decode(value, {}, object)


def test_another_class_than_the_one_expected_is_refused():
    with pytest.raises(FileError, match="should hold a Edit and holds a Bounds"):
        decode(encode(Bounds(0, 1), {}), {}, Edit)


def test_what_is_no_value_cannot_be_written():
    with pytest.raises(TypeError, match="set is not a value"):
        encode({1, 2}, {})
