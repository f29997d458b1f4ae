"""Unification: join the specs of all parts at every junction, until their sizes, names and dtypes agree or a problem says why not.

Junctions: every loader → task, task → embedding, task → rack and head (side inputs), embedding → rack and rack → head (with the
declared adapters in between), head → task. A difference without loss is bridged and reported; any other is a problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TypeVar

import attrs
from attrs import field, frozen

from stackwise.contracts.specs import AdapterSpec, BatchSpec, Beyond, EmbeddingSpec, HeadSpec, RackSpec, TaskSpec, TensorSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.errors import Problem, did_you_mean
from stackwise.plan.junctions.fields import Delivery, Match, Passage
from stackwise.plan.junctions.sides import Sheet, Side, quoted
from stackwise.plan.junctions.sizes import Variable
from stackwise.plan.junctions.tensors import MODEL_JUNCTIONS, Meeting, check_upper_bound, join_tensors

_S = TypeVar("_S")


@frozen(kw_only=True)
class Unified:
    """The outcome: sizes, bridges, problems."""

    values: Mapping[Variable, int]
    """(role, dimension) → size."""
    bridges: tuple[Bridge, ...] = ()
    problems: tuple[Problem, ...] = ()
    optional: frozenset[str] = frozenset()
    """The optional fields of the task that a source delivers."""
    reads: frozenset[str] | None = None
    """The fields that are read, as the sources call them; None where the task or a transform does not say."""


def unify(
    sides: Mapping[str, Side], rename: Mapping[str, str] | None = None, passage: Passage | None = None, *, complete: bool = True
) -> Unified:
    """Join the specs of all parts.

    Args:
        sides: role → part; a junction with an absent end is left out.
        rename: field the task needs → field the loaders deliver, as the config asks.
        passage: what is dropped, and what transforms read, on the way from the loaders to the task.
        complete: whether all parts are here. If one is absent because of a mistake, open sizes are not reported: it might give them.
    """
    sheet = Sheet(sides=sides)
    for side in sides.values():
        for dim, size in side.dims.items():
            sheet.sizes.fix((side.role, dim), size)
    joining = _Joining(sheet, rename or {}, passage or Passage())
    joining.every_junction()
    beyond = joining.beyond()
    for task, each in beyond:
        sheet.sizes.reach(task.term(each.other), task.term(each.dim), each.by)
    sheet.sizes.settle()
    for meeting in joining.bounded:
        check_upper_bound(meeting, sheet)
    for task, each in beyond:
        _check_beyond(task, each, sheet)
    if complete:
        _check_open(sheet)
    named = [variable for side in sides.values() for variable in side.variables()]
    sizes = {variable: sheet.sizes.size(variable) for variable in named}
    return Unified(
        values={variable: size for variable, size in sizes.items() if size is not None},
        bridges=tuple(sheet.bridges),
        problems=tuple(sheet.problems),
        optional=frozenset() if joining.delivery is None else joining.delivery.anywhere(),
        reads=joining.reads,
    )


@attrs.define
class _Joining:
    """The junctions of one phase, one method each."""

    sheet: Sheet
    rename: Mapping[str, str]
    passage: Passage
    bounded: list[Meeting] = field(factory=list)
    """Tensors whose bounds are compared once every size is known."""
    reads: frozenset[str] | None = None

    @property
    def delivery(self) -> Delivery | None:
        """What the sources give the task; None without a task."""
        task = self._spec("task", TaskSpec)
        if task is None:
            return None
        dropped = self.passage.drop
        sources = {
            role: {name: spec for name, spec in side.spec.fields.items() if name not in dropped}
            for role, side in self.sheet.sides.items()
            if side.is_source and isinstance(side.spec, BatchSpec)
        }
        return Delivery(task, sources, self.rename)

    def every_junction(self) -> None:
        """In the order of the batch's way through the model."""
        task, rack = self.sheet.sides.get("task"), self.sheet.sides.get("rack")
        self._check_drops()
        delivery, spec = self.delivery, self._spec("task", TaskSpec)
        if task is not None and delivery is not None:
            self._sources(task, delivery)
            self._embedding(task, delivery)
        for junction in MODEL_JUNCTIONS:
            self._hidden(junction)
        if task is not None and spec is not None:
            self._outputs(task, spec)
        if task is None or spec is None or delivery is None or rack is None or not isinstance(rack.spec, RackSpec):
            return
        self._side_inputs(task, rack, delivery)
        self._embedded(task, rack, spec.embedded)
        self._attention(task, rack)

    def beyond(self) -> list[tuple[Side, Beyond]]:
        """The task, with each of its dimensions that reach beyond others."""
        spec = self._spec("task", TaskSpec)
        return [] if spec is None else [(self.sheet.sides["task"], each) for each in spec.beyond]

    def _spec(self, role: str, kind: type[_S]) -> _S | None:
        spec = self.sheet.sides[role].spec if role in self.sheet.sides else None
        return spec if isinstance(spec, kind) else None

    def _join(self, meeting: Meeting) -> None:
        if join_tensors(meeting, self.sheet):
            self.bounded.append(meeting)

    def _sources(self, task: Side, delivery: Delivery) -> None:
        known = {**delivery.task.batch, **delivery.task.optional}
        for name in (name for name in self.rename if name not in known):
            self.sheet.refuse(f"{task.label} needs no field '{name}'{did_you_mean(name, known)}", f"data.rename.{name}", task)
        self.reads = self.passage.reads(self.rename.get(name, name) for name in known)
        for role, fields in delivery.sources.items():
            needed, giver = delivery.used(role), self.sheet.sides[role]
            self.sheet.bridges.extend(self.passage.drops(giver))
            mistakes = len(self.sheet.problems)
            match = Match(junction=f"{role}-task", giver=giver, taker=task, delivered=fields, needed=needed, rename=self.rename)
            for meeting in match.meetings(self.sheet):
                self._join(meeting)
            renamed = {bridge.before for bridge in self.sheet.bridges if bridge.kind == "rename" and bridge.junction == match.junction}
            if self.reads is not None:
                self.reads |= renamed
                if len(self.sheet.problems) == mistakes:  # else what the task misses may be among what it does not read
                    self._refuse_unread(giver, task, [name for name in fields if name not in self.reads])
        if (uneven := delivery.uneven()) is not None:
            self._refuse_uneven(task, self.sheet.sides[uneven[0]], self.sheet.sides[uneven[1]], uneven[2])

    def _check_drops(self) -> None:
        """Refuse to drop a field that the task needs, or that is renamed."""
        task = self._spec("task", TaskSpec)
        needed = {} if task is None else {self.rename.get(name, name): name for name in task.batch}
        for name in (name for name in self.passage.drop if name in needed or name in self.rename.values()):
            why = f"{self.sheet.sides['task'].label} needs it" if name in needed else "data.rename gives it another name"
            self.sheet.refuse(f"'{name}' is dropped, but {why}: leave it out", "data.drop")
        drop = tuple(name for name in self.passage.drop if name not in needed and name not in self.rename.values())
        self.passage = attrs.evolve(self.passage, drop=drop)

    def _refuse_unread(self, giver: Side, task: Side, fields: list[str]) -> None:
        """Refuse fields that nobody reads: one may be the padding or the label that the user counts on."""
        if not fields:
            return
        drop = ", ".join((*self.passage.drop, *fields))
        message = (
            f"{giver.label} delivers {quoted(fields)}, which {task.label} does not read: write `data: {{drop: [{drop}]}}` where that is "
            "meant, or choose a task whose spec names it, or give it the name that the task reads by `data.rename`"
        )
        self.sheet.refuse(message, giver.path, giver, task)

    def _refuse_uneven(self, task: Side, giver: Side, other: Side, fields: tuple[str, ...]) -> None:
        """Refuse sources of a mixture that deliver different optional fields, because their rows stand in one batch."""
        message = (
            f"{giver.path}, {giver.label}, delivers {quoted(fields)}, which {task.label} uses, but {other.path}, {other.label}, "
            "does not, and their rows stand in one batch: give both the same `rows:`"
        )
        self.sheet.refuse(message, other.path, giver, other)

    def _embedding(self, task: Side, delivery: Delivery) -> None:
        needed = self._spec("embedding", EmbeddingSpec)
        if needed is not None:
            offered, embedding = delivery.offered(needed.inputs), self.sheet.sides["embedding"]
            match = Match(junction="task-embedding", giver=task, taker=embedding, delivered=offered, needed=needed.inputs, rename={})
            for meeting in match.meetings(self.sheet):
                self._join(meeting)

    def _hidden(self, junction: str) -> None:
        """The hidden state through the adapters of a junction."""
        first, last = (self.sheet.sides.get(role) for role in junction.split("-"))
        adapters = [side for role, side in self.sheet.sides.items() if role.startswith(f"adapter:{junction}:")]
        adapters.sort(key=lambda side: int(side.role.rpartition(":")[2]))
        for giver, taker in pairwise(side for side in (first, *adapters, last) if side is not None):
            if isinstance(giver.spec, EmbeddingSpec | RackSpec | AdapterSpec) and isinstance(taker.spec, RackSpec | HeadSpec | AdapterSpec):
                delivered, needed = giver.spec.output, taker.spec.input
                self._join(Meeting(junction=junction, giver=giver, taker=taker, name="hidden", delivered=delivered, needed=needed))

    def _outputs(self, task: Side, spec: TaskSpec) -> None:
        head_spec = self._spec("head", HeadSpec)
        if head_spec is not None:
            head = self.sheet.sides["head"]
            match = Match(junction="head-task", giver=head, taker=task, delivered=head_spec.outputs, needed=spec.outputs, rename={})
            for meeting in match.meetings(self.sheet):
                self._join(meeting)

    def _side_inputs(self, task: Side, rack: Side, delivery: Delivery) -> None:
        """What the rack and the head take beside the hidden state."""
        assert isinstance(rack.spec, RackSpec)
        spec, takes = delivery.task, rack.spec.side
        for name in (name for name in spec.side if name not in takes):
            taken = ", ".join(takes) or "none"
            message = (
                f"{task.label} needs a rack that takes the side input '{name}', but {rack.label} takes {taken}: choose a rack that does"
            )
            self.sheet.refuse(message, "model.rack", task, rack)
        for name in (name for name in rack.spec.needs if name not in spec.embedded and name not in spec.inputs):
            needs = f"{rack.label} does not run without the side input '{name}', which {task.label} does not give"
            self.sheet.refuse(f"{needs}: choose another rack, or a task that gives it", "model.rack", task, rack)
        if (unheeded := delivery.unheeded(takes)) is not None:
            self._refuse_unheeded(task, rack, self.sheet.sides[unheeded[0]], unheeded[1])
        self._side(task, rack, takes, delivery.inputs())
        if (head := self._spec("head", HeadSpec)) is not None:
            self._side(task, self.sheet.sides["head"], head.side, delivery.inputs())

    def _refuse_unheeded(self, task: Side, rack: Side, source: Side, fields: tuple[str, ...]) -> None:
        """Refuse a rack that would ignore boundaries (such as `segments`) that a loader delivers and the task passes on."""
        assert isinstance(rack.spec, RackSpec)
        takes = f"only {quoted(rack.spec.side)}" if rack.spec.side else "no side input"
        message = (
            f"{source.label} delivers {quoted(fields)}, which {task.label} passes on as side inputs, but {rack.label} takes {takes}: "
            f"choose a rack that takes {quoted(fields)}, set `rows: stream` at {source.path}, "
            f"or write `data: {{drop: [{', '.join(fields)}]}}`"
        )
        self.sheet.refuse(message, "model.rack", source, task, rack)

    def _side(self, task: Side, taker: Side, side: Mapping[str, TensorSpec], inputs: Mapping[str, TensorSpec]) -> None:
        for name in (name for name in side if name in inputs):
            junction = f"task-{taker.role}"
            self._join(Meeting(junction=junction, giver=task, taker=taker, name=name, delivered=inputs[name], needed=side[name]))

    def _embedded(self, task: Side, rack: Side, embedded: Mapping[str, tuple[str, str]]) -> None:
        """Side inputs that the embedding makes: it must have the field, and the rack must take what comes out."""
        embedding, spec = self.sheet.sides.get("embedding"), self._spec("embedding", EmbeddingSpec)
        assert isinstance(rack.spec, RackSpec)
        if embedding is None or spec is None:
            return
        for name, (own, source) in embedded.items():
            if own not in spec.inputs:
                message = (
                    f"{task.label} has '{source}' embedded as '{own}', which {embedding.label} does not take: choose another embedding"
                )
                self.sheet.refuse(message, "model.embedding", task, embedding)
            elif (needed := rack.spec.side.get(name)) is not None:
                self.sheet.bridges.append(Bridge("task-rack", "embed", f"{source} → {name} as {own}", "rack", name, source, own))
                delivered = attrs.evolve(spec.output, dims=(*needed.dims[:2], *spec.output.dims[2:]))
                self._join(Meeting(junction="task-rack", giver=embedding, taker=rack, name=name, delivered=delivered, needed=needed))

    def _attention(self, task: Side, rack: Side) -> None:
        assert isinstance(task.spec, TaskSpec) and isinstance(rack.spec, RackSpec)
        mode, offers = task.spec.attention, rack.spec.attention
        if mode is None or mode in offers:
            return
        if not offers:
            detail = f"{rack.label} declares no attention mode; whether it is {mode} is its own business"
            self.sheet.bridges.append(Bridge("task-rack", "note", detail, into="rack"))
            return
        fix = f"leave {rack.path}.{rack.pinned} out" if rack.pinned else "choose a rack that does, or another task"
        message = f"{task.label} needs {mode} attention, but {rack.label} offers {', '.join(offers)}: {fix}"
        self.sheet.refuse(message, "model.rack", task, rack)


