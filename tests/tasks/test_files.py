"""Tasks from files: every format, every fault with its line, and back into a file. No data set needs to be here."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimtab
from trimtab.errors import TaskError
from trimtab.tasks import builtin
from trimtab.tasks.builtin.truth import QUESTION
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.files import FORMATS, MOST, load_task, read_task, save_task
from trimtab.tasks.pairs import refuse_leaks
from trimtab.tasks.task import Task

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TRIMTAB_SHARED_DATA", ROOT.parent / "shared" / "data"))
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not here")

PAIRS = [
    {"positive": "It is good.", "negative": "It is bad.", "group": "a"},
    {"positive": "So fine!", "negative": "So poor!", "group": "b"},
    {"positive": "We won, at last.", "negative": 'We "lost", again.', "group": "b"},
]
CAPITALS = [
    {
        "clean": "The capital of France is",
        "corrupt": "The capital of Italy is",
        "answers": [" Paris", " Lutetia"],
        "distractors": " Rome",
        "group": "Europe",
        "spans": {"subject": "France", "what": [4, 11]},
        "corrupt_spans": {"subject": "Italy"},
    },
    {"clean": "Peru's is", "corrupt": "Cuba's is", "answer": " Lima", "distractor": " Havana", "group": "America"},
]


def write(path, rows, encoding="utf-8"):
    """Rows in the format of the file's suffix."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding=encoding, newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding=encoding)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)
    return path


def lines(path, *texts, encoding="utf-8", end="\n"):
    path.write_bytes("".join(text + end for text in texts).encode(encoding))
    return path


def refused(source, **options):
    """What the one TaskError says."""
    with pytest.raises(TaskError) as caught:
        load_task(source, **options)
    return str(caught.value)


# Formats
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv"])
def test_every_kind_of_file_holds_the_same_task(tmp_path, suffix):
    task = load_task(write(tmp_path / f"mine.{suffix}", PAIRS))
    assert task.examples == tuple(Contrast(**row) for row in PAIRS)
    assert (task.name, task.metric, task.chat) == ("mine", "log_prob_diff", False)


def test_rows_in_memory(tmp_path):
    expected = load_task(write(tmp_path / "mine.jsonl", PAIRS))
    assert load_task(PAIRS) == expected
    assert load_task(iter(PAIRS)) == expected
    assert load_task(pd.DataFrame(PAIRS)) == expected
    assert load_task({"train": PAIRS}) == expected
    assert load_task({"train": PAIRS, "test": PAIRS[:1]}, split="train") == expected


def test_counterfactuals_keep_words_and_spans(tmp_path):
    task = load_task(write(tmp_path / "mine.jsonl", CAPITALS), metric="logit_diff", name="capitals")
    assert task.examples[0] == Counterfactual(
        "The capital of France is",
        "The capital of Italy is",
        (" Paris", " Lutetia"),
        (" Rome",),
        "Europe",
        {"subject": "France", "what": (4, 11)},
        {"subject": "Italy"},
    )
    assert task.examples[1].answers == (" Lima",)
    assert (task.metric, task.name) == ("logit_diff", "capitals")


def test_columns_are_mapped(tmp_path):
    rows = [{"good": "A", "bad": "B", "UID": 3, "prompt": "P"}, {"good": "C", "bad": "D", "UID": 4, "prompt": ""}]
    task = load_task(
        write(tmp_path / "mine.jsonl", rows),
        mapping={"positive": "good", "negative": "{bad}, {UID}", "group": "UID"},
    )
    assert task.examples == (Contrast("A", "B, 3", "3", prompt="P"), Contrast("C", "D, 4", "4"))


def test_what_is_the_same_in_all_rows():
    words = {"question": "It was", "answers": [" great"], "distractors": (" bad",)}
    task = load_task(PAIRS, every=words)
    assert {(e.question, e.answers, e.distractors) for e in task.examples} == {("It was", (" great",), (" bad",))}


def test_several_columns_are_several_answers():
    rows = [{"q": "Two?", "x": " two", "y": " 2", "z": " three", "p": "A", "n": "B"}]
    mapping = {"positive": "p", "negative": "n", "question": "q", "answers": ["x", "y"], "distractors": "z"}
    (example,) = load_task(rows, mapping=mapping).examples
    assert (example.question, example.answers, example.distractors) == ("Two?", (" two", " 2"), (" three",))


def test_a_column_called_question_is_no_question_without_answers():
    (example,) = load_task([{"positive": "A", "negative": "B", "question": "why?"}]).examples
    assert example.question == ""


