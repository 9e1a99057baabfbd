"""The front page: names that arrive when they are first used."""

import subprocess
import sys

import pytest

import trimtab


def test_importing_trimtab_imports_nothing_heavy():
    code = "import sys, trimtab; print(sorted({'numpy', 'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name",
    ["Site", "Edge", "Selection", "Scope", "Span", "Edit", "Ref", "Intervention", "Scores", "Outcome", "Provenance"],
)
def test_the_nouns_are_those_of_values(name):
    from trimtab import values

    assert getattr(trimtab, name) is getattr(values, name)
    assert name in dir(trimtab)


def test_a_typo_is_an_error_with_a_suggestion():
    with pytest.raises(AttributeError, match=r'no attribute \'Intervension\' \(did you mean "Intervention"\?\)'):
        trimtab.Intervension  # noqa: B018


def test_every_name_of_the_page_has_a_home():
    from trimtab import _HOME, _STAGES

    assert set(_HOME) | set(_STAGES) | {"__version__"} == set(trimtab.__all__)
