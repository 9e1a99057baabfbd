"""How often a study claims an effect where there is none: `python -m benchmarks.null [--json] [--only NAME …]`.

Forty quick studies of tasks whose labels were tossed first, each with another seed, all through the whole pipeline but
for what no verdict depends on (samples, other tasks, most of the capability set). At most 5 % may end in "found".
`--rounds 0.1` makes it four. About half an hour on two cores.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import torch

import trimtab
from benchmarks.measure import Case, arguments, present, say
from trimtab.studies.store import Store

RUNS, LIMIT = 40, 0.05
PROCESSES = 8
"""At most: each holds the model, about a gigabyte with its caches."""
TASKS = ("sentiment", "honesty", "truth", "formality", "capitals", "gender", "ioi", "refusal")
LIGHT = {"quick": True, "shuffle_labels": True, "others": 0, "samples": 0, "capability": 20}


@cache
def _model() -> trimtab.LM:
    """The bundled model, once in each process."""
    return trimtab.load("smollm2-135m-instruct")


def claim(task: str, seed: int, folder: Path) -> tuple[str, int, str]:
    """The task, seed and verdict of one study of tossed labels."""
    study = trimtab.study(task, model=_model(), store=Store(folder), seed=seed, **LIGHT)
    study.run()
    return task, seed, study.verdict.outcome


def claims(tasks: tuple[str, ...], runs: int, folder: Path) -> list[tuple[str, int, str]]:
    """`claim` of so many studies, as they end, in as many processes as there are cores."""
    found: list[tuple[str, int, str]] = []
    workers = min(os.cpu_count() or 1, runs, PROCESSES)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, fresh, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        started = [pool.submit(claim, task, i, folder) for i, task in enumerate(islice(cycle(tasks), runs))]
        for ended in as_completed(started):
            found.append(ended.result())
            say(f"{len(found):>3} of {runs}: {found[-1][0]} with seed {found[-1][1]}: {found[-1][2]}")
    return found


def main() -> int:
    options = arguments(__doc__ or "")
    runs = max(1, round(RUNS * options.rounds))
    with tempfile.TemporaryDirectory() as folder:
        found = claims(tuple(options.only or TASKS), runs, Path(folder))
    counts = Counter(outcome for _, _, outcome in found)
    share = counts["found"] / runs
    note = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) + f", of {runs}"
    cases = [Case("false_claims", share, "share", LIMIT, share <= LIMIT, note=note)]
    cases += [
        Case(f"false_claims_{task}", sum(t == task and o == "found" for t, _, o in found) / n, "share", note=f"of {n}")
        for task, n in Counter(task for task, _, _ in found).items()
    ]
    return present("Studies of tossed labels on the bundled model", cases, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