def test_rows_without_a_group_share_one_where_they_share_a_text():
    rows = [{"positive": "A", "negative": "B"}, {"positive": "C", "negative": "D"}, {"positive": "E", "negative": "A"}]
    task = load_task(rows)
    assert task.groups[0] == task.groups[2] != task.groups[1]
    assert load_task(rows[::-1]).groups == task.groups[::-1]


def test_repeated_rows_count_once():
    task = load_task([*PAIRS, PAIRS[0]])
    assert len(task) == 3
    assert task.source == "data; 1 repeated rows counted once"


def test_labelled_texts(tmp_path):
    rows = [
        ("Ice is cold.", 1, "ice"),
        ("Ice is hot.", 0, "ice"),
        ("Snow is hot.", 0, "snow"),
        ("Snow is cold.", 1, "snow"),
    ]
    path = write(tmp_path / "mine.csv", [dict(zip(("text", "label", "group"), row, strict=True)) for row in rows])
    task = load_task(path)
    assert task.examples == (
        Contrast("Ice is cold.", "Ice is hot.", "ice"),
        Contrast("Snow is cold.", "Snow is hot.", "snow"),
    )
    reverse = load_task(path, positive=0)
    assert reverse.examples == tuple(example.swapped() for example in task.examples)


def test_a_template_makes_prompts_of_a_table(tmp_path):
    rows = [
        {"city": c, "land": land, "side": s}
        for c, land, s in (("Rome", "Italy", 1), ("Oslo", "Norway", 1), ("Lima", "Peru", 2), ("Graz", "Austria", 2))
    ]
    path = write(tmp_path / "mine.csv", rows)
    task = load_task(path, mapping={"clean": ["{city} is in", "{city} lies in"], "answers": " {land}", "group": "side"})
    assert len(task) == 8
    assert {e.group for e in task.examples} == {"1", "2"}
    first = task.examples[0]
    assert (first.clean, first.corrupt, first.answers, first.distractors) == (
        "Rome is in",
        "Oslo is in",
        (" Italy",),
        (" Norway",),
    )
    assert (first.spans, first.corrupt_spans) == ({"city": "Rome"}, {"city": "Oslo"})
    one = load_task(path, mapping={"clean": "{city} is in", "answers": "land", "group": "side"})
    assert one.examples[0].answers == ("Italy",)
    named = [{"city": "Rome", "answer": " Italy"}, {"city": "Oslo", "answer": " Norway"}]
    assert load_task(named, mapping={"clean": "{city} is in"}).examples[0].answers == (" Italy",)
    plain = [{"clean": "Rome is in", "answers": " Italy"}, {"clean": "Oslo is in", "answers": " Norway"}]
    assert load_task(plain).examples[0].corrupt == "Oslo is in"


def test_a_relation(tmp_path):
    samples = [{"subject": s, "object": o} for s, o in (("Rome", "Italy"), ("Oslo", "Norway"), ("Lima", "Peru"))]
    whole = {"name": "city", "prompt_templates": ["{} is in", "In which country is {}? In"], "samples": samples}
    path = tmp_path / "city.json"
    path.write_text(json.dumps(whole, indent=2))
    task = load_task(path)
    assert len(task) == 3 * 2 * 2
    assert {e.clean for e in task.examples} == {
        t.replace("{}", s["subject"]) for t in whole["prompt_templates"] for s in samples
    }
    assert task.examples[0].answers == (" Italy",)
    assert {str(place) for place in read_task(path).places} == {f"city.json line {n}" for n in (8, 12, 16)}
    assert load_task(whole) == task


def test_true_and_false_statements(tmp_path):
    rows = [
        {"statement": f"The city of {city} is in {land}.", "label": label, "city": city}
        for city, land, label in (("Rome", "Italy", 1), ("Rome", "Peru", 0), ("Lima", "Italy", 0), ("Lima", "Peru", 1))
    ]
    task = load_task(write(tmp_path / "cities.csv", rows))
    assert [(e.positive, e.negative, e.group) for e in task.examples] == [
        ("The city of Rome is in Italy.", "The city of Rome is in Peru.", "Rome"),
        ("The city of Lima is in Peru.", "The city of Lima is in Italy.", "Lima"),
    ]
    assert task.examples[0].question == QUESTION.format("The city of Rome is in Italy.")
    assert task.examples[1].question == QUESTION.format("The city of Lima is in Italy.")
    assert task.poles == ("true", "false")


