"""Positions, the rule of the updates, and checkpoints."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.model.tinies import exact, fresh, lm_of
from tests.tiny import words
from trimtab.errors import FileError, TrimtabError
from trimtab.locate import lens_training
from trimtab.locate.lens_training import Checkpoint, Nesterov, Positions, massive, windows
from trimtab.locate.massive import massive_entries

TEXTS = [words(*range(5 + i, 12 + i + i % 3)) for i in range(9)]


def positions(family="llama", size=4, seed=0):
    lm = exact(family, padded=True)
    sites = lm.sites(["L0.resid_post", "L1.resid_post"])
    return lm, Positions(lm, lm.prompts(TEXTS), sites, size, 4, seed)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt-350m"])
def test_streams_are_those_of_their_places(family, monkeypatch):
    monkeypatch.setattr(lens_training, "POOL", 1)  # one row or two at a time
    lm, source = positions(family)
    batches = list(itertools.islice(source.forever(), 8))
    assert all(batch.streams.shape == (2, 4, 32) for batch in batches)
    for batch in batches[::3]:
        for i, (row, pos) in enumerate(batch.places):
            assert pos > 0
            run = lm.run(TEXTS[row], source.sites)
            for j, site in enumerate(source.sites):
                torch.testing.assert_close(batch.streams[j, i], run[site][0, pos], rtol=1e-4, atol=1e-4)


def test_every_position_once_in_a_round_and_the_seed_decides():
    _, source = positions()
    places = [place for batch in source.once(1000) for place in batch.places]
    lengths = [len(text.split()) for text in TEXTS]
    assert sorted(places) == [(row, pos) for row, n in enumerate(lengths) for pos in range(1, n)]
    assert sum(len(batch.places) for batch in positions()[1].once(10)) == 10
    firsts = [next(iter(positions(seed=seed)[1].forever())).places for seed in (0, 0, 1)]
    assert firsts[0] == firsts[1] != firsts[2]


def test_rounds_go_on_without_a_gap():
    _, source = positions(size=7)
    total = sum(len(text.split()) - 1 for text in TEXTS)
    drawn = [place for batch in itertools.islice(source.forever(), 2 * total // 7) for place in batch.places]
    assert len(set(drawn[:total])) == total
    counts = [drawn.count(place) for place in set(drawn)]
    assert set(counts) <= {1, 2}


def test_massive_activations():
    x = torch.ones(2, 3, 5)
    x[0, 1, 2], x[1, 0, 0], x[1, 2, 4] = 1001.0, 99.0, -2000.0
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert massive(x, mask).tolist() == [[False, True, False], [False, False, False]]
    every = torch.ones(2, 3, dtype=torch.bool)
    assert massive(x, every).tolist() == [[False, True, False], [False, False, True]]
    assert not massive(x * 0.01, every).any()  # a thousand times the median, and small
    x[0, 1, 2] = 1000.0  # at least so many times, as in massive_activations
    assert massive(x, every)[0].tolist() == [False, True, False]
    assert massive_entries(x[0])[0].any(-1).tolist() == [False, True, False]


def test_the_order_and_what_is_left_out_do_not_depend_on_the_sites(monkeypatch):
    monkeypatch.setattr(lens_training, "POOL", 64 * 20)  # twenty positions of two blocks, ten of four sites
    lm = fresh("llama", torch.float32)
    with torch.no_grad():
        lm.hf.model.embed_tokens.weight[9, 3] = 1e6
    drawn = []
    for names in (["embed"], ["L1.resid_post"], ["embed", "L0.resid_pre", "L0.resid_post", "L1.resid_post"]):
        source = Positions(lm, lm.prompts(TEXTS), lm.sites(names), 4, 4, 0)
        drawn.append([batch.places for batch in itertools.islice(source.forever(), 10)])
    assert drawn[0] == drawn[1] == drawn[2]
    nine = {(row, text.split().index("w9")) for row, text in enumerate(TEXTS) if "w9" in text.split()}
    assert nine
    assert not nine & {place for batch in drawn[0] for place in batch}


def test_windows():
    lm = lm_of("llama")
    cut = windows(lm, lm.prompts([words(*range(5, 15)), words(20, 21), words(30, 31, 32, 33, 34)]), 4)
    assert [len(row) for row in cut.tokens] == [4, 4, 2, 2, 4]
    assert cut.tokens[1][0] == "w9"
    with pytest.raises(TrimtabError, match="give longer texts"):
        windows(lm, lm.prompts([words(5)]), 4)


def test_the_rule_is_torch_s_site_by_site():
    torch.manual_seed(0)
    start = [torch.randn(3, 4, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)]
    gradients = [[torch.randn_like(part) * 10**i for part in start] for i in (-2, 0, 1)]
    ours = [part.clone() for part in start]
    rule = Nesterov(ours, lr=0.1, momentum=0.9, weight_decay=0.01, clip=1.0, steps=4)
    for step, given in enumerate(gradients):
        for some in (slice(0, 2), slice(2, 3)):
            rule.step(step, some, [g[some] for g in given])
    for site in range(3):
        theirs = [torch.nn.Parameter(part[site].clone()) for part in start]
        optimiser = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        for step, given in enumerate(gradients):
            for parameter, gradient in zip(theirs, given, strict=True):
                parameter.grad = gradient[site].clone()
            torch.nn.utils.clip_grad_norm_(theirs, 1.0)
            optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 4)
            optimiser.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine[site], other.data)


def test_checkpoints(tmp_path):
    path, tensors, losses = tmp_path / "c.safetensors", [torch.ones(2), torch.zeros(3)], np.zeros((4, 1))
    kept = Checkpoint(path, {"a": 1}, tensors, losses)
    assert kept.load() == 0
    tensors[0].mul_(5)
    losses[0] = 7
    kept.save(1)
    again = Checkpoint(path, {"a": 1}, [torch.ones(2), torch.ones(3)], np.zeros((4, 1)))
    assert again.load() == 1
    assert (again.tensors[0].tolist(), again.tensors[1].tolist()) == ([5, 5], [0, 0, 0])
    assert again.losses[0, 0] == 7
    with pytest.raises(FileError, match="checkpoint of another training"):
        Checkpoint(path, {"a": 2}, tensors, losses).load()
    kept.remove()
    assert not path.exists()
    nowhere = Checkpoint(None, {}, tensors, losses)
    nowhere.save(1)
    nowhere.remove()
    assert nowhere.load() == 0
