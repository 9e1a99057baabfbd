"""What each steering method does on each task, in Markdown: `python -m benchmarks.steering.table [--methods NAME …]`.

On the bundled model, on test parts, with 95 % intervals: effect, anti-steerable share, KL per token and perplexity,
beside an instruction in words, and how far the effect goes beyond the mean of random directions of the same KL, with
the least and the most of these. Place, scope and coefficient are picked on the validation part by one rule under one
limit of KL. About an hour to an hour and a half on two cores; every cell is kept under `--out` as it ends, so that a
run that was killed goes on. Several processes with tasks of their own may share one `--out`; one call without `--tasks`
then prints the whole, and `--kept` what is kept, measuring nothing. Cells of another model, task, method, version or
size are measured anew. `--json` prints JSON, `--tasks` picks tasks.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trimtab
from benchmarks.measure import Case, say
from benchmarks.steering import cells
from benchmarks.steering.cells import (
    LIMIT,
    NO_EFFECT,
    PROMPT_ONLY,
    QUICK,
    ROWS,
    TASKS,
    Sizes,
    cell,
    parts_of,
    prompt_only,
)
from trimtab.figures.numbers import NONE, Value, estimate, exact, number, share
from trimtab.model.lm import LM
from trimtab.tasks.task import Parts
from trimtab.values.content import digest_of

OUT = Path("out/steering-table")
FILE = "cells.jsonl"
Cells = dict[tuple[str, str], dict[str, Any]]
RANDOM = ("beyond random", "random (least to most)")
NOT_RUN = "not run"
"""What stands where a cell was not measured; one in which nothing was picked says so."""


def cases(quick: bool, out: Path = OUT) -> list[Case]:
    """The table as cases without targets; a quick one has a few small cells, whose numbers say nothing."""
    methods = ["difference of means", "angular steering"] if quick else [*ROWS, PROMPT_ONLY]
    tasks = ["sentiment"] if quick else list(TASKS)
    made = table(methods, tasks, QUICK if quick else Sizes(), out)
    found = []
    for (method, task), known in made.items():
        name = f"{method}_{task}".replace(" ", "_").replace(",", "")
        if "left_out" in known:
            found.append(Case(name, float("nan"), "", note=known["left_out"]))
            continue
        mean, low, high = (float("nan") if value is None else value for value in known["effect"])
        found.append(Case(name, mean, known["unit"], None, None, low, high, noted(known)))
    return found


def noted(known: Mapping[str, Any]) -> str:
    """The other numbers of a cell in a few words."""
    kl = NONE if known["kl"] is None else number(known["kl"][0])
    random = ""
    if known.get("random") is not None:
        random = f", beyond random {_estimate(known['beyond_random'])}, random {_random(known)}"
    perplexity = _estimate(known["perplexity"], sign=False)
    return f"anti-steerable {_share(known['anti_steerable'])}, KL {kl}, perplexity {perplexity}{random}"


def table(methods: Sequence[str], tasks: Sequence[str], sizes: Sizes, out: Path, kept: bool = False) -> Cells:
    """Every cell, those that are kept already taken from the file; with `kept` the others are left as not run."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE
    lm = trimtab.load("smollm2-135m-instruct")
    found: Cells = {}
    for task in tasks:
        parts = parts_of(lm, task, sizes)
        for method in methods:
            key, known = _key(lm, parts, method, task, sizes), read(path)
            if key not in known and kept:
                known[key] = {"left_out": NOT_RUN}
            elif key not in known:
                say(f"{method} on {task} …")
                made = prompt_only(lm, parts, sizes) if method == PROMPT_ONLY else cell(lm, parts, ROWS[method], sizes)
                append(path, {"key": key, "method": method, "task": task, "cell": made})
                known[key] = made
            found[method, task] = known[key]
    return found


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The cells of a file by their key; a last line that was cut off is none."""
    found: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[row["key"]] = row["cell"]
    return found


def append(path: Path, row: Mapping[str, Any]) -> None:
    """One more line, on the disk before the next cell begins; a line that was cut off is ended first.

    It is written in one piece at the end of the file, wherever that is by then, so that processes do not cut each
    other's lines.
    """
    whole = not path.is_file() or path.read_bytes()[-1:] in (b"", b"\n")
    line = (("" if whole else "\n") + json.dumps(row, ensure_ascii=False) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        if file.write(line) < len(line):
            raise OSError(f"{path}: a line could not be written whole; make room on the disk and run this again")
        os.fsync(file.fileno())


def _key(lm: LM, parts: Parts, method: str, task: str, sizes: Sizes) -> str:
    """What a cell depends on: model, examples, what is tried, and the code of the method and of the cells.

    Of other code only the package's version: after a change of that begin with another `--out`.
    """
    row = None if method == PROMPT_ONLY else ROWS[method]
    code = inspect.getsource(cells)
    if row is not None:
        module = inspect.getmodule(row.load())
        assert module is not None
        code += inspect.getsource(module)
    known = {
        "version": trimtab.__version__,
        "model": lm.hash,
        "method": method,
        "task": task,
        "parts": [part.digest for part in parts],
        "sizes": asdict(sizes),
        "row": json.dumps(row and asdict(row)),
        "limit": LIMIT,
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }
    return digest_of(known)


def markdown(found: Cells) -> str:
    """One table of all effects, and one table for each task."""
    methods = list(dict.fromkeys(method for method, _ in found))
    tasks = list(dict.fromkeys(task for _, task in found))
    lines = ["| method | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for method in methods:
        lines += [f"| {method} | " + " | ".join(_effect(found[method, task]) for task in tasks) + " |"]
    for task in tasks:
        head = ("method", "site", "scope", "×", "effect", "anti-steerable", "KL", "perplexity", *RANDOM)
        lines += ["", f"### {task}", "", "| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1)]
        lines += [f"| {' | '.join(_row(method, found[method, task]))} |" for method in methods]
    return "\n".join(lines)


def _effect(known: Mapping[str, Any]) -> str:
    """The effect; "none" where no point was good enough, "not run" where none was tried, – where it cannot be."""
    if "left_out" in known:
        return {NO_EFFECT: "none", NOT_RUN: NOT_RUN}.get(known["left_out"], NONE)
    return _estimate(known["effect"])


def _row(method: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    if "left_out" in known:
        return (method, known["left_out"], *[""] * 8)
    return (
        method,
        f"`{known['site']}`" if "site" in known else "",
        f"`{known['scope']}`" if "scope" in known else "",
        exact(known["coefficient"]) if "coefficient" in known else "",
        _estimate(known["effect"]),
        _share(known["anti_steerable"]),
        NONE if known["kl"] is None else _estimate(known["kl"], sign=False),
        f"{_estimate(known['perplexity'], sign=False)} (unsteered {known['base_perplexity']:.1f})",
        *((NONE, NONE) if known.get("random") is None else (_estimate(known["beyond_random"]), _random(known))),
    )


def _share(values: Sequence[float | None]) -> str:
    """A share and the ends of its interval, in per cent."""
    mean, low, high = (float("nan") if value is None else value for value in values)
    return f"{share(mean)} [{share(low)}, {share(high)}]"


def _random(known: Mapping[str, Any]) -> str:
    """The mean of random directions, the least and the most, and how many did not come to the KL of the pick."""
    mean, least, most = (number(value, sign=True) for value in known["random"])
    text = f"{mean} ({least} to {most})"
    return text + (f", {known['missed']} of {len(known['random_kl'])} not at that KL" if known["missed"] else "")


def _estimate(values: Sequence[float | None], sign: bool = True) -> str:
    mean, low, high = (float("nan") if value is None else value for value in values)
    return estimate(Value(mean, low, high), sign=sign)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--methods", nargs="*", default=None, help=", ".join([*ROWS, PROMPT_ONLY]))
    parser.add_argument("--tasks", nargs="*", default=None, help=", ".join(TASKS))
    parser.add_argument("--out", type=Path, default=OUT, help="where cells are kept")
    parser.add_argument("--kept", action="store_true", help="print what is kept, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    methods, tasks = options.methods or [*ROWS, PROMPT_ONLY], options.tasks or list(TASKS)
    if unknown := [name for name in methods if name not in (*ROWS, PROMPT_ONLY)]:
        sys.exit(f"no method {unknown[0]}: there are {', '.join([*ROWS, PROMPT_ONLY])}")
    found = table(methods, tasks, QUICK if options.quick else Sizes(), options.out, options.kept)
    if options.json:
        rows = [{"method": method, "task": task, **known} for (method, task), known in found.items()]
        print(json.dumps({"cells": rows}, ensure_ascii=False))
    else:
        print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
