"""What locating costs: `python -m benchmarks.locate [--json] [--only FAMILY …]`.

Families: gradients (`atp`, `ig`, `atp_star`, `grad_drop`), tracing, paths, neurons, lenses, attention. Every figure
with a target is a ratio against plain passes, or against the loop that the method's own authors use, of the same model
in the same run; `neurons_exact` and `tuned_lens` are wall time. `--rounds 0.1` is a quick look. About half an hour on
two cores.
"""

from __future__ import annotations

import sys
from importlib import import_module

from benchmarks.measure import Case, arguments, present, say

FAMILIES = ("gradients", "tracing", "paths", "neurons", "lenses", "attention")


def main() -> int:
    options = arguments(__doc__ or "")
    chosen = options.only or FAMILIES
    if unknown := [name for name in chosen if name not in FAMILIES]:
        sys.exit(f"no family {unknown[0]}: there are {', '.join(FAMILIES)}")
    cases: list[Case] = []
    for name in chosen:
        say(f"measuring {name} …")
        cases += import_module(f"benchmarks.locating.{name}").cases(options.rounds < 1)
    return present("Locating on the bundled model", cases, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
