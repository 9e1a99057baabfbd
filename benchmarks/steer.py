"""What steering costs and does: `python -m benchmarks.steer [--json] [--only NAME …] [--quick]`.

NAME is a case (`one_vector`, `every_layer`, `extract`, `grid_all_positions`, `grid_last_token`, `mixed_16`,
`ablated_16`) or one of the files they are in (`speed`, `mixed`, `table`). Overheads are shares of the time of the same
work without steering, in paired rounds within one process; grids are times faster than plain passes; `table` is method
× task on the test parts. `--quick` takes small sizes: whether it runs, and not what it costs. All of it takes well over
an hour on two cores, most of it the table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from benchmarks.measure import Case, arguments, present, say

FILES: dict[str, tuple[str, ...]] = {
    "speed": ("one_vector", "every_layer", "extract", "grid_all_positions", "grid_last_token"),
    "mixed": ("mixed_16", "ablated_16"),
    "table": (),
}
"""The files of `benchmarks.steering`, and the cases in each that can be asked for by name."""


def chosen(only: Sequence[str] | None) -> dict[str, list[str] | None]:
    """The files to run, each with the cases that were asked for, None for all of them. Ends the program for a name that
    is none."""
    if not only:
        return dict.fromkeys(FILES)
    found: dict[str, list[str] | None] = {}
    for name in only:
        if name in FILES:
            found[name] = None
            continue
        file = next((file for file, cases in FILES.items() if name in cases), None)
        if file is None:
            every = [*FILES, *(case for cases in FILES.values() for case in cases)]
            sys.exit(f"no case {name}: there are {', '.join(every)}")
        wanted = found.setdefault(file, [])
        if wanted is not None:
            wanted.append(name)
    return found


def main() -> int:
    options = arguments(__doc__ or "", quick=True)
    cases: list[Case] = []
    for name, wanted in chosen(options.only).items():
        say(f"measuring {name} …")
        made = import_module(f"benchmarks.steering.{name}")
        quick = options.quick or options.rounds < 1
        cases += made.cases(quick) if wanted is None or name != "speed" else made.cases(quick, wanted)
    return present("Steering the bundled model", cases, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
