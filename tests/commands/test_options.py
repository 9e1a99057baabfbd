"""Where options come from: flag, environment, file, default, in this order."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from tests.commands.calls import call
from trimtab.commands.options import DEFAULT_MODEL, defaults_from_file, finite, size, writable
from trimtab.errors import ModelError


@pytest.fixture
def asked(monkeypatch):
    """What models were asked for; none is loaded."""
    calls = []

    def load(name, **options):
        calls.append((name, options["dtype"], options["device"]))
        raise ModelError("not today")

    monkeypatch.setattr("trimtab.model.load.load", load)
    return calls


@pytest.mark.parametrize("words", [["inspect"], ["doctor"], ["lens", "x"], ["generate", "x"]])
def test_flag_before_environment_before_file_before_default(words, asked, monkeypatch):
    flags = ["from-flag"] if len(words) == 1 else ["--model", "from-flag"]
    call(*words)
    Path("trimtab.toml").write_text('model = "from-file"\ndtype = "float16"\ndevice = "mps"\n')
    call(*words)
    monkeypatch.setenv("TRIMTAB_MODEL", "from-environment")
    monkeypatch.setenv("TRIMTAB_DTYPE", "bfloat16")
    call(*words)
    call(*words, *flags, "--dtype", "float32", "--device", "cpu")
    assert asked == [
        (DEFAULT_MODEL, None, None),
        ("from-file", "float16", "mps"),
        ("from-environment", "bfloat16", "mps"),
        ("from-flag", "float32", "cpu"),
    ]


def test_explain_needs_no_model_whatever_the_settings(asked, monkeypatch):
    Path("trimtab.toml").write_text('model = "from-file"\n')
    monkeypatch.setenv("TRIMTAB_MODEL", "from-environment")
    assert call("explain", "L0.head").exit_code == 0
    assert asked == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modle = "x"', 'trimtab.toml: unknown key "modle" (did you mean "model"?): it may hold model, dtype, device'),
        ("device = 3", 'trimtab.toml: device must be text, such as device = "…", got 3'),
        ("model = ", "trimtab.toml cannot be read"),
    ],
)
def test_a_file_that_cannot_be_meant_is_usage(text, message, asked):
    Path("trimtab.toml").write_text(text)
    done = call("inspect")
    assert done.exit_code == 2
    assert message in done.stderr
    assert asked == []


def test_a_dtype_that_is_none_is_told():
    done = call("inspect", "--dtype", "flot32")
    assert done.exit_code == 1
    assert "error: unknown dtype 'flot32' (did you mean \"float32\"?)" in done.stderr


def test_json_has_no_nan():
    assert finite({"a": [1.5, float("nan"), (float("inf"), "x", None, True)]}) == {
        "a": [1.5, None, [None, "x", None, True]]
    }


def test_no_file_no_defaults(tmp_path):
    assert defaults_from_file(tmp_path / "trimtab.toml") == {}


def test_files_to_write_are_checked_first(tmp_path):
    assert writable(None) is None
    assert writable(tmp_path / "x.html") == tmp_path / "x.html"
    with pytest.raises(typer.BadParameter, match="there is no folder"):
        writable(tmp_path / "no" / "x.html")
    with pytest.raises(typer.BadParameter, match="is a folder: name a file"):
        writable(tmp_path)


@pytest.mark.parametrize(
    ("n", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "2 kB"), (3e6, "3 MB"), (2.5e12, "2500.0 GB")]
)
def test_sizes_to_be_read(n, shown):
    assert size(n) == shown
