"""RoleTable and RoleGraph: what each head does by itself, and which heads read which.

They hold numbers and thresholds and show them; how a score is measured they do not know (`trimtab.locate.roles`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.site import Edge, Site

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 60  # a page shows the strongest of more
MOST_NAMES = 8  # and words name the first of more


@dataclass(frozen=True, eq=False, repr=False)
class RoleTable(Saved):
    """Scores of each head in each role, the same of a null, and which roles are assigned.

    `heads` are addresses, `roles` names; `scores`, `nulls` and `low` have shape (head, role). `low` is the lower end of
    the interval of score − null over the examples, corrected for all heads and roles. A role is assigned where score −
    null is at least its threshold and `low` is above zero. What could not be measured is NaN and never assigned.
    `about` says what each score and null is.

    >>> one = RoleTable(("L0.head[0]",), ("sink",), [[0.9]], [[0.1]], [[0.7]], {"sink": 0.5}, {"sink": "…"}, 4)
    >>> one.heads_of("sink"), one.roles_of("L0.head[0]")
    ([Site.parse("L0.head[0]")], ('sink',))
    """

    KIND: ClassVar[str] = "role table"

    heads: tuple[str, ...]
    roles: tuple[str, ...]
    scores: np.ndarray
    nulls: np.ndarray
    low: np.ndarray
    thresholds: Mapping[str, float]
    about: Mapping[str, str]
    examples: int
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(str(Site.parse(head)) for head in self.heads))
        object.__setattr__(self, "roles", tuple(self.roles))
        for name in ("scores", "nulls", "low"):
            array = np.array(getattr(self, name), dtype=np.float64, order="C")
            if array.shape != (len(self.heads), len(self.roles)):
                raise TrimtabError(
                    f"{name} must have shape {(len(self.heads), len(self.roles))} (head, role), got {array.shape}"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if lacking := [role for role in self.roles if role not in self.thresholds]:
            raise TrimtabError(f"thresholds must have every role, and {lacking[0]} is missing")

    @property
    def excess(self) -> np.ndarray:
        """(head, role) score − null."""
        return self.scores - self.nulls

    @property
    def assigned(self) -> np.ndarray:
        """(head, role) booleans."""
        least = np.array([self.thresholds[role] for role in self.roles])
        return (self.excess >= least) & (self.low > 0)

    def heads_of(self, role: str) -> list[Site]:
        """The heads with a role, the largest excess first."""
        column = self._column(role)
        order = np.argsort(-self.excess[:, column], kind="stable")
        return [Site.parse(self.heads[i]) for i in order if self.assigned[i, column]]

    def roles_of(self, head: str | Site) -> tuple[str, ...]:
        """The roles of a head, none where it has none."""
        name = str(Site.parse(head))
        if name not in self.heads:
            raise SiteError(f"{name} is not in this table{nearest(name, self.heads)}")
        return tuple(role for role, yes in zip(self.roles, self.assigned[self.heads.index(name)], strict=True) if yes)

    def _column(self, role: str) -> int:
        if role not in self.roles:
            raise TrimtabError(f'no role "{role}"{nearest(role, self.roles)}: there are {", ".join(self.roles)}')
        return self.roles.index(role)

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each head and role: head, role, score, null, excess, low, assigned."""
        import pandas as pd

        index = pd.MultiIndex.from_product([self.heads, self.roles], names=["head", "role"])
        columns = {"score": self.scores, "null": self.nulls, "excess": self.excess, "low": self.low}
        frame = index.to_frame(index=False).assign(**{name: values.ravel() for name, values in columns.items()})
        return frame.assign(assigned=self.assigned.ravel())

    def __str__(self) -> str:
        lines = [f"{len(self.heads)} heads on {self.examples} examples"]
        for role in self.roles:
            found = self.heads_of(role)
            names = ", ".join(map(str, found[:MOST_NAMES])) + (", …" if len(found) > MOST_NAMES else "")
            lines.append(f"  {role:<16} {len(found):>4}  {names}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        counts = zip(self.roles, self.assigned.sum(0), strict=True)
        listed = ", ".join(f"{count} {role}" for role, count in counts)
        return f"<RoleTable: {len(self.heads)} heads on {self.examples} examples: {listed}>"

    def _repr_html_(self) -> str:
        most = np.where(self.assigned, self.excess, 0).max(1)
        shown = [i for i in np.argsort(-most, kind="stable") if self.assigned[i].any()]
        head = "".join(f'<th title="{escape(self.about.get(role, ""))}">{escape(role)}</th>' for role in self.roles)
        rows = [f"<tr><th>head</th>{head}</tr>"]
        for i in shown[:MOST_ROWS]:
            cells = "".join(self._cell(i, column) for column in range(len(self.roles)))
            rows.append(f"<tr><th>{escape(self.heads[i])}</th>{cells}</tr>")
        note = f"{len(shown)} of {len(self.heads)} heads have a role, by score less null; bold: assigned"
        note += f"; the first {MOST_ROWS}" if len(shown) > MOST_ROWS else ""
        return f'<div>{note}<table style="border-collapse:collapse;font-size:small">{"".join(rows)}</table></div>'

    def _cell(self, head: int, role: int) -> str:
        value = self.scores[head, role]
        if np.isnan(value):
            return '<td style="text-align:right">–</td>'
        title = f"null {self.nulls[head, role]:.3g}, excess at least {self.low[head, role]:.3g}"
        text = f"<b>{value:.2f}</b>" if self.assigned[head, role] else f"{value:.2f}"
        return f'<td style="text-align:right;padding:1px 6px" title="{escape(title)}">{text}</td>'


@dataclass(frozen=True, eq=False, repr=False)
class RoleGraph(Saved):
    """Which heads with one of the `roles` read which others: edges, and the pairs of roles summed up.

    `edges` are addresses (`"L2.head[3]->L5.head[1].k"`), `values` what connects them, in `unit`, and `z` how far each
    lies above the other heads of the sender's layer, as senders to the same receiver, in standard deviations. `kept`
    says which edges count (`least` is the rule's threshold); the others are there so that pairs of roles can be
    summed up over all their edges and not over those picked for being large.
    """

    KIND: ClassVar[str] = "role graph"

    table: RoleTable
    roles: tuple[str, ...]
    edges: tuple[str, ...]
    values: np.ndarray
    z: np.ndarray
    least: float
    unit: str = ""
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", tuple(self.roles))
        object.__setattr__(self, "edges", tuple(str(Edge.parse(edge)) for edge in self.edges))
        for name in ("values", "z"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.shape != (len(self.edges),):
                raise TrimtabError(f"{name} must have one number for each of {len(self.edges)} edges")
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def kept(self) -> np.ndarray:
        """(edge) booleans: which stand out."""
        return self.z >= self.least

    def to_frame(self) -> pd.DataFrame:
        """The edges that stand out, the clearest first: edge, sender, receiver, input, their roles, value, z."""
        import pandas as pd

        rows = []
        for i in np.argsort(-self.z, kind="stable"):
            if self.kept[i]:
                edge = Edge.parse(self.edges[i])
                sender, receiver = str(edge.source), str(edge.target.with_(input=None))
                roles = [" ".join(self._roles_of(head)) for head in (sender, receiver)]
                rows.append(
                    (
                        self.edges[i],
                        sender,
                        receiver,
                        edge.target.input,
                        *roles,
                        float(self.values[i]),
                        float(self.z[i]),
                    )
                )
        columns = ["edge", "sender", "receiver", "input", "sender_roles", "receiver_roles", "value", "z"]
        return pd.DataFrame(rows, columns=columns)

    def between_roles(self) -> pd.DataFrame:
        """Every pair of roles: sender_role, receiver_role, input, pairs, kept, mean_value, mean_z; the clearest first.

        `mean_z` is over all pairs of heads with these roles, whether they stand out or not: about 0 where the roles
        have nothing to do with each other.
        """
        import pandas as pd

        rows = []
        for i, text in enumerate(self.edges):
            edge = Edge.parse(text)
            roles = product(self._roles_of(edge.source), self._roles_of(edge.target.with_(input=None)))
            rows += [(*pair, edge.target.input, self.values[i], self.z[i], self.kept[i]) for pair in roles]
        names = ["sender_role", "receiver_role", "input"]
        frame = pd.DataFrame(rows, columns=[*names, "value", "z", "kept"])
        grouped = frame.groupby(names, as_index=False).agg(
            pairs=("z", "count"), kept=("kept", "sum"), mean_value=("value", "mean"), mean_z=("z", "mean")
        )
        return grouped.sort_values("mean_z", ascending=False, ignore_index=True)

    def _roles_of(self, head: str | Site) -> list[str]:
        return [role for role in self.table.roles_of(Site.parse(head).with_(at=None)) if role in self.roles]

    def __str__(self) -> str:
        lines = [f"{int(self.kept.sum())} edges that stand out of {len(self.edges)} between heads with roles"]
        for pair in self.between_roles().head(MOST_NAMES).to_dict(orient="records"):
            edge = f"{pair['sender_role']} -> {pair['receiver_role']}.{pair['input']}"
            lines.append(f"  {edge:<40} mean z {pair['mean_z']:+.2f}, {pair['kept']} of {pair['pairs']} stand out")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<RoleGraph: {int(self.kept.sum())} edges that stand out of {len(self.edges)} between heads with roles>"

    def _repr_html_(self) -> str:
        roles = self.between_roles().to_html(index=False, float_format="%.2f")
        edges = self.to_frame().head(20).to_html(index=False, float_format="%.2f")
        return f"<div>Pairs of roles{roles}Edges that stand out most{edges}</div>"
