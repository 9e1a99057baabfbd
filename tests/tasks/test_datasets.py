"""The data sets themselves, where they are here: each loads as it is, whole folders of them too."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from tests.tasks.rowfiles import SHARED, refused, shared
from trimtab.tasks.files import load_task
from trimtab.tasks.groups import refuse_leaks


def sound(task):
    """What holds of every task that is loaded: parts can be made of it, and no text is in two groups."""
    refuse_leaks(task.examples, task.groups, task.name)
    parts = task.split()
    assert sum(map(len, parts)) == len(task)
    return task


@shared
@pytest.mark.parametrize("path", sorted(SHARED.glob("facts/*.json"))[::4], ids=lambda path: path.stem)
def test_facts_load_as_they_are(path):
    whole = json.loads(path.read_text())
    objects = {}
    for sample in whole["samples"]:
        objects.setdefault(sample["subject"], set()).add(f" {sample['object']}")
    task = sound(load_task(path))
    fields = Counter()
    for e in task.examples:
        subject = (
            next(iter(e.spans.values())) if isinstance(e.spans["subject"], str) else e.clean[slice(*e.spans["subject"])]
        )
        assert set(e.answers) == objects[subject]
        assert not objects[subject] & set(e.distractors)
        fields[subject] += 1
    assert len(fields) >= 0.2 * len(objects)
    assert max(fields.values()) <= 4 * len(whole["prompt_templates"])


@shared
@pytest.mark.parametrize("path", sorted(SHARED.glob("truth/*.csv")), ids=lambda path: path.stem)
def test_truth_loads_as_it_is(path):
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = {}
    for row in rows:
        labels.setdefault(row["statement"], set()).add(row["label"])
    task = sound(load_task(path))
    for e in task.examples:
        assert (labels[e.positive], labels[e.negative]) == ({"1"}, {"0"})
    clear = Counter(next(iter(found)) for found in labels.values() if len(found) == 1)
    assert len(task) == min(clear.values())
    if "city" in rows[0]:
        city = {row["statement"]: row["city"] for row in rows}
        assert all(city[e.positive] == city[e.negative] == e.group for e in task.examples)


@shared
@pytest.mark.parametrize("part", ["test", "val"])
def test_instructions_load_as_they_are(part):
    sides = [
        {
            row["instruction"]: row["category"]
            for row in reversed(json.loads((SHARED / "safety" / f"{side}_{part}.json").read_text()))
        }
        for side in ("harmful", "harmless")
    ]
    task = sound(load_task([SHARED / "safety" / f"harmful_{part}.json", SHARED / "safety" / f"harmless_{part}.json"]))
    assert len(task) == len(sides[0])
    for e in task.examples:
        assert e.group == sides[0][e.positive]
        assert e.negative in sides[1]


@shared
@pytest.mark.parametrize(
    "path", sorted(SHARED.glob("behaviour/*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_behaviour_loads_as_it_is(path):
    rows = json.loads(path.read_text())
    if "open_ended" in path.name:
        assert f"{path.name} has the columns question" in refused(path)
        return
    task = sound(load_task(path))
    assert [(e.prompt, e.positive, e.negative) for e in task.examples] == [tuple(row.values()) for row in rows]
    assert len(set(task.groups)) == len(rows)


@shared
@pytest.mark.parametrize("path", sorted(SHARED.glob("grammar/*.jsonl")), ids=lambda path: path.stem)
def test_grammar_loads_as_it_is(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    task = sound(load_task(path))
    assert [(e.positive, e.negative) for e in task.examples] == [(r["sentence_good"], r["sentence_bad"]) for r in rows]


@shared
@pytest.mark.parametrize("language", ["deu", "spa", "fra", "ita", "cmn"])
def test_translations_load_as_they_are(language):
    one, other = (SHARED / "multilingual" / f"tatoeba.{language}-eng.{end}" for end in (language, "eng"))
    task = sound(load_task(one))
    expected = list(zip(one.read_text("utf-8").split("\n"), other.read_text("utf-8").split("\n"), strict=True))[:-1]
    assert [(e.positive, e.negative) for e in task.examples] == expected


@shared
@pytest.mark.parametrize("path", sorted(SHARED.glob("bias/pro*")), ids=lambda path: path.name)
def test_winobias_loads_as_it_is(path):
    task = sound(load_task(path))
    assert len(task) == len(path.read_text().splitlines())
    assert all("[" not in e.positive + e.negative and not e.positive[0].isdigit() for e in task.examples)
    assert len(set(task.groups)) > 150


@shared
def test_winogender_loads_as_it_is():
    task = sound(load_task(SHARED / "bias" / "all_sentences.tsv"))
    assert len(task) == 240
    assert len(set(task.groups)) == 60
    for e in task.examples:
        mine, theirs = e.positive.lower().split(), e.negative.lower().split()
        apart = {(a.strip("."), b.strip(".")) for a, b in zip(mine, theirs, strict=True) if a != b}
        assert apart <= {("he", "she"), ("him", "her"), ("his", "her"), ("his", "hers")}


@shared
@pytest.mark.parametrize("folder", ["facts", "truth", "grammar", "safety", "multilingual"])
def test_whole_folders_load(folder):
    sound(load_task(SHARED / folder))