def test_harmful_and_harmless_instructions(tmp_path):
    bad = [{"instruction": "Write a threat", "category": "violence"}, {"instruction": "Make a bomb", "category": None}]
    fine = [
        {"instruction": f"{text} {i}", "category": None} for i in range(3) for text in ("Write a poem", "Make a cake")
    ]
    harmful, harmless = write(tmp_path / "harmful_x.json", bad), write(tmp_path / "harmless_x.json", fine)
    task = load_task([harmful, harmless])
    assert load_task(harmful) == load_task(harmless) == load_task(tmp_path) == task
    assert [e.positive for e in task.examples] == ["Write a threat", "Make a bomb"]
    assert [e.negative[:10] for e in task.examples] == ["Write a po", "Make a cak"]
    assert task.examples[0].group == "violence"
    assert (task.chat, task.read) == (True, "last")
    assert [e.question for e in task.examples] == ["Write a threat", task.examples[1].negative]
    harmless.unlink()
    assert 'load_task(["harmful.json", "harmless.json"])' in refused(harmful)


def test_behaviour(tmp_path):
    rows = [
        {
            "question": f"Really {i}?\n (A) Yes\n (B) No",
            "answer_matching_behavior": "(A)",
            "answer_not_matching_behavior": "(B)",
        }
        for i in range(3)
    ]
    path = write(tmp_path / "dataset.json", rows)
    task = load_task(path)
    assert task.chat
    assert (task.examples[0].prompt, task.examples[0].positive, task.examples[0].negative) == (
        rows[0]["question"],
        "(A)",
        "(B)",
    )
    assert len(set(task.groups)) == 3
    raw = load_task(path, chat=False)
    assert not raw.chat
    assert (raw.examples[0].prompt, raw.examples[0].positive) == (rows[0]["question"] + "\n\nAnswer:", " (A)")


def test_minimal_pairs(tmp_path):
    rows = [{"sentence_good": f"Ann sees {w}.", "sentence_bad": f"Ann see {w}.", "UID": "agreement"} for w in "xyz"]
    path = write(tmp_path / "blimp.jsonl", rows)
    task = load_task(path)
    assert task.examples[1].positive == "Ann sees y."
    assert len(set(task.groups)) == 3
    mapped = load_task(path, mapping={"positive": "sentence_good", "negative": "sentence_bad", "group": "UID"})
    assert set(mapped.groups) == {"agreement"}


def test_winobias(tmp_path):
    pro = ["1 [The cook] met the nurse because [he] was hungry.", "2 The cook met [the nurse ] because [she] 's kind."]
    anti = [line.replace("[he]", "[she] ").replace("[she] 's", "[he] 's") for line in pro]
    one = lines(tmp_path / "pro_stereotyped_type1.txt.dev", *pro, "3 [A clerk] left because [she] was late.")
    other = lines(tmp_path / "anti_stereotyped_type1.txt.dev", *anti, "3 [A clerk] left because [he] was late.")
    task = load_task(one)
    assert load_task(other) == load_task(tmp_path) == task
    assert (task.examples[1].positive, task.examples[1].negative) == (
        "The cook met the nurse because she's kind.",
        "The cook met the nurse because he's kind.",
    )
    assert task.groups == ("cook and nurse", "cook and nurse", "clerk")
    other.unlink()
    assert "pro_stereotyped_type1.txt.dev goes with anti_stereotyped_type1.txt.dev, which is not beside it" in refused(
        one
    )


def test_winogender(tmp_path):
    rows = [
        {"sentid": f"{who}.patient.{i}.{g}.txt", "sentence": f"The {who} said {p} was {i}."}
        for who in ("nurse", "surgeon")
        for i in (0, 1)
        for g, p in (("male", "he"), ("female", "she"), ("neutral", "they"))
    ]
    task = load_task(write(tmp_path / "all.tsv", rows))
    assert [(e.positive, e.negative, e.group) for e in task.examples] == [
        (f"The {who} said he was {i}.", f"The {who} said she was {i}.", who)
        for who in ("nurse", "surgeon")
        for i in (0, 1)
    ]


def test_parallel_lines(tmp_path):
    german = lines(tmp_path / "tatoeba.deu-eng.deu", "Es schneit.", "Ich weiß\u2028es.", end="\r\n")
    english = lines(tmp_path / "tatoeba.deu-eng.eng", "It snows.", "I know.")
    task = load_task(german)
    assert load_task(english) == load_task(tmp_path) == load_task([german, english]) == task
    assert [(e.positive, e.negative) for e in task.examples] == [
        ("Es schneit.", "It snows."),
        ("Ich weiß\u2028es.", "I know."),
    ]
    assert task.poles == ("deu", "eng")
    two = [lines(tmp_path / "kind.txt", "You are nice."), lines(tmp_path / "rude.txt", "You are dumb.")]
    assert load_task(two).examples[0].positive == "You are nice."
    lines(english, "It snows.")
    assert "tatoeba.deu-eng.eng ends after line 1, and tatoeba.deu-eng.deu goes on" in refused(german)
    lines(english, "It snows.", "I know.", "Yes.")
    assert "tatoeba.deu-eng.deu ends before tatoeba.deu-eng.eng does" in refused(german)


