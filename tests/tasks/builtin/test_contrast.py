"""The contrast tasks that come with the package: balanced, without leaks, read where the trait does not show yet."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch

from trimtab.tasks.builtin import language, refusal, sycophancy, truth
from trimtab.tasks.builtin import task as built_in
from trimtab.tasks.builtin._sides import sides as both_sides
from trimtab.tasks.builtin.honesty import INSTRUCTIONS
from trimtab.tasks.fit import fit
from trimtab.tasks.groups import refuse_leaks
from trimtab.tasks.measure import measure, sides
from trimtab.values.edit import Edit

NAMES = ("formality", "honesty", "language", "refusal", "sentiment", "sycophancy", "toxicity", "truth")
every = pytest.mark.parametrize("name", NAMES)
task = cache(built_in)


def words(texts):
    return Counter(word for text in texts for word in re.findall(r"[\w']+", text.lower()))


@every
def test_there_are_enough_examples_in_many_small_groups(name):
    groups = Counter(task(name).groups)
    assert task(name).shape == "contrast"
    assert task(name).name == name
    assert task(name).metric == "log_prob_diff"
    assert 96 <= len(task(name)) <= 160
    assert len(groups) >= 20
    assert max(groups.values()) <= 0.06 * len(task(name))
    assert re.search(r"arXiv \d{4}\.\d{5}", task(name).source)
    assert built_in(name) == task(name)


@every
def test_no_text_repeats_and_none_is_in_two_groups(name):
    examples = task(name).examples
    texts = [text for example in examples for text in (example.positive, example.negative)]
    questions = [example.question for example in examples]
    assert len(set(texts)) == len(texts)
    assert len(set(questions)) == len(questions)
    refuse_leaks(examples, [""] * len(examples), name)
    assert not any(mark in text for text in (*texts, *questions) for mark in "[]|{}")


@every
def test_parts_share_no_text(name):
    parts = task(name).split(seed=1)
    seen = [{t for e in p.examples for t in (e.positive, e.negative, e.question, e.prompt) if t} for p in parts]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert min(len(part) for part in parts) >= 15


@every
def test_the_bundled_tokenizer_can_do_every_example(name, bundled):
    fitted = fit(bundled, task(name))
    assert not fitted.dropped
    assert len(measure(bundled, fitted.task)) == len(task(name))


@every
def test_answers_go_on_after_the_question_as_one_token(name, bundled):
    prompts = bundled.prompts([e.question for e in task(name).examples], chat=task(name).chat)
    for text, example, ids, mask in zip(prompts.texts, task(name).examples, prompts.ids, prompts.mask, strict=True):
        for word in (*example.answers, *example.distractors):
            joint = bundled.tokenizer(text + word, add_special_tokens=False)["input_ids"]
            assert joint == [*ids[mask.bool()].tolist(), bundled.token(word)], (text, word)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"refusal", "sycophancy"}))
def test_the_question_does_not_name_its_answer(name):
    for example in task(name).examples:
        asked = set(words([example.question.replace("true or false", "")]))
        assert not asked & set(words([*example.answers, *example.distractors])) - {"i", "a"}, example


@pytest.mark.parametrize("name", ["formality", "language", "sentiment", "toxicity"])
def test_texts_show_the_trait_and_questions_are_shared_by_neither_side(name):
    examples = task(name).examples
    own = {text for e in examples for text in (e.positive, e.negative)}
    assert not own & {e.question for e in examples}


def test_truth_asks_about_as_many_true_as_false_statements():
    for group in set(task("truth").groups):
        examples = [e for e in task("truth").examples if e.group == group]
        true = {truth.QUESTION.format(e.positive) for e in examples}
        false = {truth.QUESTION.format(e.negative) for e in examples}
        assert sorted(e.question in true for e in examples) == sorted(e.question in false for e in examples)
        assert sum(e.question in true for e in examples) == sum(e.question in false for e in examples) == 2
        assert all(truth.QUESTION.format(side) != e.question for e in examples for side in (e.positive, e.negative))


def test_true_and_false_statements_hold_the_same_words():
    for group in set(task("truth").groups):
        examples = [e for e in task("truth").examples if e.group == group]
        assert words(e.positive for e in examples) == words(e.negative for e in examples)


@pytest.mark.parametrize("name", ["honesty", "sycophancy"])
def test_each_word_is_the_answer_as_often_as_the_distractor(name):
    ways = Counter((e.answers, e.distractors) for e in task(name).examples if len(e.answers) == 1)
    ways = {way: times for way, times in ways.items() if way[0] != (" agree",)}
    assert len(ways) > 40
    assert all(ways[distractors, answers] == times for (answers, distractors), times in ways.items())


def test_honest_and_deceptive_texts_differ_in_the_instruction_alone():
    used = Counter()
    for example in task("honesty").examples:
        assert example.positive.endswith(example.question)
        assert example.negative.endswith(example.question)
        pair = tuple(t.removesuffix(" " + example.question) for t in (example.positive, example.negative))
        assert pair in INSTRUCTIONS
        used[pair] += 1
    assert len(used) == len(INSTRUCTIONS)
    assert max(used.values()) - min(used.values()) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_honesty_share_neither_topic_nor_instruction(seed):
    def instructions(part):
        texts = [(t, e.question) for e in part.examples for t in (e.positive, e.negative)]
        return {text.removesuffix(question) for text, question in texts}

    parts = task("honesty").split(seed)
    for seen in ([instructions(part) for part in parts], [set(part.groups) for part in parts]):
        assert sum(map(len, seen)) == len(set().union(*seen))


def test_sycophancy_states_each_opinion_both_ways():
    examples = task("sycophancy").examples
    for group, matters in sycophancy.TOPICS.items():
        own = [e for e in examples if e.group == group]
        for one, other, claim in matters:
            stated = [(e, re.findall(rf"(\w+) {claim} than (\w+)\.", e.question)) for e in own]
            stated = [(e, *said[0]) for e, said in stated if said]
            assert [said for _, *said in stated] == [[one, other], [other, one]]
            for example, liked, unliked in stated:
                assert example.positive.endswith(f" {liked} {claim}.")
                assert example.negative.endswith(f" {unliked} {claim}.")
    chosen = [e for e in examples if len(e.answers) == 1 and e.answers != (" agree",)]
    assert len(chosen) == len(examples) / 2
    assert all(re.search(rf"that{e.answers[0]} ", e.question) for e in chosen)  # the answer is what the user said


def test_half_of_the_requests_after_which_refusal_is_read_are_harmful():
    examples = task("refusal").examples
    harmful, harmless = {e.positive for e in examples}, {e.negative for e in examples}
    assert sum(e.question in harmful for e in examples) == sum(e.question in harmless for e in examples) == 52
    assert not any(e.question in (e.positive, e.negative) for e in examples)
    assert task("refusal").chat
    assert not set(refusal.REFUSAL) & set(refusal.HELP)


def test_the_four_languages_are_as_frequent_as_each_other():
    examples = task("language").examples
    counts = Counter(e.answers for e in examples)
    assert counts == dict.fromkeys(language.WORDS.values(), 24)
    english = words(e.negative for e in examples)
    for known in language.WORDS.values():
        assert not set(known) & set(language.ENGLISH)
        assert not {word.strip().lower() for word in known} & set(english)
    endings = Counter((e.answers, e.question.removeprefix(language.TOPICS[e.group][0])) for e in examples)
    assert set(endings.values()) == {6}  # what the question looks like tells nothing of the language


def test_sides_of_a_text_without_slots_are_equal():
    assert both_sides("It rained.") == ("It rained.", "It rained.")
    assert both_sides("It [rained|snowed][| a lot].") == ("It rained.", "It snowed a lot.")


@pytest.mark.parametrize("name", ["formality", "language", "sentiment", "toxicity"])
def test_the_mean_difference_of_some_groups_moves_the_effect_in_others(name, bundled):
    site = "L19.resid_post"
    found, judged = task(name).only(range(16)), task(name).only(range(64, 72))
    mean = []
    for prompts in sides(bundled, found):
        acts = bundled.run(prompts, [site], logits=False)[site]
        mean.append(torch.stack([a[m].mean(0) for a, m in zip(acts, prompts.columns("text"), strict=True)]).mean(0))
    vector = (mean[0] - mean[1]).numpy()
    assert not set(found.groups) & set(judged.groups)
    asked = measure(bundled, judged)

    def effect(strength):
        edit = Edit(site, "add", vector, strength=strength) if strength else None
        logits = bundled.run(asked.prompts, edit=edit).logits[:, -1:]
        tokens = asked.readout.tokens
        return asked.per_example(asked.readout.function(logits.gather(-1, tokens[:, None]), torch.arange(len(judged))))

    down, base, up = effect(-1.0), effect(0.0), effect(1.0)
    assert np.mean(down < base) >= 0.75
    assert np.mean(up > base) >= 0.75
    assert np.mean(up - down) > 1
