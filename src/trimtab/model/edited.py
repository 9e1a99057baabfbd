"""Edits that stay on a model for a `with` block, whoever calls it: `lm.run`, `lm.generate`, or `lm.hf` directly.

Inside `lm.run` the prompts are known. A direct call of the model is understood from its arguments: ids and mask make
the prompts, and a cache that already holds tokens means that generation goes on from the prompts of the call before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trimtab.errors import EditError
from trimtab.model.edits import Compiled, Source
from trimtab.model.frame import Frame
from trimtab.model.hooks import Hooks, Step
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.steps import condition_step
from trimtab.values.edit import Edit

if TYPE_CHECKING:
    from trimtab.model.lm import LM


class Edited:
    """Keeps edits on a model; they are compiled anew for each batch of prompts that comes by."""

    def __init__(
        self,
        lm: LM,
        edits: Sequence[Edit],
        runs: Mapping[str, Source] | None,
        dictionaries: Mapping[str, Dictionary] | None,
    ) -> None:
        self.lm, self.edits, self.runs, self.dictionaries = lm, edits, runs, dictionaries
        self.stack = ExitStack()
        self.compiled: dict[Edit, Compiled | None] = {}
        self.prompts: Prompts | None = None
        self.ids: Tensor | None = None
        self.own_frame: Frame | None = None

    def __enter__(self) -> Edited:
        anatomy = self.lm.anatomy
        steps: list[Step] = []
        for edit in self.edits:
            if edit.when is not None:
                steps.append(condition_step(edit.when, anatomy))
            steps.append(Step(anatomy.resolve(edit.site).base.whole, change=self._late(edit)))
        try:
            handle = self.lm.hf.register_forward_pre_hook(self._before, with_kwargs=True)
            self.stack.callback(handle.remove)
            self.stack.enter_context(Hooks(anatomy, steps, self.lm.current_frame))
            handle = self.lm.hf.register_forward_hook(self._after, always_call=True)
            self.stack.callback(handle.remove)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()
        if self.own_frame is not None and self.lm.frame is self.own_frame:
            self.lm.frame = None

    def _late(self, edit: Edit) -> Any:
        def change(x: Tensor, frame: Frame) -> Tensor:
            if self.prompts is not frame.prompts:
                self.prompts, self.compiled = frame.prompts, {}
            if edit not in self.compiled:
                made = self.lm.compile([edit], frame.prompts, self.runs, self.dictionaries)
                self.compiled[edit] = made[0] if made else None
            compiled = self.compiled[edit]
            return x if compiled is None else compiled.apply(x, frame)

        return change

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.lm.frame is not None:
            return
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise EditError("an edited model needs input_ids: positions cannot be counted in inputs_embeds")
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0 or self.own_frame is None:
            mask = kwargs.get("attention_mask")
            if past:
                raise EditError("an edited model was called with a cache from outside the block; start inside it")
            prompts = (
                Prompts.of(ids, self.lm.tokenizer, mask=mask)
                if mask is not None
                else Prompts.of(ids, self.lm.tokenizer)
            )
            self.ids = ids
            self.own_frame = Frame.whole(prompts)
        else:
            assert self.ids is not None
            self.ids = torch.cat([self.ids[:, :past], ids], dim=1)
            held = self.own_frame
            self.own_frame = Frame(held.prompts, len(ids), past, ids.shape[1], ids=self.ids, held=held.held)
        self.lm.frame = self.own_frame

    def _after(self, *_: Any) -> None:
        if self.lm.frame is self.own_frame:
            self.lm.frame = None
