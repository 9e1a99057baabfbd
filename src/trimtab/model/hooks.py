"""Hooks: the only place that touches a module's forward, for exactly as long as a `with` block.

A `Step` is something to do at a site: change the tensor that passes (an edit) or look at it (a read, a condition).
Steps are grouped by the module on which they act and run in the order in which the sites are computed, changes before
looks, so a read sees what the model went on with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import EditError, SiteError
from trimtab.model import attention, experts
from trimtab.model.anatomy import Anatomy
from trimtab.model.frame import Frame
from trimtab.model.taps import Tap
from trimtab.values.site import Site

KEYS = {"rot_k": 2, "scores": 3}
"""The axis of keys in what attention shows."""

Change = Callable[[Tensor, Frame], Tensor]
"""(the site's tensor (batch pos unit …), frame) -> the tensor to go on with."""
Look = Callable[[Tensor, Tap, Frame], Tensor | None]
"""(the module's own tensor, where the site lies in it, frame); a tensor that is returned goes on in its place."""


@dataclass(frozen=True)
class Step:
    """Something to do at a whole site: exactly one of `change` and `look`."""

    site: Site
    change: Change | None = None
    look: Look | None = None


class Hooks:
    """Installs steps on a model for the length of a `with` block; on leaving, also by exception, nothing is left.

    `frame` is called at each step to learn what the running pass covers; where it gives None (a module called by hand)
    nothing is done.
    """

    def __init__(self, anatomy: Anatomy, steps: Iterable[Step], frame: Callable[[], Frame | None]) -> None:
        self.anatomy = anatomy
        self.frame = frame
        self.places: dict[tuple[nn.Module, str], list[tuple[Tap, Step]]] = defaultdict(list)
        for step in sorted(steps, key=lambda s: (s.site.depth, s.look is not None)):
            tap = anatomy.tap(step.site)
            self.places[tap.module, tap.side].append((tap, step))
        self.stack = ExitStack()

    def __enter__(self) -> Hooks:
        try:
            for (module, side), steps in self.places.items():
                self._install(module, side, steps)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def _install(self, module: nn.Module, side: str, steps: Sequence[tuple[Tap, Step]]) -> None:
        match side:
            case "in":
                handle = module.register_forward_pre_hook(self._before(steps), with_kwargs=True)
                self.stack.callback(handle.remove)
            case "out":
                self.stack.callback(module.register_forward_hook(self._after(steps)).remove)
            case "root":
                self.stack.callback(module.register_forward_hook(self._logits(steps)).remove)
            case "router":
                self.stack.callback(module.register_forward_hook(self._router(steps)).remove)
            case "expert":
                hook = module.register_forward_hook(self._experts(steps), with_kwargs=True)
                self.stack.callback(hook.remove)
            case "core":
                self.stack.enter_context(attention.opened(module, self.anatomy.family, self._core(steps)))

    # What each kind of hook does
    # ---------------------------------------------------------------------------------------

    def _run(self, steps: Sequence[tuple[Tap, Step]], tensor: Tensor, frame: Frame | None) -> Tensor:
        if frame is None:
            return tensor
        for tap, step in steps:
            if step.change is not None:
                # where the graph is kept, what is written over must not be what the change remembers
                source = tensor.clone() if tap.in_place and tensor.requires_grad else tensor
                x = tap.layout.read(source, frame.batch, frame.length)
                y = step.change(x, frame)
                if y is x:
                    continue
                new = tap.layout.write(tensor, y, frame.batch, frame.length)
                tensor = tensor.copy_(new) if tap.in_place else new
            elif step.look is not None:
                other = step.look(tensor, tap, frame)
                tensor = tensor if other is None else other
        return tensor

    def _before(self, steps: Sequence[tuple[Tap, Step]]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tensor = args[0] if args else kwargs["hidden_states"]
            frame = self.frame()
            if frame is not None and module is self.anatomy.unembed and tensor.shape[1] != frame.length:
                kept = tensor.shape[1]  # the model was asked for the last positions only
                frame = replace(frame, start=frame.stop - kept, length=kept)
            new = self._run(steps, tensor, frame)
            if new is tensor:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        return hook

    def _after(self, steps: Sequence[tuple[Tap, Step]]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = output[0] if isinstance(output, tuple) else output
            new = self._run(steps, tensor, self.frame())
            if new is tensor:
                return None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    def _logits(self, steps: Sequence[tuple[Tap, Step]]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            frame = self.frame()
            if frame is None:
                return None
            at = (
                next(i for i, x in enumerate(output) if isinstance(x, Tensor) and x.ndim == 3) if _plain(output) else -1
            )
            logits = output[at] if at >= 0 else output.logits
            kept = logits.shape[1]
            if kept != frame.length:  # the model was asked for the last positions only
                frame = replace(frame, start=frame.stop - kept, length=kept)
            new = self._run(steps, logits, frame)
            if at >= 0:
                return (*output[:at], new, *output[at + 1 :])
            output.logits = new
            return None

        return hook

    def _router(self, steps: Sequence[tuple[Tap, Step]]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            frame = self.frame()
            raw, weights, chosen = output
            dense = experts.routing(weights, chosen, raw.shape[-1])
            new = self._run(steps, dense, frame)
            if new is dense:
                return None
            return (raw, *experts.as_choices(new))

        return hook

    def _experts(self, steps: Sequence[tuple[Tap, Step]]) -> Callable[..., Any]:
        by_expert: dict[int, list[tuple[Tap, Step]]] = defaultdict(list)
        for tap, step in steps:
            if step.site.expert is None:
                raise SiteError(f"{step.site}: name one expert, L{step.site.layer}.expert[0], or select all: expert[*]")
            by_expert[step.site.expert].append((tap, step))

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Any:
            frame = self.frame()
            names = ("hidden_states", "top_k_index", "top_k_weights")
            hidden, chosen, weights = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
            dense = experts.routing(weights, chosen, len(module.gate_up_proj))  # pyright: ignore[reportArgumentType]

            def act(name: str, expert: int, tensor: Tensor) -> Tensor:
                return self._run([s for s in by_expert[expert] if s[1].site.name == name], tensor, frame)

            added = experts.contributions(module, hidden, dense, sorted(by_expert), act)
            return output + added if any(step.change for _, step in steps) else None

        return hook

    def _core(self, steps: Sequence[tuple[Tap, Step]]) -> attention.Act:
        by_name: dict[str, list[tuple[Tap, Step]]] = defaultdict(list)
        for tap, step in steps:
            by_name[step.site.name].append((tap, step))

        def act(name: str, tensor: Tensor, seen: attention.Seen | None = None) -> Tensor:
            frame = self.frame()
            if frame is None:
                return tensor
            if name in KEYS and tensor.shape[KEYS[name]] > frame.stop:
                raise EditError(
                    f"{steps[0][1].site}: {tensor.shape[KEYS[name]]} keys for the {frame.stop} tokens so far: inside "
                    "attention, a cache of fixed size cannot be followed; generate with the default cache"
                )
            if name not in by_name:
                return tensor
            if name == "rot_k":
                # Keys come with those of earlier columns, which are kept as they were before any edit: every pass
                # edits them all
                keys = tensor.shape[2]
                frame = replace(frame, start=frame.stop - keys, length=keys)
            for tap, step in by_name[name]:
                new = self._run([(tap, step)], tensor, frame)
                if seen is not None and (new is not tensor or new.requires_grad):
                    # what is masked stays masked, whatever an edit makes of it, and so has no slope
                    new = torch.where(seen(), new, tensor.detach())
                tensor = new
            return tensor

        return act


def _plain(output: object) -> bool:
    """Whether a model was asked for a plain tuple."""
    return type(output) is tuple
