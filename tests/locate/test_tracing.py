"""Causal tracing: what noise breaks and restoring mends, against hooks put on the model by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.deeper import deeper
from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import close, fresh, lm_of, untouched
from tests.tiny import FAMILIES, words
from trimtab.errors import EditError, SiteError, TaskError, TrimtabError
from trimtab.locate.corrupted import Subject
from trimtab.locate.patching import normalised
from trimtab.locate.tracing import causal_tracing, tracing_effect, tracing_maps
from trimtab.model.protocols import logit_diff
from trimtab.model.run import Run
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Ref
from trimtab.values.scores import Scores
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
ALL = {"known": "all", "samples": 3}


def facts(n=4):
    """Prompts with subjects of one to four tokens in the middle, whose twins have another length."""
    rng = np.random.default_rng(5)
    examples = []
    for i in range(n):
        before, after = rng.integers(40, 97, 1 + i % 2).tolist(), rng.integers(40, 97, 1 + i).tolist()
        subject = words(*range(10 + 4 * i, 11 + 5 * i))
        text = f"{words(*before)} {subject} {words(*after)}"
        spans = {"subject": subject}
        examples.append(
            Counterfactual(text, words(39), (f"w{3 + i}",), (f"w{9 + i}",), f"group {i}", spans, {"subject": "w39"})
        )
    return Task("facts", tuple(examples))


TASK = facts()


def subject_of(lm=LM, task=TASK, **options):
    known = {"noise": 3.0, "samples": 3, "seed": 0, "metric": "prob", "batch_size": 16}
    return Subject.of(lm, task, "subject", **known | options)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_fast_is_naive_and_the_whole_subject_restores_all(family):
    lm = deeper(family)
    options = ALL | {"samples": 2, "metric": "logit_diff"}
    total = tracing_effect(lm, TASK, **options)
    embedding = causal_tracing(lm, TASK, "embed", spans="subject", **options)
    scale = np.abs(total).max()
    assert np.abs(embedding.array[:, 0] - total).max() < 1e-5 * scale
    fast = causal_tracing(lm, TASK, "L*.attn_out", window=2, severed="mlp", **options)
    naive = causal_tracing(lm, TASK, "L*.attn_out", window=2, severed="mlp", exact="naive", **options)
    assert np.nanmax(np.abs(fast.array - naive.array)) < 1e-5 * scale


@pytest.mark.parametrize("layer", [0, 1])
def test_the_whole_stream_restores_the_total_effect(layer):
    scores = causal_tracing(LM, TASK, f"L{layer}.resid_post", spans="all", **ALL)
    np.testing.assert_allclose(scores.array[:, 0, 0], tracing_effect(LM, TASK, **ALL), rtol=1e-9)


def test_without_noise_there_is_nothing_to_restore():
    np.testing.assert_allclose(tracing_effect(LM, TASK, noise=0, **ALL), 0, atol=1e-15)
    for severed in (None, "mlp", "attn"):
        scores = causal_tracing(LM, TASK, noise=0, severed=severed, **ALL)
        assert np.nanmax(np.abs(scores.array)) < 1e-14


@pytest.mark.parametrize("severed", ["mlp", "attn"])
def test_severed_with_nothing_restored_is_the_corrupted_run(severed):
    before = causal_tracing(LM, TASK, "L*.resid_post", spans="0", severed=severed, exact="naive", **ALL)
    np.testing.assert_allclose(before.array, 0, atol=1e-14)  # before the subject clean and corrupted are the same
    assert (causal_tracing(LM, TASK, "L*.resid_post", spans="0", severed=severed, **ALL).array == 0).all()


@torch.no_grad()
def by_hand(lm, about, row, layers, at, *, name="", severed=None):
    """P of the answer under each draw of the noise, with `name` ("", "mlp", "self_attn") of `layers` restored at `at`.

    Plain hooks on the Hugging Face model: row 0 is the clean run, the others corrupted; restoring copies from row 0.
    """
    prompts = about.prompts.rows([row], trim=True)
    noise = about.drawn([row], prompts.rows([0] * about.samples)).whole(Site("embed"))
    noise = torch.cat([torch.zeros_like(noise[:1]), noise])
    under = {}

    def restore(module, args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        hidden[1:, at] = hidden[:1, at]

    def cut(layer, keep):
        def hook(module, args, out):
            hidden = out[0] if isinstance(out, tuple) else out
            if keep:
                under[layer] = hidden.clone()
            else:
                hidden[1:, at] = under[layer][1:, at]

        return hook

    def part(layer, which):
        return getattr(lm.hf.model.layers[layer], which) if which else lm.hf.model.layers[layer]

    for keep in (True, False):
        handles = [lm.hf.model.embed_tokens.register_forward_hook(lambda m, a, out: out + noise)]
        if severed:
            handles += [part(k, severed).register_forward_hook(cut(k, keep)) for k in range(lm.anatomy.n_layers)]
        if not keep:
            handles += [part(layer, name).register_forward_hook(restore) for layer in layers]
        logits = lm.hf(prompts.ids.expand(len(noise), -1), use_cache=False).logits[:, -1]
        for handle in handles:
            handle.remove()
    token = lm.token(TASK.examples[row].answers[0])
    return torch.softmax(logits, -1)[1:, token].mean().item()


@pytest.mark.parametrize(
    ("site", "name", "window", "severed"),
    [
        ("resid_post", "", 1, None),
        ("resid_post", "", 1, "mlp"),
        ("resid_post", "", 1, "attn"),
        ("mlp_out", "mlp", 2, None),
        ("attn_out", "self_attn", 3, None),
        ("attn_out", "self_attn", 10, "mlp"),
    ],
)
def test_a_loop_of_forward_passes_with_hooks(site, name, window, severed):
    lm = deeper("llama", 4)
    about = subject_of(lm)
    scores = causal_tracing(lm, TASK, f"L*.{site}", window=window, severed=severed, **ALL)
    hooked = {None: None, "mlp": "mlp", "attn": "self_attn"}[severed]
    different = 0
    for row in range(len(TASK)):
        nothing = by_hand(lm, about, row, [], 0)
        for span, layer in ((0, 0), (2, 1), (3, 2), (5, 3)):
            at = about.prompts.rows([row], trim=True).positions(scores.coords["span"][span])[0]
            layers = range(max(0, layer - window // 2), min(4, layer - (-window // 2)))
            if not at:
                assert np.isnan(scores.array[row, layer, span])
                continue
            effect = by_hand(lm, about, row, layers, at, name=name, severed=hooked) - nothing
            np.testing.assert_allclose(scores.array[row, layer, span], effect, atol=1e-12)
            different += abs(effect) > 1e-9
        assert tracing_effect(lm, TASK, **ALL)[row] == pytest.approx(about.clean[row] - nothing, abs=1e-12)
    assert different > 6


def test_windows_are_ten_layers_of_sublayers_and_one_of_the_stream():
    lm = deeper("llama", 4)
    for site, window in (("mlp_out", 10), ("attn_out", 10), ("resid_post", 1), ("head", 1)):
        scores = causal_tracing(lm, TASK, f"L*.{site}", spans="end", **ALL)
        assert scores.options["window"] == window
        same = causal_tracing(lm, TASK, f"L*.{site}", spans="end", window=window, **ALL)
        np.testing.assert_array_equal(scores.array, same.array)


def test_several_maps_at_once_are_each_alone():
    lm = deeper("llama", 4)
    together = tracing_maps(lm, TASK, ("L*.resid_post", "L*.mlp_out", "embed"), **ALL)
    assert list(together) == ["L*.resid_post", "L*.mlp_out", "embed"]
    for sites, scores in together.items():
        alone = causal_tracing(lm, TASK, sites, **ALL)
        np.testing.assert_allclose(scores.array, alone.array, atol=1e-13)
        assert (scores.options, scores.coords, scores.site) == (alone.options, alone.coords, alone.site)


def test_candidates_equal_the_map():
    grid = causal_tracing(LM, TASK, "L*.head", **ALL)
    alone = causal_tracing(LM, TASK, ["L1.head[2]@end", "L0.head[3]@subject_last"], **ALL)
    np.testing.assert_allclose(alone.array[:, 0], grid.array[:, 1, 2, 5], atol=1e-12)
    np.testing.assert_allclose(alone.array[:, 1], grid.array[:, 0, 3, 2], atol=1e-12)


def test_batches_padding_and_the_naive_loop_make_no_difference():
    with untouched(LM):
        whole = causal_tracing(LM, TASK, severed="attn", **ALL)
    for options in ({"batch_size": 1}, {"batch_size": 3}, {"exact": "naive"}):
        other = causal_tracing(LM, TASK, severed="attn", **ALL, **options)
        np.testing.assert_allclose(other.array, whole.array, atol=1e-12)


def test_the_noise_of_a_prompt_is_its_own():
    one, some = subject_of(), subject_of(task=TASK.only([2, 0]))
    first, again = (s.drawn([row], s.prompts.rows([row] * 3, trim=True)) for s, row in ((one, 2), (some, 0)))
    each = [run.whole(Site("embed")) / s.sigma for run, s in ((first, one), (again, some))]
    torch.testing.assert_close(*each, rtol=1e-6, atol=0)  # drawn in float32
    drawn = one.drawn([2], one.prompts.rows([2] * 3, trim=True)).whole(Site("embed"))
    at = one.prompts.rows([2], trim=True).columns("subject")[0]
    assert (drawn[:, ~at] == 0).all()
    assert not torch.equal(drawn[0], drawn[1])
    other = subject_of(seed=1).drawn([2], one.prompts.rows([2] * 3, trim=True)).whole(Site("embed"))
    assert not torch.equal(drawn, other)


def test_the_noise_is_as_large_as_said():
    about = subject_of(samples=400)
    many = about.prompts.rows([3] * 400, trim=True)
    drawn = about.drawn([3], many).whole(Site("embed"))[:, many.columns("subject")[0]]
    assert float(drawn.std()) == pytest.approx(about.sigma, rel=0.02)
    assert abs(float(drawn.mean())) < 0.02 * about.sigma


def said_of(lm):
    """The ids of all subject tokens."""
    prompts = subject_of(lm).prompts
    rows = zip(prompts.tokens, prompts.spans["subject"], strict=True)
    return [int(tokens[p][1:]) for tokens, places in rows for p in places]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_noise_is_of_the_subjects_token_embeddings(family):
    """As they enter block 0, but for what a table of positions adds to them."""
    lm = lm_of(family, torch.float64)
    if lm.anatomy.family.position_table:
        embedded = lm.hf.get_input_embeddings().weight[said_of(lm)]
        embedded = lm.hf.model.decoder.project_in(embedded) if family == "opt-350m" else embedded
    else:
        embedded = torch.stack([lm.run([words(token)], "embed")["embed"][0, -1] for token in said_of(lm)])
    assert subject_of(lm).sigma == pytest.approx(3 * float(embedded.std(correction=0)))


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_positions_do_not_count_in_the_noise(family):
    lm, found = fresh(family, torch.float64), []
    table = lm.hf.transformer.wpe if family == "gpt2" else lm.hf.model.decoder.embed_positions
    for _ in range(2):
        found.append(subject_of(lm).sigma)
        table.weight.mul_(10)
    assert found[0] == found[1] == pytest.approx(3 * float(lm.anatomy.embedding.weight[said_of(lm)].std(correction=0)))


def test_the_spans_around_a_subject():
    prompts = subject_of().prompts
    for row, tokens in enumerate(prompts.tokens):
        subject = prompts.spans["subject"][row]
        parts = [prompts.spans[f"subject_{part}"][row] for part in ("first", "middle", "last", "next", "further")]
        first, middle, last, after, further = parts
        assert (*first, *middle, *(last if len(subject) > 1 else ())) == subject
        assert last == subject[-1:]
        assert (*after, *further, len(tokens) - 1) == tuple(range(last[0] + 1, len(tokens)))
        assert len(after) == min(1, len(tokens) - 2 - last[0])
    scores = causal_tracing(LM, TASK, **ALL)
    np.testing.assert_array_equal(np.isnan(scores.array[:, 0]).T[1], [True, True, False, False])
    assert scores.coords["span"][-1] == "end"


def test_only_what_the_model_knows_counts():
    about = subject_of()
    right = LM.run(about.prompts.rows([1], trim=True)).logits[0, -1].argmax().item()
    examples = [e.with_(answers=(f"w{right}",)) if i == 1 else e for i, e in enumerate(TASK.examples)]
    task = TASK.of(examples)
    scores = causal_tracing(LM, task, samples=2)
    counted = np.isfinite(scores.array).any((1, 2))
    assert counted.tolist() == [False, True, False, False]
    assert scores.options["left_out"] == 3
    assert np.isfinite(tracing_effect(LM, task, samples=2)).tolist() == counted.tolist()
    rather = np.isfinite(tracing_effect(LM, task, samples=2, known="rather"))
    gaps = [LM.run(about.prompts.rows([i], trim=True)).logits[0, -1] for i in range(4)]
    ids = [[LM.token(word[0]) for word in (e.answers, e.distractors)] for e in task.examples]
    assert rather.tolist() == [bool(z[a] > z[d]) for z, (a, d) in zip(gaps, ids, strict=True)]
    with pytest.raises(TaskError, match="knows none of these 4 answers"):
        causal_tracing(LM, TASK)


def test_the_share_that_comes_back_is_of_the_prompts_that_count():
    """Prompts that the model gets wrong have neither effect: they are in no sum, and are counted."""
    about = subject_of(samples=2)
    said = [LM.run(about.prompts.rows([i], trim=True)).logits[0, -1].argmax().item() for i in range(4)]
    examples = [e.with_(answers=(f"w{said[i]}",)) if i else e for i, e in enumerate(TASK.examples)]
    task = TASK.of(examples)
    scores, gap = causal_tracing(LM, task, "L*.resid_post", samples=2), tracing_effect(LM, task, samples=2)
    assert np.isnan(gap).tolist() == [True, False, False, False]
    share = normalised(scores, gap)
    assert share.left_out == 1
    spans = list(scores.coords["span"])
    for span in ("subject_first", "end"):
        at = (slice(None), 0, spans.index(span))
        np.testing.assert_allclose(share.effect[at[1:]], np.nansum(scores.array[at]) / np.nansum(gap))
        assert share.interval.low[at[1:]] < share.effect[at[1:]] < share.interval.high[at[1:]]
    middle = scores.array[:, 0, spans.index("subject_middle")]  # of subjects of three tokens and more
    assert np.isnan(middle).tolist() == [True, True, False, False]
    assert share.effect[0, spans.index("subject_middle")] == pytest.approx(middle[2:].sum() / gap[2:].sum())


def test_counterfactual_tasks_are_traced_on_their_clean_side():
    scores = causal_tracing(LM, twins(), ["L1.resid_post@subject"], metric="logit_diff", **ALL)
    assert (scores.unit, scores.direction, len(scores)) == ("logit", "denoise", 6)


def test_progress_reaches_the_end():
    told = []
    causal_tracing(LM, TASK, spans="end", batch_size=3, progress=lambda *now: told.append(now), **ALL)
    assert told[-1] == (2 * 4 * 3, 2 * 4 * 3)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_scores_survive_a_file(tmp_path):
    scores = causal_tracing(LM, TASK, "L*.mlp_out", **ALL)
    scores.save(tmp_path / "scores")
    again = Scores.load(tmp_path / "scores")
    np.testing.assert_array_equal(again.array, scores.array)
    assert again.provenance.method == "causal_tracing"
    assert again.options == scores.options


def test_errors():
    with pytest.raises(TaskError, match="contrast examples"):
        causal_tracing(LM, pairs())
    with pytest.raises(TaskError, match=r'no span "subjct".*"subject"'):
        causal_tracing(LM, TASK, subject="subjct")
    with pytest.raises(SiteError, match="restored and severed at once"):
        causal_tracing(LM, TASK, "L*.mlp_out", severed="mlp", **ALL)
    with pytest.raises(SiteError, match="restored and severed at once"):
        causal_tracing(LM, TASK, "L*.head", severed="attn", **ALL)
    for options in ({"severed": "mlps"}, {"known": "tops"}, {"samples": 0}, {"noise": -1.0}, {"window": 0}):
        with pytest.raises(TrimtabError):
            causal_tracing(LM, TASK, **ALL | options)
    for site in ("L*.head", "L*.resid_post", "embed"):
        with pytest.raises(TrimtabError, match="window"):
            causal_tracing(LM, TASK, site, window=2, **ALL)
    with pytest.raises(TrimtabError, match="one by one"):
        causal_tracing(LM, TASK, ["L1.mlp_out@end"], window=10, **ALL)


class TestBaseEdits:
    """Edits of the engine's base run: on in it and in every variant."""

    IDS = ([5, 6, 7, 8, 9, 10], [7, 12, 9, 13])
    READOUT = logit_diff([3, 4], [5, 6])

    @pytest.mark.parametrize("exact", ["fast", "naive"])
    def test_are_in_every_variant(self, exact):
        prompts = LM.prompts(list(self.IDS))
        corrupt = [Edit("embed@1:3", "scale", 0.5)]
        variants = [
            [Edit("L0.mlp_out@-1", "set", 0.0)],
            [Edit("embed@2", "add", 1.0)],
            [Edit("L1.head[2]@2", "scale", 2.0)],
        ]
        found = LM.counterfactuals(prompts, variants, self.READOUT, base=corrupt, exact=exact)
        for number, variant in enumerate([[], *variants]):
            run = LM.run(prompts, edit=[*corrupt, *variant])
            expected = self.READOUT.of(run.logits[:, -1:], torch.arange(2))
            close(LM, found.base if number == 0 else found.values[number - 1], expected, variant)

    def test_cells_before_the_corrupted_columns_are_not_computed(self):
        prompts = LM.prompts([self.IDS[0]] * 2)
        clean = Run(prompts, None, LM.run(prompts, "L*.resid_post").activations, origin=LM)
        variants = [Edit(f"L1.resid_post@{column}", "set", Ref("clean")) for column in range(6)]
        read = logit_diff([3, 4], [5, 6])
        found = LM.counterfactuals(prompts, variants, read, runs={"clean": clean}, base=Edit("embed@3", "add", 1.0))
        assert found.computed.tolist() == [[False] * 2] * 3 + [[True] * 2] * 3

    def test_are_in_its_provenance_and_are_embeddings(self):
        prompts = LM.prompts(list(self.IDS))
        made = LM.counterfactuals(prompts, ["L1.head scale 0"], self.READOUT, base="embed@1 scale 0")
        assert made.provenance.options["base"] == ["embed@1 scale 0"]
        with pytest.raises(EditError, match="changes embed"):
            LM.counterfactuals(prompts, ["L1.head scale 0"], self.READOUT, base="L0.mlp_out scale 0")
