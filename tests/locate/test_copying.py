"""Copy scores against logits worked out one by one, and on heads set by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import twins
from tests.locate.wired import wired
from tests.model.tinies import lm_of
from trimtab.errors import TrimtabError
from trimtab.locate import copying
from trimtab.locate.circuits_qk_ov import Circuits
from trimtab.locate.copying import copying_score, ov_copying_score
from trimtab.tasks.measure import sides
from trimtab.tasks.repeated import RepeatedTokens
from trimtab.values.edit import Edit

FAMILIES = ["llama", "gpt2", "gemma2", "falcon"]


@pytest.mark.parametrize("source", ["first", "run"])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_logits_worked_out_one_by_one(family, source):
    lm, task = lm_of(family), twins()
    circuits = Circuits(lm)
    prompts = sides(lm, task).positive
    group = lm.anatomy.n_heads // lm.anatomy.n_kv
    z = np.zeros((len(task), 2, 4))
    top = np.zeros_like(z)
    for row in range(len(task)):
        one = prompts.rows([row], trim=True)
        ids = one.ids[0].tolist()
        for layer in (0, 1):
            name = f"L{layer}.v"
            x = lm.run(one, "L0.resid_post", logits=False)["L0.resid_post"][0]
            edits = [Edit(f"L{layer}.resid_pre@{p}", "set", x[p]) for p in range(len(ids))]
            v = lm.run(one, name, edits if source == "first" else None, logits=False)[name][0]
            for head in range(4):
                o = circuits.layer(layer).o[head]
                logits = (v[1:, head // group].to(o) @ o @ circuits.unembedding.T).double()
                own = logits[torch.arange(len(ids) - 1), ids[1:]]
                z[row, layer, head] = float(((own - logits.mean(1)) / logits.std(1, correction=0)).mean())
                top[row, layer, head] = float(((logits > own[:, None]).sum(1) < 10).double().mean())
    for size in (2, 16):
        got = copying_score(lm, task, source=source, batch_size=size)
        np.testing.assert_allclose(got.array[..., 0], z, atol=1e-4)
    np.testing.assert_allclose(copying_score(lm, task, source=source, statistic="top", k=10).array[..., 0], top)


def test_heads_set_by_hand_copy_and_suppress():
    lm, given = wired(), RepeatedTokens(length=10, sequences=3)
    z = copying_score(lm, given).mean()[..., 0]
    assert z[1, 0] > 3
    np.testing.assert_allclose(z[1, 1], -z[1, 0])
    top, bottom = (copying_score(lm, given, statistic=s, k=1).mean()[1, :, 0].tolist() for s in ("top", "bottom"))
    assert top == [1, 0]
    assert bottom == [0, 1]
    scores = ov_copying_score(lm, sites="L1.head")
    np.testing.assert_allclose(scores.array.ravel(), [1, -1], atol=1e-6)
    assert len(scores) == 1


def test_candidates_equal_the_map():
    lm = lm_of("llama")
    given = RepeatedTokens(length=5, sequences=2)
    for method in (copying_score, ov_copying_score):
        grid, alone = method(lm, given), method(lm, given, ["L1.head[3]"])
        np.testing.assert_allclose(alone.array[:, 0], grid.array[:, 1, 3, 0], atol=1e-6)


def test_only_the_heads_that_are_asked_for_are_ranked(monkeypatch):
    lm, given, sizes = lm_of("llama"), RepeatedTokens(length=5, sequences=2), []
    whole = copying_score(lm, given, statistic="top", k=20)
    plain = torch.Tensor.topk

    def counted(x, *args, **options):
        sizes.append(x.shape)
        return plain(x, *args, **options)

    monkeypatch.setattr(torch.Tensor, "topk", counted)
    monkeypatch.setattr(copying, "AT_ONCE", 4 * lm.anatomy.vocab)
    some = copying_score(lm, given, ["L0.head[1]", "L1.head[3]"], statistic="top", k=20)
    np.testing.assert_array_equal(some.array, whole.array[:, [0, 1], [1, 3], 0])
    assert {rows for rows, _ in sizes} <= {1, 2, 3, 4}
    tokens = 2 * (RepeatedTokens(length=5).prompts(lm).width - 1)
    assert sum(rows for rows, _ in sizes) == 2 * tokens


def test_unknown_options_are_refused():
    with pytest.raises(TrimtabError, match='did you mean "top"'):
        copying_score(lm_of("llama"), twins(), statistic="topp")
    with pytest.raises(TrimtabError, match="source"):
        copying_score(lm_of("llama"), twins(), source="last")
