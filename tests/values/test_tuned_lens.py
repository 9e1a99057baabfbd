"""TunedLens: shapes, files, and what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import FileError, SiteError, TrimtabError
from trimtab.values.tuned_lens import TunedLens

SITES = ("L0.resid_post", "L1.resid_post")


def test_it_is_read_back_and_an_altered_file_is_refused(tmp_path):
    lens = TunedLens.identity(SITES, 3, model="m", model_hash="h").with_(
        bias=np.arange(6.0).reshape(2, 3),
        before=[3.0, 1.0],
        after=[2.0, 0.5],
        losses=[[1.0, 2.0]],
        trained={"steps": 1},
    )
    lens.save(tmp_path / "lens.safetensors")
    back = TunedLens.load(tmp_path / "lens.safetensors")
    assert back == lens
    assert back.trained == {"steps": 1}
    np.testing.assert_array_equal(back.bias, lens.bias)
    assert back.to_frame()["tuned_lens"].tolist() == [2.0, 0.5]
    assert "mean held-out KL 2 to 1.25 nats" in repr(back)
    data = (tmp_path / "lens.safetensors").read_bytes()
    (tmp_path / "lens.safetensors").write_bytes(data[:-1] + b"\x01")
    with pytest.raises(FileError, match="altered"):
        TunedLens.load(tmp_path / "lens.safetensors")


def test_rows():
    lens = TunedLens.identity(SITES, 3)
    assert lens.row("L1.resid_post@-1") == 1
    assert lens.d_model == 3
    assert np.isnan(lens.after).all()
    with pytest.raises(SiteError, match=r'"L2.resid_post" has no translator in this lens.*train a lens with that site'):
        lens.row("L2.resid_post")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": np.zeros((1, 3))}, r"weight of this tuned lens must have shape|bias .* shape \(2, 3\), got \(1, 3\)"),
        ({"weight": np.full((2, 3, 3), np.nan)}, "not finite: train it with a smaller lr"),
        ({"sites": ("L0.resid_post",) * 2}, "each of them once"),
        ({"after": np.zeros(3)}, r"after of this tuned lens must have shape \(2,\), got \(3,\)"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(TrimtabError, match=message):
        TunedLens.identity(SITES, 3).with_(**changes)
