"""Unification: the specs of all parts, joined at every junction until their sizes, names and dtypes agree or a sentence says why not.

Junctions: every loader → task, task → embedding, task → rack (side inputs), embedding → rack and rack → head (with the declared
adapters in between), head → task. What differs without loss is bridged and reported; nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import attrs
from attrs import Factory, field, frozen

from stackwise.contracts.specs import (
    RUNTIME_DIMS,
    AdapterSpec,
    BatchSpec,
    Beyond,
    Dim,
    EmbeddingSpec,
    HeadSpec,
    RackSpec,
    Spec,
    TaskSpec,
    TensorSpec,
)
from stackwise.curriculum.bridges import Bridge
from stackwise.errors import Problem, did_you_mean
from stackwise.plan.junctions.delivery import Delivery
from stackwise.plan.junctions.fitting import aligned, fits, kind_of, named_dims, widenings
from stackwise.plan.junctions.sizes import Sizes, Term, Variable

MODEL_JUNCTIONS = ("embedding-rack", "rack-head")
"""Where a config may put adapters."""

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
    """An option that would follow the task's attention, and that the config gives."""

    @property
    def path(self) -> str:
        """The config key the part is written at."""
        kind, _, rest = self.role.partition(":")
        if kind == "source":
            return f"data.sources.{rest}"
        return f"model.adapters.{rest.replace(':', '.')}" if kind == "adapter" else _PATHS.get(kind, kind)


@frozen(kw_only=True)
class Unified:
    """The outcome: every size found, every bridge, every problem."""

    values: Mapping[Variable, int]
    """(role, dimension) → size."""
    bridges: tuple[Bridge, ...] = ()
    problems: tuple[Problem, ...] = ()
    optional: frozenset[str] = frozenset()
    """The optional fields of the task that a source delivers."""


def unify(sides: Mapping[str, Side], rename: Mapping[str, str] | None = None, *, complete: bool = True) -> Unified:
    """Join the specs of all parts.

    Args:
        sides: role → part; a junction with an absent end is left out.
        rename: field the task needs → field the loaders deliver, as the config asks.
        complete: whether no part is absent by a mistake that is told already; else sizes that it might give are not missed.
    """
    return _Unifier(sides=sides, rename=rename or {}, complete=complete).run()


@frozen(kw_only=True)
class _Meeting:
    """Two tensors at a junction."""

    junction: str
    giver: Side
    taker: Side
    name: str
    delivered: TensorSpec
    needed: TensorSpec

    @property
    def in_model(self) -> bool:
        return self.junction in MODEL_JUNCTIONS

    def adapter(self, use: str) -> str:
        return f"add an adapter `{{use: {use}}}` at model.adapters.{self.junction}"


