"""Edits of sparse features of a site, and of what the dictionary misses; the rest of the site is left as it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.model.compiling import D, Features, apply, normal
from tests.model.tinies import IDS, OTHER, close, exact, off
from trimtab.errors import EditError, SiteError
from trimtab.values.edit import Bounds, Edit, Noise, Ref


class TestDictionaries:
    """Edits of sparse features of a site, and of what the dictionary misses; the rest of the site is left as it is."""

    dictionary = Features(normal(0, D, 50) / D**0.5)
    site = "L0.resid_post"

    def run(self, op, value=None, view="feature", index="", where="all", **options):
        lm = exact("llama")
        edit = Edit(f"{self.site}.{view}@d{index}", op, value, where=where, **options)
        return lm.run(IDS, self.site, edit, dictionaries={"d": self.dictionary}, runs={"o": self.features(OTHER)})

    def features(self, ids):
        sites = [self.site, f"{self.site}.feature@d", f"{self.site}.error@d"]
        return exact("llama").run(ids, sites, dictionaries={"d": self.dictionary})

    @property
    def x(self):
        return exact("llama").run(IDS, self.site)[self.site]

    def decoded(self, features):
        return self.dictionary.decode(features)

    def test_nothing_changed_is_an_exact_no_op(self):
        x = self.x
        off_everywhere = int((self.dictionary.encode(x) == 0).all(1).all(0).int().argmax())
        silent = (self.dictionary.encode(x) == 0)[..., off_everywhere]
        run = self.run("scale", 0.0, index=f"[{off_everywhere}]")
        assert torch.equal(run[self.site][silent], x[silent])
        for op, value in (("scale", 1.0), ("add", 0.0), ("clamp", Bounds(0.0, None))):
            run = self.run(op, value)
            assert torch.equal(run[self.site], x)
            assert torch.equal(run.logits, exact("llama").run(IDS).logits)

    @pytest.mark.parametrize("index", ["", "[7]", "[3,40]", "[5,6,7]"])
    def test_features(self, index):
        chosen = [int(i) for i in index.strip("[]").split(",")] if index else slice(None)
        x = self.x
        features = self.dictionary.encode(x)
        for op, value, edited in (
            ("set", 2.0, lambda f: f * 0 + 2),
            ("scale", 0.0, lambda f: f * 0),
            ("add", 1.5, lambda f: f + 1.5),
        ):
            new = features.clone()
            new[:, :, chosen] = edited(new[:, :, chosen])
            expected = x + self.decoded(new) - self.decoded(features)
            lm = exact("llama")
            close(lm, self.run(op, value, index=index)[self.site], expected)
            half = x + 0.5 * (expected - x)
            close(lm, self.run(op, value, index=index, strength=0.5)[self.site], half)
            at = x.clone()
            at[:, 2] = expected[:, 2]
            close(lm, self.run(op, value, index=index, where="2")[self.site], at)

    def test_arrays_are_of_features(self):
        x, lm = self.x, exact("llama")
        features = self.dictionary.encode(x)
        value = normal(4, 50)
        close(
            lm, self.run("set", value)[self.site], x + self.decoded(value.expand_as(features)) - self.decoded(features)
        )
        close(lm, self.run("add", value)[self.site], x + self.decoded(value.expand_as(features)))
        new = features.clone()
        new[:, :, [3, 40]] = value[:2]
        close(lm, self.run("set", value[:2], index="[3,40]")[self.site], x + self.decoded(new) - self.decoded(features))

    def test_noise_is_of_features(self):
        x = self.x
        run = self.run("noise", Noise(1.0, 3))
        assert off(run[self.site], x) > 1e-3
        assert torch.equal(self.run("noise", Noise(1.0, 3))[self.site], run[self.site])

    def test_an_array_of_another_number_of_features(self, unchecked):
        with pytest.raises(EditError, match=r"\(50\).*got \(32\)"):
            self.run("set", np.ones(32))

    def test_from_another_run(self):
        x, other, lm = self.x, self.features(OTHER), exact("llama")
        features = self.dictionary.encode(x)
        new = features.clone()
        new[:, :, 7] = other[f"{self.site}.feature@d"][:, :, 7]
        close(lm, self.run("set", Ref("o"), index="[7]")[self.site], x + self.decoded(new) - self.decoded(features))
        whole = x + self.decoded(other[f"{self.site}.feature@d"]) - self.decoded(features)
        close(lm, self.run("set", Ref("o"))[self.site], whole)

    def test_error(self):
        x, lm = self.x, exact("llama")
        part = self.decoded(self.dictionary.encode(x))
        close(lm, self.run("scale", 0.0, view="error")[self.site], part)
        close(lm, self.run("scale", 0.5, view="error")[self.site], part + 0.5 * (x - part))
        missed = self.features(OTHER)[f"{self.site}.error@d"]
        close(lm, self.run("set", Ref("o"), view="error")[self.site], part + missed)

    def test_one_channel_of_the_error(self):
        x, lm = self.x, exact("llama")
        expected = x.clone()
        expected[:, :, 3] = self.decoded(self.dictionary.encode(x))[:, :, 3]
        close(lm, self.run("scale", 0.0, view="error", index="[3]")[self.site], expected)

    @pytest.mark.parametrize(
        ("view", "index", "unit", "last"), [("feature", 50, "feature", 49), ("error", 32, "channel", 31)]
    )
    def test_one_that_does_not_exist(self, view, index, unit, last):
        with pytest.raises(
            (SiteError, EditError), match=f"{unit} {index} is out of range; there are {unit}s 0 to {last}"
        ):
            self.run("set", 3.0, view=view, index=f"[{index}]")

    def test_a_dictionary_that_was_not_given(self):
        said = r'no dictionary named "e" was given \(dictionaries: d\)'
        for value in (0.0, np.ones(50), np.ones((2, 50)), np.ones((2, 7, 50))):
            edit = Edit("L0.resid_post.feature@e", "set", value)
            with pytest.raises(EditError, match=said):
                exact("llama").run(IDS, edit=edit, dictionaries={"d": self.dictionary})

    def test_infinities_stay_where_no_feature_changes(self):
        x = normal(0, 2, 7, D)
        x[0, 0, 0] = x[1, 3, 5] = math.inf
        edit = Edit(f"{self.site}.feature@d[7]", "set", 2.0, where="2")
        with np.errstate(all="ignore"):
            y = apply(edit, x, dictionaries={"d": self.dictionary})
        kept = [0, 1, 3, 4, 5, 6]
        assert torch.equal(y[:, kept], x[:, kept])
        assert torch.isfinite(y[:, 2]).all()