def _check_beyond(task: Side, beyond: Beyond, sheet: Sheet) -> None:
    """Check that a dimension of the task exceeds another by as much as the task asks."""
    other, dim = task.term(beyond.other), task.term(beyond.dim)
    low, high = sheet.sizes.size(other), sheet.sizes.size(dim)
    if low is None or high is None or low + beyond.by <= high:
        return
    where = sheet.declared_at(dim)
    fix = f"set {where} to at least {low + beyond.by}" if where else f"choose parts with a {beyond.dim} of at least {low + beyond.by}"
    need = f"{beyond.by} more than the {low} ids{sheet.because(other, task)}" if isinstance(beyond.other, str) else f"id {low}"
    message = f"{task.label} needs room for {need}, but {beyond.dim} is {high}{sheet.because(dim, task)}: {fix}"
    sheet.refuse(message, where or task.path, task)


def _check_open(sheet: Sheet) -> None:
    """One problem for each set of equal sizes that no part gives, unless a reported problem explains it."""
    named = {variable for side in sheet.sides.values() for variable in side.variables()}
    left_out = [(side.role, dim) for side in sheet.sides.values() for dim in side.open]
    unsolved = [variable for variable in left_out if variable in named and sheet.sizes.size(variable) is None]
    while unsolved:
        group = sheet.sizes.equal.share(unsolved[0], unsolved)
        unsolved = [variable for variable in unsolved if variable not in group]
        if any(role in sheet.broken for role, _ in sheet.sizes.linked.share(group[0], named)):
            continue
        keys = [f"{sheet.sides[role].path}.{sheet.sides[role].open[dim]}" for role, dim in group]
        fix = f"set {keys[0]}" if len(keys) == 1 else f"set one of {', '.join(keys)}"
        first, dim = group[0]
        message = f"the {dim} of {sheet.sides[first].label} is left out and nothing joined to it says its size: {fix}"
        sheet.problems.append(Problem(message, keys[0]))
