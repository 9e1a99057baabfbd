"""`trimtab generate`: streamed, as a document, and beside the text without the edits."""

from __future__ import annotations

import pytest

from tests.commands.calls import call, command, document, said
from tests.tiny import words
from trimtab.commands.generate import printable

TEXT = words(5, 6, 7)
EDIT = "L1.resid_post add 3"


def generated(folder, *options):
    return document(call("generate", TEXT, "--model", folder, "--max-new-tokens", "6", "--json", *options))


def test_the_stream_is_the_text_of_the_document(folder):
    found = generated(folder)
    assert (found["model"], found["prompt"], found["edits"], found["temperature"]) == ("tiny-llama", TEXT, [], 0)
    assert 1 <= len(found["ids"]) <= 6
    done = call("generate", TEXT, "--model", folder, "--max-new-tokens", "6")
    assert (done.exit_code, done.stdout, said(done)) == (0, found["text"] + "\n", "")


def test_edits_change_it_and_both_can_be_seen(folder):
    found = generated(folder, "--edit", EDIT, "--edit", "L0.head[1] scale 0", "--compare")
    assert found["edits"] == [EDIT, "L0.head[1] scale 0"]
    assert found["without"] == {key: generated(folder)[key] for key in ("text", "ids")}
    assert found["text"] != found["without"]["text"]
    done = call("generate", TEXT, "--model", folder, "--edit", EDIT, "--compare", "--max-new-tokens", "3")
    assert done.exit_code == 0
    assert "without" in done.stdout
    assert f"with {EDIT}" in done.stdout


def test_a_seed_repeats_itself(folder):
    options = ["--temperature", "2", "--top-p", "0.9", "--seed"]
    first, again, other = (generated(folder, *options, seed)["ids"] for seed in (1, 1, 2))
    assert first == again != other


def test_one_likeliest_token_is_the_greedy_one(folder):
    options = ["--temperature", "20", "--seed", "1", "--top-k"]
    greedy, one, many = (generated(folder, *more) for more in ([], [*options, "1"], [*options, "0"]))
    assert one["ids"] == greedy["ids"] != many["ids"]
    assert (greedy["top_k"], one["top_k"], many["top_k"]) == (None, 1, 0)


def test_stops_at_a_text(folder):
    plain = generated(folder)
    words_ = plain["text"].split()
    assert (plain["stop"], words_[1] != words_[0]) == ([], True)
    found = generated(folder, "--stop", words_[1])
    assert found["text"] == " ".join(words_[:2])
    assert found["stop"] == [words_[1]]
    both = ["--stop", "nowhere", "--stop", words_[0]]
    assert generated(folder, *both)["text"] == words_[0]
    assert call("generate", TEXT, "--model", folder, *both).stdout == words_[0] + "\n"
    beside = generated(folder, "--stop", words_[0], "--edit", "L0.head scale 1", "--compare")
    assert beside["without"]["text"] == words_[0]


def test_chat(folder):
    assert "w8" in generated(folder, "--chat", "--system", "w8")["chat"]


def test_the_plan_runs_nothing(folder, monkeypatch):
    monkeypatch.setattr("trimtab.model.lm.LM.generate", None)
    monkeypatch.setattr("trimtab.model.lm.LM.stream", None)
    plan = document(call("generate", TEXT, "--model", folder, "--edit", EDIT, "--compare", "--dry-run", "--json"))[
        "plan"
    ]
    assert (plan["tokens"], plan["new_tokens"], plan["passes"], plan["layers"]) == (3, 64, 128, 2)
    assert plan["cache"] == 2 * 2 * 2 * 8 * 4 * (3 + 63)
    shown = call("generate", TEXT, "--model", folder, "--edit", EDIT, "--dry-run").stdout
    assert "3 prompt tokens, up to 64 new ones, 2 layers" in shown
    assert f"edit: {EDIT}" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare"], "--compare sets the text without edits beside the one with them: give at least one --edit"),
        (["--top-p", "0.9"], "--top-p is about sampling: give a --temperature above 0 too"),
        (["--top-k", "5"], "--top-k is about sampling: give a --temperature above 0 too"),
        (["--temperature", "1", "--top-k", "-1"], "Invalid value for '--top-k'"),
        (["--stop", ""], "--stop is empty"),
        (["--system", "w8"], "give --chat too"),
        (["--edit", "nonsense"], '"nonsense" is not an edit: an edit looks like "L12.head[7] scale 0"'),
        (["--max-new-tokens", "0"], "Invalid value for '--max-new-tokens'"),
        (["--temperature", "-1"], "Invalid value for '--temperature'"),
    ],
)
def test_usage(options, message):
    done = call("generate", TEXT, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("L0.head[9] scale 0", "head 9 is out of range; there are heads 0 to 3"),
        ("L0.head set from clean", 'no run named "clean" was given'),
        ("L0.head@subject scale 0", "subject"),
    ],
)
def test_an_edit_that_does_not_fit_the_model(folder, edit, message):
    done = call("generate", TEXT, "--model", folder, "--edit", edit)
    assert done.exit_code == 1
    assert message in done.stderr


def test_what_a_terminal_would_obey_is_not_printed():
    assert printable("a\x1b[2Jb\n\tc\u202e") == "a\ufffd[2Jb\n\tc\ufffd"


def test_a_real_process_streams_to_standard_output(folder):
    done = command("generate", TEXT, "--model", folder, "--max-new-tokens", "4")
    assert done.returncode == 0
    assert done.stdout.startswith("w")
    assert done.stdout.endswith("\n")