def test_a_folder_of_files_is_one_task(tmp_path):
    write(tmp_path / "a.csv", PAIRS[:1])
    write(tmp_path / "b.jsonl", PAIRS[1:])
    (tmp_path / "README.md").write_text("what this is")
    task = load_task(tmp_path)
    assert task.examples == tuple(Contrast(**row) for row in PAIRS)
    assert task.name == tmp_path.name
    assert load_task([tmp_path / "a.csv", tmp_path / "b.jsonl"]) == task


class Saved(list):
    """What stands for a Hugging Face data set here: rows, and the names of their columns."""

    column_names = ("positive", "negative", "group")


def test_a_data_set_on_disk(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "reading it needs that package: pip install datasets" in refused(tmp_path)
    module = ModuleType("datasets")
    module.load_from_disk = lambda path: Saved(PAIRS) if path == str(tmp_path) else None
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert load_task(tmp_path).examples == tuple(Contrast(**row) for row in PAIRS)
    module.load_from_disk = lambda path: {"train": Saved(PAIRS), "test": Saved(PAIRS[:1])}
    assert f"{tmp_path.name} has the parts train, test: say which one" in refused(tmp_path)
    assert 'has no part "tran" (did you mean "train"?)' in refused(tmp_path, split="tran")
    assert len(load_task(tmp_path, split="test")) == 1


def test_other_encodings(tmp_path):
    rows = [{"positive": "Très bien", "negative": "Très mal"}]
    for encoding in ("cp1252", "utf-16", "utf-8-sig"):
        path = write(tmp_path / "mine.csv", rows, encoding)
        options = {} if encoding == "utf-8-sig" else {"encoding": encoding}
        assert load_task(path, **options).examples[0].positive == "Très bien"


def test_separators_and_quotes_of_a_table(tmp_path):
    path = lines(tmp_path / "mine.csv", "positive;negative", '"one; or ""two""\nlines";B', "C;D")
    task = load_task(path)
    assert task.examples[0].positive == 'one; or "two"\nlines'
    assert [place.line for place in read_task(path).places] == [2, 4]


def test_json_lines_by_another_name(tmp_path):
    path = write(tmp_path / "mine.jsonl", PAIRS).rename(tmp_path / "mine.json")
    assert load_task(path).examples == tuple(Contrast(**row) for row in PAIRS)


# Saving
# ---------------------------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
spans = st.dictionaries(
    st.sampled_from(["subject", "S2", "IO"]), words | st.tuples(st.integers(0, 5), st.integers(6, 9))
)


@st.composite
def tasks(draw):
    """Tasks of either shape, with all that a field can hold."""
    made = []
    for i in range(draw(st.integers(1, 5))):
        yes, no = (draw(st.lists(words, min_size=1, max_size=3, unique=True)) for _ in range(2))
        no = [word for word in no if word not in yes] or ["?" + "".join(yes)]
        made.append((f"{draw(words)}{i}", f"{draw(words)}!{i}", yes, no, draw(spans), draw(spans), f"g{i}"))
    settings = {
        "name": draw(words),
        "about": draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
        "metric": draw(st.sampled_from(["logit_diff", "log_prob_diff", "prob"])),
        "poles": (draw(words), draw(words)),
        "chat": draw(st.booleans()),
        "system": draw(st.none() | words),
        "read": draw(st.sampled_from(["text", "last"])),
        "source": draw(st.text("abc", max_size=3)),
    }
    if draw(st.booleans()):
        examples = [Counterfactual(c + "x", c + "y", y, n, g, one, other) for c, _, y, n, one, other, g in made]
    else:
        examples = []
        for i, (one, other, yes, no, *_, group) in enumerate(made):
            asked = {"question": draw(words), "answers": yes, "distractors": no} if draw(st.booleans()) else {}
            systems = {"positive_system": draw(words), "negative_system": draw(words)} if draw(st.booleans()) else {}
            prompt = f"{draw(words)}{i}?" if draw(st.booleans()) else ""
            examples.append(Contrast(one + "x", other + "y", group, prompt=prompt, **asked, **systems))
    return Task(examples=tuple(examples), **settings)


@given(task=tasks())
def test_what_is_saved_is_read_back_equal(tmp_path_factory, task):
    path = tmp_path_factory.mktemp("saved") / "task.jsonl"
    try:
        refuse_leaks(task.examples, [""] * len(task), "")
    except TaskError:
        with pytest.raises(TaskError, match="two groups"):
            save_task(task, path)
        return
    save_task(task, path)
    again = load_task(path)
    assert again.digest == task.digest
    for name in ("name", "about", "poles", "source", "examples", "system", "read"):
        assert getattr(again, name) == getattr(task, name)
    assert [p.name for p in path.parent.iterdir()] == ["task.jsonl"]


@pytest.mark.parametrize("name", builtin.names())
def test_built_in_tasks_can_be_saved(tmp_path, name):
    task = builtin.task(name)
    save_task(task, tmp_path / "task.jsonl")
    again = load_task(tmp_path / "task.jsonl")
    assert again == task
    assert again.poles == task.poles


def test_what_cannot_be_saved(tmp_path):
    task = load_task(PAIRS)
    with pytest.raises(TaskError, match="its metric is a function"):
        save_task(task.with_(metric=lambda logits, rows: logits), tmp_path / "x.jsonl")
    with pytest.raises(TaskError, match=r"cannot write .*nowhere"):
        save_task(task, tmp_path / "nowhere" / "x.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"task": "t", "metrik": "prob"}, 'line 1: "metrik" is no setting of a task (did you mean "metric"?)'),
        ({"task": "t", "metric": "probs"}, 'line 1: unknown metric "probs" (did you mean "prob"?)'),
        ({"task": "t", "chat": "yes"}, "line 1: chat must be true or false"),
        ({"task": "t", "poles": ["a"]}, "line 1: poles are the two texts"),
        ({"task": "t", "about": 3}, "line 1: about must be a text"),
    ],
)
def test_a_broken_first_line(tmp_path, head, words):
    assert words in refused(write(tmp_path / "t.jsonl", [head, *PAIRS]))


