"""Plans of reading methods: the passes that are planned are those that go through the blocks, counted on the model."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tests.locate.tinytasks import pairs, planted, twins
from tests.model.tinies import lm_of
from trimtab import locate
from trimtab.locate.plans import BACKWARD, Pace, cost, pace
from trimtab.locate.plans_reading import OVER_ALL, unembedded
from trimtab.tasks.measure import measure
from trimtab.tasks.repeated import RepeatedTokens

LM, TWINS, PAIRS = lm_of("llama"), twins(6), pairs(8, groups=4)
REPEATED = RepeatedTokens(length=4, sequences=3)


@contextmanager
def counted(lm):
    """Passes of a prompt through all blocks, each block a share of one; those with a graph count the way back too."""
    total = [0.0]

    def see(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        total[0] += len(hidden) / lm.anatomy.n_layers * (1 + BACKWARD * torch.is_grad_enabled())

    hooks = [block.module.register_forward_pre_hook(see, with_kwargs=True) for block in lm.anatomy.blocks]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


READING = [
    ("attention_mass", TWINS, {"keys": "subject"}),
    ("attention_entropy", PAIRS, {"side": "negative"}),
    ("induction_score", REPEATED, {}),
    ("previous_token_score", None, {}),
    ("copying_score", REPEATED, {}),
    ("copying_score", REPEATED, {"source": "run"}),
    ("head_roles", REPEATED, {}),
    ("massive_activations", TWINS, {}),
    ("magnitude_contrast", PAIRS, {"sites": "L*.head"}),
    ("activation_magnitude", PAIRS, {"sites": "L*.neuron"}),
    ("activation_magnitude", PAIRS, {"sites": "L*.neuron", "statistic": "written"}),
    ("activation_magnitude", PAIRS, {"sites": "L*.neuron", "statistic": "weight"}),
    ("probe", PAIRS, {"kind": "difference"}),
    ("language_entropy", {"a": ["w5 w6", "w7 w8"], "b": ["w9 w10"]}, {}),
    ("direct_logit_attribution", TWINS, {"on": "corrupt"}),
    ("query_neurons", TWINS, {"neuron": "L1.neuron[3]"}),
    ("logit_lens_scores", TWINS, {}),
    ("gradient_input", TWINS, {}),
    ("saliency", PAIRS, {}),
    ("taylor", TWINS, {}),
    ("fisher", TWINS, {"on": "corrupt"}),
    ("token_scores", TWINS, {}),
    ("attribution_patching", TWINS, {"direction": "noise"}),
    ("attribution_patching", PAIRS, {}),
    ("attribution_patching", TWINS, {"source": PAIRS, "spans": "end"}),
    ("atp_star", TWINS, {"grad_drop": False}),
    ("atp_star", TWINS, {"sites": "L*.q", "grad_drop": False}),
    ("atp_star", TWINS, {"sites": "L*.k", "grad_drop": False}),
]


@pytest.mark.parametrize(("name", "on", "options"), READING, ids=lambda value: value if isinstance(value, str) else "")
def test_the_passes_that_are_planned_are_those_that_are_run(name, on, options):
    function = getattr(locate, name)
    planned = cost(function, LM, on, options)
    with counted(LM) as run:
        function(LM, on, **options)
    assert planned.passes == pytest.approx(run[0])


def test_fitting_and_scoring():
    lm, train, other = planted(), pairs(16, groups=4, name="train"), pairs(12, groups=3, start=60, name="other")
    site = "L1.resid_post"
    made = []
    for function, options in (
        (locate.fit_probe, {}),
        (locate.fit_probe, {"test": other}),
        (locate.fit_monitor, {}),
        (locate.fit_monitor, {"validation": other}),
    ):
        planned = cost(function, lm, train, options)
        with counted(lm) as run:
            made.append(function(lm, train, site, **options))
        assert planned.passes == run[0] > 0
    for monitor in (made[2], made[2].with_(stream_threshold=None)):
        with counted(lm) as run:
            locate.score_monitor(lm, monitor, other)
        assert cost(locate.score_monitor, lm, other, {"monitor": monitor}).passes == run[0]


def test_weights_alone_take_no_pass_over_a_prompt():
    """One token goes through the model, to see what its norms do."""
    for function in (locate.composition, locate.ov_circuit, locate.ov_copying_score, locate.role_graph):
        assert cost(function, LM, None, {}).passes == 0
    with counted(LM) as run:
        locate.composition(LM)
    assert run[0] <= 1


def test_readouts_count_by_their_multiplications():
    """Of a prompt through the blocks: one multiplication for each weight and token."""
    weights = sum(p.numel() for name, p in LM.hf.named_parameters() if ".layers." in name)
    vocab, d = LM.hf.lm_head.weight.shape
    assert unembedded(LM, 3, 5) == pytest.approx(3 * vocab * d / (5 * weights))
    prompts = measure(LM, TWINS, on="clean").prompts
    tokens = float(prompts.lengths.double().mean())
    every = cost(locate.logit_lens_scores, LM, TWINS, {"quantity": "entropy"}).passes
    assert every == pytest.approx(6 + unembedded(LM, 2 * 6, tokens))
    assert cost(locate.layer_contrast, LM, TWINS, {}).passes == pytest.approx(6 + unembedded(LM, 2 * 2 * 6, tokens))
    exact = cost(locate.log_probability_increase, LM, TWINS, {"sites": "L*.head"})
    assert (exact.places, exact.passes) == (8, pytest.approx(6 + unembedded(LM, 8 * 6, tokens)))
    one = cost(locate.log_probability_increase, LM, TWINS, {"sites": "L*.head", "top": 1})
    assert one.passes == pytest.approx(2 * 6 + unembedded(LM, (1 + 2 * 2) * 6, tokens))
    twice = cost(locate.comparative_neurons, LM, TWINS, {"heads": "L0.head[0]", "sites": "L*.head"})
    assert twice.passes == pytest.approx(2 * exact.passes)


@pytest.mark.parametrize(
    ("method", "sites", "quantity"),
    [
        *((locate.logit_lens_scores, f"L*.{name}", q) for name in ("resid_post", "head") for q in OVER_ALL),
        (locate.layer_contrast, "L*.resid_post", "divergence"),
    ],
)
def test_the_readouts_that_are_planned_are_those_that_are_made(method, sites, quantity, monkeypatch):
    """Of vectors that are unembedded into the whole vocabulary; the divergences read the output beside each place."""
    planned = cost(method, LM, TWINS, {"sites": sites, "quantity": quantity})
    vectors, unembed = [], type(LM).unembed

    def seen(lm, x, *tokens):
        vectors.append(x.numel() // x.shape[-1])
        return unembed(lm, x, *tokens)

    monkeypatch.setattr(type(LM), "unembed", seen)
    method(LM, TWINS, sites, quantity=quantity)
    tokens = float(measure(LM, TWINS, on="clean").prompts.lengths.double().mean())
    assert planned.passes == pytest.approx(6 + unembedded(LM, sum(vectors), tokens))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("patching", {"sites": ["L1.mlp_out"], "window": 2}),
        ("patching", {"sites": "L*.mlp_out", "window": 3}),
        ("causal_tracing", {"sites": "L*.mlp_out", "samples": 2, "known": "all"}),
    ],
)
def test_a_window_is_run_from_its_first_layer(name, options):
    """What windows add to single layers: of a sweep's first blocks only a part is run, in either case alike."""
    function, planned, run = getattr(locate, name), [], []
    for more in ({}, {"window": 1}):
        given = {"spans": "all", **options, **more}
        planned.append(cost(function, LM, TWINS, given).passes)
        with torch.no_grad(), counted(LM) as passes:
            function(LM, TWINS, **given)
        run.append(passes[0])
    assert planned[0] - planned[1] == pytest.approx(run[0] - run[1])
    assert run[0] > run[1]


