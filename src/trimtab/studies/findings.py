"""What a run's folder holds, as one value for reports, as tables and as headline numbers. It needs neither model nor
task."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import FileError
from trimtab.studies.settings import Settings
from trimtab.values.findings import STAGES, Evaluation, Findings, Screening, Search, Validation, Verdict
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.model.lm import LM
    from trimtab.studies.folder import RunFolder
    from trimtab.tasks.task import Task

ABOUT, TASK = "task.json", "task.jsonl"
KINDS: Mapping[str, type[Saved]] = dict(zip(STAGES, (Screening, Validation, Search, Evaluation, Verdict), strict=True))


def findings(folder: RunFolder) -> Findings:
    """A run as far as it has come. FileError where its files are damaged."""
    state = folder.state
    found: dict[str, Any] = {stage: folder.read(stage, KINDS[stage]) for stage in STAGES if stage in state.stages}
    about = _about(folder)
    settings = Settings.of(**state.settings)
    made = about.get("provenance")
    model, name = settings.model, about.get("name", state.name)
    return Findings(
        name=state.name,
        about=about.get("about", ""),
        task=name,
        poles=tuple(about.get("poles", ("positive", "negative"))),
        examples=about.get("examples", {}),
        model=model,
        settings=settings.plain(),
        command=command(settings),
        python=python(settings),
        reuse=(
            "import trimtab\n\n"
            f'lm = trimtab.load("{model}")\n'
            f'found = trimtab.Intervention.load("{folder.path.name}/intervention.safetensors")\n'
            'print(lm.generate("Once upon a time", edit=found))\n'
        ),
        created=state.created,
        seconds={stage: known.seconds for stage, known in state.stages.items()},
        provenance=None if made is None else Provenance.from_json(json.dumps(made)),
        screening=found.get("screen"),
        validation=found.get("validate"),
        search=found.get("steer"),
        evaluation=found.get("evaluate"),
        verdict=found.get("verdict"),
        notes=state.notes,
    )


def command(settings: Settings) -> str:
    """The command that does a study again."""
    parts = ["trimtab", "run", settings.task]
    for name, value in _changed(settings).items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("model", "seed", "dtype", "device", "positive", "encoding", "split"):
            parts += [flag, str(value)]
        elif value is True:
            parts.append(flag)
        elif name in ("mapping", "every"):
            flag = {"mapping": "--map"}.get(name, flag)
            pairs = [
                (key, word) for key, words in value.items() for word in ([words] if isinstance(words, str) else words)
            ]
            parts += [part for key, word in pairs for part in (flag, f"{key}={word}")]
        else:
            parts += ["--set", f"{name}={_written(value)}"]
    return shlex.join(parts)


def python(settings: Settings) -> str:
    """The Python that does a study again."""
    given = "".join(f", {name}={value!r}" for name, value in _changed(settings).items())
    return f'import trimtab\n\nstudy = trimtab.study("{settings.task}"{given})\nstudy.run()\nprint(study.verdict)\n'


def _changed(settings: Settings) -> dict[str, Any]:
    """The settings that are not the defaults, or those of a quick study."""
    default = Settings.of(task=settings.task, quick=settings.quick)
    return {
        name: value
        for name in Settings.model_fields
        if name != "task"
        and ((value := getattr(settings, name)) != getattr(default, name) or (name == "quick" and value))
    }


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def numbers(evaluation: Evaluation) -> dict[str, float]:
    """The headline numbers of a study."""
    before, after = evaluation.perplexity
    found = {
        "effect": evaluation.effect.mean,
        "effect_low": evaluation.effect.low,
        "effect_high": evaluation.effect.high,
        "wrong_way": evaluation.wrong_way,
        "kl": evaluation.kl.mean,
        "perplexity_before": before,
        "perplexity_after": after,
        "capability": evaluation.capability.difference().mean,
    }
    return found | {f"beyond {c.name}": c.difference.mean for c in evaluation.controls}


def tables(found: Findings) -> dict[str, pd.DataFrame]:
    """Numbers for each example (`metrics`) and continuations (`samples`)."""
    import pandas as pd

    made: dict[str, pd.DataFrame] = {}
    evaluation = found.evaluation
    if evaluation is not None:
        outcomes = [(found.task, evaluation.outcome), ("capability", evaluation.capability)]
        outcomes += [(e.task, e.outcome) for e in evaluation.entangled]
        rows = [
            {
                "task": task,
                "metric": o.metric,
                "unit": o.unit,
                "example": i,
                "group": str(group),
                "before": b,
                "after": a,
            }
            for task, o in outcomes
            for i, (b, a, group) in enumerate(zip(o.before, o.after, o.groups or [""] * len(o), strict=True))
        ]
        made["metrics"] = pd.DataFrame(rows)
        samples = [{"prompt": s.prompt, "before": s.before, "after": s.after} for s in evaluation.samples]
        made["samples"] = pd.DataFrame(samples, columns=["prompt", "before", "after"])
    return made


def provenance(lm: LM, task: Task, settings: Settings) -> Provenance:
    """Where a study's results come from."""
    import torch

    return Provenance.now(
        lm.name,
        model_hash=lm.hash,
        data_hash=task.digest,
        method="study",
        options=settings.plain(),
        seed=settings.seed,
        threads=torch.get_num_threads(),
        dtype=str(lm.dtype).removeprefix("torch."),
        attention=lm.attention,
    )


def _about(folder: RunFolder) -> dict[str, Any]:
    path = folder.path / ABOUT
    if not path.is_file():
        return {}
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is damaged ({error}): run the study again to write it") from error
