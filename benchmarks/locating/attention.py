"""What scores of attention cost next to a plain pass over the same prompts, and next to holding every pattern."""

from __future__ import annotations

import trimtab
from benchmarks.measure import Case, overhead, paired
from trimtab.locate.attention import induction_score
from trimtab.tasks.repeated import RepeatedTokens


def cases(quick: bool) -> list[Case]:
    lm = trimtab.load("smollm2-135m-instruct")
    given = RepeatedTokens(length=64, sequences=2 if quick else 8)
    prompts = given.prompts(lm)
    assert lm.hash  # worked out once: it is not what is measured

    def scores() -> object:
        return induction_score(lm, given)

    def held() -> object:
        return lm.run(prompts, "L*.pattern", logits=False)

    def plain() -> object:
        return lm.run(prompts, logits=False, read="L29.resid_post")

    rounds = 3 if quick else 7
    return [
        overhead("induction score of all heads, over a plain pass", paired(scores, plain, rounds), 1.0),
        overhead("induction score of all heads, over holding all patterns", paired(scores, held, rounds), 0.3),
    ]
