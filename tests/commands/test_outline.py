"""What is told from source is what is there, and telling it imports nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.commands.calls import call
from trimtab.commands import locate, steer
from trimtab.commands.outline import outlines
from trimtab.evaluate.verify import verify
from trimtab.locate.methods import functions
from trimtab.steer.methods import methods
from trimtab.tasks.signatures import about


def located():
    return {**functions(), "verify": verify}


@pytest.mark.parametrize(("listed", "known"), [(locate._listed, located), (steer._listed, methods)])
def test_names_and_words_are_those_of_the_functions(listed, known):
    told, there = listed(), known()
    assert told.keys() == there.keys()
    for name, function in there.items():
        assert told[name] == " ".join(about(function).split("\n\n")[0].split()), name


def test_parameters_are_those_of_the_signature():
    import inspect

    own = {found.name: found for found in outlines("trimtab.locate")}
    for name, function in functions().items():
        kept = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        assert own[name].parameters == tuple(p.name for p in kept)
    assert "trimtab.values.scores:Scores" in own["path_patching"].gives
    assert own["attribution_maps"].gives == ()


@pytest.mark.parametrize("group", ["locate", "steer"])
def test_the_help_of_a_group_imports_no_torch(group):
    code = (
        f"import sys; sys.argv = ['trimtab', '{group}', '--help']\n"
        "from trimtab.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_dashes_are_as_good_as_underscores_and_a_name_that_is_none_is_usage():
    assert "--sites" in call("locate", "attribution-patching", "--help").stdout
    assert call("locate", "nowhere").exit_code == 2
