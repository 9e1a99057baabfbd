"""Site, Selection and Edge: addresses inside a language model, printed and parsed both ways.

    site  :=  "embed" | "final" | "logits" | "L" layer "." name             then, each optional and in this order:
              "[" units "]"                            L12.head[7]   L5.neuron[3,17,90]   L5.head[0-3]
              "." ("q" | "k" | "v")                    L9.head[6].q                        of a head only
              "." ("feature" | "error") "@" dictionary "[" units "]"      L12.resid_post.feature@name[4411]
              "@" scope                                L3.resid_pre@subject   L3.resid_pre@-1
    expert    L3.expert[2]   L3.expert[2].neuron[7]
    edge  :=  site "->" site                           L3.head[2]->L9.head[6].q

It knows nothing of models: whether a layer, a head or a dictionary exists is the anatomy's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trimtab.errors import PromptError, SiteError, nearest
from trimtab.values.kinds import SITES, SiteKind, explain
from trimtab.values.numbers import read_numbers, whole, write_runs
from trimtab.values.scope import Scope

__all__ = ["SITES", "Edge", "Selection", "Site", "SiteKind", "explain"]

INPUTS = ("q", "k", "v")
VIEWS = ("feature", "error")
DICTIONARY = r"\w(?:[\w./:+\-]*[\w+])?"

_BRACKETS = re.compile(r"\s*\[([^\[\]]*)\]")
_LAYER = re.compile(r"L([^.]*)\.(.*)", re.DOTALL)
_WORD = re.compile(r"\w*")
_VIEW = re.compile(rf"\.(feature|error)@({DICTIONARY})")


@dataclass(frozen=True, order=False)
class Site:
    """The address of a tensor inside a model.

    `name` is a key of `SITES`; `layer` is None for `embed`, `final` and `logits`; `index` picks units along the site's
    unit axis, in the order given; `expert` is the expert of `expert` and `expert.neuron`; `input` is "q", "k" or "v"
    for the end of a path into a head; `view` and `dictionary` name the sparse features of the tensor, or what they
    miss; `at` is the positions meant. `alias` is the TransformerLens name it was written as, where that name is this
    tensor in some models only (`check_alias`).

    Raises SiteError, with the nearest valid spelling, where the parts do not fit together.

    >>> Site.parse("L12.head[7]@subject").index
    (7,)
    >>> str(Site("resid_pre", layer=5, at=Scope("index", index=-1)))
    'L5.resid_pre@-1'
    """

    name: str
    layer: int | None = None
    index: tuple[int, ...] | None = None
    expert: int | None = None
    input: str | None = None
    view: str | None = None
    dictionary: str | None = None
    at: Scope | None = None
    alias: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.name not in SITES:
            raise SiteError(f'unknown site "{self.name}"{_suggest(str(self.name))}: the sites are {", ".join(SITES)}')
        if self.layer is not None:
            object.__setattr__(self, "layer", _count(self.layer, f"the layer of {self.name}"))
        if self.index is not None:
            index = self.index if isinstance(self.index, Iterable) else (self.index,)
            object.__setattr__(self, "index", _units_of(index, self.name))
        if self.expert is not None:
            object.__setattr__(self, "expert", _count(self.expert, f"the expert of {self.name}"))
        if self.at is not None and not isinstance(self.at, Scope):
            object.__setattr__(self, "at", _scope(self.at, self.name))
        if SITES[self.name].layered and self.layer is None:
            raise SiteError(f'"{self.name}" needs its layer: write L0.{self.name}, or a selection L*.{self.name}')
        if not SITES[self.name].layered and self.layer is not None:
            raise SiteError(
                f'"{self.name}" belongs to no layer: write {self.name} instead of L{self.layer}.{self.name}'
            )
        self._check_parts()

    def _check_parts(self) -> None:
        if self.expert is not None and not self.name.startswith("expert"):
            raise SiteError(f'"{self.name}" has no experts: an expert is written L{self.layer}.expert[{self.expert}]')
        if self.name == "expert" and self.index is not None and self.view != "feature":
            raise SiteError(f"an expert is one number, Site('expert', layer={self.layer}, expert={self.index[0]})")
        if self.input is not None:
            if self.input not in INPUTS:
                raise SiteError(f'"{self.input}" is no input of a head: it is one of q, k, v')
            if self.name != "head" or self.view is not None:
                raise SiteError(f"only a head has inputs q, k and v, as in L9.head[6].{self.input}; not {self.name}")
        if self.view is None and self.dictionary is not None:
            raise SiteError(f'dictionary "{self.dictionary}" needs a view: .feature@{self.dictionary} or .error@…')
        if self.view is not None:
            if self.view not in VIEWS:
                raise SiteError(f'unknown view "{self.view}"{nearest(str(self.view), VIEWS)}: it is feature or error')
            if not re.fullmatch(DICTIONARY, self.dictionary or ""):
                raise SiteError(f"a view names its dictionary, as in .{self.view}@name, got {self.dictionary!r}")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read a site from its text; hook names of TransformerLens are accepted too. SiteError otherwise."""
        if isinstance(text, Site):
            return text
        selection = Selection.parse(text)
        if not selection.single:
            raise SiteError(f'"{text}" names several sites: use Selection.parse, or pick one of them')
        return selection.site

    def __str__(self) -> str:
        return _write(self, "" if self.layer is None else str(self.layer))

    def __repr__(self) -> str:
        return f'Site.parse("{self}")'

    @property
    def kind(self) -> SiteKind:
        """The row of `SITES` for this site: its axes, its unit, its order in the block."""
        return SITES[self.name]

    @property
    def unit(self) -> str:
        """What an index picks: "head", "neuron", "expert", "channel" or "feature"."""
        return "feature" if self.view == "feature" else self.kind.unit

    @property
    def depth(self) -> tuple[int, int]:
        """When the tensor is computed: sorts sites from the embedding to the logits."""
        if self.layer is not None:
            return (self.layer, self.kind.order)
        return (-1, 0) if self.name == "embed" else (1 << 31, self.kind.order)

    @property
    def whole(self) -> Site:
        """The same tensor, every unit and every position of it."""
        return replace(self, index=None, at=None)

    @property
    def base(self) -> Site:
        """The tensor that a view looks at: without view and dictionary, and without the view's units."""
        return self if self.view is None else replace(self, view=None, dictionary=None, index=None)

    def with_(self, **changes: object) -> Site:
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Selection:
    """Several sites written as one: `L10-20.head`, `L*.mlp_out`, `L0,3,7.head[*]`.

    `site` is the address, at the first of its layers; `layers` are the layers named, or None for all of them (`L*`),
    and empty for a site without layer; `every` says which brackets held a `*`: "unit", "expert" or both. Printing
    writes runs as ranges.

    >>> [str(site) for site in Selection.parse("L0-1.head[*]").expand(4, lambda site: 2)]
    ['L0.head[0]', 'L0.head[1]', 'L1.head[0]', 'L1.head[1]']
    """

    site: Site
    layers: tuple[int, ...] | None = ()
    every: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str | Site | Selection) -> Selection:
        """Read a selection from its text; a Site selects itself. SiteError otherwise."""
        if isinstance(text, Selection):
            return text
        if isinstance(text, Site):
            return cls(text, () if text.layer is None else (text.layer,))
        if not isinstance(text, str):
            raise SiteError(f'a site is written as text, such as "L12.head[7]", got {text!r}')
        address = text.split("@")[0]
        if "hook_" in address or address.strip().startswith("blocks."):
            from trimtab.values.alias import from_transformer_lens

            text, alias = from_transformer_lens(text)
            selection = _read(text.strip())
            return replace(selection, site=replace(selection.site, alias=alias))
        return _read(text.strip())

    @property
    def single(self) -> bool:
        """Whether it names one site whatever the model."""
        return self.layers is not None and len(self.layers) <= 1 and not self.every

    def expand(self, n_layers: int, units: Callable[[Site], int]) -> list[Site]:
        """The sites of a model with `n_layers` layers; `units(site)` says how many units a site has (asked only for
        `[*]`).

        For `L*.expert[*]` it is asked with `L0.expert`, and gives the number of experts. SiteError for a layer out of
        range.
        """
        layers = range(n_layers) if self.layers is None else self.layers
        for layer in layers:
            if layer >= n_layers:
                raise SiteError(
                    f'layer {layer} of "{self}" is out of range: the model has {n_layers} layers, 0 to {n_layers - 1} '
                    f"(the last one is L{n_layers - 1})"
                )
        sites = [replace(self.site, layer=layer) for layer in layers] if self.site.layer is not None else [self.site]
        if "expert" in self.every:
            experts = [(site, units(Site("expert", site.layer))) for site in sites]
            sites = [replace(site, expert=expert) for site, count in experts for expert in range(count)]
        if "unit" in self.every:
            counts = [(site, units(replace(site, at=None))) for site in sites]
            sites = [replace(site, index=(unit,)) for site, count in counts for unit in range(count)]
        return sites

    def __str__(self) -> str:
        return _write(self.site, "*" if self.layers is None else write_runs(self.layers), self.every)

    def __repr__(self) -> str:
        return f'Selection.parse("{self}")'


