import json
from datetime import UTC, datetime

import numpy as np
import pytest

from trimtab.errors import EditError, FileError, TrimtabError
from trimtab.values import Provenance, Scope, Selection, Site
from trimtab.values.provenance import joined


def test_json_and_back():
    made = Provenance.now(
        "tiny",
        model_hash="ab",
        data_hash=None,
        method="patching",
        options={"k": 5, "sites": ["L0.head"], "window": None},
        seed=0,
        threads=2,
        dtype="float32",
        attention="sdpa",
        bos="none (tokenizer adds none)",
        chat="none",
    )
    again = Provenance.from_json(made.to_json())
    assert again == made
    assert hash(again) == hash(made)
    assert json.loads(made.to_json())["threads"] == 2


def test_now_fills_in_versions_and_the_time():
    made = Provenance.now("tiny")
    assert made.versions["numpy"] == np.__version__
    assert datetime.fromisoformat(made.created).tzinfo == UTC
    assert abs((datetime.now(UTC) - datetime.fromisoformat(made.created)).total_seconds()) < 60


def test_options_become_plain():
    options = {
        "sites": [Site.parse("L0.head[1]"), Selection.parse("L*.head")],
        "at": Scope.parse("-1"),
        "sigma": np.float64(0.5),
        "k": np.int64(3),
        "pair": (1, 2),
    }
    plain = {"sites": ["L0.head[1]", "L*.head"], "at": "-1", "sigma": 0.5, "k": 3, "pair": [1, 2]}
    assert Provenance("tiny", options=options).options == plain


def test_options_that_cannot_be_written_are_refused():
    with pytest.raises(TrimtabError, match="options must be plain values"):
        Provenance("tiny", options={"metric": object()})


@pytest.mark.parametrize("text", ["", "[]", "3", '{"modell": "x"}', '{"model": "x", "versions": 3}'])
def test_other_json_is_refused(text):
    with pytest.raises(FileError, match="not the JSON of a provenance"):
        Provenance.from_json(text)


def test_equal_by_content():
    assert Provenance("tiny", seed=0) == Provenance("tiny", seed=0)
    assert Provenance("tiny", seed=0) != Provenance("tiny", seed=1)


class TestJoined:
    """What is put together keeps the weights that its parts were made on."""

    def test_what_the_parts_have_in_common_and_what_each_was(self):
        a = Provenance("tiny", "ab", "cd", "one", {"k": 1}, seed=0, dtype="float32", created="2025-01-01")
        b = Provenance("tiny", "ab", "ef", "other", {"k": 2}, seed=0, dtype="float32", created="2025-02-01")
        made = joined([("a", a), ("b", b), ("", None)])
        parts = [
            {"name": "a", "method": "one", "data_hash": "cd", "options": {"k": 1}},
            {"name": "b", "method": "other", "data_hash": "ef", "options": {"k": 2}},
            {"name": ""},
        ]
        assert made == Provenance(
            "tiny", "ab", None, "sum", {"parts": parts}, seed=0, dtype="float32", created="2025-02-01"
        )
        more = joined([("a + b", made), ("c", a)])
        assert [part["name"] for part in more.options["parts"]] == ["a", "b", "", "c"]

    def test_of_one_part_it_is_its_own_and_of_none_none(self):
        a = Provenance("tiny", "ab")
        assert joined([("a", a)]) is a
        assert joined([("a", None), ("b", None)]) is None
        assert joined([]) is None

    def test_what_says_no_weights_takes_those_of_the_others(self):
        made = joined([("file", Provenance("", method="imported")), ("a", Provenance("tiny", "ab"))])
        assert (made.model, made.model_hash) == ("tiny", "ab")

    def test_different_weights_are_refused(self):
        with pytest.raises(
            EditError, match=r'"a" on "tiny" \(weights ab.*"unnamed" on "huge".*with_\(provenance=None\)'
        ):
            joined([("a", Provenance("tiny", "ab")), ("", Provenance("huge", "cd"))])
