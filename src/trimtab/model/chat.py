"""Chat templates: texts and a system prompt written out as the tokenizer's template has it, and what it added in words.

It knows nothing of tokens: it remembers where the user's text stands, so that spans are found there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trimtab.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\ue000"  # stands for a message while a template is looked at: private use, so that no template contains it


class Placed(NamedTuple):
    """Where the user's text stands in the text that is tokenised: its characters plus `shift`, within start and end."""

    text: str
    shift: int
    start: int
    end: int


def policy(tokenizer: PreTrainedTokenizerBase, system: str | None) -> str:
    """What the template does about the system prompt, in words: a default one stands where an explicit one would."""
    if not tokenizer.chat_template:
        raise PromptError("this tokenizer has no chat template: leave out chat=True, or set tokenizer.chat_template")
    if system is not None:
        return f"template, system: {system!r}"
    try:
        before, _, after = _render(tokenizer, MARK, "user").partition(MARK)
    except PromptError:
        return "template, no system prompt"
    plain = _render(tokenizer, None, "user")
    default = plain[len(before) : len(plain) - len(after)] if len(plain) > len(before) + len(after) else ""
    if default and plain.startswith(before) and plain.endswith(after):
        return f"template, its default system prompt: {default!r}"
    return "template, no system prompt"


def render(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, system: str | None, bos: bool | None
) -> tuple[list[str], Sequence[Placed | None]]:
    """Each text as the user's message in the template, and where it stands there; None where it was rewritten."""
    before, _, after = _render(tokenizer, system, MARK, bos is False).rpartition(MARK)
    rendered = [_render(tokenizer, system, text, bos is False) for text in texts]
    return rendered, [_place(text, whole, before, after) for text, whole in zip(texts, rendered, strict=True)]


def _place(text: str, rendered: str, before: str, after: str) -> Placed | None:
    """Find the user's text between what the template writes before and after it; templates may strip the text."""
    for kept in (text, text.strip()):
        if rendered == before + kept + after:
            start = len(before)
            return Placed(text, start - text.index(kept), start, start + len(kept))
    end = len(rendered) - len(after) if after and rendered.endswith(after) else len(rendered)
    start = rendered.rfind(text, 0, end)
    return None if start < 0 else Placed(text, start, start, start + len(text))


def _render(tokenizer: PreTrainedTokenizerBase, system: str | None, user: str, without_bos: bool = False) -> str:
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    options: dict[str, Any] = (
        {"bos_token": ""} if without_bos else {}
    )  # the variable that templates take their BOS from
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
    except TemplateError as error:
        refused = "a system prompt" if system is not None else "a conversation of one user message"
        raise PromptError(f"the chat template of this tokenizer does not take {refused}: {error}") from error


def conversation(turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token ids of a conversation in the tokenizer's template, with the cue for the next answer.

    `turns` are (role, text): "system", "user" and "assistant". The template alone says whether there is a BOS.

    Raises `PromptError` where there is no template, or it does not take these turns (some want no system prompt, or
    user and assistant in turns).
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise PromptError("this tokenizer has no chat template: its model continues texts and does not converse")
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError) as error:
        roles = ", ".join(role for role, _ in turns) or "no turn at all"
        raise PromptError(f"the chat template of this tokenizer does not take {roles}: {error}") from error
    ids = tuple(int(i) for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if not ids:
        raise PromptError("the conversation has no token: give at least one turn with text")
    return ids
