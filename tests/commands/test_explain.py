"""`trimtab explain`: a sentence and a shape, with or without a model."""

from __future__ import annotations

import pytest

from tests.commands.calls import call, command, document


def test_a_sentence_and_a_shape_without_torch():
    done = command("explain", "L12.head[7]")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "L12.head[7]: output of head 7 in layer 12 before the output projection (“z”), shape batch pos d_head\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L12.hed[7]", 'unknown site "hed" in "L12.hed[7]" (did you mean "head"?)'),
        ("resid_pots", 'did you mean "resid_post"'),
        ("L0.head[1]->nowhere", 'unknown site "nowhere"'),
    ],
)
def test_a_typo_is_usage_with_a_suggestion(text, message):
    done = call("explain", text)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_selection_an_edge_and_a_name_of_transformerlens():
    assert "L10-20.head: several sites, such as\nL10.head: output of each head" in call("explain", "L10-20.head").stdout
    edge = call("explain", "L3.head[2]->L9.head[6].q").stdout.splitlines()
    assert [line.partition(":")[0] for line in edge] == ["L3.head[2]", "L9.head[6].q"]
    assert call("explain", "blocks.5.attn.hook_z").stdout.startswith("L5.head: ")


def test_with_a_model_it_has_sizes(folder):
    lines = call("explain", "L1.head[3]@-1", "--model", folder).stdout.splitlines()
    assert lines[1] == "  in tiny-llama: batch pos d_head=8"
    shown = document(call("explain", "L1.k", "--model", folder, "--json"))
    assert shown["sites"][0]["shape"] == "batch pos head=2 d_head=8"
    assert shown["sites"][0]["axes"] == ["batch", "pos", "head", "d_head"]
    many = document(call("explain", "L*.head[*]", "--model", folder, "--json"))
    assert (len(many["sites"]), many["more"]) == (6, 2)
    assert (
        document(call("explain", "L0.pattern", "-m", folder, "--json"))["sites"][0]["shape"] == "batch head=4 query key"
    )


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("L7.head", "error: L7.head: layer 7 is out of range; this model has layers 0 to 1\n"),
        ("L0.router", "error: L0.router does not exist here: layer 0 has no experts\n"),
        ("L0.head[9]", "error: L0.head[9]: head 9 is out of range; there are heads 0 to 3\n"),
    ],
)
def test_what_a_model_lacks_is_an_error(folder, site, message):
    done = call("explain", site, "--model", folder)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith(message)
