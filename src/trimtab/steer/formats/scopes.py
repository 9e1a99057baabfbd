"""Where EasySteer's specs apply a vector, as one of our scopes.

It knows three generations of the clause: `prompt`/`generation` with selectors for each, `phases` with selectors for
both, and the trigger tokens of the first version, where −1 means every token. What no scope can say is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.errors import PromptError

_SELECTORS = ("tokens", "positions", "window")


def scope_of(apply: object) -> str:
    """The text of the scope that a clause means; without a clause, all positions.

    Raises PromptError for a clause that no single scope can say.
    """
    if apply is None:
        return "all"
    if not isinstance(apply, dict):
        raise PromptError(f"the apply clause should be a JSON object, got {apply!r:.60}")
    clause = {key: value for key, value in apply.items() if value is not None}
    if "phases" in clause:
        clause = _of_phases(clause)
    known = {f"{phase}{part}" for phase in ("prompt", "generation") for part in ("", *(f"_{s}" for s in _SELECTORS))}
    if unknown := sorted(clause.keys() - known):
        raise PromptError(f"the clause says {unknown[0]!r:.60}, which no scope can: name all, prompt, generation …")
    return _text(clause)


def clause_of(triggers: Mapping[str, list[int]]) -> dict[str, object]:
    """The first version's triggers as a clause, each a list of numbers: token −1 is every token of its phase.

    Raises PromptError for one that no scope can say.
    """
    clause: dict[str, object] = {}
    for key, values in triggers.items():
        phase = "prompt" if key.startswith("prefill") else "generation"
        if key.endswith("trigger_tokens"):
            clause[phase if values == [-1] else f"{phase}_tokens"] = "all" if values == [-1] else values
        elif key == "prefill_trigger_positions":
            clause["prompt_positions"] = values
        else:
            raise PromptError(f'"{key}" cannot be said by a scope')
    return clause


def _text(clause: dict[str, object]) -> str:
    generation, rest = clause.get("generation"), clause.keys() - {"generation"}
    if generation not in (None, "all"):
        raise PromptError(f'"generation" is "all" or left out, got {generation!r:.60}')
    every = generation == "all"
    if not rest and every:
        return "generated"
    if rest == {"prompt"} and clause["prompt"] == "all":
        return "all" if every else "prompt"
    if rest == {"prompt_positions"} and len(positions := _whole(clause["prompt_positions"])) == 1:
        return _position(positions[0], every)
    if rest == {"prompt_window"} and isinstance(window := clause["prompt_window"], list) and len(window) == 2:
        return _window(window, every)
    if rest == {"prompt_tokens", "generation_tokens"} and not every:
        tokens = _whole(clause["prompt_tokens"])
        if set(tokens) == set(_whole(clause["generation_tokens"])):
            return f"tokens{{{','.join(map(str, tokens))}}}"
    raise PromptError(
        f"the clause selects by {', '.join(sorted(clause)) or 'nothing'} in a way that no one scope can say: "
        "scopes are all, prompt, generated, one position, a slice, or tokens"
    )


def _position(position: int, on: bool) -> str:
    if on and position != -1:
        raise PromptError("one position of the prompt and everything generated are two scopes, unless it is the last")
    return "-1:" if on else str(position)


def _window(window: list[object], on: bool) -> str:
    start, stop = window
    (first,) = _whole([start])
    if stop is None:
        if on:
            return f"{first}:"
        raise PromptError("a window to the end of the prompt goes on into what is generated in our scopes")
    if on:
        raise PromptError("a window of the prompt and everything generated are two scopes")
    return f"{first}:{_whole([stop])[0]}"


def _of_phases(clause: dict[str, object]) -> dict[str, object]:
    phases = clause.pop("phases")
    if not isinstance(phases, list) or not phases or not set(map(str, phases)) <= {"prompt", "generation"}:
        raise PromptError(f'phases should list "prompt", "generation" or both, got {phases!r:.60}')
    if not clause:
        return dict.fromkeys(map(str, phases), "all")
    if clause.keys() == {"positions"} and phases == ["prompt"]:
        return {"prompt_positions": clause["positions"]}
    if clause.keys() == {"prompt_window"} and phases == ["prompt"]:
        return clause
    if clause.keys() == {"tokens"} and set(phases) == {"prompt", "generation"}:
        return {"prompt_tokens": clause["tokens"], "generation_tokens": clause["tokens"]}
    raise PromptError(f"the clause selects by {', '.join(sorted(clause))}, which no one scope can say in these phases")


def _whole(values: object) -> list[int]:
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        raise PromptError(f"positions and tokens should be whole numbers, got {values!r:.60}")
    return values