@dataclass(frozen=True)
class Edge:
    """A path from one site to a later one, as circuits are made of.

    >>> Edge.parse("L3.head[2]->L9.head[6].q").target.input
    'q'
    """

    source: Site
    target: Site

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", Site.parse(self.source))
        object.__setattr__(self, "target", Site.parse(self.target))

    @classmethod
    def parse(cls, text: str | Edge) -> Edge:
        """Read an edge from its text. SiteError otherwise."""
        if isinstance(text, Edge):
            return text
        ends = text.split("->") if isinstance(text, str) else []
        if len(ends) != 2:
            raise SiteError(
                f'an edge is two sites with "->" between them, as in "L3.head[2]->L9.head[6].q", got {text!r}'
            )
        return cls(Site.parse(ends[0]), Site.parse(ends[1]))

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"

    def __repr__(self) -> str:
        return f'Edge.parse("{self}")'


def _read(text: str) -> Selection:
    layers, rest = _read_layers(text)
    name = _WORD.match(rest)[0]  # pyright: ignore[reportOptionalSubscript]
    rest = rest[len(name) :]
    if name not in SITES:
        raise SiteError(f'unknown site "{name}" in "{text}"{_suggest(name)}: the sites are {", ".join(SITES)}')
    parts: dict[str, Any] = {"layer": None if layers == () else 0 if layers is None else layers[0]}
    every: set[str] = set()
    index, rest = _read_units(rest, text)
    if name == "expert":
        parts["expert"], index = _one_expert(index, every, text), None
        if match := re.match(r"\.neuron\b", rest):
            name, rest = "expert.neuron", rest[match.end() :]
            index, rest = _read_units(rest, text)
    if match := re.match(r"\.([qkv])\b", rest):
        parts["input"], rest = match[1], rest[match.end() :]
    if match := _VIEW.match(rest):
        if index is not None:
            raise SiteError(f'"{text}": units of a view come after its dictionary, as in .{match[1]}@{match[2]}[4411]')
        parts["view"], parts["dictionary"], rest = match[1], match[2], rest[match.end() :]
        index, rest = _read_units(rest, text)
    if rest.startswith("@"):
        parts["at"], rest = _scope(rest[1:], text), ""
    if rest:
        raise SiteError(f'cannot read "{rest}" at the end of "{text}"{_suggest_part(rest)}: {_FORMS}')
    if index == "*":
        every.add("unit")
    site = Site(name, index=None if index == "*" else index, **parts)
    return Selection(site, layers, frozenset(every))


