"""Fixtures of the command line: a tiny model in a folder, and those of other folders of tests."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from tests.commands.calls import saved
from tests.fetching import _tiny_wheel, cache, tiny_wheel  # noqa: F401
from tests.locate.tinytasks import pairs
from trimtab.commands.ablation_study import ablation_study
from trimtab.commands.entanglement import entanglement
from trimtab.commands.robustness import robustness
from trimtab.tasks.files import save_task


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny Llama with its tokenizer, in a folder."""
    return saved(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch, tmp_path):
    """No settings of whoever runs the tests: neither variables nor a file."""
    for name in ("TRIMTAB_MODEL", "TRIMTAB_DTYPE", "TRIMTAB_DEVICE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """A folder with the files of two tasks, one.jsonl and other.jsonl."""
    where = tmp_path_factory.mktemp("tasks")
    save_task(pairs(24, groups=8), where / "one.jsonl")
    save_task(pairs(24, groups=8, start=50, name="other"), where / "other.jsonl")
    return where


@pytest.fixture
def call(folder):
    """The commands that test a claim, on the tiny model; what they raise is not turned into a message."""
    app = typer.Typer()
    app.command("robustness")(robustness)
    app.command("entanglement")(entanglement)
    app.command("ablation-study")(ablation_study)
    return lambda *words: CliRunner().invoke(app, [*map(str, words), "--model", str(folder)])
