import numpy as np
import pytest
from hypothesis import given

from tests.values.grammar import scopes
from trimtab.errors import PromptError
from trimtab.values import Scope


@given(scopes)
def test_a_scope_reads_back_as_it_is_printed(scope):
    assert Scope.parse(str(scope)) == scope


@given(scopes)
def test_a_scope_is_what_its_repr_says(scope):
    assert eval(repr(scope), {"Scope": Scope}) == scope  # noqa: S307


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("all", Scope("all")),
        ("prompt", Scope("prompt")),
        ("generated", Scope("generated")),
        ("last", Scope("index", index=-1)),
        ("-1", Scope("index", index=-1)),
        ("3", Scope("index", index=3)),
        ("2:5", Scope("slice", start=2, stop=5)),
        ("-1:", Scope("slice", start=-1)),
        (":", Scope("slice")),
        ("2:-1", Scope("slice", start=2, stop=-1)),
        ("subject", Scope("span", name="subject")),
        ("S1+1", Scope("span", name="S1+1")),
        ("tokens{55, 12}", Scope("tokens", tokens=frozenset({12, 55}))),
        (-2, Scope("index", index=-2)),
    ],
)
def test_each_form(text, scope):
    assert Scope.parse(text) == scope


def test_a_scope_parses_to_itself_and_takes_numpy_integers():
    scope = Scope("index", index=np.int64(-1))
    assert Scope.parse(scope) is scope
    assert type(scope.index) is int


@pytest.mark.parametrize("text", ["5:2", "3:3", "-2:-5", ":0", "-3:0"])
def test_a_slice_that_covers_nothing_is_refused(text):
    with pytest.raises(PromptError, match=f'the slice "{text}" covers no position'):
        Scope.parse(text)


@pytest.mark.parametrize(
    "text", ["", "tokens", "tokens{}", "tokens{a}", "tokens{-1}", "1:2:3", "two words", "sub-", "a@b", "٣"]
)
def test_what_is_no_scope_is_refused(text):
    with pytest.raises(PromptError, match=r"scope|tokens"):
        Scope.parse(text)


@pytest.mark.parametrize("name", ["all", "last", "tokens", "1st", "", None, "a b"])
def test_a_span_needs_a_name_that_can_be_read_back(name):
    with pytest.raises(PromptError, match="cannot name a span"):
        Scope("span", name=name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "everywhere"}, "unknown kind of scope 'everywhere'"),
        ({"kind": "index"}, "needs its index"),
        ({"kind": "all", "index": 3}, "takes no index"),
        ({"kind": "slice", "tokens": frozenset({1})}, "takes no tokens"),
        ({"kind": "index", "index": 1.5}, "index of a scope must be a whole number, got 1.5"),
        ({"kind": "index", "index": True}, "must be a whole number, got True"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(PromptError, match=message):
        Scope(**fields)


@pytest.mark.parametrize("value", [None, 1.5, True, ["subject"]])
def test_only_text_a_number_or_a_scope_is_read(value):
    with pytest.raises(PromptError, match="a scope is written as text"):
        Scope.parse(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("-1", "at the last prompt position"),
        ("-3", "at prompt position 3 from the end"),
        ("0", "at position 0"),
        ("-1:", "from the last prompt position on, generated tokens included"),
        ("2:5", "from position 2 up to, not including, position 5"),
        ("S2", "at the span “S2”"),
        ("tokens{7,3}", "wherever the token is one of 3, 7"),
        ("generated", "at the generated positions"),
    ],
)
def test_the_sentence(text, sentence):
    assert Scope.parse(text).sentence == sentence
