"""Persona vectors: responses under two system prompts, those that show the trait, and texts along the vector."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import continuations, twins
from tests.model.tinies import IDS, RAGGED, lm_of
from tests.tiny import tiny, tokenizer, words
from trimtab.errors import EditError, SiteError, TaskError
from trimtab.model.lm import LM
from trimtab.steer.persona import (
    contrasting,
    persona_vector,
    project,
    project_stream,
    responses,
    trait_likelihood,
)
from trimtab.steer.vectors import difference_of_means
from trimtab.tasks.example import Contrast
from trimtab.tasks.measure import sides
from trimtab.tasks.pairs import from_systems
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention

PLAIN = lm_of("llama", torch.float64)
TEMPLATE = "{% for m in messages %}w90 {{ m['content'] }} w92 {% endfor %}w93"
ASKED = [words(20 + i, 30, 40 + 2 * i) for i in range(8)]
SITE = "L1.resid_post"


@pytest.fixture(scope="module")
def chatty():
    own = copy.deepcopy(tokenizer())
    own.chat_template = TEMPLATE
    return LM(tiny("llama", torch.float64), own, name="chatty", check=False)


def persona(asked=None):
    return from_systems(
        ASKED if asked is None else asked, words(6, 7, 8), words(9, 11), answers="w70", distractors="w71"
    )


class TestResponses:
    def test_they_are_what_the_model_says_under_each_system_prompt(self, chatty):
        answered = responses(chatty, persona(), max_new_tokens=5)
        assert len(answered) > 3
        for example in answered.examples:
            for text, system in (
                (example.positive, example.positive_system),
                (example.negative, example.negative_system),
            ):
                said = chatty.generate(example.prompt, chat=True, system=system, max_new_tokens=5)
                assert text == said.texts[0]
        assert {e.prompt for e in answered.examples} <= set(ASKED)
        assert {e.positive_system for e in answered.examples} == {words(6, 7, 8)}

    def test_several_samples_are_drawn_and_the_same_again(self, chatty):
        options = {"samples": 3, "max_new_tokens": 4, "temperature": 1.5}
        drawn = responses(chatty, persona(ASKED[:3]), **options)
        assert drawn == responses(chatty, persona(ASKED[:3]), **options)
        assert drawn != responses(chatty, persona(ASKED[:3]), **options, seed=1)
        assert len(drawn) > len(responses(chatty, persona(ASKED[:3]), max_new_tokens=4))
        assert len(set(drawn.examples)) == len(drawn)

    def test_a_row_s_words_do_not_depend_on_its_batch(self, chatty):
        options = {"samples": 2, "max_new_tokens": 4}
        assert responses(chatty, persona(), **options) == responses(chatty, persona(), **options, batch_size=3)

    def test_those_that_are_given_stay(self):
        assert responses(PLAIN, continuations(4)) is not None
        assert responses(PLAIN, continuations(4)) == continuations(4)


class TestContrasting:
    def test_likelihoods_are_those_of_one_response_at_a_time(self, chatty):
        answered = responses(chatty, persona(), max_new_tokens=5)
        found = trait_likelihood(chatty, answered, batch_size=3)

        def logp(question, text, system):
            head = chatty.prompts(question, chat=True, system=system).ids[0].tolist()
            tail = [int(word[1:]) if word.startswith("w") else 0 for word in text.split()]
            values = torch.log_softmax(chatty.run([head + tail]).logits[0], -1)
            return sum(float(values[len(head) - 1 + i, token]) for i, token in enumerate(tail)) / len(tail)

        for i, example in enumerate(answered.examples):
            for side, text in zip(found, (example.positive, example.negative), strict=True):
                under = [logp(example.prompt, text, s) for s in (example.positive_system, example.negative_system)]
                assert side[i] == pytest.approx(under[0] - under[1], abs=1e-8)
        # greedy words are those of their own system prompt
        assert found[0].mean() > found[1].mean()

    def test_pairs_are_kept_on_either_side_of_the_threshold(self, chatty):
        answered = responses(chatty, persona(), max_new_tokens=5)
        marks = {(e.prompt, e.negative): 2.0 for e in answered.examples}
        marks |= {(e.prompt, e.positive): i for i, e in enumerate(answered.examples)}

        def judge(pairs):
            assert all(question in ASKED for question, _ in pairs)
            return [marks[pair] for pair in pairs]

        kept = contrasting(chatty, answered, judge=judge, threshold=2.5)
        assert kept.examples == answered.examples[3:]
        with pytest.raises(TaskError, match="judged above 2 "):
            contrasting(chatty, answered, judge=judge, threshold=2)  # a negative one is not below
        with pytest.raises(TaskError, match="one number for each response"):
            contrasting(chatty, answered, judge=lambda pairs: [1.0])

    def test_by_default_the_likelihood_decides(self, chatty):
        answered = responses(chatty, persona(), max_new_tokens=5)
        positive, negative = trait_likelihood(chatty, answered)
        kept = contrasting(chatty, answered)
        wanted = [e for e, p, n in zip(answered.examples, positive, negative, strict=True) if p > 0 > n]
        assert list(kept.examples) == wanted

    def test_without_systems_nothing_is_left_out(self):
        assert contrasting(PLAIN, continuations(4)) == continuations(4)


class TestVector:
    def test_given_responses_make_a_difference_of_means_over_their_tokens(self):
        task = continuations(8)
        made = persona_vector(PLAIN, task, SITE, strength=1.5, where="-1:")
        (wanted,) = difference_of_means(PLAIN, task, SITE, strength=1.5, where="-1:")
        assert made.edits == (wanted,)
        heads = [PLAIN.prompts(e.prompt).width for e in task.examples]
        rows = []
        for side in ("positive", "negative"):
            texts = [f"{e.prompt} {getattr(e, side)}" for e in task.examples]
            runs = [PLAIN.run(text, SITE)[SITE][0, n:].mean(0) for text, n in zip(texts, heads, strict=True)]
            rows.append(torch.stack(runs).mean(0))
        np.testing.assert_allclose(made.edits[0].value, (rows[0] - rows[1]).numpy(), atol=1e-6)

    def test_it_is_made_of_what_was_kept(self, chatty):
        made = persona_vector(chatty, persona(), SITE, max_new_tokens=5)
        kept = contrasting(chatty, responses(chatty, persona(), max_new_tokens=5))
        assert made.edits == difference_of_means(chatty, kept, SITE).edits
        assert made.provenance.options["kept"] == len(kept)
        assert made.name == "systems persona vector"


class TestProjection:
    def test_the_own_sides_are_one_vector_apart(self):
        task = continuations(8)
        made = persona_vector(PLAIN, task, [SITE, "L0.mlp_out", "L1.head[1,2]"])
        both = sides(PLAIN, task)
        positive, negative = (project(PLAIN, side, made, groups=task.groups) for side in both)
        np.testing.assert_allclose(positive.mean() - negative.mean(), 1.0, atol=1e-5)
        assert positive.dims == ("example", "site")
        assert list(positive.coords["site"]) == [SITE, "L0.mlp_out", "L1.head[1,2]"]
        assert positive.groups == task.groups

    def test_texts_are_read_without_their_first_token(self):
        vector = np.random.default_rng(0).standard_normal(32)
        edit = Edit(SITE, "add", vector)
        found = project(PLAIN, [words(5, 6, 7), words(8)], edit).array[:, 0]
        unit = vector / (vector @ vector)
        many = PLAIN.run(words(5, 6, 7), SITE)[SITE][0, 1:].mean(0).numpy() @ unit
        single = PLAIN.run(words(8), SITE)[SITE][0, 0].numpy() @ unit
        assert found == pytest.approx([many, single], abs=1e-6)
        last = project(PLAIN, [words(5, 6, 7)], edit, read="last").array[0, 0]
        assert last == pytest.approx(float(PLAIN.run(words(5, 6, 7), SITE)[SITE][0, -1].numpy() @ unit), abs=1e-6)

    def test_the_vector_itself_moves_a_text_by_its_strength(self):
        edit = Edit(SITE, "add", np.random.default_rng(0).standard_normal(32), strength=2.5)
        texts = [words(5, 6, 7), words(9, 10)]
        moved = project(PLAIN, texts, edit, edit=edit).array - project(PLAIN, texts, edit).array
        assert moved.ravel().tolist() == pytest.approx([2.5, 2.5], abs=1e-5)

    @pytest.mark.parametrize("prompts", [IDS, RAGGED])
    def test_a_stream_says_the_same_as_a_second_look(self, prompts):
        rng = np.random.default_rng(0)
        made = Intervention(
            (Edit(SITE, "add", rng.standard_normal(32)), Edit("L0.head", "add", rng.standard_normal((4, 8))))
        )
        steered = Edit("L0.resid_post@-1:", "add", rng.standard_normal(32))
        pieces = list(project_stream(PLAIN, prompts, made, steered, max_new_tokens=4))
        said = PLAIN.generate(prompts, steered, max_new_tokens=4)
        assert tuple("".join(piece.texts[row] for piece in pieces) for row in range(2)) == said.texts
        for row, ids in enumerate(said.ids):
            whole, n = [*prompts[row], *ids], len(prompts[row])
            edit = steered.with_(where=f"{n - 1}:")
            for step in range(len(ids)):
                for column, part in enumerate(made):
                    x = PLAIN.run([whole], part.site, edit=edit)[part.site][0, n + step].numpy()
                    wanted = x.ravel() @ part.value.ravel() / (part.value**2).sum()
                    assert pieces[step].projections[row, column] == pytest.approx(wanted, abs=1e-6)

    def test_an_ended_row_has_no_projection(self):
        lm = PLAIN
        first = lm.generate(IDS, max_new_tokens=1).texts
        pieces = list(project_stream(lm, IDS, Edit(SITE, "add", np.ones(32)), max_new_tokens=3, stop=first[0]))
        assert np.isnan(pieces[-1].projections[[row for row, i in enumerate(pieces[-1].ids) if i is None]]).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: persona_vector(PLAIN, twins(4), SITE), TaskError, "is a counterfactual task"),
        (
            lambda: responses(PLAIN, Task("bare", (Contrast("w5", "w6", "g"),))),
            TaskError,
            "neither two system prompts nor a prompt",
        ),
        (lambda: responses(PLAIN, persona(), samples=0), TaskError, "at least 1"),
        (lambda: project(PLAIN, "w5 w6", Intervention.of("L0.resid_post scale 0")), EditError, "along vectors"),
        (lambda: project(PLAIN, "w5 w6", Intervention()), EditError, "along vectors"),
        (lambda: project(PLAIN, "w5 w6", Edit(SITE, "add", np.zeros(32))), EditError, "no direction"),
        (lambda: project(PLAIN, "w5 w6", Edit(SITE, "add", np.ones(48))), SiteError, r"vector of shape \(48,\): take"),
        (
            lambda: project(PLAIN, "w5 w6", [Edit(SITE, "add", np.ones(32))] * 2),
            EditError,
            "several vectors at one site",
        ),
        (lambda: list(project_stream(PLAIN, "w5", Edit(SITE, "add", np.ones(31)))), SiteError, "do not lie along"),
        (
            lambda: list(project_stream(PLAIN, "w5", Edit(SITE, "add", np.ones(32)), read=SITE)),
            EditError,
            "leave read out",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
