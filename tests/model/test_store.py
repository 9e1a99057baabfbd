"""A harvest on disk: every real token exactly as it was read, cast within its type's bound, picked up where it stopped,
refused where it is damaged or another's, and mapped rather than loaded."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.model.tinies import IDS, RAGGED, SIDES, every_site, fresh, lm_of, off, plain_logits, untouched
from trimtab.errors import FileError, SiteError
from trimtab.model.store import StoredRun
from trimtab.values.edit import Edit, WeightPatch
from trimtab.values.site import Site

DATA = [*RAGGED, [20, 21, 22], [30], [40, 41, 42, 43], [50, 51], [60, 61, 62, 63, 64, 65]]
TOKENS = sum(map(len, DATA))
SITES = ["L0.resid_post", "L1.head"]


def direct(lm, site, ids=DATA, **options):
    """The same activations read in one run, without padding."""
    return lm.run(lm.prompts(ids), site, **options).tokens(site)


class Stopped(Exception):
    """What interrupts a harvest in these tests."""


class Times:
    """A dictionary whose features explain a share of what there is."""

    def __init__(self, share):
        self.share = share

    def encode(self, x):
        return x * self.share

    def decode(self, features):
        return features


class Seen:
    """Progress that remembers its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, *call):
        self.calls.append(call)


def stop_after(rows):
    def progress(done, total):
        if done >= rows:
            raise Stopped

    return progress