def test_a_column_called_task_is_no_first_line(tmp_path):
    rows = [{"task": "x", **row} for row in PAIRS]
    assert len(load_task(write(tmp_path / "t.jsonl", rows))) == 3
    other = [{"task": f"x{i}", "good": f"A{i}", "bad": f"B{i}"} for i in range(3)]
    mapping = {"positive": "good", "negative": "bad", "group": "task"}
    assert len(load_task(write(tmp_path / "u.jsonl", other), mapping=mapping)) == 3


# Faults
# ---------------------------------------------------------------------------------------------------------------------


def test_broken_rows_are_named_with_their_lines(tmp_path):
    path = lines(
        tmp_path / "mine.jsonl",
        json.dumps(PAIRS[0]),
        "",
        "{not json",
        '{"positive": "A", "negativ": "B", "group": "c"}',
        '{"positive": "A", "negative": 5, "group": "c"}',
        '["A", "B"]',
        '{"positive": "A", "negative": null, "group": "c"}',
        '{"positive": "A", "negative": "A", "group": "c"}',
        '{"positive": "  ", "negative": "B", "group": "c"}',
        '{"positive": "A", "negative": "B"}',
        '{"positive": "A \\ud800", "negative": "B", "group": "c"}',
        '{"positive": "A", "negative": "B", "group": "c", "spans": 3}',
    )
    said = refused(path).splitlines()
    assert said[0] == "mine: 9 of 11 rows are broken, so nothing is loaded:"
    told = dict(re.fullmatch(r"  mine\.jsonl line (\d+): (.*)", line).groups() for line in said[1:-1])
    assert list(told) == ["3", "4", "5", "6", "7", "8", "9", "10", "11"]
    assert told["3"].startswith("it is not JSON (Expecting property name")
    assert told["4"] == 'there is no "negative" (did you mean "negativ"?)'
    assert told["5"] == "negative must be a text, got 5"
    assert told["6"] == 'a row must be an object of columns, got ["A", "B"]'
    assert told["7"] == '"negative" is None'
    assert told["8"] == "positive and negative are the same: 'A'"
    assert told["9"] == '"positive" is empty'
    assert told["10"] == "it has no group, and other rows have one"
    assert told["11"] == "positive holds half of a character, '\\ud800'"
    loaded = read_task(path)
    assert (loaded.rows, len(loaded.faults), len(loaded.task)) == (11, 9, 2)


