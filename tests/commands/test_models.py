"""`trimtab models`: answers on standard output, errors on standard error, one JSON document, exit codes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from trimtab.commands.models import app
from trimtab.model import bundled

NAME = "tiny-gguf"


def call(*words):
    return CliRunner().invoke(app, list(words))


def document(result):
    """The one JSON document on standard output."""
    return json.loads(result.stdout)


def test_a_model_s_life(tiny_wheel, cache):
    assert [m["state"] for m in document(call("list", "--json"))["models"]][-1] == "absent"
    pulled = call("pull", NAME, "--json")
    assert pulled.exit_code == 0
    (model,) = document(pulled)["models"]
    assert (model["name"], model["state"], model["problem"]) == (NAME, "ready", None)
    assert model["folder"] == str(cache / "models" / NAME)
    assert model["licence"] == "Apache-2.0"
    checked = call("check")
    assert checked.exit_code == 0
    assert "ready" in checked.stdout
    assert NAME in checked.stdout
    removed = call("remove", NAME, "--json")
    assert removed.exit_code == 0
    assert document(removed) == {"name": NAME, "freed": model["size"]}
    assert bundled.status(NAME).state == "absent"


def test_check_fails_where_a_model_is_damaged(tiny_wheel):
    call("pull", NAME)
    weights = bundled.status(NAME).folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    checked = call("check", NAME, "--json")
    assert checked.exit_code == 1
    assert document(checked)["models"][0]["state"] == "damaged"
    assert "model.safetensors has" in checked.stderr
    assert f"trimtab models pull {NAME}" in checked.stderr
    assert call("pull", NAME).exit_code == 0
    assert call("check", NAME).exit_code == 0


def test_a_pull_that_fails_says_why(tiny_wheel, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    pulled = call("pull", NAME, "--json")
    assert pulled.exit_code == 1
    assert "pip could not fetch" in document(pulled)["error"]
    assert pulled.stderr.startswith("error: pip could not fetch")


@pytest.mark.parametrize("command", ["pull", "check", "remove"])
def test_an_unknown_name_is_a_usage_error(command):
    result = call(command, "tiny-guff")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "no bundled model" in " ".join(result.stderr.split())


def test_remove_wants_a_name():
    assert call("remove").exit_code == 2


def test_a_table_for_people(tiny_wheel):
    shown = call("list")
    assert shown.exit_code == 0
    assert "smollm2-135m-instruct" in shown.stdout
    assert "93 MB" in shown.stdout