def test_prompts_and_targets():
    lens = cost(locate.logit_lens, LM, LM.prompts("w5 w6 w7"), {})
    assert lens.passes == pytest.approx(1 + unembedded(LM, 2 * 3, 3))
    found = cost(locate.dola, LM, LM.prompts(["w5 w6", "w7 w8"]), {})
    assert found.passes == pytest.approx(2 + unembedded(LM, 2 * 2, 2))
    scope = cost(locate.patchscope, LM, LM.prompts("w5 w6 w7 w8"), {"target": "w5 w6", "max_new_tokens": 4})
    assert scope.passes == pytest.approx(1 + 2 * (2 * 2 + 4) / 4)
    options = {"target": "w5 w6 w7", "target_at": "1"}
    scores = cost(locate.patchscope_scores, LM, TWINS, options)
    tokens = float(measure(LM, TWINS, on="clean").prompts.lengths.double().mean())
    assert scores.variants == 2 * 6
    assert scores.passes == pytest.approx(6 * (1 + (1 + 0.5) * 2 / tokens))


def test_a_lens_is_trained_at_every_site_of_every_position():
    options = {"tokens": 100, "steps": 10, "context": 8, "check": 20}
    texts = ["w5 w6 w7 w8 w9 w10 w11 w12"] * 3
    one = cost(locate.train_tuned_lens, LM, texts, {**options, "sites": "L0.resid_post"}).passes
    two = cost(locate.train_tuned_lens, LM, texts, {**options, "sites": "L*.resid_post"}).passes
    assert one == pytest.approx(120 / 7 + unembedded(LM, 120 * 3, 7))
    assert two - one == pytest.approx(unembedded(LM, 120 * 2, 7))


def test_passages_make_prompts_longer():
    few, many = (cost(locate.text_noise, LM, TWINS, {"passages": n, "words": 5}).passes for n in (1, 2))
    assert 6 * 2 < few < many
    assert cost(locate.text_noise, LM, TWINS, {"passages": 1, "words": 10}).passes > few


def test_the_pace_is_that_of_one_batch():
    prompts = measure(LM, TWINS).prompts
    with counted(LM) as run:
        seen = pace(LM, prompts, 4)
    assert run[0] == 1 + 4
    assert seen.rows == 4
    assert seen.seconds > 0
    assert Pace(4, 20, 2.0, average=10.0).of(8) == pytest.approx(8 * 10 * 2 / 20)


def test_the_batch_that_is_timed_has_no_more_padding_than_those_of_methods():
    """Many short prompts and a few long ones, each kind in a batch of its own: they are not padded to one length."""
    texts = [f"w{i} w{i + 1}" for i in range(5, 17)] + [" ".join(f"w{i}" for i in range(5, 25))] * 4
    prompts = LM.prompts(texts)
    seen = pace(LM, prompts, 4)
    assert (seen.rows, seen.tokens) == (4, 8)
    assert seen.average == (12 * 2 + 4 * 20) / 16
    widths = []
    hook = LM.anatomy.blocks[0].module.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append((args[0] if args else kwargs["hidden_states"]).shape[:2]),
        with_kwargs=True,
    )
    try:
        pace(LM, prompts, 4)
    finally:
        hook.remove()
    assert widths == [(1, 2), (4, 2)]
