"""Calling the command line as a user does, in this process or in another."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from tests.tiny import tiny, tokenizer
from trimtab.cli import app

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}w90 {{ m.content }} {% else %}w91 {{ m.content }} w92{% endif %}"
    "{% endfor %}"
)


def call(*words, **options):
    """The result of a command in this process."""
    return CliRunner().invoke(app, [str(word) for word in words], **options)


def document(result):
    """The one JSON document on standard output."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def said(result):
    """What the command itself wrote on standard error: without the bars of transformers."""
    text = result.stderr
    return "".join(line for line in text.splitlines(keepends=True) if line.strip() and "Loading weights" not in line)


def command(*words, cwd=None, **environment):
    """The result of a command in a process of its own."""
    code = [sys.executable, "-m", "trimtab.cli", *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONIOENCODING": "utf-8"} | environment
    return subprocess.run(code, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", check=False)


def saved(folder, family="llama"):
    """A folder with a tiny model and its tokenizer, as `save_pretrained` writes it."""
    own = copy.deepcopy(tokenizer())
    own.chat_template = TEMPLATE
    tiny(family).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder
