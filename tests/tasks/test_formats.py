"""Formats: the data sets of the field are known by their columns and load as they are."""

from __future__ import annotations

import json

from tests.tasks.rowfiles import lines, refused, write
from trimtab.tasks.builtin.truth import QUESTION
from trimtab.tasks.files import load_task, read_task
from trimtab.tasks.formats import FORMATS


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