@frozen(kw_only=True)
class _Unifier:
    sides: Mapping[str, Side]
    rename: Mapping[str, str]
    complete: bool
    sizes: Sizes = Factory(Sizes)
    bounds: list[_Meeting] = field(factory=list)
    bridges: list[Bridge] = field(factory=list)
    problems: list[Problem] = field(factory=list)
    broken: set[str] = field(factory=set)
    """Roles that a problem names: their open sizes are not complained of a second time."""

    def run(self) -> Unified:
        for side in self.sides.values():
            for dim, size in side.dims.items():
                self.sizes.fix((side.role, dim), size)
        self._join_batch()
        for junction in MODEL_JUNCTIONS:
            self._join_chain(junction)
        self._join_outputs()
        self._join_side_inputs()
        self._join_embedded()
        self._check_attention()
        beyond = self._limit_beyond()
        self.sizes.settle()
        for meeting in self.bounds:
            self._check_upper_bound(meeting)
        for asking, each in beyond:
            self._check_beyond(asking, each)
        if self.complete:
            self._check_open()
        values = {variable: found for variable in self._variables() if (found := self.sizes.size(variable)) is not None}
        task = self.sides["task"].spec if "task" in self.sides else None
        optional = self._delivery(task).anywhere() if isinstance(task, TaskSpec) else frozenset()
        return Unified(values=values, bridges=tuple(self.bridges), problems=tuple(self.problems), optional=optional)

    # -- junctions ------------------------------------------------------------------------------------------------

    def _join_batch(self) -> None:
        task, embedding = self.sides.get("task"), self.sides.get("embedding")
        if task is None or not isinstance(task.spec, TaskSpec):
            return
        known = {**task.spec.batch, **task.spec.optional}
        for needed in (name for name in self.rename if name not in known):
            self._refuse(f"{task.label} needs no field '{needed}'{did_you_mean(needed, known)}", f"data.rename.{needed}", task)
        delivery = self._delivery(task.spec)
        for role, fields in delivery.sources.items():
            self._join_fields(f"{role}-task", self.sides[role], task, fields, delivery.used(role), self.rename)
        self._check_mixture(task, delivery)
        if embedding is not None and isinstance(embedding.spec, EmbeddingSpec):
            needed_fields = embedding.spec.inputs
            self._join_fields("task-embedding", task, embedding, delivery.offered(needed_fields), needed_fields, {})

    def _delivery(self, task: TaskSpec) -> Delivery:
        sources = {
            role: side.spec.fields for role, side in self.sides.items() if role.startswith("source:") and isinstance(side.spec, BatchSpec)
        }
        return Delivery(task, sources, self.rename)

    def _check_mixture(self, task: Side, delivery: Delivery) -> None:
        """Rows of a mixture stand in one batch, so its sources deliver the same optional fields."""
        if (uneven := delivery.uneven()) is None:
            return
        giver, other = self.sides[uneven[0]], self.sides[uneven[1]]
        message = (
            f"{giver.path}, {giver.label}, delivers {_quoted(uneven[2])}, which {task.label} uses, but {other.path}, {other.label}, "
            "does not, and their rows stand in one batch: give both the same `rows:`"
        )
        self._refuse(message, other.path, giver, other)

    def _join_outputs(self) -> None:
        head, task = self.sides.get("head"), self.sides.get("task")
        if head and task and isinstance(head.spec, HeadSpec) and isinstance(task.spec, TaskSpec):
            self._join_fields("head-task", head, task, head.spec.outputs, task.spec.outputs, {})

    def _join_side_inputs(self) -> None:
        task, rack = self.sides.get("task"), self.sides.get("rack")
        if not (task and rack and isinstance(task.spec, TaskSpec) and isinstance(rack.spec, RackSpec)):
            return
        for name in task.spec.side:
            if name not in rack.spec.side:
                takes = ", ".join(rack.spec.side) or "none"
                message = (
                    f"{task.label} needs a rack that takes the side input '{name}', but {rack.label} takes {takes}: choose a rack that does"
                )
                self._refuse(message, "model.rack", task, rack)
        for name in rack.spec.needs:
            if name not in task.spec.embedded and name not in task.spec.inputs:
                needs = f"{rack.label} does not run without the side input '{name}', which {task.label} does not give"
                self._refuse(f"{needs}: choose another rack, or a task that gives it", "model.rack", task, rack)
        delivery = self._delivery(task.spec)
        self._check_unheeded(task, rack, delivery.unheeded(rack.spec.side))
        self._join_side(task, rack, rack.spec.side, delivery.inputs())
        if (head := self.sides.get("head")) is not None and isinstance(head.spec, HeadSpec):
            self._join_side(task, head, head.spec.side, delivery.inputs())

    def _join_side(self, task: Side, taker: Side, side: Mapping[str, TensorSpec], inputs: Mapping[str, TensorSpec]) -> None:
        for name, taken in side.items():
            if (given := inputs.get(name)) is not None:
                junction = f"task-{taker.role}"
                self._join(_Meeting(junction=junction, giver=task, taker=taker, name=name, delivered=given, needed=taken))

    def _join_embedded(self) -> None:
        """Side inputs that the embedding makes: it must have the field, and the rack must take what comes out."""
        task, embedding, rack = (self.sides.get(role) for role in ("task", "embedding", "rack"))
        if not (task and embedding and rack and isinstance(task.spec, TaskSpec)):
            return
        if not (isinstance(embedding.spec, EmbeddingSpec) and isinstance(rack.spec, RackSpec)):
            return
        for name, (own, given) in task.spec.embedded.items():
            if own not in embedding.spec.inputs:
                message = f"{task.label} has '{given}' embedded as '{own}', which {embedding.label} does not take: choose another embedding"
                self._refuse(message, "model.embedding", task, embedding)
            elif name in rack.spec.side:
                self.bridges.append(Bridge("task-rack", "embed", f"{given} → {name} as {own}", "rack", name, given, own))
                made = attrs.evolve(embedding.spec.output, dims=(*rack.spec.side[name].dims[:2], *embedding.spec.output.dims[2:]))
                needed = rack.spec.side[name]
                self._join(_Meeting(junction="task-rack", giver=embedding, taker=rack, name=name, delivered=made, needed=needed))

    def _check_unheeded(self, task: Side, rack: Side, unheeded: tuple[str, tuple[str, ...]] | None) -> None:
        """A boundary that a loader delivers and the task hands on is honoured by the rack, or refused."""
        if unheeded is None:
            return
        assert isinstance(rack.spec, RackSpec)
        source, fields = self.sides[unheeded[0]], _quoted(unheeded[1])
        takes = f"only {_quoted(rack.spec.side)}" if rack.spec.side else "no side input"
        message = (
            f"{source.label} delivers {fields}, which {task.label} hands on as side inputs, but {rack.label} takes {takes}: "
            f"choose a rack that takes {fields}, or set `rows: stream` at {source.path}"
        )
        self._refuse(message, "model.rack", source, task, rack)

    def _join_chain(self, junction: str) -> None:
        first, last = (self.sides.get(role) for role in junction.split("-"))
        adapters = [side for role, side in self.sides.items() if role.startswith(f"adapter:{junction}:")]
        adapters.sort(key=lambda side: int(side.role.rpartition(":")[2]))
        chain = [side for side in (first, *adapters, last) if side is not None]
        for giver, taker in pairwise(chain):
            if isinstance(giver.spec, EmbeddingSpec | RackSpec | AdapterSpec) and isinstance(taker.spec, RackSpec | HeadSpec | AdapterSpec):
                delivered, needed = giver.spec.output, taker.spec.input
                self._join(_Meeting(junction=junction, giver=giver, taker=taker, name="hidden", delivered=delivered, needed=needed))

    def _check_attention(self) -> None:
        task, rack = self.sides.get("task"), self.sides.get("rack")
        if not (task and rack and isinstance(task.spec, TaskSpec) and isinstance(rack.spec, RackSpec)) or task.spec.attention is None:
            return
        if not rack.spec.attention:
            detail = f"{rack.label} declares no attention mode; whether it is {task.spec.attention} is its own business"
            self.bridges.append(Bridge("task-rack", "note", detail, into="rack"))
        elif task.spec.attention not in rack.spec.attention:
            offers = ", ".join(rack.spec.attention)
            fix = f"leave {rack.path}.{rack.pinned} out" if rack.pinned else "choose a rack that does, or another task"
            message = f"{task.label} needs {task.spec.attention} attention, but {rack.label} offers {offers}: {fix}"
            self._refuse(message, "model.rack", task, rack)

    # -- names ----------------------------------------------------------------------------------------------------

    def _join_fields(
        self,
        junction: str,
        giver: Side,
        taker: Side,
        delivered: Mapping[str, TensorSpec],
        needed: Mapping[str, TensorSpec],
        rename: Mapping[str, str],
    ) -> None:
        """Match every needed field with a delivered one, by request, by name, or by being the only one that fits."""
        taken = {name for name in needed if name in delivered} | set(rename.values())
        free = {name: spec for name, spec in delivered.items() if name not in taken}
        missing = [name for name in needed if name not in delivered and name not in rename]
        for name, spec in needed.items():
            asked = rename.get(name)
            if asked is not None and asked in delivered:
                source = asked
            elif name in delivered:
                source = name
            else:
                fitting = [other for other, offered in free.items() if fits(offered, spec)] if _is_told_by_shape(giver, spec) else []
                rivals = [other for other in missing if other != name and any(fits(free[f], needed[other]) for f in fitting)]
                if asked is not None or len(fitting) != 1 or rivals:
                    self._refuse_missing(junction, giver, taker, name, spec, delivered, asked)
                    continue
                source = fitting[0]
            if source != name:
                self.bridges.append(Bridge(junction, "rename", f"{source} → {name}", taker.role, name, source, name))
            self._join(_Meeting(junction=junction, giver=giver, taker=taker, name=name, delivered=delivered[source], needed=spec))

    def _refuse_missing(
        self, junction: str, giver: Side, taker: Side, name: str, spec: TensorSpec, delivered: Mapping[str, TensorSpec], asked: str | None
    ) -> None:
        offers = ", ".join(f"{other} {offered}" for other, offered in delivered.items()) or "nothing"
        if asked is not None:
            message = f"{giver.label} delivers no field '{asked}'{did_you_mean(asked, delivered)}; it delivers {offers}"
            self._refuse(message, f"data.rename.{name}", giver, taker)
        else:
            batch = giver.role.startswith("source:")
            fix = f"name it: `data.rename: {{{name}: FIELD}}`, or choose another loader" if batch else _others(giver, taker)
            would = len([other for other in delivered.values() if fits(other, spec)])
            why = "more than one of it would fit" if would > 1 else "none of it is free to fit"
            if would and not _is_told_by_shape(giver, spec):
                why = "one number a row is never taken for another by its shape alone"
            message = f"{taker.label} needs '{name}' {spec}, but {giver.label} delivers {offers}, and {why}: {fix}"
            self._refuse(message, "data.rename" if batch else taker.path, giver, taker)

    # -- one tensor -----------------------------------------------------------------------------------------------

    def _join(self, m: _Meeting) -> None:
        if self._join_dims(m):
            self._join_dtype(m)
            self._join_bounds(m)

    def _join_dims(self, m: _Meeting) -> bool:
        pairs = aligned(m.delivered.dims, m.needed.dims, reorder=m.in_model)
        if pairs is None:
            fix = "let an adapter of your own stand between them" if m.in_model else _others(m.giver, m.taker)
            message = f"{m.giver.label} gives '{m.name}' as {m.delivered}, but {m.taker.label} takes {m.needed}: {fix}"
            self._refuse(message, m.taker.path, m.giver, m.taker)
            return False
        if m.in_model and m.delivered.dims != m.needed.dims and {*m.delivered.dims} == {*m.needed.dims}:
            before, after = (" ".join(map(str, dims)) for dims in (m.delivered.dims, m.needed.dims))
            self.bridges.append(Bridge(m.junction, "permute", f"{before} → {after}", m.taker.role, m.name, before, after))
        for left, right in pairs:
            if left not in RUNTIME_DIMS and not self.sizes.equate(_term(m.giver, left), _term(m.taker, right)):
                self._refuse_sizes(m, left, right)
        return True

    def _refuse_sizes(self, m: _Meeting, left: Dim, right: Dim) -> None:
        given, taken = _term(m.giver, left), _term(m.taker, right)
        fix = f"make both the same (`{right}: {self.sizes.size(given)}` at {m.taker.path})"
        if m.in_model and _is_sequence(m.delivered) and _is_sequence(m.needed):
            fix += f", or {m.adapter('core.project')}"
        message = (
            f"'{m.name}' has {left} {self.sizes.size(given)} where {m.giver.label} gives it{self._because(given, m.giver)}, but "
            f"{right} {self.sizes.size(taken)} where {m.taker.label} takes it{self._because(taken, m.taker)}: {fix}"
        )
        self._refuse(message, m.taker.path, m.giver, m.taker)

    def _because(self, term: Term, side: Side) -> str:
        origin = self.sizes.origin(term)
        return f" (from {self.sides[origin[0]].label})" if origin and origin[0] != side.role else ""

    def _join_dtype(self, m: _Meeting) -> None:
        given, taken = m.delivered.dtype, m.needed.dtype
        if given == taken or kind_of(given) == taken:
            return
        if taken in widenings(given):
            self.bridges.append(Bridge(m.junction, "cast", f"{m.name} {given} → {taken}", m.taker.role, m.name, given, taken))
            return
        floats = m.in_model and kind_of(given) == kind_of(taken) == "floating"
        fix = m.adapter(f"core.precision, dtype: {taken}") if floats else f"{_others(m.giver, m.taker)}, or convert it in a transform"
        message = (
            f"{m.giver.label} gives '{m.name}' as {given}, but {m.taker.label} takes {taken}, which is no widening without loss: {fix}"
        )
        self._refuse(message, m.taker.path, m.giver, m.taker)

    def _join_bounds(self, m: _Meeting) -> None:
        given, taken = m.delivered.bounds, m.needed.bounds
        if taken is None:
            return
        if given is None:
            self.bounds.append(m)
            return
        if given[0] < taken[0]:
            message = f"{m.giver.label} gives '{m.name}' from {given[0]} on, but {m.taker.label} takes none below {taken[0]}"
            self._refuse(message, m.taker.path, m.giver, m.taker)
        if given[1] not in RUNTIME_DIMS and taken[1] not in RUNTIME_DIMS:
            self.sizes.limit(_term(m.giver, given[1]), _term(m.taker, taken[1]))
            self.bounds.append(m)

    def _check_upper_bound(self, m: _Meeting) -> None:
        assert m.needed.bounds is not None
        if m.delivered.bounds is None:
            self._note_bounds(m, m.needed.bounds)
            return
        given, taken = _term(m.giver, m.delivered.bounds[1]), _term(m.taker, m.needed.bounds[1])
        low, high = self.sizes.size(given), self.sizes.size(taken)
        if low is None or high is None or low <= high:
            return
        origin = self.sizes.origin(taken)
        where = f"{self.sides[origin[0]].path}.{origin[1]}" if origin else m.taker.path
        fix = f"set {where} to at least {low}" if origin else _others(m.giver, m.taker)
        message = (
            f"{m.giver.label} gives '{m.name}' below {low}{self._because(given, m.giver)}, but {m.taker.label} takes only values below "
            f"{high}{self._because(taken, m.taker)}: {fix}"
        )
        self._refuse(message, where, m.giver, m.taker)

    def _note_bounds(self, m: _Meeting, needed: tuple[int, Dim]) -> None:
        """The giver does not say what its values are: those of a loader are looked at as they come."""
        high = self.sizes.size(_term(m.taker, needed[1]))
        detail = f"'{m.name}' comes from {m.giver.label} without bounds: values outside those of {m.taker.label} "
        if high is None or not m.giver.role.startswith("source:"):
            self.bridges.append(Bridge(m.junction, "note", detail + "show only when met", into=m.taker.role, field=m.name))
            return
        limits = (needed[0], high)
        self.bridges.append(
            Bridge(m.junction, "bounds", f"{detail}are refused when they come", into=m.taker.role, field=m.name, limits=limits)
        )

    # -- what is left ---------------------------------------------------------------------------------------------

    def _limit_beyond(self) -> list[tuple[Side, Beyond]]:
        task = self.sides.get("task")
        if task is None or not isinstance(task.spec, TaskSpec):
            return []
        for each in task.spec.beyond:
            self.sizes.reach(_term(task, each.other), _term(task, each.dim), each.by)
        return [(task, each) for each in task.spec.beyond]

    def _check_beyond(self, task: Side, beyond: Beyond) -> None:
        other, dim = _term(task, beyond.other), _term(task, beyond.dim)
        low, high = self.sizes.size(other), self.sizes.size(dim)
        if low is None or high is None or low + beyond.by <= high:
            return
        origin = self.sizes.origin(dim)
        where = f"{self.sides[origin[0]].path}.{origin[1]}" if origin else task.path
        need = f"{beyond.by} more than the {low} ids{self._because(other, task)}" if isinstance(beyond.other, str) else f"id {low}"
        message = (
            f"{task.label} needs room for {need}, but {beyond.dim} is {high}{self._because(dim, task)}: "
            f"set {where} to at least {low + beyond.by}"
        )
        self._refuse(message, where, task)

    def _check_open(self) -> None:
        """One problem for each set of joined open sizes that nothing gives."""
        named = list(self._variables())
        left_out = [(side.role, dim) for side in self.sides.values() for dim in side.open]
        unsolved = [variable for variable in left_out if variable in named and self.sizes.size(variable) is None]
        while unsolved:
            group = self.sizes.joined(unsolved[0], unsolved)
            unsolved = [variable for variable in unsolved if variable not in group]
            if any(role in self.broken for role, _ in self.sizes.reached(group[0], named)):
                continue
            keys = [f"{self.sides[role].path}.{self.sides[role].open[dim]}" for role, dim in group]
            fix = f"set {keys[0]}" if len(keys) == 1 else f"set one of {', '.join(keys)}"
            first, dim = group[0]
            message = f"the {dim} of {self.sides[first].label} is left out and nothing joined to it says its size: {fix}"
            self.problems.append(Problem(message, keys[0]))

    def _variables(self) -> Iterator[Variable]:
        for side in self.sides.values():
            yield from ((side.role, dim) for dim in dict.fromkeys((*side.dims, *named_dims(side.spec))))

    def _refuse(self, message: str, path: str, *parties: Side) -> None:
        self.problems.append(Problem(message, path))
        self.broken.update(side.role for side in parties)


def _is_sequence(hidden: TensorSpec) -> bool:
    return len(hidden.dims) == 3 and hidden.dims[:2] == ("batch", "time")


def _is_told_by_shape(giver: Side, needed: TensorSpec) -> bool:
    """Whether a field that fits is likely to be it: of what a source delivers, a row's label and the length of its prefix are one number
    each."""
    return len(needed.dims) > 1 or not giver.role.startswith("source:")


def _others(giver: Side, taker: Side) -> str:
    """What to do about two parts that do not go together."""
    kinds = ["loader" if side.role.startswith("source:") else side.role.partition(":")[0] for side in (giver, taker)]
    return f"choose another {kinds[0]} or another {kinds[1]}"


def _term(side: Side, dim: Dim) -> Term:
    return dim if isinstance(dim, int) else (side.role, dim)


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
