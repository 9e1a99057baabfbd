"""Fixtures of the command line: a tiny model in a folder, and those of other folders of tests."""

from __future__ import annotations

import pytest

from tests.commands.calls import saved
from tests.fetching import _tiny_wheel, cache, tiny_wheel  # noqa: F401


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
