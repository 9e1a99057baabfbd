"""The engine against plain forward passes of the same model: `python -m benchmarks.engine [--json] [--only NAME …]`.

The bundled model on the CPU in float32; an indirect-object prompt of 14 tokens and a copy of it that differs in one. A
plain pass is `lm.hf` called with ids, mask and position ids. Sweeps are timed whole: both runs, planning, and every
cell.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import trimtab
from benchmarks.measure import Case, arguments, faster, overhead, paired, present, say, seconds
from benchmarks.peers import peer_cases
from trimtab.model.counterfactual import Counterfactuals
from trimtab.model.lm import LM
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout, logit_diff
from trimtab.values.edit import Edit, Ref

CLEAN = "When Mary and John went to the store, John gave a drink to"
LATE = "When Mary and John went to the store, Mary gave a drink to"
EARLY = "When Anna and John went to the store, John gave a drink to"


@dataclass
class Bench:
    """The model, the prompts and the readout that every case uses."""

    lm: LM
    rounds: float
    clean: Prompts = field(init=False)
    late: Prompts = field(init=False)
    early: Prompts = field(init=False)
    readout: Readout = field(init=False)

    def __post_init__(self) -> None:
        lm = self.lm
        self.clean, self.late, self.early = (lm.prompts(text) for text in (CLEAN, LATE, EARLY))
        ids = [lm.token(name) for name in (" Mary", " John")]
        self.readout = logit_diff(ids[:1], ids[1:])
        assert self.clean.width == self.late.width == self.early.width == 14
        assert self.clean.differ(self.late).nonzero()[:, 1].tolist() == [9]
        assert self.clean.differ(self.early).nonzero()[:, 1].tolist() == [1]

    def plain(self, prompts: Prompts | None = None) -> torch.Tensor:
        with torch.no_grad():
            return self.lm.call(prompts or self.late).logits

    def n(self, rounds: int) -> int:
        return max(3, int(rounds * self.rounds))

    # Sweeps
    # --------------------------------------------------------------------------------------------------------------

    def patches(self, corrupt: Prompts, site: str, units: range | None, exact: str = "fast") -> Counterfactuals:
        """Denoising: every cell sets one clean activation in the corrupt run."""
        clean = self.lm.run(self.clean, f"L*.{site}", logits=False)
        layers = range(self.lm.anatomy.n_layers)
        if units is None:
            cells = [f"L{layer}.{site}@{p}" for layer in layers for p in range(corrupt.width)]
        else:
            cells = [f"L{layer}.{site}[{unit}]" for layer in layers for unit in units]
        edits = [Edit(cell, "set", Ref("clean")) for cell in cells]
        return self.lm.counterfactuals(corrupt, edits, self.readout, runs={"clean": clean}, exact=exact)

    def zeros(self, exact: str = "fast") -> Counterfactuals:
        a = self.lm.anatomy
        edits = [Edit(f"L{layer}.head[{h}]", "set", 0.0) for layer in range(a.n_layers) for h in range(a.n_heads)]
        return self.lm.counterfactuals(self.clean, edits, self.readout, exact=exact)


def sweep_case(
    bench: Bench, name: str, target: float, sweep: Callable[..., Counterfactuals], rounds: int
) -> list[Case]:
    """Times faster than one plain pass for each cell, and the largest difference from the naive loop."""
    say(name)
    passes = 8
    fast = sweep()
    cells = fast.values.numel()

    def plain() -> None:
        for _ in range(passes):
            bench.plain()

    ratio = paired(plain, sweep, bench.n(rounds), times=cells / passes)
    naive = sweep(exact="naive")
    scale = float(bench.plain().abs().max())
    error = float((fast.values - naive.values).abs().max()) / scale
    note = f"{cells} cells, {int(fast.computed.sum())} computed"
    equal = Case(
        f"{name}_equal", error, "largest difference from the naive loop / largest logit", 1e-5, error <= 1e-5, note=note
    )
    return [faster(name, ratio, target, note), equal]


# Overheads
# -----------------------------------------------------------------------------------------------------------------


def run_overhead(bench: Bench) -> Case:
    ratio = paired(lambda: bench.lm.run(bench.clean), lambda: bench.plain(bench.clean), bench.n(150), warm=5)
    return overhead("run_overhead", ratio, 0.02, "lm.run without reads or edits over lm.hf", upper=True)


def read_all(bench: Bench) -> Case:
    names = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head")
    sites = [f"L*.{name}" for name in names]
    ratio = paired(lambda: bench.lm.run(bench.clean, sites), lambda: bench.plain(bench.clean), bench.n(60), warm=3)
    return overhead("read_all", ratio, 0.10, f"{30 * len(names)} tensors read: {', '.join(names)}")


def generate_one_vector(bench: Bench) -> Case:
    lm, new = bench.lm, 24
    vector = torch.randn(lm.anatomy.d_model, generator=torch.Generator().manual_seed(0)).numpy() * 1e-3
    edit = Edit("L15.resid_post", "add", vector)
    ratio = paired(
        lambda: lm.generate(bench.clean, edit, max_new_tokens=new),
        lambda: lm.generate(bench.clean, max_new_tokens=new),
        bench.n(40),
    )
    ids = bench.clean
    own = paired(
        lambda: lm.generate(ids, edit, max_new_tokens=new),
        lambda: lm.hf.generate(
            input_ids=ids.ids, attention_mask=ids.mask, max_new_tokens=new, do_sample=False, pad_token_id=ids.pad_id
        ),
        bench.n(10),
    )
    note = f"{new} tokens, one added vector over the same loop without; over lm.hf.generate {own.value - 1:+.1%}"
    return overhead("generate_one_vector", ratio, 0.03, note, upper=True)


def gradients_heads_neurons(bench: Bench) -> Case:
    lm = bench.lm
    batch = lm.prompts([CLEAN, LATE, EARLY, CLEAN])
    ids = [lm.token(name) for name in (" Mary", " John")]
    readout = logit_diff([ids[0]] * 4, [ids[1]] * 4)

    def plain() -> None:
        for parameter in lm.hf.parameters():
            parameter.requires_grad_(False)
        with torch.enable_grad():
            embeds = lm.anatomy.embedding(batch.ids).requires_grad_()
            out = lm.hf(
                inputs_embeds=embeds, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
            ).logits[:, -1]
            torch.autograd.grad((out[:, ids[0]] - out[:, ids[1]]).sum(), embeds)

    sites = ["L*.head", "L*.neuron"]
    ratio = paired(lambda: lm.gradients(batch, readout, sites), plain, bench.n(30), warm=2)
    return overhead("gradients_heads_neurons", ratio, 0.10, "4 prompts; over forward + backward to the embeddings")


# Length, cells, memory
# -------------------------------------------------------------------------------------------------------


def long_prompt(bench: Bench, length: int) -> Prompts:
    """Arbitrary tokens: cost does not depend on what they say."""
    generator = torch.Generator().manual_seed(length)
    return bench.lm.prompts(torch.randint(100, 40000, (1, length), generator=generator))


def edits_at(bench: Bench, columns: list[int], layers: int) -> list[Edit]:
    return [Edit(f"L{layer}.resid_pre@{c}", "scale", 0.5) for layer in range(layers) for c in columns]


def growth(bench: Bench) -> list[Case]:
    """Cost of a sweep in plain passes of its own prompt, by prompt length and by number of cells."""
    cases = []
    n = bench.lm.anatomy.n_layers
    for length in (14, 64, 256, 1024):
        say(f"growth_length_{length}")
        prompts = long_prompt(bench, length)
        edits = edits_at(bench, list(range(length - 8, length)), n)
        bottom = lambda p=prompts: bench.plain(p)  # noqa: E731
        top = lambda p=prompts, e=edits: bench.lm.counterfactuals(p, e, bench.readout)  # noqa: E731
        ratio = paired(top, bottom, 3)
        note = f"{len(edits)} cells at the last 8 positions"
        cases.append(
            Case(f"growth_length_{length}", ratio.value, "plain passes", low=ratio.low, high=ratio.high, note=note)
        )
    for layers in (1, 5, 15, 30):
        edits = edits_at(bench, list(range(14)), layers)
        say(f"growth_cells_{len(edits)}")
        top = lambda e=edits: bench.lm.counterfactuals(bench.clean, e, bench.readout)  # noqa: E731
        ratio = paired(top, bench.plain, 3)
        note = f"layers 0 to {layers - 1}, all 14 positions"
        cases.append(
            Case(f"growth_cells_{len(edits)}", ratio.value, "plain passes", low=ratio.low, high=ratio.high, note=note)
        )
    return cases


def sweep_memory_1024(bench: Bench) -> Case:
    """Peak memory beyond the model while sweeping 30 layers × 8 spread positions of 1,024 tokens."""
    prompts = long_prompt(bench, 1024)
    columns = list(range(0, 1024, 128))
    edits = edits_at(bench, columns, bench.lm.anatomy.n_layers)
    gc.collect()
    if not reset_peak():
        return Case("sweep_memory_1024", float("nan"), "GB beyond the model", 1.5, None, note="no /proc on this system")
    before = memory("VmRSS")
    took = seconds(lambda: bench.lm.counterfactuals(prompts, edits, bench.readout))
    peak = (memory("VmHWM") - before) / 1e9
    note = f"{len(edits)} cells at positions 0, 128, …, 896, in {took:.0f} s"
    return Case("sweep_memory_1024", peak, "GB beyond the model", 1.5, peak <= 1.5, note=note)


def reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(key: str) -> float:
    """Bytes of this process, from the kernel: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return float(line.split()[1]) * 1024
    raise OSError(f"no {key} in /proc/self/status")


