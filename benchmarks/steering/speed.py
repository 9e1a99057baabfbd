"""What steering costs on the CPU: generation with vectors on, making vectors, and a grid of layers and coefficients.

Overheads are measured on greedy generation of the same tokens (the added vectors are too small to change one). A plain
pass is the Hugging Face model called with ids, mask and position ids, with a hook of its own where it is steered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import trimtab
from benchmarks.measure import Case, faster, overhead, paired, say
from trimtab.evaluate.effect import ROWS, effects
from trimtab.model.lm import LM
from trimtab.steer.vectors import difference_of_means
from trimtab.tasks.builtin import task
from trimtab.tasks.example import Contrast
from trimtab.tasks.fit import fit
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure, measure, sides
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention
from trimtab.values.site import Site

MODEL = "smollm2-135m-instruct"
OPENINGS = (
    "The weather in the mountains was",
    "When the train arrived at the station, the",
    "My neighbour told me a long story about",
    "The recipe asks for two cups of flour, and",
)
LEADS = ("", "Last week a friend wrote this: ", "As I said before, ", "To sum up: ", "Here is what I noted down. ")
SMALL = 1e-3
"""The norm of a vector that changes no token."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured: tokens and rounds of generation, pairs and rounds of extraction, the grid."""

    tokens: int = 24
    rounds: int = 40
    pairs: int = 500
    passes: int = 3
    examples: int = 64
    layers: int = 10
    coefficients: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 3.0)
    timed: int = 4
    grids: int = 3


QUICK = Sizes(tokens=4, rounds=3, pairs=12, passes=3, examples=6, layers=3, coefficients=(-1.0, 1.0), timed=2)


def cases(quick: bool, only: Sequence[str] | None = None) -> list[Case]:
    """The cases asked for, by default all."""
    lm, sizes = trimtab.load(MODEL), QUICK if quick else Sizes()
    found: list[Case] = []
    for name, job in jobs(lm, sizes).items():
        if only is None or name in only:
            say(name)
            found += job()
    return found