class TestRoundTrip:
    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
    def test_bit_exact_in_float32(self, tmp_path, batch_size, side):
        lm = lm_of("llama")
        prompts = lm.prompts(DATA, padding=side)
        with untouched(lm):
            stored = lm.harvest(prompts, SITES, tmp_path / "run", dtype="float32", batch_size=batch_size)
        for site in SITES:
            expected = torch.cat(
                [
                    lm.run(prompts.rows(slice(n, n + batch_size), trim=True), site, logits=False).tokens(site)
                    for n in range(0, len(DATA), batch_size)
                ]
            )
            assert torch.equal(stored[site], expected)
        assert stored.ids.tolist() == [token for row in DATA for token in row]
        assert stored.offsets.tolist() == np.cumsum([0, *map(len, DATA)]).tolist()
        assert len(stored) == TOKENS

    def test_every_site(self, tmp_path):
        lm = lm_of("qwen2_moe")
        sites = [site for site in every_site(lm) if site.name not in ("scores", "pattern", "logits")]
        stored = lm.harvest(DATA, sites, tmp_path, dtype="float32", batch_size=100)
        read = lm.run(lm.prompts(DATA), sites, logits=False)
        for site in sites:
            assert torch.equal(stored[site], read.tokens(site)), site
        assert stored.sites == sites

    @settings(max_examples=10)
    @given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), batch_size=st.integers(1, 4))
    def test_any_rows(self, tmp_path_factory, lengths, batch_size):
        lm = lm_of("llama")
        rows = [[3 + (7 * n + i) % 90 for i in range(length)] for n, length in enumerate(lengths)]
        stored = lm.harvest(rows, "L0.neuron", tmp_path_factory.mktemp("run"), dtype="float32", batch_size=batch_size)
        for n, row in enumerate(rows):
            assert off(stored.row(n, "L0.neuron"), lm.run([row], "L0.neuron")["L0.neuron"][0]) < 1e-5
        parts = list(stored.batches("L0.neuron", 4))
        assert torch.equal(torch.cat(parts), stored["L0.neuron"])
        assert [len(part) for part in parts[:-1]] == [4] * (len(parts) - 1)

    @pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
    def test_cast_to_the_nearest(self, tmp_path, dtype, bits):
        lm = lm_of("llama")
        stored = lm.harvest(DATA, "L1.resid_post", tmp_path, dtype=dtype, batch_size=100)["L1.resid_post"]
        assert stored.dtype == getattr(torch, dtype)
        exact = direct(lm, "L1.resid_post")
        normal = exact.abs() > 1e-4
        relative = ((stored.float() - exact).abs() / exact.abs())[normal]
        assert float(relative.max()) <= 2.0**-bits
        assert torch.equal(stored, exact.to(stored.dtype))

    def test_float16_is_what_is_used_unless_told(self, tmp_path):
        assert lm_of("llama").harvest(IDS, "embed", tmp_path)["embed"].dtype == torch.float16

    def test_units(self, tmp_path):
        lm = lm_of("llama")
        stored = lm.harvest(DATA, ["L1.head", "L0.neuron"], tmp_path, dtype="float32")
        assert torch.equal(stored["L1.head[3,1]"], stored["L1.head"][:, [3, 1]])
        assert torch.equal(stored["L0.neuron[7]"], stored["L0.neuron"][:, [7]])
        assert torch.equal(stored.row(2, "L1.head[2]"), stored["L1.head"][12:15, [2]])

    def test_units_harvested_alone(self, tmp_path):
        lm = lm_of("llama")
        stored = lm.harvest(DATA, ["L1.head[2,0]", "L0.neuron[5]"], tmp_path, dtype="float32", batch_size=100)
        assert torch.equal(stored["L1.head[2,0]"], direct(lm, "L1.head")[:, [2, 0]])
        assert torch.equal(stored["L0.neuron[5]"], direct(lm, "L0.neuron")[:, [5]])

    def test_with_an_edit_on(self, tmp_path):
        lm = lm_of("llama")
        stored = lm.harvest(DATA, "L1.resid_post", tmp_path, dtype="float32", batch_size=100, edit="L0.head[1] scale 0")
        assert torch.equal(stored["L1.resid_post"], direct(lm, "L1.resid_post", edit="L0.head[1] scale 0"))

    def test_what_a_dictionary_misses(self, tmp_path):
        lm = lm_of("llama")
        stored = lm.harvest(
            DATA, "L0.mlp_out.error@d", tmp_path, dtype="float32", batch_size=100, dictionaries={"d": Times(0.5)}
        )
        assert torch.equal(stored["L0.mlp_out.error@d"], direct(lm, "L0.mlp_out") / 2)
        with pytest.raises(SiteError, match="features are harvested by the dictionary tools"):
            lm.harvest(DATA, "L0.mlp_out.feature@d", tmp_path / "f", dictionaries={"d": Times(0.5)})

    def test_texts_and_policies(self, tmp_path):
        lm = lm_of("llama")
        stored = lm.harvest(["w5 w6 w7", "w8"], "embed", tmp_path)
        assert stored.ids.tolist() == [5, 6, 7, 8]
        meta = json.loads((tmp_path / "run.json").read_text())
        assert meta["model_hash"] == lm.hash
        assert meta["data_hash"] == lm.prompts(["w5 w6 w7", "w8"]).digest
        assert (meta["bos"], meta["chat"]) == ("none (tokenizer adds none)", "none")
        assert (meta["rows"], meta["tokens"], meta["sites"]) == (2, 4, {"embed": [32]})

    def test_the_pass_stops_after_the_last_site(self, tmp_path):
        lm = lm_of("llama")
        handle = lm.anatomy.blocks[1].o.register_forward_pre_hook(lambda *_: pytest.fail("layer 1 ran"))
        try:
            lm.harvest(DATA, "L0.resid_post", tmp_path)
        finally:
            handle.remove()

    def test_files_are_safetensors_with_aligned_data(self, tmp_path):
        stored = lm_of("llama").harvest(DATA, SITES, tmp_path, dtype="bfloat16")
        for site in SITES:
            (file,) = (path for path in tmp_path.iterdir() if site in path.name)
            loaded = load_file(file)
            assert list(loaded) == ["values"]
            assert torch.equal(loaded["values"], stored[site])
            header = int.from_bytes(file.read_bytes()[:8], "little") + 8
            assert header % 64 == 0
        assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


