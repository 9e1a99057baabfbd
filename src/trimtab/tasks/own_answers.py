"""A model's own answers as a contrast task: wrong ones against right ones.

What a monitor of hallucination is fitted to. The answers are the model's own, not statements that somebody wrote: to
tell true statements from false ones is another thing than to tell where a model is about to be wrong (Orgad et al.
2024, "LLMs Know More Than They Show", arXiv 2410.02707).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from trimtab.errors import TaskError
from trimtab.model.prompts import single_token
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.means import batches
from trimtab.tasks.task import Task

if TYPE_CHECKING:
    from trimtab.model.lm import LM


@torch.no_grad()
def own_answers(lm: LM, task: Task, *, batch_size: int = 16) -> Task:
    """What the model answers to a counterfactual task's clean prompts: wrong answers (positive) against right ones.

    Its answer is the likeliest among all answers and distractors of the task, so that it is one of its kind (a number,
    a city) and wrong only in being another. Wrong and right answers of one group make pairs, prompt and answer in one
    text, as many as there are of the rarer; what is left over is left out. Texts are read at their last token, which
    is the answer.

    Raises TaskError for a contrast task or a chat, and where no group has both wrong and right answers.

    >>> own_answers(lm, builtin.task("arithmetic"))  # doctest: +SKIP
    <Task own answers to arithmetic: 20 contrast examples in 16 groups, log_prob_diff>
    """
    examples = [example for example in task.examples if isinstance(example, Counterfactual)]
    if not examples:
        raise TaskError(f"{task.name} has contrast examples; answers of the model's own are to prompts with answers")
    if task.chat:
        raise TaskError(f"{task.name} is a chat task; answers of the model's own are to plain prompts")
    words = sorted({word for example in examples for word in (*example.answers, *example.distractors)})
    tokens = torch.tensor([single_token(lm.tokenizer, word) for word in words], device=lm.device)
    prompts = lm.prompts([example.clean for example in examples])
    said = [""] * len(examples)
    for rows in batches(prompts, lm.anatomy.vocab, batch_size):
        logits = lm.run(prompts.rows(rows, trim=True), "logits@last")["logits@last"]
        for row, best in zip(rows, logits[..., tokens].argmax(-1).tolist(), strict=True):
            said[row] = words[best]
    groups: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for example, word in zip(examples, said, strict=True):
        groups[example.group][word in example.answers].append(example.clean + word)
    pairs = [
        Contrast(wrong, right, group=group)
        for group, both in groups.items()
        for wrong, right in zip(*both, strict=False)
    ]
    if not pairs:
        right = sum(word in example.answers for example, word in zip(examples, said, strict=True))
        raise TaskError(
            f"{lm.name} answers {right} of {len(examples)} prompts of {task.name} rightly, and no group has both a "
            "wrong and a right answer: take a task that it finds neither easy nor hopeless, or larger groups"
        )
    return Task(
        f"own answers to {task.name}",
        tuple(pairs),
        about=f"prompts of {task.name} with a wrong or a right answer that {lm.name} gives",
        poles=("wrong", "right"),
        read="last",
    )