Units = tuple[int, ...] | Literal["*"] | None

_FORMS = "a site looks like L12.head[7], L9.head[6].q, L3.resid_pre@subject or L12.resid_post.feature@name[4411]"


def _read_layers(text: str) -> tuple[tuple[int, ...] | None, str]:
    """The layers in front of a site's name (None: every layer; empty: none written) and the text after them."""
    match = _LAYER.match(text)
    if match is None:
        if re.match(r"l\d+\.", text):
            raise SiteError(f'"{text}": a layer is written with a capital L, as in "L{text[1:]}"')
        if re.match(r"L[\d*]*$", text):
            raise SiteError(f'"{text}" names a layer and no site in it: {_FORMS}')
        return (), text
    if match[1].strip() == "*":
        return None, match[2]
    if match[1].strip().startswith("-"):
        raise SiteError(f'"{text}": layers count from 0 and are never negative; the last one is L{{n_layers - 1}}')
    return read_numbers(match[1], text, "layer"), match[2]


def _read_units(rest: str, text: str) -> tuple[Units, str]:
    """The units in brackets at the start of `rest`: None, "*", or numbers; and what follows them."""
    match = _BRACKETS.match(rest)
    if match is None:
        return None, rest
    inside = match[1].strip()
    return ("*" if inside == "*" else read_numbers(inside, text, "unit")), rest[match.end() :]


def _one_expert(index: Units, every: set[str], text: str) -> int | None:
    if index == "*":
        every.add("expert")
        return None
    if index is not None and len(index) != 1:
        raise SiteError(f'"{text}": write one expert, as in L3.expert[2], or all of them, L3.expert[*]')
    return None if index is None else index[0]


def _units_of(index: Iterable[object], name: str) -> tuple[int, ...]:
    units = tuple(_count(unit, f"a unit of {name}") for unit in index)
    if not units:
        raise SiteError(f"the units of {name} are empty: leave the index out to mean all of them")
    if len(set(units)) < len(units):
        raise SiteError(f"the units {list(units)} of {name} repeat: name each one once")
    return units


def _count(number: object, what: str) -> int:
    value = whole(number)
    if value is None or value < 0:
        raise SiteError(f"{what} must be a whole number from 0 up, got {number!r}")
    return value


def _scope(text: str | Scope, address: str) -> Scope:
    try:
        return Scope.parse(text)
    except PromptError as error:
        raise SiteError(f'the positions of "{address}" cannot be read: {error}') from None


def _suggest(name: str) -> str:
    return nearest(name, [*SITES, "feature", "error"])


def _suggest_part(rest: str) -> str:
    return nearest(rest.strip(".").split("@")[0].split("[")[0], [*VIEWS, "neuron"])


def _write(site: Site, layers: str, every: frozenset[str] = frozenset()) -> str:
    units = "[*]" if "unit" in every else "" if site.index is None else f"[{','.join(map(str, site.index))}]"
    text = f"L{layers}." if SITES[site.name].layered else ""
    if site.name.startswith("expert"):
        text += "expert" + ("[*]" if "expert" in every else "" if site.expert is None else f"[{site.expert}]")
        text += ".neuron" if site.name == "expert.neuron" else ""
    else:
        text += site.name
    if site.view is not None:
        text += f".{site.view}@{site.dictionary}"
    text += units
    text += "" if site.input is None else f".{site.input}"
    return text + ("" if site.at is None else f"@{site.at}")
