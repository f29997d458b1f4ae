"""Fields and their names: which optional ones are delivered, and which delivered field is the needed one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

from stackwise.contracts.specs import BatchSpec, TaskSpec, TensorSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.errors import did_you_mean
from stackwise.plan.junctions.comparison import fits
from stackwise.plan.junctions.sides import Sheet, Side, choose_another
from stackwise.plan.junctions.tensors import Meeting


@frozen
class Delivery:
    """The fields of every source whose fields are known, seen by one task.

    Args:
        task: names the optional fields.
        sources: role of a source → the fields it delivers.
        rename: field the task uses → field the sources deliver, as the config asks.
    """

    task: TaskSpec
    sources: Mapping[str, Mapping[str, TensorSpec]]
    rename: Mapping[str, str]

    def optional(self, role: str) -> tuple[str, ...]:
        """The optional fields that a source delivers, under their own name or under one that the config names."""
        return tuple(name for name in self.task.optional if name in self.sources[role] or name in self.rename)

    def anywhere(self) -> frozenset[str]:
        """The optional fields that some source delivers."""
        return frozenset(name for role in self.sources for name in self.optional(role))

    def used(self, role: str) -> dict[str, TensorSpec]:
        """The fields that the task takes from a source: those it needs, and the optional ones that the source delivers."""
        return {**self.task.batch, **{name: self.task.optional[name] for name in self.optional(role)}}

    def inputs(self) -> dict[str, TensorSpec]:
        """What the prepared batch offers: the task's inputs without the optional fields that no source delivers."""
        absent = self.task.optional.keys() - self.anywhere()
        return {name: spec for name, spec in self.task.inputs.items() if name not in absent}

    def offered(self, fields: Iterable[str]) -> dict[str, TensorSpec]:
        """The inputs for an embedding with these fields. An optional one counts only under its own name, never as a guess."""
        wanted = set(fields)
        return {name: spec for name, spec in self.inputs().items() if name not in self.task.optional or name in wanted}

    def uneven(self) -> tuple[str, str, tuple[str, ...]] | None:
        """A source, one it is mixed with, and the optional fields that the first delivers and the second does not."""
        for giver in self.sources:
            for other in self.sources:
                if lone := tuple(name for name in self.optional(giver) if name not in self.optional(other)):
                    return giver, other, lone
        return None

    def unheeded(self, side: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
        """A source and the optional fields it delivers that the task passes on but that are not among these side inputs."""
        taken = set(side)
        for role in self.sources:
            if lost := tuple(name for name in self.optional(role) if name in self.task.inputs and name not in taken):
                return role, lost
        return None


@frozen
class Passage:
    """What happens to the fields of the sources before the task.

    Args:
        drop: fields that go no further, as the config asks.
        transforms: fields that transforms read; None where one of them does not say what it reads.
    """

    drop: tuple[str, ...] = ()
    transforms: frozenset[str] | None = frozenset()

    def reads(self, names: Iterable[str]) -> frozenset[str] | None:
        """The fields that transforms or the task read, if the task reads these names; None if a transform does not say."""
        return None if self.transforms is None else self.transforms | {*names}

    def drops(self, giver: Side) -> list[Bridge]:
        """A bridge for each field of a source that is dropped."""
        delivered = giver.spec.fields if isinstance(giver.spec, BatchSpec) else self.drop
        return [dropped(giver.role, name) for name in self.drop if name in delivered]


def dropped(role: str, name: str) -> Bridge:
    """The record of a field of a source that the config drops."""
    return Bridge(f"{role}-task", "drop", name, "task", name)


@frozen(kw_only=True)
class Match:
    """The fields that one side gives and another needs, to be matched by name."""

    junction: str
    giver: Side
    taker: Side
    delivered: Mapping[str, TensorSpec]
    needed: Mapping[str, TensorSpec]
    rename: Mapping[str, str]
    """Needed → delivered, as the config asks."""

    def meetings(self, sheet: Sheet) -> Iterator[Meeting]:
        """Every needed field with a delivered one; a field without one is refused, another name is a bridge."""
        for name, spec in self.needed.items():
            source = self._source(name, spec)
            if source is None:
                self._refuse_missing(name, spec, sheet)
                continue
            if source != name:
                sheet.bridges.append(Bridge(self.junction, "rename", f"{source} → {name}", self.taker.role, name, source, name))
            delivered = self.delivered[source]
            yield Meeting(junction=self.junction, giver=self.giver, taker=self.taker, name=name, delivered=delivered, needed=spec)

    def _source(self, name: str, spec: TensorSpec) -> str | None:
        """The delivered field that is the needed one: by request, by name, or by being the only one that fits."""
        wanted = self.rename.get(name, name)
        if wanted in self.delivered:
            return wanted
        if name in self.delivered:
            return name
        if name in self.rename or not self._shape_tells(spec):
            return None
        spoken_for = {other for other in self.needed if other in self.delivered} | set(self.rename.values())
        free = {other: offered for other, offered in self.delivered.items() if other not in spoken_for}
        fitting = [other for other, offered in free.items() if fits(offered, spec)]
        rivals = [other for other in self.needed if other not in (name, *self.delivered, *self.rename)]
        contested = any(fits(free[field], self.needed[other]) for field in fitting for other in rivals)
        return fitting[0] if len(fitting) == 1 and not contested else None

    def _shape_tells(self, needed: TensorSpec) -> bool:
        """Whether the shape alone may identify a field. Of a source, one number a row may be a label as well as the length of a prefix."""
        return len(needed.dims) > 1 or not self.giver.is_source

    def _refuse_missing(self, name: str, spec: TensorSpec, sheet: Sheet) -> None:
        giver, taker, wanted = self.giver, self.taker, self.rename.get(name)
        offers = ", ".join(f"{other} {offered}" for other, offered in self.delivered.items()) or "nothing"
        if wanted is not None:
            message = f"{giver.label} delivers no field '{wanted}'{did_you_mean(wanted, self.delivered)}; it delivers {offers}"
            sheet.refuse(message, f"data.rename.{name}", giver, taker)
            return
        fix = f"name it: `data.rename: {{{name}: FIELD}}`, or choose another loader" if giver.is_source else choose_another(giver, taker)
        candidates = sum(fits(offered, spec) for offered in self.delivered.values())
        why = "more than one of it would fit" if candidates > 1 else "none of it is free to fit"
        if candidates and not self._shape_tells(spec):
            why = "one number a row is never taken for another by its shape alone"
        message = f"{taker.label} needs '{name}' {spec}, but {giver.label} delivers {offers}, and {why}: {fix}"
        sheet.refuse(message, "data.rename" if giver.is_source else taker.path, giver, taker)
