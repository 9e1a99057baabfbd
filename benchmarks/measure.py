"""Paired measurements in one process: two functions side by side, in turns, and the interval of their ratio.

Absolute times differ between machines and between minutes; a ratio of neighbours in time does not. Each round runs both
sides, in alternating order; the figure is the median of the rounds' ratios with its bootstrap interval (95 %).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios with the ends of its interval."""

    value: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Case:
    """One line of a benchmark. `target` None: a figure without a target."""

    name: str
    value: float
    unit: str
    target: float | None = None
    holds: bool | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(top: Work, bottom: Work, rounds: int, *, times: float = 1.0, warm: int = 1) -> Ratio:
    """`times` × seconds of `top` over seconds of `bottom`, in paired rounds of alternating order."""
    for _ in range(warm):
        top(), bottom()
    ratios = []
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            if i % 2:
                b, a = seconds(bottom), seconds(top)
            else:
                a, b = seconds(top), seconds(bottom)
            ratios.append(times * a / b)
    finally:
        gc.enable()
    return ratio_of(ratios)


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """The median and its bootstrap interval."""
    values = np.asarray(ratios)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Ratio(float(np.median(values)), float(low), float(high), len(values))


def faster(name: str, ratio: Ratio, target: float, note: str = "") -> Case:
    """A case that must be at least `target` times faster, by the median."""
    return Case(name, ratio.value, "times faster", target, ratio.value >= target, ratio.low, ratio.high, note)


def overhead(name: str, ratio: Ratio, target: float, note: str = "", *, upper: bool = False) -> Case:
    """A case whose share beyond the other side must be at most `target`; `upper`: at the upper end of its interval."""
    judged = (ratio.high if upper else ratio.value) - 1
    shown = "share over, upper end" if upper else "share over"
    return Case(name, judged, shown, target, judged <= target, ratio.low - 1, ratio.high - 1, note)


def present(title: str, cases: Sequence[Case], as_json: bool, about: str = "") -> int:
    """Print the table, or one JSON document; 0 when every target holds, 1 otherwise."""
    if as_json:
        whole = [asdict(case) for case in cases]
        nulls = [{k: None if isinstance(v, float) and v != v else v for k, v in case.items()} for case in whole]
        json.dump({"cases": nulls}, sys.stdout)
        print()
    else:
        table = Table(title=title, caption=about)
        for column in ("case", "value", "interval", "unit", "target", "holds", "note"):
            table.add_column(column)
        for c in cases:
            interval = "" if c.low is None else f"{c.low:.3g} to {c.high:.3g}"
            target = "" if c.target is None else f"{c.target:g}"
            holds = "" if c.holds is None else "yes" if c.holds else "MISSED"
            table.add_row(c.name, f"{c.value:.3g}", interval, c.unit, target, holds, c.note)
        Console(width=None if sys.stdout.isatty() else 180).print(table)
    return 0 if all(case.holds is not False for case in cases) else 1


def arguments(description: str, *, quick: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--only", nargs="*", default=None, help="names of cases to run")
    parser.add_argument("--rounds", type=float, default=1.0, help="scale the number of rounds")
    if quick:
        parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not what it costs")
    return parser.parse_args()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
