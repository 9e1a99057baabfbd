"""`trimtab task`: what is listed and shown, and what a check says of good and of broken files."""

from __future__ import annotations

import json

import pytest

from tests.commands.calls import call, command, document, said
from tests.tiny import words
from trimtab.tasks import builtin
from trimtab.tasks.files import save_task


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(number, group=4):
    """Rows of a counterfactual task that the tiny model's tokenizer can do."""
    return [
        {
            "clean": f"w5 w{10 + i}",
            "corrupt": f"w6 w{10 + i}",
            "answers": "w7",
            "distractors": "w8",
            "group": f"g{i % group}",
        }
        for i in range(number)
    ]


@pytest.fixture
def mine(tmp_path):
    return written(tmp_path / "mine.jsonl", rows_of(12))


def test_the_list_names_every_built_in_task():
    found = document(call("task", "list", "--json"))["tasks"]
    assert [row["name"] for row in found] == builtin.names()
    for row in found:
        task = builtin.task(row["name"])
        assert (row["shape"], row["examples"], row["groups"]) == (task.shape, len(task), len(set(task.groups)))
    shown = call("task", "list", env={"COLUMNS": "100"})
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in builtin.names())
    assert max(map(len, shown.stdout.splitlines())) <= 100


def test_a_task_is_shown_with_some_examples():
    task = builtin.task("ioi")
    found = document(call("task", "show", "ioi", "--number", 2, "--json"))
    assert (found["name"], found["metric"], found["poles"]) == ("ioi", task.metric, list(task.poles))
    assert len(found["shown"]) == 2
    assert found["shown"][0]["clean"] in {example.clean for example in task.examples}
    assert len({example["group"] for example in found["shown"]}) == 2
    assert sum(part["examples"] for part in found["parts"].values()) == len(task)
    shown = call("task", "show", "ioi", env={"COLUMNS": "200"}).stdout
    assert shown.startswith("ioi: ")
    assert f"{len(task)} counterfactual examples in {len(set(task.groups))} groups" in shown
    assert shown.count("\nclean ") == 3
    assert "characters " in shown
    assert "clean " not in call("task", "show", "ioi", "-n", 0).stdout


def test_a_file_can_be_shown(tmp_path):
    path = written(tmp_path / "x.jsonl", [{"good": f"A{i}", "bad": f"B{i}", "g": i} for i in range(3)])
    options = ["--map", "positive=good", "--map", "negative={bad}!", "--map", "group=g"]
    found = document(call("task", "show", path, *options, "--json"))
    assert found["shown"][0] == {"positive": "A0", "negative": "B0!", "group": "0"}
    assert call("task", "show", written(tmp_path / "y.jsonl", [{"good": 1}])).exit_code == 1


def test_a_good_file_is_good(mine, folder):
    done = call("task", "check", mine, folder, env={"COLUMNS": "120"})
    assert done.exit_code == 0
    assert said(done) == ""
    assert done.stdout.splitlines() == [
        "mine: 12 of 12 rows are good (counterfactual)",
        "12 counterfactual examples in 4 groups, log_prob_diff",
        "mine: 12 of 12 examples fit tiny-llama",
        "fewer than 60 examples: intervals will be wide",
        "parts, in examples and groups: train 6 in 2, validation 3 in 1, test 3 in 1",
    ]


