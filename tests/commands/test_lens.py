"""`trimtab lens`: the grid, the page, the document, and what it costs."""

from __future__ import annotations

import json

import pytest

from tests.commands.calls import call, command, document, said
from tests.tiny import words
from trimtab.model.load import load
from trimtab.values.lens import Lens
from trimtab.values.tuned_lens import TunedLens

TEXT = words(5, 6, 7)
LONG = words(*range(10, 50))


def test_the_grid_has_the_last_layer_on_top(folder):
    done = call("lens", TEXT, "--model", folder)
    assert done.exit_code == 0
    assert said(done) == ""
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["prompt", "w5", "w6", "w7"]
    assert [line.split()[0] for line in lines[1:3]] == ["L1", "L0"]
    assert lines[3] == ""
    assert lines[4] == "beside each token its probability in percent"
    assert lines[5].startswith("next: w")
    assert "rank of w" in lines[6]


def test_a_long_prompt_shows_its_end_in_80_columns(folder):
    done = call("lens", LONG, "--model", folder, env={"COLUMNS": "80"})
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[-1] == "w49"
    assert "w10" not in lines[0].split()
    shown = len(lines[0].split()) - 1
    assert f"the last {shown} of 40 positions: widen the terminal, or see all with --html FILE" in done.stdout


def test_every_other_layer_and_colours(folder):
    done = call(
        "lens", TEXT, "--model", folder, "--every", "2", env={"FORCE_COLOR": "1", "COLORTERM": "truecolor"}, color=True
    )
    assert "\x1b[" in done.stdout
    plain = call("lens", TEXT, "--model", folder, "--every", "2").stdout
    assert "L1" in plain
    assert "\n    L0" not in plain


def test_one_document(folder):
    found = document(
        call("lens", TEXT, "--model", folder, "--json", "--top", "3", "--answer", "w40", "--edit", "L0.head[1] scale 0")
    )
    assert found["tokens"] == ["w5", "w6", "w7"]
    assert found["sites"] == ["L0.resid_post", "L1.resid_post"]
    assert (found["answer"], found["edits"]) == ("w40", ["L0.head[1] scale 0"])
    assert len(found["cells"]) == 6
    assert [len(cell["top"]) for cell in found["cells"]] == [3] * 6
    assert found["cells"][5]["target"] == "w40"
    assert found["provenance"]["model"] == "tiny-llama"


def test_the_page_and_the_file(folder, tmp_path):
    done = call(
        "lens",
        TEXT,
        "--model",
        folder,
        "--html",
        tmp_path / "lens.html",
        "--save",
        tmp_path / "lens.safetensors",
        "--json",
    )
    assert document(done)["tokens"]
    assert said(done) == f"wrote {tmp_path / 'lens.html'}\nwrote {tmp_path / 'lens.safetensors'}\n"
    assert (tmp_path / "lens.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert Lens.load(tmp_path / "lens.safetensors").tokens == ("w5", "w6", "w7")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lens.html", "lens.safetensors"]


def test_a_tuned_lens(folder, tmp_path):
    path = tmp_path / "tuned.safetensors"
    lm = load(folder)
    lens = TunedLens.identity(["L0.resid_post", "L1.resid_post"], 32, model_hash=lm.hash)
    lens.with_(bias=[[3.0] + [0.0] * 31, [0.0] * 32]).save(path)
    plain = document(call("lens", TEXT, "--model", folder, "--json"))
    done = call("lens", TEXT, "--model", folder, "--json", "--tuned", path, "--html", tmp_path / "lens.html")
    tuned = document(done)
    first, last = tuned["cells"][:3], tuned["cells"][3:]
    assert all(a["entropy"] != b["entropy"] for a, b in zip(first, plain["cells"][:3], strict=True))
    assert last == plain["cells"][3:]
    assert "<h1>Tuned lens</h1>" in (tmp_path / "lens.html").read_text(encoding="utf-8")
    lens.with_(model_hash="another").save(path)
    refused = call("lens", TEXT, "--model", folder, "--tuned", path)
    assert refused.exit_code == 1
    assert "other weights" in refused.stderr
    assert call("lens", TEXT, "--tuned", tmp_path / "none").exit_code == 2


def test_the_plan_runs_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.model.lm.LM.run", None)
    page = tmp_path / "lens.html"
    plan = document(call("lens", TEXT, "--model", folder, "--dry-run", "--json", "--html", page))["plan"]
    assert (plan["tokens"], plan["layers"], plan["passes"], plan["sites"], plan["vocabulary"]) == (3, 2, 1, 2, 97)
    assert not page.exists()
    done = call("lens", TEXT, "--model", folder, "--dry-run")
    assert "1 forward pass of 3 tokens through 2 layers" in done.stdout
    assert "Nothing was run" in done.stdout


def test_a_chat_template(folder):
    found = document(call("lens", TEXT, "--model", folder, "--chat", "--system", "w8", "--json"))
    assert found["tokens"] == ["w90", "w8", "w91", "w5", "w6", "w7", "w92"]
    assert "w8" in found["provenance"]["chat"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edit", "L0.hed scale 0"], 'unknown site "hed"'),
        (["--edit", "L0.head scael 0"], 'unknown operation "scael"'),
        (["--system", "w8"], "--system is a part of the chat template: give --chat too"),
        (["--top", "0"], "Invalid value for '--top'"),
        (["--every", "0"], "Invalid value for '--every'"),
        (["--html", "no/folder/lens.html"], 'there is no folder "no/folder" to write lens.html to: make it first'),
    ],
)
def test_usage(folder, options, message):
    done = call("lens", TEXT, "--model", folder, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--answer", "w5 w6"], "error: 'w5 w6' must be one token and is 2"),
        (["--edit", "L9.head scale 0"], "layer 9 is out of range; this model has layers 0 to 1"),
        (["--sites", "L*.mlp_out"], "a lens reads whole residual streams"),
        (["--top", "98"], "from 1 to the vocabulary's 97, got 98"),
    ],
)
def test_failures(folder, options, message):
    done = call("lens", TEXT, "--model", folder, *options, "--json")
    assert done.exit_code == 1
    assert message in done.stderr
    assert set(json.loads(done.stdout)) == {"error"}


def test_a_page_that_cannot_be_written_leaves_nothing(folder, tmp_path, monkeypatch):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    done = call("lens", TEXT, "--model", folder, "--html", tmp_path / "lens.html")
    assert done.exit_code == 1
    assert "lens.html: Permission denied" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_real_process(folder, tmp_path):
    done = command("lens", TEXT, "--html", "lens.html", cwd=tmp_path, TRIMTAB_MODEL=str(folder))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "wrote lens.html")
    assert done.stdout.startswith("prompt w5")
    assert (tmp_path / "lens.html").is_file()