class TestRange:
    def test_beyond_float16(self, tmp_path):
        lm = lm_of("llama")
        edit = Edit("L0.resid_post", "set", 70_000.0, where="-1", rows=(1,))
        with (
            untouched(lm),
            pytest.raises(FileError, match=r"L0\.resid_post reaches 7e\+04, beyond float16; harvest it in bfloat16"),
        ):
            lm.harvest(RAGGED, "L0.resid_post", tmp_path, edit=edit)
        assert not (tmp_path / "run.json").exists()
        for dtype in ("bfloat16", "float32"):
            stored = lm.harvest(RAGGED, "L0.resid_post", tmp_path / dtype, dtype=dtype, edit=edit)
            assert stored["L0.resid_post"].isfinite().all()

    def test_an_unknown_type(self, tmp_path):
        with pytest.raises(
            FileError, match=r'dtype "float61" is not one of float32, float16, bfloat16 \(did you mean "float16"'
        ):
            lm_of("llama").harvest(IDS, "embed", tmp_path, dtype="float61")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("site", ["L0.pattern", "L0.scores", "logits", "L0.resid_post@-1", "L0.head@2"])
    def test_what_has_no_fixed_shape(self, tmp_path, site):
        with pytest.raises(SiteError, match="no fixed shape for each token"):
            lm_of("llama").harvest(IDS, ["embed", site], tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestGoingOn:
    def test_after_an_error_between_batches(self, tmp_path):
        lm = lm_of("llama")
        whole = lm.harvest(DATA, SITES, tmp_path / "whole", dtype="float32", batch_size=2)
        for rows in (2, 4):
            folder = tmp_path / str(rows)
            with pytest.raises(Stopped):
                lm.harvest(DATA, SITES, folder, dtype="float32", batch_size=2, progress=stop_after(rows))
            with pytest.raises(FileError, match="it is unfinished: harvest the same data into it again"):
                StoredRun.open(folder)
            seen = Seen()
            stored = lm.harvest(DATA, SITES, folder, dtype="float32", batch_size=2, progress=seen)
            assert seen.calls[0][0] == rows + 2, "rows that were done were computed again"
            assert seen.calls[-1] == (7, 7)
            for site in SITES:
                assert torch.equal(stored[site], whole[site])
            assert torch.equal(stored.ids, whole.ids)

    def test_after_an_error_inside_a_batch(self, tmp_path, monkeypatch):
        lm = lm_of("llama")
        whole = lm.harvest(DATA, SITES, tmp_path / "whole", dtype="float32", batch_size=2)
        count = iter(range(100))

        def sync(_):
            if next(count) == 3:  # between the two files of the second batch
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sync)
            with pytest.raises(Stopped):
                lm.harvest(DATA, SITES, tmp_path / "run", dtype="float32", batch_size=2)
        stored = lm.harvest(DATA, SITES, tmp_path / "run", dtype="float32", batch_size=2)
        for site in SITES:
            assert torch.equal(stored[site], whole[site])

    def test_after_being_killed(self, tmp_path):
        script = f"""
            import os, sys
            sys.path.insert(0, {str(Path.cwd())!r})
            from tests.model.tinies import lm_of
            from tests.model.test_store import DATA, SITES
            kill = lambda done, total: os._exit(9) if done >= 4 else None
            lm_of("llama").harvest(DATA, SITES, {str(tmp_path)!r}, dtype="float32", batch_size=2, progress=kill)
        """
        found = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=300)
        assert found.returncode == 9
        seen, lm = Seen(), lm_of("llama")
        stored = lm.harvest(DATA, SITES, tmp_path, dtype="float32", batch_size=2, progress=seen)
        assert [done for done, _ in seen.calls] == [6, 7]
        for site in SITES:
            assert off(stored[site], direct(lm, site)) < 1e-5

    def test_with_another_batch_size(self, tmp_path):
        lm = lm_of("llama")
        with pytest.raises(Stopped):
            lm.harvest(DATA, SITES, tmp_path, dtype="float32", batch_size=3, progress=stop_after(3))
        stored = lm.harvest(DATA, SITES, tmp_path, dtype="float32", batch_size=2)
        for site in SITES:
            assert off(stored[site], direct(lm, site)) < 1e-5

    def test_a_finished_one_is_opened_and_not_run(self, tmp_path):
        lm = lm_of("llama")
        first = lm.harvest(DATA, SITES, tmp_path, dtype="float32")
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        handle = lm.hf.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
        try:
            again = lm.harvest(DATA, SITES, tmp_path, dtype="float32")
        finally:
            handle.remove()
        assert torch.equal(again["L1.head"], first["L1.head"])
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before

    def test_an_unfinished_one_of_other_data_is_not_mixed_in(self, tmp_path):
        """It is refused, or begun anew; never are rows of two data sets in one folder."""
        lm = lm_of("llama")
        with pytest.raises(Stopped):
            lm.harvest(DATA, SITES, tmp_path, dtype="float32", batch_size=2, progress=stop_after(4))
        other = [row[::-1] for row in DATA]
        try:
            stored = lm.harvest(other, SITES, tmp_path, dtype="float32", batch_size=100)
        except FileError:
            return
        for site in SITES:
            assert torch.equal(stored[site], direct(lm, site, other))
        assert stored.ids.tolist() == [token for row in other for token in row]


