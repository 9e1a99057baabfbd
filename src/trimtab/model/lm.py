"""LM: a Hugging Face causal language model whose every part has an address.

The model is wrapped and never rewritten: `lm.hf` is the model itself, and outside a call or a `with` block nothing of
this package is on it. Dictionaries, runs and interventions are passed to a call; an `LM` does not change under your
hands. Threads may share an `LM`: whatever puts hooks on the model waits for what is on it to come off.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import PromptError
from trimtab.model.anatomy import Anatomy
from trimtab.model.counterfactual import counterfactuals, plan
from trimtab.model.edited import Direct, Edited
from trimtab.model.edits import Compiled, Compiler
from trimtab.model.frame import Frame
from trimtab.model.generate import generate, stream
from trimtab.model.gradient import gradients
from trimtab.model.hooks import Hooks, Step
from trimtab.model.identities import check_anatomy
from trimtab.model.prompts import Prompts, single_token
from trimtab.model.protocols import Dictionary, Source
from trimtab.model.provenance import Call
from trimtab.model.run import Run, Stop, reader
from trimtab.model.steps import Edits, edit_steps, spelled_out
from trimtab.model.store import harvest
from trimtab.model.weights import patched
from trimtab.values.edit import Edit
from trimtab.values.site import Site

Reads = str | Site | Iterable[str | Site]
Text = str | Sequence[str] | Sequence[Sequence[int]] | Tensor | Prompts


class LM:
    """A language model to read, edit and generate with.

    `hf` is the model, `tokenizer` its tokenizer, `anatomy` its sizes and sites. Made by `trimtab.load`.

    Raises `ModelError` when the architecture is not supported or, with `check`, when an identity of its sites does not
    hold.
    """

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "", check: bool = True
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.name = name or hf.config.name_or_path or type(hf).__name__
        self.anatomy = Anatomy(hf)
        self.active: list[Edited] = []
        """The blocks of `edited` around, from the outermost in."""
        self.direct: Direct | None = None
        self.frame: Frame | None = None
        self.lock = threading.RLock()
        """Held while hooks are on the model: they and the frame belong to one thread at a time."""
        self._hash: tuple[tuple[tuple[object, ...], ...], str] | None = None
        parameters = inspect.signature(hf.forward).parameters
        self.takes_positions = "position_ids" in parameters
        self.takes_kept = "logits_to_keep" in parameters
        if check:
            check_anatomy(self)

    def __repr__(self) -> str:
        return f"LM({self.name}: {self.anatomy!r}, {str(self.dtype).removeprefix('torch.')} on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the token embedding."""
        return next(self.anatomy.embedding.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations: that of the embedding's weight."""
        return next(self.anatomy.embedding.parameters()).dtype

    @property
    def attention(self) -> str:
        """The attention implementation that the model is set to."""
        return str(self.hf.config._attn_implementation)

    @property
    def positions(self) -> int | None:
        """How many positions its table of them has; None where positions are computed (rotary, ALiBi)."""
        return self.hf.config.max_position_embeddings if self.anatomy.family.position_table else None

    # Addresses
    # -----------------------------------------------------------------------------------------------------------

    def prompts(self, source: Text, **options: Any) -> Prompts:
        """Token ids with mask, positions, spans and policies: `Prompts.of` with this model's tokenizer and device."""
        if isinstance(source, Prompts) and not options:
            prompts = source.to(self.device) if source.ids.device != self.device else source
        else:
            prompts = Prompts.of(source, self.tokenizer, device=self.device, **options)
        if self.positions is not None and prompts.width > self.positions:
            raise PromptError(
                f"the longest prompt has {prompts.width} tokens, and {self.name} has {self.positions} positions"
            )
        return prompts

    def token(self, text: str) -> int:
        """The id of a text that is one token, such as `" Mary"`; `PromptError`, showing its tokens, for another."""
        return single_token(self.tokenizer, text)

    def sites(self, patterns: Reads) -> list[Site]:
        """The sites of this model that selections such as `"L10-20.head"` or `"L*.mlp_out"` name."""
        given = [patterns] if isinstance(patterns, str | Site) else list(patterns)
        return list(dict.fromkeys(site for pattern in given for site in self.anatomy.sites(pattern)))

    def shape(self, site: Site) -> tuple[int, ...]:
        """The shape after `batch pos` of a whole site's tensor; attention scores are (head,), with keys to follow."""
        a, units = self.anatomy, self.anatomy.units(site.base)
        if site.name in ("head", "q", "k", "v", "rot_q", "rot_k"):
            return (units, a.d_head)
        return (units,)

    # Running
    # -------------------------------------------------------------------------------------------------------------

    def run(
        self,
        prompts: Text,
        read: Reads = (),
        edit: Edits = None,
        *,
        logits: bool = True,
        runs: Mapping[str, Source] | None = None,
        dictionaries: Mapping[str, Dictionary] | None = None,
    ) -> Run:
        """One forward pass over the prompts.

        `read`: sites or selections to keep. `edit`: what to change on the way. With `logits=False` the pass ends after
        the last tensor that is read. `runs`: named runs that edits take values from. Without edits the logits are
        bitwise those of `lm.hf` called with the same ids, mask and position ids.
        """
        prompts, edit = self.prompts(prompts), spelled_out(edit, self.anatomy)
        dictionaries = dictionaries or {}
        found: dict[Site, Tensor] = {}
        sites = self.sites(read)
        wanted = [s for s in sites if s.name != "logits" or s.view]
        logits = logits or len(wanted) < len(sites)
        todo = set(wanted)
        steps = [reader(site, self.anatomy, prompts, dictionaries, found, todo) for site in wanted]
        if not logits:
            steps.append(_stopper(steps, todo))
        with torch.no_grad(), self.hooked(prompts, edit, runs, dictionaries, steps):
            try:
                out = self.call(prompts).logits if todo or logits else None
            except Stop:
                out = None
        edited = bool(edit) or bool(self.active)
        made = Call(self, prompts, "run", lambda: {"read": [str(s) for s in sites]}, edit=edit or None, runs=runs)
        return Run(prompts, out if logits else None, {s: found[s] for s in wanted}, edited, self, made)

    def call(self, prompts: Prompts, **options: Any) -> Any:
        """The Hugging Face model on these prompts, with explicit mask and position ids and no cache."""
        if self.takes_positions:
            options["position_ids"] = prompts.position_ids
        return self.hf(input_ids=prompts.ids, attention_mask=prompts.mask, use_cache=False, **options)

    @contextmanager
    def hooked(
        self,
        prompts: Prompts,
        edit: Edits,
        runs: Mapping[str, Source] | None,
        dictionaries: Mapping[str, Dictionary] | None,
        steps: Sequence[Step] = (),
    ) -> Iterator[Frame]:
        """For the length of the block: edits and further steps on the model, weight patches applied, the frame set."""
        intervention = spelled_out(edit, self.anatomy)
        changes = edit_steps(self.compile(intervention.edits, prompts, runs, dictionaries), self.anatomy)
        with patched(self.hf, intervention.patches), self.on([*changes, *steps], Frame.whole(prompts)) as frame:
            yield frame

    @contextmanager
    def on(self, steps: Sequence[Step], frame: Frame) -> Iterator[Frame]:
        """For the length of the block: steps on the model, after those of blocks around, and the frame."""
        every = [*(step for block in self.active for step in block.steps), *steps]
        with self.lock, ExitStack() as stack:
            stack.enter_context(self.framed(frame))
            if every:
                stack.enter_context(Hooks(self.anatomy, every, self.current_frame))
            yield frame

    def compile(
        self,
        edits: Iterable[Edit],
        prompts: Prompts,
        runs: Mapping[str, Source] | None = None,
        dictionaries: Mapping[str, Dictionary] | None = None,
        given: Prompts | None = None,
    ) -> list[Compiled]:
        """Edits made ready for these prompts, without those of strength zero; `given` as in `Compiler`.

        `EditError` where one does not fit.
        """
        edits = list(edits)
        if not edits:
            return []
        compiler = self.compiler(prompts, runs, dictionaries, given)
        return [compiled for edit in edits if (compiled := compiler(edit)) is not None]

    def compiler(
        self,
        prompts: Prompts,
        runs: Mapping[str, Source] | None = None,
        dictionaries: Mapping[str, Dictionary] | None = None,
        given: Prompts | None = None,
    ) -> Compiler:
        """What turns edits into compiled ones for these prompts; `given` as in `Compiler`."""
        dtype = self.dtype if self.dtype.is_floating_point and self.dtype.itemsize >= 4 else torch.float32
        return Compiler(
            prompts, runs or {}, dictionaries or {}, self.device, dtype, self.shape, self.anatomy.resolve, given
        )

    @contextmanager
    def framed(self, frame: Frame) -> Iterator[Frame]:
        """Sets what the passes inside the block cover."""
        before, self.frame = self.frame, frame
        try:
            yield frame
        finally:
            self.frame = before

    def current_frame(self) -> Frame | None:
        """What the running pass covers; None where a module is called by hand, outside any pass."""
        return self.frame

    # Staying edited
    # ------------------------------------------------------------------------------------------------------

    @contextmanager
    def edited(
        self,
        edit: Edits,
        *,
        runs: Mapping[str, Source] | None = None,
        dictionaries: Mapping[str, Dictionary] | None = None,
    ) -> Iterator[LM]:
        """For the length of the block, `lm.run`, `lm.generate` and `lm.hf` itself have an intervention on.

        A part of the model called by hand (`lm.hf.model(ids)`) is as it was: nothing tells which tokens it is for.

        On leaving, also by exception, hooks are gone and patched weights are bitwise what they were.
        """
        intervention = spelled_out(edit, self.anatomy)
        block = Edited(self, intervention, runs, dictionaries)
        with self.lock, patched(self.hf, intervention.patches) as block.originals:
            self.active.append(block)
            try:
                with self._direct():
                    yield self
            finally:
                self.active.pop()

    @contextmanager
    def _direct(self) -> Iterator[None]:
        """Hooks of all blocks around on the model itself, in place of those of the blocks further out."""
        outer, self.direct = self.direct, Direct(self, self.active)
        if outer is not None:
            outer.remove()
        try:
            self.direct.install()
            yield
        finally:
            self.direct.remove()
            self.direct = outer
            if outer is not None:
                outer.install()

    # Generating, gradients, counterfactuals: functions of their own files, whose first argument is the model
    # -----------

    generate = generate
    stream = stream
    gradients = gradients
    counterfactuals = counterfactuals
    plan = plan
    harvest = harvest

    # Reading out
    # ---------------------------------------------------------------------------------------------------------

    def final(self, resid: Tensor) -> Tensor:
        """What the unembedding reads, from the residual stream after the last block (… d_model)."""
        x = resid if self.anatomy.norm is None else self.anatomy.norm(resid)
        return x if self.anatomy.project_out is None else self.anatomy.project_out(x)

    def unembed(self, final: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits (… vocab), soft cap included, from what the unembedding reads (… d); of some tokens only when given.

        `tokens`: (token) for all, or (batch token) with `final` (batch pos d).
        """
        a = self.anatomy
        if tokens is None:
            z = a.unembed(final)
        else:
            tokens = tokens.to(final.device)
            z = self._some_logits(final, tokens)
        if a.logit_cap is not None:
            z = torch.tanh(z / a.logit_cap) * a.logit_cap
        return z

    def _some_logits(self, final: Tensor, tokens: Tensor) -> Tensor:
        unembed = self.anatomy.unembed
        if type(unembed) is not torch.nn.Linear or not unembed.weight.is_floating_point():
            z = unembed(final)  # quantised or a layer of its own kind: its rows cannot be picked
            return z[..., tokens] if tokens.ndim == 1 else z.gather(-1, tokens[:, None].expand(*z.shape[:2], -1))
        weight, bias = unembed.weight, unembed.bias
        if tokens.ndim == 1:
            return torch.nn.functional.linear(final, weight[tokens], None if bias is None else bias[tokens])
        z = final @ weight[tokens].transpose(-1, -2)
        return z if bias is None else z + bias[tokens][:, None]

    @property
    def hash(self) -> str:
        """SHA-256 of the weights, names included, in order, without patches; worked out again when weights change.

        A change is told by the tensors' places, versions and some of their entries: a few milliseconds.
        """
        weights = self.hf.state_dict()
        for block in reversed(self.active):
            weights |= block.originals
        now = tuple((name, w.data_ptr(), w._version, w.dtype, _some(w)) for name, w in sorted(weights.items()))  # noqa: SLF001
        if self._hash is None or self._hash[0] != now:
            digest = hashlib.sha256()
            for name, weight in sorted(weights.items()):
                digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
                digest.update(weight.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
            self._hash = now, digest.hexdigest()
        return self._hash[1]


def _some(weight: Tensor) -> tuple[float, ...]:
    """Some entries of a weight: what is written through `weight.data` leaves its version as it was."""
    return tuple(weight.detach().reshape(-1)[:: max(1, weight.numel() // 8)].double().tolist())


def _stopper(readers: Sequence[Step], todo: set[Site]) -> Step:
    """A step behind the last read that ends the pass once nothing is left to read."""
    last = max((step.site for step in readers), key=lambda site: site.depth, default=Site("embed"))

    def look(*_: object) -> None:
        if not todo:
            raise Stop

    return Step(last, look=look)
