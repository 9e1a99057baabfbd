"""Attention scores against loops over whole patterns, and on heads that were set by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.locate.tinytasks import pairs, twins
from tests.locate.wired import wired
from tests.model.tinies import lm_of
from tests.tiny import FAMILIES, words
from trimtab.errors import PromptError, SiteError, TaskError, TrimtabError
from trimtab.locate.attention import (
    attention_entropy,
    attention_mass,
    duplicate_token_score,
    induction_score,
    previous_token_score,
    sink_mass,
)
from trimtab.tasks.measure import sides
from trimtab.tasks.repeated import RepeatedTokens

TASK = twins()
REPEATED = RepeatedTokens(length=6, sequences=3)


def patterns(lm, prompts):
    """(layer head query key) of the real tokens of each row, one row at a time and without padding."""
    for row in range(len(prompts)):
        one = prompts.rows([row], trim=True)
        run = lm.run(one, "L*.pattern", logits=False)
        yield one.ids[0].tolist(), np.stack([run[s][0].double().numpy() for s in run])


def by_hand(lm, prompts, keys):
    """The mean over queries with keys of the attention on `keys(ids, query)`, by loops."""
    found = []
    for ids, pattern in patterns(lm, prompts):
        sums = [pattern[:, :, q, keys(ids, q)].sum(-1) for q in range(len(ids)) if keys(ids, q)]
        found.append(np.mean(sums, axis=0) if sums else np.full(pattern.shape[:2], np.nan))
    return np.stack(found)


SCORES = {
    previous_token_score: lambda ids, q: [q - 1] if q else [],
    duplicate_token_score: lambda ids, q: [k for k in range(q) if ids[k] == ids[q]],
    induction_score: lambda ids, q: [k + 1 for k in range(q - 1) if ids[k] == ids[q]],
    sink_mass: lambda ids, q: [0] if q else [],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_loops_over_the_pattern(family):
    lm = lm_of(family)
    for method, keys in SCORES.items():
        scores = method(lm, REPEATED, batch_size=2)
        np.testing.assert_allclose(scores.array[..., 0], by_hand(lm, REPEATED.prompts(lm), keys), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom", "falcon"])
def test_ragged_prompts_padded_in_batches_equal_rows_alone(family):
    lm = lm_of(family)
    prompts = sides(lm, TASK).positive
    expected = by_hand(lm, prompts, SCORES[previous_token_score])
    for size in (1, 4, 16):
        got = previous_token_score(lm, TASK, batch_size=size).array[..., 0]
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_mass_goes_from_one_span_to_another():
    lm = lm_of("llama")
    prompts = sides(lm, TASK).positive
    got = attention_mass(lm, TASK, spans=["end", "all"], keys="subject")
    assert got.coords["span"] == ("end", "all")
    even = attention_mass(lm, TASK, keys="subject", baseline="uniform")
    for row, (ids, pattern) in enumerate(patterns(lm, prompts)):
        (subject,) = prompts.spans["subject"][row]
        np.testing.assert_allclose(got.array[row, ..., 0], pattern[:, :, -1, subject], atol=1e-6)
        np.testing.assert_allclose(got.array[row, ..., 1], pattern[:, :, subject:, subject].mean(-1), atol=1e-6)
        np.testing.assert_allclose(even.array[row, ..., 0], pattern[:, :, -1, subject] - 1 / len(ids), atol=1e-6)


def test_words_choose_keys_and_all_keys_make_one():
    lm = lm_of("gpt2")
    task = pairs(4, question=False)
    got = attention_mass(lm, task, keys="all", words=("w5",))
    prompts = sides(lm, task).positive
    for row, (ids, pattern) in enumerate(patterns(lm, prompts)):
        np.testing.assert_allclose(got.array[row, ..., 0], pattern[:, :, -1, ids.index(5)], atol=1e-6)
    np.testing.assert_allclose(attention_mass(lm, task, spans="all", keys="all").array, 1.0, atol=1e-5)
    negative = attention_mass(lm, task, keys="all", words=("w6",), side="negative")
    assert not np.isnan(negative.array).any()
    with pytest.raises(TaskError, match="no prompt"):
        attention_mass(lm, task, keys="all", words=("w6",))


def test_words_of_several_tokens_are_looked_for_in_a_row():
    """ "w5 w41" is two tokens here, and neither of them alone is it."""
    lm = lm_of("gpt2")
    task = pairs(4, question=False)
    prompts = sides(lm, task).positive
    ids = prompts.rows([0], trim=True).ids[0].tolist()
    at = ids.index(5)
    two = words(*ids[at : at + 2])
    scores = attention_mass(lm, task, keys="all", words=(two,))
    for row, (_, pattern) in enumerate(patterns(lm, prompts)):
        if row == 0:
            expected = pattern[:, :, -1, at : at + 2].sum(-1)
            np.testing.assert_allclose(scores.array[row, ..., 0], expected, atol=1e-6)
        else:
            assert np.isnan(scores.array[row]).all(), "5 is there, and is not followed by the other"
    with pytest.raises(TaskError, match="no prompt"):
        attention_mass(lm, task, keys="all", words=(words(ids[at], 3),))


def test_queries_before_the_keys_are_left_out_and_counted():
    got = attention_mass(lm_of("llama"), TASK, spans="0", keys="1:")
    assert np.isnan(got.array).all()
    assert got.options["undefined"] == len(TASK)
    assert "undefined" not in previous_token_score(lm_of("llama"), TASK).options


def test_entropy_is_that_of_the_pattern():
    lm = lm_of("qwen3")
    prompts = REPEATED.prompts(lm)
    assert attention_entropy(lm, REPEATED).order == "low"
    plain, shares = (attention_entropy(lm, REPEATED, normalised=n).array[..., 0] for n in (False, True))
    for row, (ids, pattern) in enumerate(patterns(lm, prompts)):
        p = pattern[:, :, 1:]
        each = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
        np.testing.assert_allclose(plain[row], each.mean(-1), atol=1e-5)
        np.testing.assert_allclose(shares[row], (each / np.log(np.arange(2, len(ids) + 1))).mean(-1), atol=1e-5)


def test_heads_set_by_hand_do_what_they_were_set_to():
    lm, given = wired(), RepeatedTokens(length=10, sequences=4)
    previous, twin, found = (
        method(lm, given).mean()[..., 0] for method in (previous_token_score, duplicate_token_score, induction_score)
    )
    assert previous[0, 0] > 0.999
    # of ten repeated tokens the first finds two: nothing is before it, so its own place says that it follows itself
    np.testing.assert_allclose(found[1, 0], 0.95, atol=1e-3)
    np.testing.assert_allclose(twin[0, 1], 0.5, atol=1e-3)  # itself is as good a key as its twin
    assert sorted(found.ravel())[-2] < 0.1
    even = [method(lm, given, baseline="uniform").mean()[1, 1, 0] for method in (sink_mass, previous_token_score)]
    np.testing.assert_allclose(even, 0, atol=1e-6)
    entropy = attention_entropy(lm, given, normalised=True).mean()[..., 0]
    np.testing.assert_allclose(entropy[1, 1], 1, atol=1e-6)
    assert entropy[0, 0] < 0.01


def test_candidates_equal_the_map_and_compare_with_other_methods():
    lm = lm_of("llama")
    grid = induction_score(lm, REPEATED)
    alone = induction_score(lm, REPEATED, ["L1.head[3]", "L0.head[0,2]"])
    np.testing.assert_allclose(alone.array[:, 0], grid.array[:, 1, 3, 0])
    np.testing.assert_allclose(alone.array[:, 1], grid.array[:, 0, [0, 2], 0].mean(1))
    assert grid.compare(previous_token_score(lm, REPEATED)).cells == 8
    assert grid.groups == REPEATED.groups
    assert grid.options["bos"] == REPEATED.prompts(lm).bos


def test_text_in_which_nothing_recurs_has_no_induction():
    scores = induction_score(lm_of("llama"), twins())
    texts = sides(lm_of("llama"), twins()).positive.ids.tolist()
    recurring = [len({t for t in row if t}) < len([t for t in row if t]) for row in texts]
    assert [bool(np.isfinite(row).all()) for row in scores.array] == recurring


def test_what_is_asked_wrongly_is_refused():
    lm = lm_of("llama")
    with pytest.raises(SiteError, match="heads"):
        induction_score(lm, REPEATED, "L*.mlp_out")
    with pytest.raises(PromptError):
        attention_mass(lm, TASK, keys="nobody")
    with pytest.raises(TrimtabError, match="baseline"):
        sink_mass(lm, REPEATED, baseline="even")
    with pytest.raises(TaskError, match="whole text"):
        induction_score(lm, REPEATED, ["L1.head[3]@-1"])
    with pytest.raises(TrimtabError, match="side"):
        sink_mass(lm, TASK, side="clean")