class TestAnother:
    @pytest.mark.parametrize(
        "change",
        [
            {"texts": [row[::-1] for row in DATA]},
            {"sites": ["L0.resid_post"]},
            {"dtype": "bfloat16"},
            {"edit": "L0.head[1] scale 0"},
            {"lm": "other weights"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_harvest_in_the_folder_is_refused_and_left(self, tmp_path, change):
        lm = lm_of("llama")
        stored = lm.harvest(DATA, SITES, tmp_path, dtype="float32")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        options = {"texts": DATA, "sites": SITES, "dtype": "float32", "folder": tmp_path} | change
        if options.pop("lm", None):
            lm = fresh("llama", check=False)
            with torch.no_grad():
                lm.hf.model.layers[0].mlp.up_proj.weight[0, 0] += 1
        with pytest.raises(
            FileError, match="holds a harvest of other data, sites or model; choose another folder or remove it"
        ):
            lm.harvest(**options)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert len(stored) == TOKENS

    def test_with_dictionaries_or_runs_a_folder_that_is_taken_is_refused(self, tmp_path):
        """Two dictionaries of one name cannot be told apart: not even the harvest that was made with this one."""
        lm = lm_of("llama")
        error = {"sites": "L0.mlp_out.error@d", "dictionaries": {"d": Times(0.5)}}
        patch = {"sites": "L1.resid_post", "edit": "L0.resid_post@0 set from o"}
        patch["runs"] = {"o": lm.run([DATA[0]], "L0.resid_post")}
        for name, options in (("error", error), ("patch", patch)):
            folder = tmp_path / name
            stored = lm.harvest(DATA, folder=folder, dtype="float32", batch_size=1, **options)
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            for again in (options, options | ({"dictionaries": {"d": Times(0.25)}} if name == "error" else {})):
                with pytest.raises(FileError, match="uses runs or dictionaries, which cannot be told from the other"):
                    lm.harvest(DATA, folder=folder, dtype="float32", batch_size=1, **again)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
            assert len(stored) == TOKENS
        lm.harvest(DATA, SITES, tmp_path / "plain")
        inner = {"d": Times(0.5)}
        with (
            lm.edited("L0.mlp_out.error@d scale 0", dictionaries=inner),
            pytest.raises(FileError, match="uses runs or dictionaries"),
        ):
            lm.harvest(DATA, SITES, tmp_path / "plain")

    def test_with_dictionaries_an_interrupted_one_is_begun_anew(self, tmp_path):
        lm, site = lm_of("llama"), "L0.mlp_out.error@d"
        options = {"dtype": "float32", "batch_size": 1}
        with pytest.raises(Stopped):
            lm.harvest(DATA, site, tmp_path, dictionaries={"d": Times(0.5)}, progress=stop_after(3), **options)
        stored = lm.harvest(DATA, site, tmp_path, dictionaries={"d": Times(0.25)}, **options)
        assert off(stored[site], 0.75 * direct(lm, "L0.mlp_out")) < 1e-5

    @pytest.mark.parametrize("edit", ["L0.head scale 0", WeightPatch("model.norm.weight", delta=np.ones(32))], ids=str)
    def test_what_is_on_the_model_counts(self, tmp_path, edit):
        """Inside `lm.edited` the activations are others: the plain harvest is not given out for them."""
        lm = fresh("llama", check=False)
        plain = lm.harvest(DATA, "final", tmp_path, dtype="float32", batch_size=100)["final"].clone()
        expected = direct(lm, "final", edit=edit)
        assert off(expected, plain) > 1e-3
        with lm.edited(edit):
            try:
                stored = lm.harvest(DATA, "final", tmp_path, dtype="float32", batch_size=100)
            except FileError:
                stored = lm.harvest(DATA, "final", tmp_path / "edited", dtype="float32", batch_size=100)
        assert off(stored["final"], expected) < 1e-5
        assert json.loads((tmp_path / "run.json").read_text()) != json.loads((stored.folder / "run.json").read_text())


class TestDamaged:
    @pytest.fixture
    def folder(self, tmp_path):
        lm_of("llama").harvest(DATA, SITES, tmp_path / "run")
        return tmp_path / "run"

    def test_no_folder_and_no_harvest(self, tmp_path):
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(FileError, match=r"is not a stored run \(no run\.json\)"):
                StoredRun.open(folder)

    @pytest.mark.parametrize("damage", ["truncated", "grown", "missing"])
    def test_values(self, folder, damage):
        file = folder / "L1.head.safetensors"
        if damage == "missing":
            file.unlink()
        else:
            with file.open("r+b") as opened:
                opened.truncate(file.stat().st_size + (5 if damage == "grown" else -5))
        with pytest.raises(FileError, match=r"L1\.head\.safetensors is missing or truncated \(expected \d+ bytes\)"):
            StoredRun.open(folder)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "{}",
            '{"version": 1, "sites": {"embed": [32]}}',
            '{"version": 1, "sites": [3]}',
            '{"sites": {"embed": 3}}',
        ],
    )
    def test_description(self, folder, text):
        (folder / "run.json").write_text(text)
        with pytest.raises(FileError, match=r"run\.json"):
            StoredRun.open(folder)

    def test_newer_version(self, folder):
        meta = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(meta | {"version": 2}))
        with pytest.raises(FileError, match="has version 2; this release reads version 1"):
            StoredRun.open(folder)

    @pytest.mark.parametrize("damage", [b"", b"nothing of the kind", None])
    def test_tokens(self, folder, damage):
        file = folder / "tokens.safetensors"
        file.unlink() if damage is None else file.write_bytes(damage)
        with pytest.raises(FileError, match=r"tokens\.safetensors"):
            len(StoredRun.open(folder).ids)

    def test_a_folder_that_was_moved(self, folder, tmp_path):
        shutil.move(folder, tmp_path / "elsewhere")
        assert len(StoredRun.open(tmp_path / "elsewhere")["L1.head"]) == TOKENS

    def test_progress_that_cannot_be_read_begins_anew(self, tmp_path):
        lm = lm_of("llama")
        with pytest.raises(Stopped):
            lm.harvest(DATA, SITES, tmp_path, dtype="float32", batch_size=2, progress=stop_after(4))
        (tmp_path / "progress.json").write_text("{")
        stored = lm.harvest(DATA, SITES, tmp_path, dtype="float32", batch_size=100)
        assert torch.equal(stored["L1.head"], direct(lm, "L1.head"))


