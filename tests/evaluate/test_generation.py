"""What is written under an intervention, and each measure of it against a plain run or by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.test_effect import logp
from tests.evaluate.tinies import questions, vector
from tests.model.tinies import lm_of
from tests.tiny import words
from trimtab.errors import TaskError, TrimtabError
from trimtab.evaluate.fluency import nll
from trimtab.evaluate.generation import generations, lexicon_share, probe_margin, prompt_likelihood, yes_no
from trimtab.evaluate.over_refusal import harmless, over_refusal
from trimtab.tasks.example import Contrast
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention
from trimtab.values.generations import Generations
from trimtab.values.linear_probe import LinearProbe

LM = lm_of("llama", torch.float64)
TASK = questions(6).with_(instruction=words(50, 51))
LOUD = Intervention.of(Edit("L1.resid_post", "add", LM.anatomy.unembed.weight[70].detach().numpy(), strength=30.0))


def test_texts_are_those_of_generate():
    found = generations(LM, TASK, LOUD, max_new_tokens=5, batch_size=4)
    prompts = [e.question for e in TASK.examples]
    plain = [LM.generate(prompt, max_new_tokens=5).texts[0] for prompt in prompts]
    loud = [LM.generate(prompt, LOUD, max_new_tokens=5).texts[0] for prompt in prompts]
    assert [s.before for s in found.samples] == plain
    assert [s.after for s in found.samples] == loud
    assert all("w70 w70" in text for text in loud)
    assert found["loops"].after.mean() > 0.5
    assert found["distinct_1"].after.mean() < found["distinct_1"].before.mean()
    heads = [[int(w[1:]) for w in prompt.split()] for prompt in prompts]
    ids = [LM.generate(prompt, LOUD, max_new_tokens=5).ids[0] for prompt in prompts]
    np.testing.assert_allclose(found["nll"].after, nll(LM, heads, ids), atol=1e-9)


def test_the_likelihood_under_a_prompt_is_a_difference_of_plain_runs():
    tails = [[60, 61]] * len(TASK)
    found = prompt_likelihood(LM, TASK, tails)
    for e, value in zip(TASK.examples, found, strict=True):
        head = [int(w[1:]) for w in e.question.split()]
        plain, asked = (
            sum(float(logp(LM, [*start, 60, 61], None)[len(start) - 1 + i, t]) for i, t in enumerate((60, 61))) / 2
            for start in (head, [50, 51, *head])
        )
        assert value == pytest.approx(asked - plain, abs=1e-9)
    with pytest.raises(TaskError, match="no instruction"):
        prompt_likelihood(LM, questions(2), tails[:2])


def test_yes_or_no_is_read_after_the_question():
    texts = [words(20, 21), "", words(30)]
    options = {"template": "{text} {question}", "yes": (" w70", " w71"), "no": (" w72",)}
    found = yes_no(LM, texts, words(9), **options)
    for text, value in zip(texts, found, strict=True):
        if not text:
            assert np.isnan(value)
            continue
        last = logp(LM, [*(int(w[1:]) for w in text.split()), 9], None)[-1]
        assert value == pytest.approx(float(last[[70, 71]].logsumexp(0) - last[72]), abs=1e-9)
    with pytest.raises(TaskError, match="not all single tokens"):
        yes_no(LM, texts, "w9", template="{text}", yes=(" w1 w2",), no=(" w3",))


def test_a_lexicon_counts_words_without_case():
    found = lexicon_share(["Great, GREAT day!", "don't", "…", "greatly"], ["great", "don't"])
    np.testing.assert_array_equal(found, [2 / 3, 1.0, np.nan, 0.0])
    assert lexicon_share(["greatly grand"], ["great*"])[0] == 0.5


def test_a_probe_reads_the_text_and_not_its_prompt():
    probe = LinearProbe("L1.resid_post", vector(), 0.25, 1.0)
    found = probe_margin(LM, probe, [[5, 6], [7]], [[20, 21, 22], []])
    run = LM.run([[5, 6, 20, 21, 22]], "L1.resid_post")
    x = run["L1.resid_post"][0, 2:].mean(0).numpy()
    assert found[0] == pytest.approx(float(x @ (vector() / 3.0)) + 0.25 / 3.0, rel=1e-4)
    assert np.isnan(found[1])


def test_all_measures_together_and_their_file(tmp_path):
    probe = LinearProbe("L1.resid_post", vector(), 0.0, 1.0)
    more = {"length": (lambda g: np.array([len(ids) for ids in g.ids]), "token")}
    found = generations(LM, TASK, LOUD, max_new_tokens=3, lexicon=["w*"], probe=probe, measures=more)
    wanted = {"nll", "distinct_1", "distinct_2", "loops", "prompt_likelihood", "lexicon", "probe", "length"}
    assert set(found.measures) == wanted
    found.save(tmp_path / "g")
    again = Generations.load(tmp_path / "g")
    assert again == found
    assert list(again.to_frame()["measure"]) == list(found.measures)
    assert len(again.texts()) == 6
    assert again.plot().drawings
    assert "<table" in again._repr_html_()
    with pytest.raises(TrimtabError, match="no measure"):
        found["perplexity"]
    other = generations(LM, TASK, Intervention(), max_new_tokens=3)
    with pytest.raises(TrimtabError, match="different texts"):
        found | other
    assert other.change("nll").mean == 0


def refusals(n=6):
    return Task("refusal", tuple(
        Contrast(words(20 + i, 3), words(20 + i, 4), f"g{i}", "", words(20 + i, 3 + i % 2), (" w70",), (" w71",))
        for i in range(n)
    ))  # fmt: skip


def test_over_refusal_reads_the_test_part_of_the_built_in_task(monkeypatch):
    """No request of the train part, of which a refusal vector is made."""
    task = refusals(30)
    monkeypatch.setattr("trimtab.tasks.builtin.task", lambda name: task)
    for seed in (0, 1):
        parts = task.split(seed)
        found = over_refusal(LM, LOUD, seed=seed)
        assert found.groups == harmless(parts.test).groups
        assert not set(found.groups) & {*parts.train.groups, *parts.validation.groups}
    assert over_refusal(LM, LOUD).groups == harmless(task.split(0).test).groups


def test_over_refusal_is_of_the_harmless_side():
    task = refusals()
    assert [e.group for e in harmless(task).examples] == ["g1", "g3", "g5"]
    found = over_refusal(LM, LOUD, task)
    assert len(found) == 3
    assert found.difference().mean > 0
    with pytest.raises(TaskError, match="no example whose question"):
        harmless(questions(3))
