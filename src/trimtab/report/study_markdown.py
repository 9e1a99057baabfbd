"""A study as a page of Markdown that a terminal can show as it is: the verdict, the numbers it rests on, and where.

It says nothing that `study_html` does not say, and leaves out the figures and what lies behind them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from trimtab.figures.numbers import NONE, common_places, fixed, interval_of, mean_of, probability
from trimtab.figures.svg import legible
from trimtab.report.panels.checked import ranked_checks
from trimtab.report.panels.keys import asked, key_figures, unfinished, verdict_word
from trimtab.report.panels.searched import picked_words
from trimtab.report.panels.tested import draw_means, mean_draw
from trimtab.report.panels.text import without_nan
from trimtab.values.findings import Control, Findings

TOP = 10
"""Sites that are named."""

_MARKUP = r"[\\`*|]|(?<!\w)_|_(?!\w)|<(?=[a-zA-Z/!?])|&(?=[#\w])|(?<=\])\("


def study_markdown(findings: Findings) -> str:
    """The page, as text.

    Words of the task, the model and the study are escaped, so that none of them becomes markup or a terminal's code.
    """
    parts = [f"# {prose(findings.name)}", _verdict(findings), _asked(findings)]
    if figures := key_figures(findings):
        rows = [(f.name, f.value, f.interval or "", f.why if f.value == NONE else f.note) for f in figures]
        parts.append("## Key numbers\n\n" + table(("number", "value", "95 %", "of"), rows))
    parts += _controls(findings) + _missing(findings) + _sites(findings)
    if findings.search is not None:
        words = picked_words(findings.search)
        parts.append(f"Picked: {prose(words)}." if words else "No point of the search qualifies.")
    if any(f" {NONE} " in part for part in parts):
        parts.append(f"{NONE} stands where there is no number: not defined there, or too few examples.")
    if findings.command:
        parts.append(f"Again: {code(findings.command)}")
    elif findings.no_command:
        parts.append(f"The command cannot be written: {prose(findings.no_command)}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], coded: Sequence[int] = ()) -> str:
    """Rows as a Markdown table whose columns line up; cells of the columns in `coded` are addresses.

    >>> print(table(("site", "effect"), [("L1.head[2]", "+0.5")], coded=[0]))
    | site         | effect |
    |--------------|--------|
    | `L1.head[2]` | +0.5   |
    """
    cells = [[code(c, True) if i in coded else prose(c) for i, c in enumerate(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [
        "| " + " | ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) + " |"
        for row in (columns, *cells)
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def prose(text: str) -> str:
    r"""Text on one line that is text and nothing else.

    >>> print(prose("a|b <i>*c*\n# d_e [0, 1] _f_ <0.1 [g](h)"))
    a\|b \<i>\*c\* # d_e [0, 1] \_f\_ <0.1 [g]\(h)
    """
    return re.sub(_MARKUP, r"\\\g<0>", " ".join(legible(text).split()))


def code(text: str, cell: bool = False) -> str:
    """Text as code on one line, in a cell of a table or not.

    >>> code("a`b"), code("a|b", True)
    ('`` a`b ``', '`a\\\\|b`')
    """
    text = " ".join(legible(text).split())
    text = (text.replace("|", "\\|") if cell else text) or " "
    longest = max(map(len, re.findall("`+", text)), default=0)
    return f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}" if longest else f"`{text}`"


def _verdict(findings: Findings) -> str:
    word = f"**{verdict_word(findings).upper()}**"
    if findings.verdict is not None:
        word = " ".join([f"{word}.", *(prose(without_nan(text)) for text in findings.verdict.sentences)])
    waiting = unfinished(findings)
    return word + (f" (not run yet: {', '.join(waiting)})" if waiting else "")


def _asked(findings: Findings) -> str:
    return "\n".join(
        [prose(findings.about), "", *(f"- {name}: {prose(text)}" for name, text in asked(findings))]
    ).strip()


def _controls(findings: Findings) -> list[str]:
    if findings.evaluation is None:
        return []
    controls = findings.evaluation.controls
    if not controls:
        return ["## Controls\n\nNo control was run."]
    places = common_places(control.difference for control in controls)

    def row(control: Control) -> tuple[str, ...]:
        draws, mean = f"{len(draw_means(control)):,}", fixed(mean_draw(control), places, sign=True)
        difference = (mean_of(control.difference, places=places), interval_of(control.difference, places))
        beaten = "yes" if control.beaten else "no"
        return (control.name, beaten, draws, mean, *difference, probability(control.p))

    columns = ("control", "beaten", "draws", "mean effect", "difference", "95 %", "p")
    return ["## Controls\n\n" + table(columns, [row(control) for control in controls])]


def _missing(findings: Findings) -> list[str]:
    """What was not measured, and why."""
    if (e := findings.evaluation) is None or not (e.no_prompt or e.left_out):
        return []
    told = [("an instruction alone", e.no_prompt)] if e.no_prompt else []
    rows = [*told, *((f"the effect on {name}", reason) for name, reason in e.left_out.items())]
    return ["Not measured:\n\n" + "\n".join(f"- {prose(name)}: {prose(reason)}" for name, reason in rows)]


def _sites(findings: Findings) -> list[str]:
    if (v := findings.validation) is not None:
        checks = ranked_checks(v)[:TOP]
        places = common_places(check.effect for check in checks)
        rows = [
            (
                check.candidate.site,
                "works" if check.works else "does not work",
                mean_of(check.effect, places=places),
                interval_of(check.effect, places),
                mean_of(check.control, places=places),
            )
            for check in checks
        ]
        count = f"{len(v.working)} of {len(v.checks)} candidates work."
        grid = table(("site", "outcome", "effect", "95 %", "control"), rows, (0,))
        return [f"## Sites\n\n{count}" + (f" The first {len(rows)}:\n\n{grid}" if rows else "")]
    if findings.screening is None or not findings.screening.candidates:
        return []
    rows = [(c.site, c.method, fixed(c.score, 3, sign=True)) for c in findings.screening.candidates[:TOP]]
    return ["## Sites\n\nNot put to the test yet:\n\n" + table(("candidate", "method", "score"), rows, (0,))]
