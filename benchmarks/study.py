"""How long a study takes, stage by stage, and what it finds: `python -m benchmarks.study [--json] [--only NAME …]`.

`sentiment` and `honesty` whole, on the bundled model, into a folder of their own; `truth` too with `--only truth`. A
study is to end in ten minutes on two cores; these are absolute times, so run it with nothing else on the machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import trimtab
from benchmarks.measure import Case, arguments, present, say
from trimtab.studies.store import Store

TASKS = ("sentiment", "honesty")
MINUTES = 10.0
EFFECT, KL = 2.5, 0.3


def cases_of(name: str, store: Store, quick: bool = False) -> list[Case]:
    """Time of each stage of one study, and its main numbers."""
    label = f"quick_{name}" if quick else name
    began = time.monotonic()
    study = trimtab.study(name, quick=quick, store=store)
    study.run()
    minutes = (time.monotonic() - began) / 60
    assert study.folder is not None
    stages = study.folder.state.stages
    cases = [Case(f"{label}_{stage}", known.seconds, "s") for stage, known in stages.items()]
    target = 2.0 if quick else MINUTES
    cases.append(Case(f"{label}_minutes", minutes, "min", target, minutes < target, note="loading and report included"))
    evaluation, asked = study.evaluation, name == "sentiment" and not quick
    effect, kl = evaluation.effect, evaluation.kl
    unit = evaluation.outcome.unit
    cases.append(
        Case(
            f"{label}_effect",
            effect.mean,
            unit,
            EFFECT if asked else None,
            effect.mean > EFFECT if asked else None,
            effect.low,
            effect.high,
            study.verdict.outcome,
        )
    )
    cases.append(
        Case(
            f"{label}_kl",
            kl.mean,
            "nat/token",
            KL if asked else None,
            kl.mean <= KL if asked else None,
            kl.low,
            kl.high,
        )
    )
    for control in evaluation.controls:
        beyond, control_name = control.difference, control.name.replace(" ", "_")
        cases.append(
            Case(
                f"{label}_beyond_{control_name}",
                beyond.mean,
                unit,
                0.0 if asked else None,
                beyond.low > 0 if asked else None,
                beyond.low,
                beyond.high,
                f"p = {control.p:.3f} among {len(control.effects)} draws",
            )
        )
    return cases


def main() -> int:
    options = arguments(__doc__ or "")
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for name in options.only or (*TASKS, "quick"):
            say(f"running the study of {name} …")
            cases += cases_of("honesty", store, quick=True) if name == "quick" else cases_of(name, store)
    return present("Studies on the bundled model", cases, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