def jobs(lm: LM, sizes: Sizes, of: Task | None = None) -> dict[str, Callable[[], list[Case]]]:
    """Each case by its name; `of` is the task of the grid and of the pairs, by default sentiment."""

    def asked() -> Task:
        return fit(lm, task("sentiment") if of is None else of).task

    return {
        "one_vector": lambda: [generation(lm, sizes, "one_vector", [lm.anatomy.n_layers // 2], 0.03)],
        "every_layer": lambda: [generation(lm, sizes, "every_layer", range(lm.anatomy.n_layers), 0.08)],
        "extract": lambda: extraction(lm, sizes, many(asked(), sizes.pairs)),
        "grid_all_positions": lambda: grid(lm, sizes, asked(), "grid_all_positions", "all", 2.3),
        "grid_last_token": lambda: grid(lm, sizes, asked(), "grid_last_token", "-1", 4.0),
    }


# Generation
# ---------------------------------------------------------------------------------------------------------------------


def generation(lm: LM, sizes: Sizes, name: str, layers: Sequence[int], target: float) -> Case:
    """The share of a batch's generation that vectors at some layers add."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(layers), lm.anatomy.d_model))
    vectors *= SMALL / np.linalg.norm(vectors, axis=1, keepdims=True)
    edit = Intervention(tuple(Edit(Site("resid_post", at), "add", v) for at, v in zip(layers, vectors, strict=True)))
    prompts = lm.prompts(list(OPENINGS))
    new = sizes.tokens

    def plain() -> tuple[tuple[int, ...], ...]:
        return lm.generate(prompts, max_new_tokens=new).ids

    def steered() -> tuple[tuple[int, ...], ...]:
        return lm.generate(prompts, edit, max_new_tokens=new).ids

    if steered() != plain():
        raise RuntimeError("a vector of norm 0.001 has changed the text: what is compared is not the same work")
    ratio = paired(steered, plain, sizes.rounds)
    note = f"{len(layers)} vector{'s' * (len(layers) > 1)}, {prompts.batch} prompts × {new} tokens, cached"
    return overhead(name, ratio, target, note, upper=True)


# Extraction
# ---------------------------------------------------------------------------------------------------------------------


def many(source: Task, pairs: int) -> Task:
    """So many pairs of texts: those of a contrast task, each after several lead-ins."""
    examples = [
        Contrast(f"{lead}{e.positive}", f"{lead}{e.negative}", e.group)
        for lead in LEADS
        for e in source.examples
        if isinstance(e, Contrast)
    ]
    return Task(f"{source.name} pairs", tuple(examples[:pairs]))


def extraction(lm: LM, sizes: Sizes, pairs: Task) -> list[Case]:
    """Difference of means at every layer's output in one pass over the texts, next to plain passes in the same
    batches: with the unembedding, as a forward pass has it, and (without a target) without."""
    entries = lm.anatomy.n_layers * lm.anatomy.d_model
    parts = [side.rows(rows, trim=True) for side in sides(lm, pairs) for rows in batches(side, entries, 16)]

    def plain() -> None:
        with torch.no_grad():
            for part in parts:
                lm.call(part)

    def body() -> None:
        last = f"L{lm.anatomy.n_layers - 1}.resid_post"
        for part in parts:
            lm.run(part, last, logits=False)

    def extract() -> None:
        difference_of_means(lm, pairs, "L*.resid_post", batch_size=16)

    tokens = sum(int(part.lengths.sum()) for part in parts)
    note = f"{len(pairs)} pairs, {tokens:,} tokens, {lm.anatomy.n_layers} layers, batches of 16"
    difference_of_means(
        lm, pairs.take(8), "L*.resid_post", batch_size=16
    )  # a pass over all takes too long to warm up with
    lm.call(parts[0])
    ratio = paired(extract, plain, sizes.passes, warm=0)
    alone = paired(extract, body, sizes.passes, warm=0)
    told = f"over the same passes without unembedding; {note}"
    return [
        Case("extract", ratio.value, "× a plain pass", 1.15, ratio.value <= 1.15, ratio.low, ratio.high, note),
        Case("extract_body", alone.value, "× a pass", None, None, alone.low, alone.high, told),
    ]


# Grids
# ---------------------------------------------------------------------------------------------------------------------


def grid(lm: LM, sizes: Sizes, source: Task, name: str, scope: str, target: float) -> list[Case]:
    """Layers × coefficients on the engine, next to one plain evaluation for each of them, and how far they agree."""
    made = measure(lm, source.take(sizes.examples, 0), on="gap")
    layers = np.unique(np.linspace(0, lm.anatomy.n_layers - 1, sizes.layers).round().astype(int)).tolist()
    base = difference_of_means(lm, source.take(sizes.examples, 1), [f"L{layer}.resid_post" for layer in layers])
    edits = [e.with_(where=scope, strength=c) for e in base for c in sizes.coefficients]
    variants = [Intervention((edit,)) for edit in edits]
    timed = [int(i) for i in np.random.default_rng(0).permutation(len(edits))[: sizes.timed]]

    def engine() -> np.ndarray:
        return effects(lm, made, variants).values

    def plain() -> np.ndarray:
        return np.stack([evaluated(lm, made, edits[i]) for i in timed])

    fast, slow = engine(), plain()
    error = float(np.abs(fast[timed] - slow).max() / largest(lm, made))
    ratio = paired(plain, engine, sizes.grids, times=len(edits) / len(timed), warm=0)
    note = (
        f"{len(layers)} layers × {len(sizes.coefficients)} coefficients on {len(made)} examples, positions {scope}; "
        f"plain passes timed on {len(timed)} of {len(edits)}"
    )
    equal = Case(
        f"{name}_equal", error, "largest difference from plain passes / largest logit", 1e-5, error <= 1e-5, note=note
    )
    return [faster(name, ratio, target, note), equal]


def evaluated(lm: LM, made: Measure, edit: Edit | None) -> np.ndarray:
    """(example) the task's number by plain passes, a vector added by a hook on the block's output."""
    values = []
    for start in range(0, made.prompts.batch, ROWS):
        rows = list(range(start, min(start + ROWS, made.prompts.batch)))
        prompts, readout = made.prompts.rows(rows, trim=True), made.readout.of_rows(rows)
        covered = None if edit is None else prompts.columns(edit.where)
        with torch.no_grad(), nullcontext() if edit is None else added(lm, edit, covered):
            logits = lm.call(prompts).logits
        columns = readout.columns(prompts)
        read = logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))
        values.append(readout.of(read, torch.arange(len(rows))))
    return made.per_example(torch.cat(values))


@contextmanager
def added(lm: LM, edit: Edit, covered: Tensor | None) -> Iterator[None]:
    """A vector added to a block's output at some columns (batch pos), as anyone would write it."""
    vector = torch.as_tensor(np.array(edit.value), dtype=lm.dtype) * float(np.mean(edit.strength))
    assert covered is not None
    where = covered[..., None].to(lm.dtype)

    def hook(module: object, args: object, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(out, tuple):
            return (out[0] + where * vector, *out[1:])
        return out + where * vector

    handle = lm.anatomy.blocks[int(edit.site.layer or 0)].module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def largest(lm: LM, made: Measure) -> float:
    """The largest logit of the first prompts, in absolute value."""
    logits = lm.run(made.prompts.rows(list(range(min(8, made.prompts.batch))), trim=True)).logits
    assert logits is not None
    return float(logits[:, -1].abs().max())