class TestAddresses:
    @pytest.fixture
    def stored(self, tmp_path):
        return lm_of("llama").harvest(DATA, SITES, tmp_path, dtype="float32")

    def test_what_was_not_stored(self, stored):
        with pytest.raises(
            SiteError, match=r'"L0\.resid_pre" is not in this stored run \(did you mean "L0\.resid_post"\?\); stored:'
        ):
            stored["L0.resid_pre"]

    def test_a_unit_that_is_not_there(self, stored):
        with pytest.raises(SiteError, match=r"out of range"):
            stored["L1.head[4]"]

    def test_positions_are_of_rows_and_not_of_all_tokens(self, stored):
        """A site with a position means one token of each row: it is that, or it is refused."""
        try:
            values = stored["L0.resid_post@-1"]
        except SiteError:
            return
        assert torch.equal(values, stored["L0.resid_post"][stored.offsets[1:] - 1])

    def test_rows(self, stored):
        for row, ids in enumerate(DATA):
            assert stored.row(row, "L1.head").shape == (len(ids), 4, 8)
        for row in (7, -8):
            with pytest.raises((IndexError, SiteError, ValueError)):
                stored.row(row, "L1.head")
        try:
            last = stored.row(-1, "L1.head")
        except (IndexError, SiteError, ValueError):
            return
        assert torch.equal(last, stored.row(6, "L1.head"))


