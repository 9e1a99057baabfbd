"""Causal tracing: the subject is blurred with noise, and a state of the undisturbed run is put back.

Meng et al. 2022, "Locating and editing factual associations in GPT", arXiv 2202.05262. The corrupted run is the base
run of the engine, once for each draw of the noise, and every state that is put back is a counterfactual of it. It
needs no twin prompts: a prompt, its answer and the span of its subject are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.locate.corrupted import Known, Subject
from trimtab.locate.pairing import alone
from trimtab.locate.plans import Cost, plan_tracing, planned_by
from trimtab.locate.sweep import Exact, Progress, intervenes, window_around
from trimtab.locate.units import Places, Spans, places
from trimtab.model.run import Run
from trimtab.model.spans import RELATIVE
from trimtab.tasks.means import batches
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Ref
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import SITES, Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Severed = Literal["mlp", "attn"]

WINDOW = {"mlp_out": 10, "attn_out": 10}
"""Layers that are restored together unless told otherwise: one sublayer alone restores little (Meng et al. 2022)."""
INSIDE: dict[str, tuple[str, range]] = {"mlp": ("mlp_out", range(100, 141)), "attn": ("attn_out", range(10, 81))}
"""Of each sublayer the site that is frozen, and the places of its own sites in the order of `SITES`."""


def _plan(
    lm: LM, task: Task, *, sites: Reads, spans: Spans | None, subject: str, window: int | None, **options: Any
) -> Cost:
    where = places(lm, sites, spans, mapped=(*(f"{subject}_{part}" for part in RELATIVE), "end"))
    return plan_tracing(lm, task, where=where, window=_width(where, window), **options)


@alone
@planned_by(_plan)
@intervenes
def causal_tracing(
    lm: LM,
    task: Task,
    sites: Reads = "L*.resid_post",
    *,
    subject: str = "subject",
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    window: int | None = None,
    severed: Severed | None = None,
    spans: Spans | None = None,
    metric: str = "prob",
    known: Known = "top",
    exact: Exact = "fast",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """The indirect effect of each place: P*(place restored) − P*, the mean over draws of the noise.

    P* is the probability of the answer when Gaussian noise is added to the embeddings of the subject's tokens; the
    place then takes its value from the run without noise. `tracing_effect` is the total effect, P − P*.

    Args:
        sites: a map such as `"L*.resid_post"` or `"L*.mlp_out"`, or a list of candidates.
        subject: the span of the clean prompts whose embeddings are corrupted.
        noise: its standard deviation, in those of the entries of the token embeddings of all the task's subject tokens,
            scaled as they enter block 0, without what a table of positions adds.
        samples: draws of the noise, the same ones for every place.
        seed: of the noise, which depends on it and on the prompt alone.
        window: layers restored together around each layer l of a map: from l − window/2 up to, not including,
            l + window/2, as far as they exist. By default 10 for `mlp_out` and `attn_out`, 1 for others.
        severed: "mlp" (or "attn"): the MLPs (attention) of the restored tokens keep in all layers what they gave under
            noise, so that only what does not go through them is restored.
        spans: what is restored. By default the subject's first, middle and last token, the token after it ("next"),
            those that follow ("further") and the last of all ("end"), named after the subject ("subject_first"); a
            span's tokens are restored together.
        metric: by name; the probability of the answers unless told otherwise.
        known: which examples count. "top": those whose likeliest next token is an answer; "rather": those whose answers
            are likelier than their distractors; "all". The others are NaN; `options["left_out"]` says how many.
        exact: "fast" computes what changes; "naive" runs the model once for each place and batch.
        batch_size: prompts whose runs are held together.

    Returns:
        `Scores` in the metric's unit. NaN also where a span has no token, such as the middle of a short subject.

    Raises TaskError without a subject, or where no example counts.

    >>> causal_tracing(lm, task, "L*.mlp_out", severed=None).top(3)  # doctest: +SKIP
    """
    about = Subject.of(lm, task, subject, noise=noise, samples=samples, seed=seed, metric=metric, batch_size=batch_size)
    where = places(lm, sites, spans, mapped=about.spans)
    traced = _traced(lm, task, about, [where], window, severed, known, exact, batch_size, progress)
    return traced[0]


def tracing_maps(
    lm: LM,
    task: Task,
    maps: Sequence[str] = ("L*.resid_post", "L*.mlp_out", "L*.attn_out"),
    *,
    subject: str = "subject",
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    severed: Severed | None = None,
    spans: Spans | None = None,
    metric: str = "prob",
    known: Known = "top",
    exact: Exact = "fast",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """`causal_tracing` of several maps over the same corrupted runs, which costs less than one after the other.

    By default the three of the paper: the stream one layer at a time, MLPs and attention in windows of ten. Arguments
    as in `causal_tracing`; returns the `Scores` of each map by its text.

    >>> tracing_maps(lm, task)["L*.mlp_out"].top(3)  # doctest: +SKIP
    """
    about = Subject.of(lm, task, subject, noise=noise, samples=samples, seed=seed, metric=metric, batch_size=batch_size)
    where = [places(lm, each, spans, mapped=about.spans) for each in maps]
    traced = _traced(lm, task, about, where, None, severed, known, exact, batch_size, progress)
    return dict(zip(maps, traced, strict=True))


def tracing_effect(
    lm: LM,
    task: Task,
    *,
    subject: str = "subject",
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    metric: str = "prob",
    known: Known = "top",
    batch_size: int = 16,
) -> Float[np.ndarray, "example"]:
    """P − P* of each example, the total effect of the noise: what restoring every embedding of the subject would do.

    Arguments as in `causal_tracing`, whose noise is the same. NaN for examples that do not count. In the metric's unit.

    >>> tracing_effect(lm, task).mean()  # doctest: +SKIP
    """
    about = Subject.of(lm, task, subject, noise=noise, samples=samples, seed=seed, metric=metric, batch_size=batch_size)
    counted = about.counted(known)
    out = np.full(len(about.prompts), np.nan)
    entries = samples * lm.anatomy.vocab  # the readout's logits, at one position
    for chosen in batches(about.prompts.rows(counted), entries, batch_size):
        rows = [counted[i] for i in chosen]
        each = [row for row in rows for _ in range(samples)]
        many = about.prompts.rows(each, trim=True)
        runs = {"noise": about.drawn(rows, many)}
        under = lm.counterfactuals(many, [()], about.readout(each), base=about.edit, runs=runs).base
        out[rows] = about.clean[rows] - under.double().unflatten(0, (len(rows), samples)).mean(1).cpu().numpy()
    return out


def _traced(
    lm: LM,
    task: Task,
    about: Subject,
    maps: Sequence[Places],
    window: int | None,
    severed: Severed | None,
    known: Known,
    exact: Exact,
    batch_size: int,
    progress: Progress | None,
) -> list[Scores]:
    """The indirect effects of each map's places."""
    if severed not in (None, *INSIDE):
        raise TrimtabError(f'severed is "mlp", "attn" or None, got {severed!r}{nearest(str(severed), INSIDE)}')
    made = [_variants(lm, where, window, severed) for where in maps]
    variants = [variant for each, _, _ in made for variant in each]
    read = list(dict.fromkeys(site for _, tensors, _ in made for site in tensors))
    prompts, counted, samples = about.prompts, about.counted(known), about.samples
    entries = samples * sum(int(np.prod(lm.shape(site))) for site in read) * (3 if severed else 2)
    out = np.full((len(prompts), len(variants)), np.nan)
    done, total = 0, len(variants) * len(counted) * samples
    for chosen in batches(prompts.rows(counted), entries, batch_size):
        rows = [counted[i] for i in chosen]
        clean = lm.run(prompts.rows(rows, trim=True), read, logits=False)
        many = clean.prompts.rows([i for i in range(len(rows)) for _ in range(samples)])
        again = {site: clean.whole(site).repeat_interleave(samples, 0) for site in clean}

        def report(now: int, every: int, before: int = done, cells: int = len(variants) * len(many)) -> None:
            if progress is not None and every:
                progress(before + now * cells // every, total)

        found = lm.counterfactuals(
            many,
            variants,
            about.readout([row for row in rows for _ in range(samples)]),
            base=about.edit,
            runs={"clean": Run(many, None, again, origin=lm), "noise": about.drawn(rows, many)},
            exact=exact,
            progress=report,
        )
        effects = found.effects.double().unflatten(1, (len(rows), samples)).mean(2)
        out[rows] = effects.cpu().numpy().T
        done += len(variants) * len(many)
        if progress is not None:
            progress(done, total)
    options = {
        **about.options,
        "known": known,
        "left_out": len(prompts) - len(counted),
        "severed": severed or "nothing",
    }
    scores, first = [], 0
    for where, (each, _, width) in zip(maps, made, strict=True):
        part = out[:, first : first + len(each)]
        for column, site in enumerate(where.sites):
            part[[not at for at in prompts.positions(site.at or Scope("all"))], column] = np.nan
        known_of = options | {"window": width}
        scores.append(where.scores(part, lm, task, prompts, "causal_tracing", about.unit, known_of, "denoise"))
        first += len(each)
    return scores


def _variants(
    lm: LM, where: Places, window: int | None, severed: Severed | None
) -> tuple[list[list[Edit]], list[Site], int]:
    """The edits of each place, the tensors that they take from the clean run, and the window's width."""
    width = _width(where, window)
    restore: dict[Site, Edit] = {}
    freeze: dict[Site, Edit] = {}
    variants = []
    for site in where.sites:
        together = window_around(lm, site, width)
        edits = [restore.setdefault(s, Edit(s, "set", Ref("clean"))) for s in together]
        if severed is not None:
            frozen = _frozen(lm, together, severed)
            edits += [freeze.setdefault(s, Edit(s, "set", Ref("base"))) for s in frozen]
        variants.append(edits)
    return variants, list(dict.fromkeys(s.base.whole for s in restore)), width


def _width(where: Places, window: int | None) -> int:
    """How many layers are restored together around each place."""
    mapped = where.dims[1:2] == ("layer",)
    width = (WINDOW.get(where.blocks[0].name, 1) if mapped else 1) if window is None else window
    if width < 1 or (width > 1 and not mapped):
        raise TrimtabError(
            f"window is how many layers around each of a map's are restored together, at least 1, got {window!r}"
            + (
                ""
                if mapped
                else ": candidates are restored one by one, so leave it out, or give a map such as L*.mlp_out"
            )
        )
    return width


def _frozen(lm: LM, restored: Sequence[Site], severed: Severed) -> list[Site]:
    """The sublayers that keep what they gave under noise: those that anything restored could reach."""
    name, inside = INSIDE[severed]
    if wrong := [site for site in restored if site.layer is not None and SITES[site.name].order in inside]:
        raise SiteError(
            f"{wrong[0]} is restored and severed at once: restore the stream, L*.resid_post, or sever "
            f"{' or '.join({*INSIDE} - {severed})}"
        )
    start = min(lm.anatomy.resolve(site.base).depth for site in restored)
    every = [Site(name, layer, at=restored[0].at) for layer in range(lm.anatomy.n_layers)]
    return [site for site in every if site.depth > start]
