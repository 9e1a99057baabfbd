"""`trimtab run`, `report` and `runs reproduce` on a tiny model in a folder and a task in a file."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.calls import call, command, document
from tests.studies.small import SMALL, contrast
from trimtab.commands.run import _lines, _listener, parsed
from trimtab.studies.store import Store
from trimtab.tasks.files import save_task
from trimtab.values.findings import STAGES

OPTIONS = [
    word
    for name, value in SMALL.items()
    if name not in ("task", "model")
    for word in ("--set", f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "made-up.jsonl"
    save_task(contrast(), path)
    return path


@pytest.fixture(scope="module")
def done(task, folder, tmp_path_factory):
    """The JSON document of a whole run, and the folder of runs."""
    store = tmp_path_factory.mktemp("runs")
    return document(call("run", task, "--model", folder, *OPTIONS, "--store", store, "--json")), store


def test_one_document_says_where_everything_is(done):
    said, store = done
    assert said["verdict"] in ("found", "not beaten", "not found")
    assert Path(said["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert set(said["seconds"]) == {"screen", "validate", "steer", "evaluate", "verdict"}
    assert [row.name for row in Store(store).list()] == ["made-up"]


def test_for_people_the_verdict_and_the_place_of_the_report(done, task, folder):
    result = call("run", task, "--model", folder, *OPTIONS, "--set", "seed=1", "--store", done[1])
    assert result.exit_code == 0, result.output
    assert "report:" in result.stdout
    assert "made-up" in result.stdout


def test_the_report_again(done, tmp_path):
    said, store = done
    page = Path(said["report"]).read_text(encoding="utf-8")
    out = tmp_path / "page.html"
    assert document(call("report", said["run"], "--store", store, "--out", out, "--json"))["report"] == str(out)
    assert out.read_text(encoding="utf-8") == page
    assert call("report", "last", "--store", store, "--markdown").stdout.strip()


def test_reproduced(done):
    said, store = done
    again = document(call("runs", "reproduce", said["run"], "--store", store, "--json"))
    assert all(again["same"].values())
    assert again["verdicts"][0] == again["verdicts"][1]
    assert again["again"] != said["run"]


def test_a_plan_runs_nothing(task, folder, tmp_path):
    said = document(call("run", task, "--model", folder, *OPTIONS, "--store", tmp_path / "runs", "--dry-run", "--json"))
    assert said["plan"]["total"] == sum(said["plan"]["tokens"].values()) > 0
    assert said["plan"]["examples"] == {"train": 12, "validation": 8, "test": 12}
    assert not list(tmp_path.glob("runs/*/"))


MAPPING = {"positive": "good", "negative": "bad", "group": "kind", "question": "asked"}
EVERY = {"answers": "w10", "distractors": "w12"}


def test_a_table_with_other_columns(folder, tmp_path):
    """--map and --every say where the fields are, to `run` as to `task check`, and are kept with the settings."""
    path = tmp_path / "reviews.csv"
    rows = [",".join((e.group, e.negative, e.positive, e.question)) for e in contrast().examples]
    path.write_text("\n".join(["kind,bad,good,asked", *rows, ""]))
    maps = [word for key, value in MAPPING.items() for word in ("--map", f"{key}={value}")]
    every = [word for key, value in EVERY.items() for word in ("--every", f"{key}={value}")]
    said = document(call("run", path, "--model", folder, *OPTIONS, *maps, *every, "--dry-run", "--json"))
    assert said["settings"]["mapping"] == MAPPING
    assert said["settings"]["every"] == EVERY
    assert said["plan"]["examples"] == {"train": 12, "validation": 8, "test": 12}
    wrong = call("run", path, "--model", folder, "--map", "positve=good", "--dry-run")
    assert wrong.exit_code == 2
    assert 'did you mean "positive"' in " ".join(wrong.stderr.split())
    column = call(
        "run", path, "--model", folder, *OPTIONS, "--map", "positive=goood", "--map", "negative=bad", "--dry-run"
    )
    assert column.exit_code == 1
    assert 'did you mean "good"' in " ".join(column.stderr.split())
    assert document(call("task", "check", path, folder, *maps, *every, "--json"))["fit"] == len(contrast())


def test_a_table_longer_than_is_read_says_what_reads_it(folder, tmp_path):
    """What the error advises is what then works, on the command line that gave it."""
    path = tmp_path / "reviews.csv"
    rows = [",".join((e.group, e.positive, e.negative, e.question, "w10", "w12")) for e in contrast().examples]
    path.write_text("\n".join(["group,positive,negative,question,answers,distractors", *rows, ""]))
    short = call("run", path, "--model", folder, *OPTIONS, "--set", "most=20", "--dry-run")
    assert short.exit_code == 1
    advised = re.search(r"--set (most=\d+) of trimtab run", " ".join(short.stderr.split()))
    assert advised is not None
    own = ("--set", advised[1], "--set", "metric=logit_diff", "--set", "instruction=Say w10.")
    said = document(call("run", path, "--model", folder, *OPTIONS, *own, "--dry-run", "--json"))
    assert said["settings"]["most"] == 200
    assert (said["settings"]["metric"], said["settings"]["instruction"]) == ("logit_diff", "Say w10.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sentiment", "--map", "positive=good", "--dry-run"], "mapping is for task files"),
        (["sentimnt"], 'did you mean "sentiment"'),
        (["absent.toml"], "there is no file"),
        (["absent.csv"], "there is no file absent.csv"),
        (["tasks/absent"], "there is no file tasks/absent"),
        (["sentiment", "--set", "screens=prob", "--dry-run"], 'did you mean "probe"'),
        (["sentiment", "--toward", "down"], "'positive' or 'negative'"),
        (["ioi", "--toward", "negative"], "Only a contrast task has an opposite"),
        (["sentiment", "--set", "kl_limt=1"], 'did you mean "kl_limit"'),
        (["sentiment", "--set", "metric=logit_dif"], 'did you mean "logit_diff"'),
        (["sentiment", "--set", "metric=rank", "--dry-run"], "rank has none"),
        (["sentiment", "--set", "most=5", "--dry-run"], "most is for task files"),
        (["sentiment", "--set", "kl_limit"], "KEY=VALUE"),
        (["sentiment", "--set", "kl_limit=much"], "kl_limit"),
    ],
)
def test_what_cannot_be_run_says_why(words, expected, folder):
    result = call("run", *words, "--model", folder)
    assert result.exit_code in (1, 2)
    assert expected in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl_limit=0.2", {"kl_limit": 0.2}),
        ("kl-limit=1", {"kl_limit": 1}),
        ("objects=head", {"objects": ("head",)}),
        ("objects=[head, neuron]", {"objects": ("head", "neuron")}),
        ("coefficients=1,2.5", {"coefficients": (1, 2.5)}),
        ("quick=true", {"quick": True}),
        ("scopes=all,-1:", {"scopes": ("all", "-1:")}),
        ("chat=false", {"chat": False}),
        ("instruction=Be kind, please.", {"instruction": "Be kind, please."}),
        ("poles=praise,blame", {"poles": ("praise", "blame")}),
        ('poles=["praise, loud", "blame"]', {"poles": ("praise, loud", "blame")}),
        ("task=a=b", {"task": "a=b"}),
    ],
)
def test_settings_on_the_command_line(text, expected):
    assert parsed([text]) == expected


@pytest.mark.parametrize("words", [["--toward", "negative"], ["--set", "toward=negative"]], ids=["flag", "set"])
def test_the_other_side_is_asked_for(task, folder, words):
    said = document(call("run", task, "--model", folder, *OPTIONS, *words, "--dry-run", "--json"))
    assert said["settings"]["toward"] == "negative"


def test_where_nobody_watches_a_line_says_where_it_is(task, folder, tmp_path):
    result = call("run", task, "--model", folder, *OPTIONS, "--store", tmp_path, "--json")
    document(result)
    lines = [line for line in result.stderr.splitlines() if line.startswith(("loading the model", "stage "))]
    assert [line.split(" (")[0] for line in lines] == [
        "loading the model",
        *(f"stage {i} of 5: {name}" for i, name in enumerate(STAGES, 1)),
    ]
    again = call("run", task, "--model", folder, *OPTIONS, "--set", "kl_limit=4.0", "--store", tmp_path)
    assert "stage 2 of 5: validate, as in" in again.stderr


def test_the_lines_tell_the_seconds_of_the_stages_done():
    lines, times = [], iter([0.0, 12.25, 20.0])
    listen = _lines(lines.append, lambda: next(times))
    for stage in STAGES[:3]:
        listen(stage, "begins", 0.0)
        listen(stage, "half-way", 0.5)
    assert lines == [
        "stage 1 of 5: screen",
        "stage 2 of 5: validate (done: screen 12.2 s)",
        "stage 3 of 5: steer (done: screen 12.2 s, validate 7.8 s)",
    ]


def test_progress_only_grows_and_ends_at_one():
    shares = []
    listen = _listener(lambda completed, description, stage: shares.append(completed))
    for stage in ("screen", "validate", "steer", "evaluate", "verdict"):
        for share in (0.0, 0.5, 1.0):
            listen(stage, "", share)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_interrupted_it_ends_with_130_and_goes_on(task, folder, tmp_path):
    """Ctrl-C from outside, once a first stage is on disk."""
    store = tmp_path / "runs"
    code = [
        sys.executable,
        "-m",
        "trimtab.cli",
        "run",
        str(task),
        "--model",
        str(folder),
        *OPTIONS,
        "--store",
        str(store),
    ]
    process = subprocess.Popen(code, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(store.glob("*/stages/screen.safetensors")) and process.poll() is None:
        assert time.monotonic() < until, "the first stage did not end"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("it had finished before the signal came")
    assert process.returncode == 130, error
    assert "interrupted" in error
    again = command("run", task, "--model", folder, *OPTIONS, "--store", store, "--json")
    assert again.returncode == 0, again.stderr
    assert len([path for path in store.iterdir() if path.is_dir()]) == 1