def test_broken_rows_are_told_with_their_lines(tmp_path, folder):
    rows = rows_of(12)
    rows[3] |= {"corrupt": rows[3]["clean"]}
    del rows[5]["answers"]
    rows[7] |= {"answers": "w7 w7"}
    rows[8] |= {"clean": "w5 w5 w18"}
    path = written(tmp_path / "mine.jsonl", rows)
    done = call("task", "check", path, folder, env={"COLUMNS": "120"})
    assert done.exit_code == 1
    assert "mine: 10 of 12 rows are good (counterfactual)" in done.stdout
    assert "  mine.jsonl line 4: clean and corrupt are the same text" in done.stdout
    assert '  mine.jsonl line 6: there is no "answers"' in done.stdout
    assert "8 of 10 examples fit tiny-llama" in done.stdout
    assert "  an answer that is not one token: mine.jsonl line 8\n" in done.stdout
    assert "  clean and corrupt of different length: mine.jsonl line 9\n" in done.stdout
    assert said(done) == "error: 2 of 12 rows are broken\n"
    result = call("task", "check", path, folder, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [(row["file"], row["line"]) for row in found["broken"]] == [("mine.jsonl", 4), ("mine.jsonl", 6)]
    assert [(row["line"], row["example"]) for row in found["dropped"]] == [(8, 5), (9, 6)]
    assert (found["rows"], found["examples"], found["fit"], found["good"]) == (12, 10, 8, False)
    assert found["problems"] == ["2 of 12 rows are broken"]


def test_the_document_of_a_good_file(mine, folder):
    found = document(call("task", "check", mine, folder, "--json", "--metric", "prob"))
    assert (found["task"], found["format"], found["model"]) == ("mine", "counterfactual", "tiny-llama")
    assert (found["good"], found["problems"], found["broken"], found["dropped"]) == (True, [], [], [])
    assert found["groups"] == 4
    assert found["parts"]["train"] == {"examples": 6, "groups": 2}


def test_too_few_examples_fail_where_a_number_is_asked_for(mine, folder):
    done = call("task", "check", mine, folder, "--least", 13)
    assert done.exit_code == 1
    assert said(done) == "error: 12 examples fit tiny-llama, and 13 are needed\n"
    assert call("task", "check", mine, folder, "--least", 12).exit_code == 0


def test_too_few_groups_fail(tmp_path, folder):
    done = call("task", "check", written(tmp_path / "two.jsonl", rows_of(6, group=2)), folder)
    assert done.exit_code == 1
    assert "two has 2 group(s), g0, g1" in said(done)
    assert "no parts: " in done.stdout


def test_nothing_fits(tmp_path, folder):
    rows = [row | {"answers": "w7 w7"} for row in rows_of(6)]
    done = call("task", "check", written(tmp_path / "none.jsonl", rows), folder)
    assert done.exit_code == 1
    assert "0 of 6 examples fit tiny-llama" in said(done)
    assert "an answer that is not one token" in said(done)


def test_nothing_is_good(tmp_path, folder):
    path = tmp_path / "none.jsonl"
    path.write_text("x\ny\n")
    done = call("task", "check", path, folder)
    assert done.exit_code == 1
    assert said(done) == "error: 2 of 2 rows are broken; no row is good\n"


def test_what_ends_the_reading_is_one_message(tmp_path, folder):
    path = written(tmp_path / "wrong.jsonl", [{"god": "A", "bad": "B"}])
    done = call("task", "check", path, folder)
    assert (done.exit_code, done.stdout) == (1, "")
    assert said(done).startswith("error: wrong.jsonl has the columns god, bad")
    as_json = call("task", "check", path, folder, "--json")
    assert json.loads(as_json.stdout)["error"].startswith("wrong.jsonl has the columns")
    missing = call("task", "check", tmp_path / "nowhere.csv", folder)
    assert "there is no file" in said(missing)
    assert 'no built-in task "capital" (did you mean "capitals"?)' in said(call("task", "check", "capital", folder))


def test_labels_encodings_and_limits(tmp_path, folder):
    path = tmp_path / "mine.csv"
    lines = [f"{words(20 + i, 21)} \u00e9,{'ham' if i % 2 else 'spam'}" for i in range(8)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="cp1252")
    options = ["--encoding", "cp1252", "--positive", "spam"]
    found = document(call("task", "check", path, folder, *options, "--json"))
    assert (found["format"], found["rows"], found["fit"]) == ("labelled", 8, 4)
    assert "say which of them is the positive one" in said(call("task", "check", path, folder, *options[:2]))
    assert "not utf-8 text" in said(call("task", "check", path, folder))
    assert "more than 5 rows" in said(call("task", "check", path, folder, *options, "--most", 5))


def test_notes_are_told(tmp_path, folder):
    rows = rows_of(8)
    done = call("task", "check", written(tmp_path / "mine.jsonl", [*rows, rows[0]]), folder)
    assert "  1 repeated rows counted once\n" in done.stdout


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("positive", "must be a field and a column"),
        ("postive=good", 'did you mean "positive"?'),
        ("positive=", "must be a field and a column"),
    ],
)
def test_a_mapping_that_is_none_is_usage(mine, folder, option, message):
    done = call("task", "check", mine, folder, "--map", option, env={"COLUMNS": "200"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_built_in_tasks_can_be_checked(folder, tmp_path):
    assert call("task", "check", "ioi", folder, "--map", "clean=a").exit_code == 2
    assert 'unknown metric "rnk"' in said(call("task", "check", "ioi", folder, "--metric", "rnk"))
    done = call("task", "check", "ioi", folder)  # its words are unknown to the tiny tokenizer: one token, all of them
    assert done.exit_code == 1
    assert "an answer and a distractor that are one token" in said(done)
    save_task(builtin.task("ioi"), tmp_path / "ioi")
    assert "is of no known kind" in said(call("task", "check", "ioi", folder))  # what is there comes first


@pytest.mark.usefixtures("bundled")
def test_the_model_is_the_bundled_one_by_default():
    found = document(call("task", "check", "capitals", "--json", "--least", 60))
    assert found["model"] == "smollm2-135m-instruct"
    assert found["fit"] + len(found["dropped"]) == found["examples"]
    assert found["rows"] is None


def test_the_settings_name_the_model(mine, folder, tmp_path):
    (tmp_path / "trimtab.toml").write_text(f'model = "{folder.as_posix()}"\n')
    assert document(call("task", "check", mine, "--json"))["model"] == "tiny-llama"


def test_help_needs_nothing_heavy():
    done = command("task", "check", "--help")
    assert done.returncode == 0
    assert "--map" in done.stdout
    assert "FILE_OR_NAME" in done.stdout
    assert call("task").exit_code == 2
