"""Generation with edits on, under the key-value cache: greedy or sampled, in batches, streamed or whole.

A step is a call of the Hugging Face model on the newest token of every row. Positions of edits are absolute: an edit
at the subject acts while the prompt is read, and its effect lives on in the cache; an edit of "all" acts on every new
token too. Batches are padded on the left whatever side they came with. Sampling warps logits with transformers' own
processors, and each row draws from a generator of its own, so a row's text does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from trimtab.errors import EditError, PromptError, SiteError, nearest
from trimtab.model.detokenise import Detokeniser, ends, text_of
from trimtab.model.frame import Frame
from trimtab.model.prompts import Prompts, SpanLike
from trimtab.model.protocols import Dictionary, Source
from trimtab.model.provenance import Call
from trimtab.model.run import reader
from trimtab.model.sampling import Sampling
from trimtab.model.steps import edit_steps, spelled_out
from trimtab.model.weights import patched
from trimtab.values.provenance import Provenance
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Edits, Reads, Text


@dataclass(frozen=True, eq=False)
class Generation:
    """Continuations of prompts.

    `ids` are the new token ids of each row, without padding and including an end-of-sequence token where one came;
    `texts` the new text of each row, special tokens left out.
    """

    prompts: Prompts
    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    made: Call | None = field(default=None, repr=False)

    @property
    def provenance(self) -> Provenance | None:
        """Where this comes from, worked out when it is first asked for."""
        return None if self.made is None else self.made.provenance

    def __str__(self) -> str:
        return "\n\n".join(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> str:
        return self.texts[row]


@dataclass(frozen=True)
class Piece:
    """One step of a stream: the token of every row (None once a row has ended) and the text it completes.

    `read` holds what the pass of this step saw for the first time at the sites that were asked for, (batch pos unit …)
    for each: in the first piece the columns of the prompts (padded on the left), then the token of the piece before.
    """

    ids: tuple[int | None, ...]
    texts: tuple[str, ...]
    read: Mapping[Site, Tensor] = field(default_factory=dict, repr=False, compare=False)


class Options(TypedDict, total=False):
    """How to continue; every one may be left out."""

    max_new_tokens: int
    """New tokens at most (32)."""
    temperature: float
    """0 (default) is greedy."""
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | Sequence[int]
    """For sampling (0). Every row draws from a generator of its own; one seed for all gives the same prompt the same
    text in every row, a list of seeds, one for each row, different ones."""
    stop: str | Sequence[str]
    """Texts that end a row where they appear."""
    read: Reads
    """Sites to look at on the way (`stream` only): see `Piece.read`. Then there is one more piece, without tokens, for
    what the model makes of the last ones, which nothing else would need to read."""
    cache: bool
    """Keep keys and values (True); False runs the whole text at every step, to compare with."""
    runs: Mapping[str, Source] | None
    dictionaries: Mapping[str, Dictionary] | None
    chat: bool
    """Put texts into the chat template; with `system`, `spans` and `bos` as in `Prompts.of`."""
    system: str | None
    spans: Mapping[str, SpanLike | Sequence[SpanLike]] | None
    bos: bool | None


SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop", "cache")
"""The options that say how tokens are picked."""


def generate(lm: LM, prompts: Text, edit: Edits = None, **options: Unpack[Options]) -> Generation:
    """Continue prompts, with edits on; the options are those of `Options`.

    The end-of-sequence tokens of the model's generation configuration end a row. With `edit` None or empty, greedy
    tokens are those of `lm.hf.generate`.

    Raises `PromptError` for options out of range, `EditError` and `SiteError` for edits that do not fit.
    """
    if "read" in options:
        raise PromptError("what is read comes piece by piece: use lm.stream(…, read=…), or lm.run on the finished text")
    steps = _Steps(lm, prompts, options)
    rows: list[list[int]] = [[] for _ in range(steps.prompts.batch)]
    for piece in steps.run(edit):
        for row, token in zip(rows, piece.ids, strict=True):
            if token is not None:
                row.append(token)
    texts = tuple(text_of(lm.tokenizer, row) for row in rows)
    return Generation(steps.prompts, tuple(map(tuple, rows)), texts, steps.call(edit))


def stream(lm: LM, prompts: Text, edit: Edits = None, **options: Unpack[Options]) -> Iterator[Piece]:
    """Like `generate`, one `Piece` for each step; closing the iterator early takes the edits off the model."""
    return _Steps(lm, prompts, options).run(edit)


class _Steps:
    """One generation: its prompts, its options, and the loop over steps."""

    def __init__(self, lm: LM, source: Text, options: Options) -> None:
        known = Options.__annotations__
        for name in options:
            if name not in known:
                raise PromptError(
                    f'generation has no option "{name}"{nearest(name, known)}; options: {", ".join(known)}'
                )
        self.lm, self.options = lm, options
        about = {name: value for name, value in options.items() if name in ("chat", "system", "spans", "bos")}
        self.given = lm.prompts(source, **about)
        self.prompts = self.given.pad("left")
        self.blocks = tuple(lm.active)
        self.most = options.get("max_new_tokens", 32)
        if self.most < 1:
            raise PromptError(f"max_new_tokens must be at least 1, got {self.most}")
        self.sampling = Sampling(
            options.get("temperature", 0.0),
            options.get("top_k"),
            options.get("top_p"),
            options.get("repetition_penalty"),
        )
        self.sampling.check()
        self.reads = _readable(lm, options.get("read", ()))
        # the last token of all goes through the model only where something is read at it
        positions, room = lm.positions, 0 if self.reads else 1
        if positions is not None and self.prompts.width + self.most - room > positions:
            raise PromptError(
                f"the longest prompt has {self.prompts.width} tokens, and {lm.name} has {positions} positions: "
                f"max_new_tokens is at most {positions - self.prompts.width + room} here, got {self.most}"
            )
        stop = options.get("stop", ())
        self.stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in self.stops:
            raise PromptError("a stop text is empty, and every text contains it: leave it out")

    def call(self, edit: Edits) -> Call:
        """What is done here, for its provenance; what became of chat, system and BOS is known to the prompts."""
        plain = {name: value for name, value in self.options.items() if name in SAMPLING}
        seed, intervention = plain.get("seed", 0), spelled_out(edit, self.lm.anatomy) or None
        return Call(
            self.lm,
            self.prompts,
            "generate",
            lambda: plain,
            edit=intervention,
            runs=self.options.get("runs"),
            seed=seed if isinstance(seed, int) else None,
        )

    def run(self, edit: Edits) -> Iterator[Piece]:
        """Step by step; hooks live for the length of a step."""
        lm, prompts, options = self.lm, self.prompts, self.options
        generators = _generators(options.get("seed", 0), prompts.batch)
        rows = [_Row(lm, self.stops, ends(lm)) for _ in range(prompts.batch)]
        ids, mask, start = prompts.ids, prompts.mask, 0
        store = DynamicCache(config=lm.hf.config) if options.get("cache", True) else None
        intervention = spelled_out(edit, lm.anatomy)
        compiled = lm.compile(intervention.edits, prompts, options.get("runs"), options.get("dictionaries"), self.given)
        steps = edit_steps(compiled, lm.anatomy)
        frame = Frame.whole(prompts)
        read: dict[Site, Tensor] = {}
        known = 0
        dictionaries = options.get("dictionaries") or {}
        steps += [reader(site, lm.anatomy, prompts, dictionaries, read, set()) for site in self.reads]
        for left in range(self.most - 1, -1 - bool(self.reads), -1):
            length = ids.shape[1] - start
            frame = Frame(prompts, prompts.batch, start, length, ids=ids, held=frame.held, given=self.given)
            if tuple(lm.active) != self.blocks:
                raise EditError(
                    "the stream was begun with other lm.edited blocks around it: read it where it was begun"
                )
            # between steps, while the caller has the piece, the model is as it was
            with torch.no_grad(), patched(lm.hf, intervention.patches), lm.on(steps, frame):
                logits = last_logits(lm, ids[:, start:], mask, start, store)
            seen, known = {site: values[:, known - start :] for site, values in read.items()}, ids.shape[1]
            if left < 0 or all(row.done for row in rows):  # this pass was for what is read of the last tokens
                yield Piece((None,) * len(rows), ("",) * len(rows), seen)
                return
            said = torch.where(mask.bool(), ids, ids[:, -1:])  # padding was never said: the last token stands for it
            new = self.sampling.pick(said, logits, generators)
            pieces = [row.take(token, left == 0) for row, token in zip(rows, new.tolist(), strict=True)]
            yield Piece(tuple(p[0] for p in pieces), tuple(p[1] for p in pieces), seen)
            if not self.reads and all(row.done for row in rows):
                return
            start = 0 if store is None else ids.shape[1]
            ids = torch.cat([ids, new[:, None].to(ids.device)], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


def _readable(lm: LM, read: Reads) -> list[Site]:
    """The sites of a selection. SiteError for one that has not one value for each column of a pass."""
    sites = lm.sites(read)
    for site in sites:
        if site.at is not None:
            raise SiteError(f"{site}: every new token is read: leave the positions out, {site.with_(at=None)}")
        if site.base.name in ("rot_k", "scores", "pattern", "final", "logits"):
            raise SiteError(f"{site} is not read while text is generated: run the finished text and read it there")
    return sites


def _generators(seed: int | Sequence[int], batch: int) -> list[torch.Generator]:
    """One for each row."""
    seeds = [seed] * batch if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise PromptError(f"{len(seeds)} seeds for {batch} rows: give one number, or one for each row")
    return [torch.Generator().manual_seed(number) for number in seeds]


def last_logits(lm: LM, ids: Tensor, mask: Tensor, start: int, store: Cache | None) -> Tensor:
    """Logits of the last column (batch vocab), of the columns from `start` on, with the mask of all of them."""
    options: dict[str, object] = {"use_cache": store is not None}
    if store is not None:
        options["past_key_values"] = store
    if lm.takes_positions:
        options["position_ids"] = ((mask.cumsum(1) - 1) * mask)[:, start:]
    if lm.takes_kept:
        options["logits_to_keep"] = 1
    return lm.hf(input_ids=ids, attention_mask=mask, **options).logits[:, -1]


class _Row:
    """What one row has said so far, and whether it has ended."""

    def __init__(self, lm: LM, stops: Sequence[str], ends: frozenset[int]) -> None:
        self.text, self.stops, self.ends = Detokeniser(lm.tokenizer), stops, ends
        self.done = False

    def take(self, token: int, last: bool) -> tuple[int | None, str]:
        """The token (None after the end) and the text that it completes; all that is left at the `last` one."""
        if self.done:
            return None, ""
        self.done = token in self.ends
        piece = self.text.take(token, last or self.done)
        self.done = self.done or self.text.has(self.stops, piece)
        return token, piece
