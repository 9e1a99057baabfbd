"""Methods are found by their signature, their options read from it, and other packages' methods stand beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Literal

import pytest

from trimtab import locate
from trimtab.errors import TrimtabError
from trimtab.locate.methods import about, described, functions, is_method, method, methods, options, subject
from trimtab.locate.methods import function as function_named
from trimtab.locate.patching import patching
from trimtab.tasks.task import Task
from trimtab.values.lens import Lens
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    from nowhere import LM, Reads, Unknown


def guessing(
    lm: LM,
    task: Task,
    sites: Reads = "L*.head",
    *,
    spans: str | Scope | Sequence[str | Scope] | None = None,
    kind: Literal["a", "b"] = "a",
    levels: tuple[float, ...] = (0.5, 1.0),
    k: int | None = None,
    strict: bool = False,
    source: Task | Literal["own"] | None = None,
    lens: Lens | None = None,
    dictionaries: Mapping[str, object] | None = None,
    other: Unknown | None = None,
    progress: object = None,
) -> Scores:
    """Guesses where a behaviour is.

    Nothing is computed.

    Args:
        sites: where to guess, such as `"L*.head"`, or
            a list.
        kind: which guess: "a" or "b".
        k, levels: how many.

    >>> guessing(1, 2)  # doctest: +SKIP
    """
    raise NotImplementedError


def by_name():
    return {option.name: option for option in options(guessing)}


def offer(monkeypatch, **values):
    points = [metadata.EntryPoint(name, value, "trimtab.locate") for name, value in values.items()]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "trimtab.locate" else [])


def test_every_public_function_of_the_shape_is_a_method():
    known = methods()
    assert {"patching", "ablation", "attribution_patching", "shift"} <= known.keys()
    assert {"logit_lens", "normalised", "total_effect"} & known.keys() == set()
    assert all(known[name] is getattr(locate, name) for name in known)


def test_functions_are_methods_and_others_whose_result_can_be_kept():
    known = functions()
    assert methods().items() <= known.items()
    others = {"composition", "role_graph", "patchscope", "dola", "train_tuned_lens", "fit_monitor", "score_monitor"}
    assert others <= known.keys()
    assert {"total_effect", "attribution_maps", "watch_stream", "first_layer"} & known.keys() == set()
    assert function_named("role-graph") is locate.role_graph
    with pytest.raises(TrimtabError, match="role_graph"):
        function_named("role_grap")
    told = {name: subject(known[name]) for name in sorted(others)}
    assert told == {
        "composition": ("", "weights"),
        "dola": ("prompts", "prompts"),
        "fit_monitor": ("train", "task"),
        "patchscope": ("prompt", "prompts"),
        "role_graph": ("", "weights"),
        "score_monitor": ("task", "task"),
        "train_tuned_lens": ("texts", "texts"),
    }


def test_every_option_of_every_method_can_be_given_as_text_and_is_explained():
    for name, function in methods().items():
        assert about(function), name
        for option in options(function):
            assert option.expected
            assert option.kinds or option.choices
        assert {"lm", "task", "progress", "dictionaries"} & {o.name for o in options(function)} == set()


def test_options_are_those_of_the_signature():
    own = by_name()
    assert list(own) == ["sites", "spans", "kind", "levels", "k", "strict", "source", "lens"]
    assert (own["kind"].choices, own["kind"].default, own["kind"].required) == (("a", "b"), "a", False)
    assert own["strict"].kinds == ("flag",)
    assert own["levels"].listed
    assert not own["levels"].single
    assert own["spans"].listed
    assert own["spans"].single
    assert own["lens"].files == (Lens,)
    assert {o.name: o.required for o in options(patching)}["sites"]


def test_texts_become_what_the_method_takes():
    own = by_name()
    assert own["spans"].read("end") == "end"
    assert own["spans"].read("S1, end") == ("S1", "end")
    assert own["levels"].read("0.25") == (0.25,)
    assert own["k"].read("7") == 7
    assert own["source"].read("own") == "own"
    for name, text, expected in (("k", "many", "a whole number"), ("kind", "c", "a or b"), ("levels", "x", "a number")):
        with pytest.raises(TrimtabError, match=f'{name} is {expected}, got "{text}"'):
            own[name].read(text)


def test_help_is_the_docstring():
    words = described(guessing)
    assert words == {
        "sites": 'where to guess, such as `"L*.head"`, or a list.',
        "kind": 'which guess: "a" or "b".',
        "k": "how many.",
        "levels": "how many.",
    }
    assert about(guessing) == "Guesses where a behaviour is.\n\nNothing is computed."
    assert by_name()["levels"].help == "how many."


def test_a_method_by_its_name():
    assert method("attribution-patching") is locate.attribution_patching
    with pytest.raises(TrimtabError, match=r'no locating method "patchin" \(did you mean "patching"\?\)'):
        method("patchin")


def test_other_packages_offer_methods_under_names_of_their_own(monkeypatch):
    offer(monkeypatch, guessing=f"{__name__}:guessing", patching=f"{__name__}:guessing")
    assert method("guessing") is guessing
    assert method("patching") is locate.patching


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("nowhere.at_all:x", "cannot be loaded"),
        (f"{__name__}:absent", "cannot be loaded"),
        (f"{__name__}:by_name", "lm and task"),
    ],
)
def test_a_broken_offer_says_so_when_it_is_called_and_breaks_nothing_else(monkeypatch, value, why):
    offer(monkeypatch, broken=value)
    assert methods()["patching"] is locate.patching
    with pytest.raises(TrimtabError, match=f'"broken" of {value} cannot be used: .*{why}'):
        method("broken")(None, None)


def test_what_is_no_method():
    def result(lm, task) -> int: ...
    def turned(task, lm) -> Scores: ...

    assert not any(map(is_method, (result, turned, Scores, 3)))