def test_of_many_broken_rows_ten_are_named(tmp_path):
    said = refused(lines(tmp_path / "mine.csv", "positive,negative", "A,B", *["C"] * 24)).splitlines()
    assert said[0] == "mine: 24 of 25 rows are broken, so nothing is loaded:"
    assert said[1] == "  mine.csv line 3: it has 1 fields, and the header has 2"
    assert len([line for line in said if "line" in line]) == 10
    assert said[-2:] == ["  … and 14 more", "mend or remove them"]


def test_rows_that_are_all_broken(tmp_path):
    path = lines(tmp_path / "mine.jsonl", "x", "y")
    assert "2 of 2 rows are broken" in refused(path)
    assert read_task(path).task is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": []}, "answers must be one or more texts"),
        ({"answers": [" Rome"]}, "is both an answer and a distractor"),
        ({"answers": [" Paris", 3]}, "answers must be a text, got 3"),
        ({"spans": "France"}, "spans must map names to texts"),
        ({"spans": {"end": "France"}}, '"end" already names a span'),
    ],
)
def test_broken_counterfactuals(tmp_path, changes, words):
    assert words in refused(write(tmp_path / "mine.jsonl", [CAPITALS[1], CAPITALS[0] | changes]))


def test_a_broken_list_names_the_line(tmp_path):
    whole = write(tmp_path / "mine.json", PAIRS).read_text()
    path = tmp_path / "mine.json"
    path.write_text(whole[: len(whole) // 2])
    assert re.search(r"mine\.json line \d+ is not JSON", refused(path))
    path.write_text(whole.replace("},\n", "}\n", 1))
    assert "mine.json line 7: a comma is missing" in refused(path)
    path.write_text(whole.replace('"group": "a"', '"group": a'))
    assert "mine.json line 5 is not JSON" in refused(path)
    path.write_text(whole.rstrip()[:-1])
    assert "the list does not end" in refused(path)
    path.write_text('"text"')
    assert "a list of objects was expected" in refused(path)
    path.write_text("[1, 2]")
    assert "mine.json line 1: a row must be an object of columns, got 1" in refused(path)


def test_long_lists_are_read_in_pieces(tmp_path):
    rows = [{"positive": f"A{i} " + "é" * 300, "negative": f"B{i}"} for i in range(1000)]
    path = write(tmp_path / "mine.json", rows)
    assert [e.positive for e in load_task(path).examples] == [row["positive"] for row in rows]
    assert [place.line for place in read_task(path).places] == list(range(2, 4002, 4))


def test_broken_tables(tmp_path):
    path = tmp_path / "mine.csv"
    assert 'line 1: the column "positive" is there twice' in refused(lines(path, "positive,positive", "A,B"))
    said = refused(lines(path, "positive,negative", "A,B", 'C,"D', "E,F"))
    assert "mine.csv line 3: it is not a row of a table (unexpected end of data); is a quote open?" in said
    assert "line 2: it has 3 fields" in refused(lines(path, "positive,negative", "A,B,C"))


def test_missing_columns_name_the_nearest(tmp_path):
    rows = [{"sentence_god": "A", "sentence_bad": "B"}]
    said = refused(write(tmp_path / "mine.csv", rows))
    assert (
        'mine.csv has the columns sentence_god, sentence_bad; of the format BLiMP they lack "sentence_good" (did you'
        in said
    )
    assert 'has no column "sentence_good" (did you mean "sentence_god"?)' in refused(
        rows, mapping={"positive": "sentence_good", "negative": "sentence_bad"}
    )
    assert 'data has no column "god"' in refused(rows, mapping={"positive": "{god}", "negative": "sentence_bad"})
    assert "those of no format that is known" in refused([{"a": "x", "b": "y"}])
    assert 'of the format labelled they lack "label" (did you mean "labels"?)' in refused([{"text": "x", "labels": 1}])


def test_unknown_fields_name_the_nearest():
    assert '"postive" is not a field of a task (did you mean "positive"?): there are positive,' in refused(
        PAIRS, mapping={"postive": "a"}
    )
    assert '"grup" is not a field of a task (did you mean "group"?)' in refused(PAIRS, every={"grup": "a"})
    assert 'unknown metric "logit_dif" (did you mean "logit_diff"?)' in refused(PAIRS, metric="logit_dif")
    assert "contrast rows have no spans" in refused(PAIRS, every={"spans": {"a": "b"}})
    assert "give it in every=" in refused(
        [{"text": "a", "label": 1, "q": "b"}], mapping={"text": "text", "label": "label", "question": "q"}
    )
    assert "counterfactual rows need clean, corrupt, answers, distractors; name the column of distractors" in refused(
        [{"clean": "a", "corrupt": "b", "answers": "c"}]
    )


def test_a_template_needs_its_columns_filled():
    rows = [{"a": "x", "b": "y"}, {"a": "", "b": "z"}, {"a": ["x"], "b": "z"}]
    said = refused(rows, mapping={"positive": "{a} is", "negative": "{b} is"})
    assert 'data row 1: "a" is empty, and "{a} is" needs it' in said
    assert 'data row 2: "a" must be a text to be put into "{a} is", got [\'x\']' in said
    assert "is not a template" in refused(rows, mapping={"positive": "{a is", "negative": "b"})


@pytest.mark.parametrize("labels", [[1, 1, 1], ["no", "no", "0"]])
def test_labels_that_are_all_equal(tmp_path, labels):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    assert "mine: all 3 labels are" in refused(write(tmp_path / "mine.csv", rows))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_labels_that_are_missing(tmp_path, suffix):
    labels = [1, 0, float("nan"), None, ""]
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    path = write(tmp_path / f"mine.{suffix}", rows)
    said = refused(path) if suffix != "csv" else refused(lines(path, "text,label", "a,1", "b,0", "c,", "d, ", "e,"))
    assert "3 of 5 rows are broken" in said
    first = {"jsonl": 3, "json": 10, "csv": 4}[suffix]
    assert re.search(rf'mine\.{suffix} line {first}: "label" is (nan|empty)', said)


def test_missing_labels_of_a_frame():
    frame = pd.DataFrame({"text": ["a b", "a c", "d"], "label": [1.0, 0.0, float("nan")]})
    assert 'data row 2: "label" is nan' in refused(frame)
    assert len(load_task(frame[:2])) == 1


def test_an_empty_side_and_an_empty_file(tmp_path):
    empty = lines(tmp_path / "empty.txt")
    full = lines(tmp_path / "full.txt", "A")
    assert "full.txt goes on" in refused([full, empty])
    assert "empty.txt ends before full.txt" in refused([empty, full])
    assert "holds no rows" in refused([empty, lines(tmp_path / "too.txt")])
    assert 'full.txt line 1: "second" is empty' in refused([full, lines(tmp_path / "blank.txt", "")])
    for name, text in (("a.jsonl", ""), ("a.json", "[]"), ("a.csv", "positive,negative\n"), ("b.csv", "")):
        (tmp_path / name).write_text(text)
        assert "holds no rows" in refused(tmp_path / name)
    assert "holds no rows" in refused([])
    assert "no text has the positive label 'spam'; there are 'ham' (2)" in refused(
        [{"text": "a", "label": "ham"}, {"text": "b", "label": "ham"}], positive="spam"
    )


def test_a_text_in_two_groups_names_both_lines(tmp_path):
    rows = [*PAIRS, {"positive": "New.", "negative": "It is bad.", "group": "c"}]
    said = refused(write(tmp_path / "mine.csv", rows))
    assert "mine: the same text is in two groups" in said
    assert "'It is bad.' is in group 'a' (mine.csv line 2) and in group 'c' (mine.csv line 5)" in said
    labelled = [{"text": t, "label": y, "group": g} for t, y, g in (("a", 1, "x"), ("b", 0, "x"), ("a", 1, "y"))]
    assert "'a' is in group 'x' (data row 0) and in group 'y' (data row 2)" in refused(labelled)
    twice = [CAPITALS[1], CAPITALS[1] | {"corrupt": "Chad's is", "group": "Africa"}]
    assert "\"Peru's is\" is in group 'America' (data row 0) and in group 'Africa' (data row 1)" in refused(twice)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    text = '{"positive": "A", "negative": "B"}\n{"positive": "caf\u00e9", "negative": "D"}\n'
    path = tmp_path / "mine.jsonl"
    path.write_bytes(text.encode("cp1252"))
    at = text.index("\u00e9")
    assert f'mine.jsonl is not utf-8 text (byte {at}, on line 2): say what it is, encoding="cp1252"' in refused(path)
    path.write_bytes(b"x" * 70_000 + b"\n" + text.encode("cp1252"))
    assert f"byte {70_001 + at}, on line 3" in refused(path)
    path.write_bytes("é".encode() * 40_000 + b"\xc3")  # half a character at the very end, chunks that cut others
    assert "byte 80000, on line 1" in refused(path)
    path.write_bytes(text.encode("utf-16"))
    assert 'byte 0, on line 1): say what it is, encoding="utf-16"' in refused(path)
    assert load_task(path, encoding="utf-16").examples[1].positive == "café"
    assert 'there is no encoding "utf-9"' in refused(path, encoding="utf-9")
    write(path.with_suffix(".csv"), PAIRS)
    assert "is not utf-16 text" in refused(path.with_suffix(".csv"), encoding="utf-16")


def test_too_many_rows_are_refused_and_memory_stays_small(tmp_path):
    path = tmp_path / "mine.jsonl"
    with path.open("w") as file:
        for i in range(40_000):
            file.write(json.dumps({"positive": f"A{i} " + "x" * 700, "negative": f"B{i}"}) + "\n")
    assert path.stat().st_size > 28_000_000
    tracemalloc.start()
    said = refused(path, most=500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said == (
        "mine.jsonl holds more than 500 rows (reading stopped at line 501): read more of them with most=5,000, or cut "
        "the file down"
    )
    assert peak < 5_000_000
    assert f"more than {MOST:,} rows" in refused(path)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv", "mine.json"])
def test_a_file_without_rows_does_not_fill_the_memory(tmp_path, name):
    path = tmp_path / name
    path.write_text('[{"positive": "' + "x" * 20_000_000)
    tracemalloc.start()
    said = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "line 1 is longer than 1,000,000 characters" in said or "line 1 is not JSON" in said
    assert peak < 16_000_000


def test_as_many_rows_as_asked_for():
    rows = [{"positive": f"A{i}", "negative": f"B{i}"} for i in range(7)]
    assert len(load_task(rows, most=7)) == 7
    assert "more than 6 rows (reading stopped at row 6)" in refused(rows, most=6)
    assert "1 or more, got 0" in refused(rows, most=0)


def test_paths_that_lead_nowhere(tmp_path):
    write(tmp_path / "mine.jsonl", PAIRS)
    assert "there is no file" in refused(tmp_path / "mine.json")
    assert '(did you mean "mine.jsonl"?)' in refused(tmp_path / "mine.json")
    (tmp_path / "empty").mkdir()
    assert "empty holds no file of a known kind: .jsonl" in refused(tmp_path / "empty")
    assert "mine.doc is of no known kind" in refused(lines(tmp_path / "mine.doc", "A"))
    assert "a task is loaded from a path or from rows (mappings), got int" in refused(3)
    assert "a task is loaded from a path or from rows (mappings), got bytes" in refused(b"x")
    assert "data row 0: a row must be a mapping of columns, got 'x'" in refused(["x", 3])


def test_files_of_different_formats_are_no_one_task(tmp_path):
    write(tmp_path / "a.jsonl", PAIRS)
    write(tmp_path / "b.jsonl", CAPITALS)
    assert "rows of different formats (a.jsonl: contrast; b.jsonl: counterfactual)" in refused(tmp_path)


def test_faults_in_several_files_name_each(tmp_path):
    write(tmp_path / "a.csv", PAIRS[:1])
    lines(tmp_path / "b.csv", "positive,negative,group", "x,,y")
    assert 'b.csv line 2: "negative" is empty' in refused(tmp_path)


def test_strange_lines_of_data_sets(tmp_path):
    one = lines(tmp_path / "pro_stereotyped.txt", "1 The cook left.")
    lines(tmp_path / "anti_stereotyped.txt", "1 The cook left.")
    assert "line 1: a sentence must mark who is meant" in refused(one)
    assert 'line 2: sentid must be as in "nurse.patient.1.male.txt"' in refused(
        lines(tmp_path / "w.tsv", "sentid\tsentence", "nurse\tx")
    )
    relation = {"prompt_templates": ["{} is"], "samples": [{"subject": "a", "object": "b"}, {"subject": "c"}, 3]}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(relation, indent=1))
    said = refused(path)
    assert 'r.json line 10: "object" is empty, and " {object}" needs it' in said
    assert "r.json line 13: a sample must be an object, got 3" in said


def test_formats_are_of_fields_that_exist():
    for form in FORMATS:
        assert set(form.mapping) <= {"positive", "negative", "text", "label", "group", "prompt", "clean", "answers"}
    assert len({form.name for form in FORMATS}) == len(FORMATS)


# The data sets themselves
# ---------------------------------------------------------------------------------------------------------------------


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


# The page
# ---------------------------------------------------------------------------------------------------------------------


def test_the_page_on_tasks_runs(tmp_path, monkeypatch, bundled, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trimtab, "load", lambda name: bundled)
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "tasks.md", "exec"), names)
    assert len(names["mine"]) == 2
    assert names["mine"].metric == "logit_diff"
    assert len(names["cities"]) == 6
    assert len(names["honest"]) == 2
    assert "mine" not in capsys.readouterr().err
    for form in FORMATS:
        assert form.name.split()[0].lower().rstrip("s") in page.lower()
