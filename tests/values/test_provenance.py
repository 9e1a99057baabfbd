import json
from datetime import UTC, datetime

import numpy as np
import pytest

from trimtab.errors import FileError, TrimtabError
from trimtab.values import Provenance, Scope, Selection, Site


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