def sparse(stored, tokens):
    """The same harvest as if of so many tokens: a file with holes, which takes no space."""
    from trimtab.model.store import _file, _header, _header_bytes

    meta = dict(stored.meta) | {"tokens": tokens, "sites": {"L0.resid_post": [32]}}
    shape = (tokens, 32)
    with (stored.folder / _file("L0.resid_post")).open("wb") as file:
        file.write(_header_bytes(meta["dtype"], shape))
        file.truncate(_header(meta["dtype"], shape)[1])
    (stored.folder / "run.json").write_text(json.dumps(meta))
    return StoredRun.open(stored.folder)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from /proc")
class TestMapped:
    def resident(self):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def test_reading_a_part_loads_that_part(self, tmp_path):
        size = 1 << 30
        stored = sparse(lm_of("llama").harvest(DATA, SITES, tmp_path), size // 64)
        before = self.resident()
        values = stored["L0.resid_post"]
        assert values.shape == (size // 64, 32)
        assert not values[1_000_000:1_000_100].any()
        assert not stored["L0.resid_post"][-5:].any()
        assert self.resident() - before < 0.05 * size

    def test_larger_than_memory(self, tmp_path):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        stored = lm_of("llama").harvest(DATA, SITES, tmp_path)
        try:
            stored = sparse(stored, math.ceil(4 * memory / 64))
        except OSError:
            pytest.skip("this file system takes no file that large")
        assert not stored["L0.resid_post"][-100:].any()

    def test_writing_into_a_slice_does_not_reach_the_file(self, tmp_path):
        stored = lm_of("llama").harvest(DATA, SITES, tmp_path, dtype="float32")
        kept = stored["L1.head"].clone()
        with contextlib.suppress(RuntimeError):
            stored["L1.head"][:3] += 1
        assert torch.equal(StoredRun.open(tmp_path)["L1.head"], kept)


def test_harvest_leaves_the_model_as_it_was(tmp_path):
    lm = lm_of("gemma2")
    prompts = lm.prompts(DATA)
    before = plain_logits(lm, prompts)
    with untouched(lm):
        lm.harvest(prompts, ["L*.resid_mid", Site("attn_out", 1)], tmp_path, edit="L0.head[1] scale 0")
    assert torch.equal(plain_logits(lm, prompts), before)