def main() -> int:
    options = arguments(__doc__ or "")
    bench = Bench(trimtab.load("smollm2-135m-instruct"), options.rounds)
    heads = range(bench.lm.anatomy.n_heads)
    jobs: dict[str, Callable[[], list[Case]]] = {
        "resid_sweep_late": lambda: sweep_case(
            bench, "resid_sweep_late", 40, lambda exact="fast": bench.patches(bench.late, "resid_pre", None, exact), 9
        ),
        "resid_sweep_early": lambda: sweep_case(
            bench, "resid_sweep_early", 10, lambda exact="fast": bench.patches(bench.early, "resid_pre", None, exact), 7
        ),
        "head_patch_late": lambda: sweep_case(
            bench, "head_patch_late", 15, lambda exact="fast": bench.patches(bench.late, "head", heads, exact), 9
        ),
        "head_zero": lambda: sweep_case(bench, "head_zero", 6.5, bench.zeros, 7),
        "run_overhead": lambda: [run_overhead(bench)],
        "read_all": lambda: [read_all(bench)],
        "generate_one_vector": lambda: [generate_one_vector(bench)],
        "gradients_heads_neurons": lambda: [gradients_heads_neurons(bench)],
        "growth": lambda: growth(bench),
        "sweep_memory_1024": lambda: [sweep_memory_1024(bench)],
        "peers": lambda: peer_cases(bench),
    }
    cases = []
    for name, job in jobs.items():
        if options.only is None or name in options.only:
            say(name)
            cases.extend(job())
    about = f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of paired rounds, 95 % intervals"
    return present("The engine against plain forward passes", cases, options.json, about)


if __name__ == "__main__":
    sys.exit(main())
