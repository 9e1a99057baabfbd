"""Tasks from files and back into files: what is saved is read back, and every fault is told with its line."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimtab
from tests.tasks.rowfiles import CAPITALS, PAIRS, ROOT, lines, refused, write
from trimtab.errors import TaskError
from trimtab.tasks import builtin
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.files import load_task, read_task, save_task
from trimtab.tasks.formats import FORMATS
from trimtab.tasks.groups import refuse_leaks
from trimtab.tasks.task import Task


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv"])
def test_every_kind_of_file_holds_the_same_task(tmp_path, suffix):
    task = load_task(write(tmp_path / f"mine.{suffix}", PAIRS))
    assert task.examples == tuple(Contrast(**row) for row in PAIRS)
    assert (task.name, task.metric, task.chat) == ("mine", "log_prob_diff", False)


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
    own = {"poles": ("one", "other"), "instruction": "Name it.", "chat": True}
    said = load_task(write(tmp_path / "mine.jsonl", CAPITALS), **own)
    assert {key: getattr(said, key) for key in own} == own


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"poles": ("one",)}, "poles are the two texts that name the sides, got ('one',)"),
        ({"poles": "no"}, "poles are the two texts that name the sides, got 'no'"),
        ({"poles": 2}, "poles are the two texts that name the sides, got 2"),
        ({"instruction": 1984}, "instruction must be a text, got 1984"),
        ({"chat": "no"}, "chat must be True or False, got 'no'"),
    ],
)
def test_what_a_task_cannot_be_told_is_refused(wrong, words):
    assert words in refused(CAPITALS, **wrong)


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
        ({"task": "t", "instruction": 3}, "line 1: instruction must be a text, got 3"),
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


def test_faults_in_several_files_name_each(tmp_path):
    write(tmp_path / "a.csv", PAIRS[:1])
    lines(tmp_path / "b.csv", "positive,negative,group", "x,,y")
    assert 'b.csv line 2: "negative" is empty' in refused(tmp_path)


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
