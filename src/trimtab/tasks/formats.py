"""Formats: the fields that a row of a task may have, and the data sets of the field that are known by their columns.

It is a table; how rows are read with it is `tasks.fields`' affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trimtab.tasks.builtin.refusal import HELP, REFUSAL
from trimtab.tasks.builtin.truth import QUESTION

Kind = Literal["contrast", "counterfactual", "labelled", "samples"]

KINDS: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "contrast": (
        ("positive", "negative"),
        ("group", "prompt", "question", "answers", "distractors", "positive_system", "negative_system"),
    ),
    "counterfactual": (("clean", "corrupt", "answers", "distractors"), ("group", "spans", "corrupt_spans")),
    "samples": (("clean", "answers"), ("group",)),
    "labelled": (("text", "label"), ("group", "question", "answers", "distractors")),
}
"""The fields of each kind of row: those that it must have, and those that it may have."""
FIELDS = tuple(dict.fromkeys(name for need, may in KINDS.values() for name in (*need, *may)))
ALSO = {"answers": "answer", "distractors": "distractor"}
"""What a column may be called, too."""
TOGETHER = ("question", "answers", "distractors")


@dataclass(frozen=True)
class Format:
    """A data set that is recognised by its `columns`: where our fields are found in it, and how it is measured.

    `raw` is the mapping where prompts are not put into a chat template. `topic` is a column that names the group of a
    pair by its positive text, while texts are paired whatever their topics. `groups` says that groups are the data
    set's own, and become one where they share a text. Columns that are `made` here are in no file as they are.
    """

    name: str
    columns: tuple[str, ...]
    mapping: Mapping[str, str]
    raw: Mapping[str, str] = field(default_factory=dict)
    every: Mapping[str, object] = field(default_factory=dict)
    topic: str = ""
    sides: str = ""
    chat: bool = False
    read: str = "text"
    groups: bool = False
    made: bool = True
    poles: tuple[str, str] = ("positive", "negative")
    about: str = ""


FORMATS = (
    Format(
        "BLiMP",
        ("sentence_good", "sentence_bad"),
        {"positive": "sentence_good", "negative": "sentence_bad"},
        poles=("grammatical", "ungrammatical"),
        made=False,
        about="Sentences that are grammatical against their minimal pairs that are not.",
    ),
    Format(
        "behaviour",
        ("question", "answer_matching_behavior", "answer_not_matching_behavior"),
        {"prompt": "question", "positive": "answer_matching_behavior", "negative": "answer_not_matching_behavior"},
        raw={
            "prompt": "{question}\n\nAnswer:",
            "positive": " {answer_matching_behavior}",
            "negative": " {answer_not_matching_behavior}",
        },
        chat=True,
        poles=("matching", "not matching"),
        made=False,
        about="Answers that match a behaviour against answers that do not.",
    ),
    Format(
        "true and false statements",
        ("statement", "label"),
        {"text": "statement", "label": "label", "group": "city"},
        every={
            "question": QUESTION.format("{text}"),
            "answers": (" true",),
            "distractors": (" false",),
        },
        poles=("true", "false"),
        made=False,
        about="True statements against false ones.",
    ),
    Format(
        "instructions",
        ("instruction", "label"),
        {"text": "instruction", "label": "label"},
        every={"question": "{text}", "answers": REFUSAL, "distractors": HELP},
        topic="category",
        sides='files named harmful… and harmless… are given together, load_task(["harmful.json", "harmless.json"])',
        chat=True,
        read="last",
        poles=("harmful", "harmless"),
        about="Harmful instructions against harmless ones.",
    ),
    Format(
        "relation",
        ("subject", "object", "prompt_templates"),
        {"clean": "prompt_templates", "answers": " {object}"},
        about="What a relation gives for one subject, against what it gives for another.",
    ),
    Format(
        "parallel lines",
        ("first", "second"),
        {"positive": "first", "negative": "second"},
        about="Lines of one file against the same lines of another.",
    ),
    Format(
        "WinoBias",
        ("pro", "anti", "group"),
        {"positive": "pro", "negative": "anti", "group": "group"},
        groups=True,
        poles=("stereotyped", "against the stereotype"),
        about="Pronouns that fit an occupation's stereotype against pronouns that do not.",
    ),
    Format(
        "Winogender",
        ("male", "female", "occupation"),
        {"positive": "male", "negative": "female", "group": "occupation"},
        groups=True,
        poles=("male", "female"),
        about="The same sentence with a male and with a female pronoun.",
    ),
)
