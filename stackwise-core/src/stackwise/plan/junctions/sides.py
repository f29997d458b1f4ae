"""The parts of a phase as unification sees them, and the sheet on which it notes sizes, bridges and problems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import Factory, field, frozen

from stackwise.contracts.specs import Dim, Spec
from stackwise.curriculum.bridges import Bridge
from stackwise.errors import Problem
from stackwise.plan.junctions.comparison import named_dims
from stackwise.plan.junctions.sizes import Sizes, Term, Variable

_PATHS = {"task": "task", "embedding": "model.embedding", "rack": "model.rack", "head": "model.head"}


@frozen(kw_only=True)
class Side:
    """One part as unification sees it."""

    role: str
    """`source:NAME`, `task`, `embedding`, `rack`, `head`, or `adapter:JUNCTION:INDEX`."""
    label: str
    """What messages call it: kind, id and distribution."""
    spec: Spec
    dims: Mapping[str, int] = Factory(dict)
    """Dimension → size, where an option fixes it."""
    open: Mapping[str, str] = Factory(dict)
    """Dimension → the option to fill with its size."""
    pinned: str | None = None
    """The option that would follow the task's attention, if the config sets it."""

    @property
    def path(self) -> str:
        """The config key the part is written at."""
        kind, _, rest = self.role.partition(":")
        if kind == "source":
            return f"data.sources.{rest}"
        return f"model.adapters.{rest.replace(':', '.')}" if kind == "adapter" else _PATHS.get(kind, kind)

    @property
    def is_source(self) -> bool:
        """Whether it is a loader."""
        return self.role.startswith("source:")

    def term(self, dim: Dim) -> Term:
        """A dimension of this side as the solver knows it."""
        return dim if isinstance(dim, int) else (self.role, dim)

    def variables(self) -> Iterator[Variable]:
        """Every dimension of this side that has one size for the whole run."""
        yield from ((self.role, dim) for dim in dict.fromkeys((*self.dims, *named_dims(self.spec))))


@frozen(kw_only=True)
class Sheet:
    """The sides, their sizes, and every bridge and problem so far."""

    sides: Mapping[str, Side]
    sizes: Sizes = Factory(Sizes)
    bridges: list[Bridge] = field(factory=list)
    problems: list[Problem] = field(factory=list)
    broken: set[str] = field(factory=set)
    """Roles that a problem names; their open sizes are not reported a second time."""

    def refuse(self, message: str, path: str, *parties: Side) -> None:
        """Note a problem between some sides."""
        self.problems.append(Problem(message, path))
        self.broken.update(side.role for side in parties)

    def because(self, term: Term, side: Side) -> str:
        """` (from <part>)` where another part than `side` gave the term its size."""
        origin = self.sizes.origin(term)
        return f" (from {self.sides[origin[0]].label})" if origin and origin[0] != side.role else ""

    def declared_at(self, term: Term) -> str | None:
        """The config key that gave the term its size; None if no option did."""
        origin = self.sizes.origin(term)
        side = self.sides[origin[0]] if origin else None
        return f"{side.path}.{origin[1]}" if origin and side and origin[1] in side.dims else None


def choose_another(giver: Side, taker: Side) -> str:
    """The advice for two parts that do not fit."""
    kinds = ["loader" if side.is_source else side.role.partition(":")[0] for side in (giver, taker)]
    return f"choose another {kinds[0]} or another {kinds[1]}"


def quoted(names: Iterable[str]) -> str:
    """`'a' and 'b'`."""
    return " and ".join(f"'{name}'" for name in names)
