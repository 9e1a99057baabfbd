"""Options that commands share: a group's fields are its options, and say themselves again as words."""

from __future__ import annotations

import json

import pytest
import typer

from trimtab.commands.subjects import (
    OfModel,
    OnPrompts,
    OnTask,
    OnTexts,
    check_chat,
    parameters,
    taken,
    texts_of,
)
from trimtab.errors import FileError


def test_fields_are_options():
    found = parameters(OnTask, examples=7)
    assert list(found)[:3] == ["task", "examples", "part"]
    assert found["task"].default is found["task"].empty
    assert (found["examples"].default, found["part"].default) == (7, "all")
    assert all(hasattr(each.annotation, "__metadata__") for each in found.values())


def test_a_group_takes_its_own_of_what_was_given():
    on = taken(OnTask, {"task": "ioi", "examples": 3, "model": "m"})
    assert (on.task, on.examples, on.metric) == ("ioi", 3, None)
    assert taken(OfModel, {"model": "m", "task": "ioi"}) == OfModel("m")


def test_words_say_it_again():
    on = OnTask("a task", 3, "train", 1, metric="prob", mapped=["positive=good", "negative=bad"], positive="x")
    assert on.words() == [
        *("--task", "a task", "--examples", "3", "--part", "train", "--data-seed", "1"),
        *("--metric", "prob", "--positive", "x", "--map", "positive=good", "--map", "negative=bad"),
    ]
    assert OfModel("m", device="cpu").words() == ["--model", "m", "--device", "cpu"]
    assert OnPrompts(["a b", "c"], chat=True, system="s").words() == ["a b", "c", "--chat", "--system", "s"]
    assert OnPrompts(["a"]).words() == ["a"]
    assert OnTexts().words() == []
    assert OnTask(None).words() == []
    assert OnTask("").words()[:2] == ["--task", ""]


def test_texts_are_files_or_rows(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": t, "n": 1}) for t in ("x", "é")), encoding="utf-8")
    assert texts_of([tmp_path / "a.txt", tmp_path / "b.jsonl"]) == ["one\n\ntwo", "x", "é"]
    for row in ('{"word": "y"}', '{"text": null}', '["y"]'):
        (tmp_path / "c.jsonl").write_text(f'{{"text": "x"}}\n{row}', encoding="utf-8")
        with pytest.raises(FileError, match='row 2 has no "text"'):
            texts_of([tmp_path / "c.jsonl"])
    (tmp_path / "d.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(FileError, match="cannot be read"):
        texts_of([tmp_path / "d.jsonl"])


def test_a_row_ends_at_a_new_line_alone(tmp_path):
    """JSON leaves these as they are in a string, and Python counts them among the ends of lines."""
    whole = "one\u2028two\u2029three\x85four"
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in (whole, "x")]
    assert whole in rows[0]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join([*rows, ""]).encode())
    assert texts_of([tmp_path / "a.jsonl"]) == [whole, "x"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("text", ["", "\n \n\n"])
def test_a_file_without_text_is_refused_beside_one_with_it(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "good.txt").write_text("x", encoding="utf-8")
    with pytest.raises(FileError, match=rf"{name} holds no text"):
        texts_of([tmp_path / "good.txt", tmp_path / name])


def test_rows_of_empty_texts_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " "}', encoding="utf-8")
    with pytest.raises(FileError, match="holds no text"):
        texts_of([tmp_path / "a.jsonl"])


def test_a_system_prompt_is_a_part_of_a_template():
    check_chat(True, "s")
    with pytest.raises(typer.BadParameter, match="give --chat too"):
        check_chat(False, "s")
