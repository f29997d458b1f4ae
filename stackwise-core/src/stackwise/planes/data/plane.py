"""The data plane: sources, their mixture, and the batches of every step, with a ledger of what was delivered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import tee
from typing import Any, NamedTuple

import torch
from attrs import define, field

from stackwise.contracts.components import Built
from stackwise.contracts.protocols import Batch, Fingerprinted, Loader
from stackwise.contracts.specs import EpochSize
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import DataState
from stackwise.errors import DataError, ProviderError
from stackwise.planes.data.apportionment import Request
from stackwise.planes.data.batches import check_batch, check_limits, join_rows, refuse_outside, rows_of
from stackwise.planes.data.iterable_loader import IterableLoader, as_loader
from stackwise.planes.data.mixture import Mixture
from stackwise.planes.data.read_ahead import ReadAhead
from stackwise.planes.data.readers.processes import ProcessLoader
from stackwise.planes.data.transforms import BuildTransform, Transforms
from stackwise.planes.followers import Follower
from stackwise.planes.model.bridges import fields_across, take
from stackwise.timeline.duration import Moment

BuildLoader = Callable[[str, Part], Any]


@define
class Delivered:
    """The ledger's line for one source."""

    rows: int = 0
    tokens: int = 0


@define(eq=False)
class _Source:
    name: str
    part: Part
    loader: Loader
    follower: Follower
    delivered: Delivered = field(factory=Delivered)
    fingerprint: Mapping[str, Any] | None = None
    """What the loader reads, asked when it is built: later it may belong to a thread or be a process that has ended."""


class _Planned(NamedTuple):
    """One step before it is read: what each micro-batch takes of each source."""

    step: int
    length: int | None
    takes: tuple[tuple[tuple[str, int | None], ...], ...]
    mixture: Mapping[str, Any]
    """State of the mixture after this step."""


class DataPlane:
    """Owns the loaders; delivers the micro-batches of each step by the declared mixture.

    What a step reads depends on the schedule and on nothing else, so batches may be made ahead of their step, by a thread or
    by reader processes, without changing the stream; only what a step has taken counts.

    Args:
        build: makes the loader of a declared source; called once a source and again only when its structure changes.
        request: what step k asks for, for the mixture; None where there is one source.
        build_transform: makes a declared transform.
        device: where batches go.
        seed: the run's seed, for the transforms' streams.
        read_ahead: steps whose batches are made ahead by a thread.
        workers: reader processes a source; `build` then gives `ProcessLoader`s.
    """

    def __init__(
        self,
        build: BuildLoader,
        *,
        request: Callable[[int], Request | None] | None = None,
        build_transform: BuildTransform | None = None,
        device: torch.device | None = None,
        seed: int = 0,
        read_ahead: int = 0,
        workers: int = 0,
    ) -> None:
        self._build, self._transforms = build, Transforms(build_transform, seed)
        self._device = device if device is not None and device.type != "cpu" else None
        self._workers = workers
        self._mixture = Mixture(request or (lambda step: None))
        self._mixed: Mapping[str, Any] = self._mixture.state_dict()
        """State of the mixture after the last step that was read."""
        self._sources: dict[str, _Source] = {}
        self._parked: dict[str, _Source] = {}
        """Sources a phase dropped: they keep their read position for a later phase that names them again."""
        self._limits: dict[str, tuple[int, int]] = {}
        """Of fields whose values a source does not say: those that the task takes."""
        self._ready: list[_Source] = []
        """Sources of phases to come, built to be looked at, in the order in which they are needed."""
        self._state: DataState | None = None
        self._lookahead = 0
        self._planned: deque[_Planned] = deque()
        self._coming: Iterator[Moment] = iter(())
        self._ahead = ReadAhead(self._produce, self._snapshot, read_ahead)
        self._open = False

    @classmethod
    def of(cls, batches: object, device: torch.device | None = None) -> DataPlane:
        """A plane over one finished source: a loader, or an iterable of batches."""
        loader = as_loader(batches)
        plane = cls(lambda name, part: loader, device=device)
        part = Part(kind="loader", id=type(batches).__name__, given=batches)
        plane._sources["data"] = _Source("data", part, loader, Follower(part, loader, "the loader"))
        return plane

    def enter(self, state: DataState, *, lookahead: int) -> None:
        """Cross into a declared state: build new sources, drop those no longer named, keep the read position of the rest."""
        self.close()
        known = {**self._parked, **self._sources}
        sources = {}
        for name, part in state.sources.items():
            source = known.get(name)
            if source is None or source.part.structure != part.structure:
                source = self._begun(name, part, source.delivered if source else Delivered())
            else:
                source.part, source.follower = part, Follower(part, source.loader, "the loader")
            sources[name] = source
        self._transforms.enter(state.transforms)
        self._limits = _limits(state, sources)
        self._parked = {name: source for name, source in known.items() if name not in sources}
        self._sources, self._state, self._lookahead = sources, state, lookahead

    def open(self, moments: Iterator[Moment]) -> None:
        """Begin to read ahead for the steps that are left of a phase."""
        if self._state is None or all(isinstance(source.loader, IterableLoader) for source in self._sources.values()):
            return
        coming, self._coming = tee(moments)
        self._planned.clear()
        self._open = True  # before the thread starts, which asks for it
        self._ahead.open(coming)

    def close(self) -> None:
        """Stop reading ahead; what was made and not taken is dropped, and the read positions are those of the last step taken."""
        if self._open:
            self._ahead.close()
            self._open = False
            self._planned.clear()
            if (taken := self._ahead.state()) != self._snapshot():
                self.load_state_dict(taken)

    def end(self) -> None:
        """Stop reading ahead and end reader processes: the run is over."""
        self.close()
        for source in (*self._parked.values(), *self._sources.values(), *self._ready):
            if isinstance(source.loader, ProcessLoader):
                source.loader.close()

    def batches(self, moment: Moment) -> list[Batch]:
        """The micro-batches of one step."""
        return self._ahead.next(moment) if self._open else self._produce(moment)

    def ledger(self) -> dict[str, dict[str, int]]:
        """Rows and tokens delivered by source over the whole run, sources no longer named included."""
        lines: dict[str, dict[str, int]] = self.state_dict()["ledger"] if self._open else self._lines()
        return lines

    def fingerprints(self) -> dict[str, Mapping[str, Any]]:
        """What each source that can say so reads, sources no longer named included."""
        known = {**self._parked, **self._sources}
        return {name: source.fingerprint for name, source in known.items() if source.fingerprint is not None}

    def state_dict(self) -> dict[str, Any]:
        """Read positions, ledger and mixture as of the last step taken, by source name."""
        return self._ahead.state() if self._open else self._snapshot()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved into the same declared sources and transforms.

        Raises:
            DataError: the saved ones are not the declared ones.
        """
        known = {**self._parked, **self._sources}
        if set(state["sources"]) != set(known):
            raise DataError(f"saved read positions are of {sorted(state['sources'])}, the declared sources are {sorted(known)}")
        for name, source in known.items():
            source.loader.load_state_dict(state["sources"][name])
            source.delivered = Delivered(**state["ledger"][name])
            source.follower.forget()
        self._parked = {name: self._parked[name] for name in state["sources"] if name in self._parked}
        self._transforms.load_state_dict(state["transforms"])
        self._planned.clear()
        self._mixture.load_state_dict(state["mixture"])
        self._mixed = state["mixture"]

    def _snapshot(self) -> dict[str, Any]:
        sources = {name: source.loader.state_dict() for name, source in {**self._parked, **self._sources}.items()}
        return {"sources": sources, "ledger": self._lines(), "mixture": self._mixed, "transforms": self._transforms.state_dict()}

    def _lines(self) -> dict[str, dict[str, int]]:
        return {name: {"rows": s.delivered.rows, "tokens": s.delivered.tokens} for name, s in {**self._parked, **self._sources}.items()}

    # -- before the run -------------------------------------------------------------------------------------------

    def rehearse(self, phases: Iterable[tuple[DataState, int, Moment]]) -> list[dict[str, EpochSize | None]]:
        """Build what every phase reads, and make one row of each length, so that wrong data show before the first step.

        No read position moves, and transforms keep what they hold; loaders that were built are used when their phase is entered. Finished
        loaders are built around and not read.

        Args:
            phases: declared state, lookahead of the task and first instant of each phase.

        Returns:
            One a phase: source → what one epoch of it holds, for those that say so.

        Raises:
            DataError: data that cannot be trained on.
        """
        made: list[_Source] = []
        sizes = []
        for state, lookahead, moment in phases:
            self.enter(state, lookahead=lookahead)
            made += [source for source in self._sources.values() if source not in made]
            self._try(state, moment)
            sizes.append({name: _epoch_size(source.loader) for name, source in self._sources.items()})
        self._transforms.enter(())
        self._ready, self._sources, self._parked, self._state = made, {}, {}, None
        return sizes

    def _try(self, state: DataState, moment: Moment) -> None:
        """One row of every source at every length of a phase, through bridges and transforms."""
        if not all(_can_be_tried(source) for source in self._sources.values()):
            return
        before = {name: source.loader.state_dict() for name, source in self._sources.items()}
        transforms = self._transforms.state_dict()
        for length in dict.fromkeys(shape.seq_len for _, shape in state.shapes if shape.rows is not None):
            asked = None if length is None else length + self._lookahead
            self._transforms.begin(moment)
            self._finish(join_rows([(name, self._take_from(name, 1, asked)) for name in self._sources]), moment)
            self._transforms.load_state_dict(transforms)
            for name, source in self._sources.items():
                source.loader.load_state_dict(before[name])

    def _begun(self, name: str, part: Part, delivered: Delivered) -> _Source:
        loader = self._loader(name, part)
        source = _Source(name, part, loader, Follower(part, loader, "the loader"), delivered)
        if isinstance(loader, Fingerprinted):
            source.fingerprint = loader.fingerprint()
        return source

    def _loader(self, name: str, part: Part) -> Loader:
        """The loader of a source that begins: one that was made ready, else a new one."""
        for source in self._ready:
            if source.name == name and source.part.structure == part.structure:
                self._ready.remove(source)
                return source.loader
        return as_loader(self._build(name, part))

    # -- making a step's batches ----------------------------------------------------------------------------------

    def _produce(self, moment: Moment) -> list[Batch]:
        self._transforms.begin(moment)
        if self._state is None:
            return [self._finish(self._take_from(next(iter(self._sources)), None, None), moment)]
        if len(self._sources) == 1 and not self._workers:
            return self._produce_from(next(iter(self._sources)), self._state, moment)
        planned = self._next_planned(moment)
        batches = [join_rows([(name, self._take_from(name, rows, planned.length)) for name, rows in takes]) for takes in planned.takes]
        self._mixed = planned.mixture
        return [self._finish(batch, moment) for batch in batches]

    def _produce_from(self, name: str, state: DataState, moment: Moment) -> list[Batch]:
        """What `_produce` does where there is nothing to mix and nobody to ask ahead."""
        shape = state.shape(moment.step)
        length = None if shape.seq_len is None else shape.seq_len + self._lookahead
        self._apply_values(moment.t)
        return [self._finish(self._take_from(name, rows, length), moment) for rows in shape.micro_batches]

    def _next_planned(self, moment: Moment) -> _Planned:
        """The plan of a step; with reader processes the coming steps are planned, and asked for, as well."""
        if not (self._workers and self._open):
            return self._plan(moment)
        while len(self._planned) <= self._workers and (coming := next(self._coming, None)) is not None:
            self._planned.append(self._plan(coming))
        planned = self._planned.popleft()
        assert planned.step == moment.step
        return planned

    def _plan(self, moment: Moment) -> _Planned:
        assert self._state is not None
        shape = self._state.shape(moment.step)
        length = None if shape.seq_len is None else shape.seq_len + self._lookahead
        self._apply_values(moment.t)
        takes = tuple(self._deal(moment.step, rows) for rows in shape.micro_batches)
        for name, rows in (pair for pairs in takes for pair in pairs):
            loader = self._sources[name].loader
            if isinstance(loader, ProcessLoader):
                loader.ask(rows, length)
        mixed = self._mixture.state_dict() if len(self._sources) > 1 else self._mixed
        return _Planned(moment.step, length, takes, mixed)

    def _deal(self, step: int, rows: int | None) -> tuple[tuple[str, int | None], ...]:
        """Source → rows of one micro-batch."""
        if len(self._sources) == 1:
            return ((next(iter(self._sources)), rows),)
        if rows is None:
            raise DataError(f"{len(self._sources)} sources are mixed row by row: declare data.batch_size")
        return tuple(self._mixture.take(step, rows).items())

    def _apply_values(self, t: float) -> None:
        """Hand every loader the values in force, when they changed."""
        for source in self._sources.values():
            source.follower.apply(t)

    def _take_from(self, name: str, rows: int | None, length: int | None) -> Batch:
        """The next rows of one source, checked the first time, bridged to the task, and counted."""
        source = self._sources[name]
        try:
            batch = source.loader.take(rows, length)
        except DataError as error:
            raise DataError(f"source '{name}': {error}") from error
        if not source.delivered.rows:
            check_batch(name, batch, source.loader.get_batch_spec(), length)
        delivered = rows_of(batch)
        if rows is not None and delivered != rows:
            asked = "1 row" if rows == 1 else f"{rows} rows"
            raise ProviderError(f"source '{name}' was asked for {asked} and delivered {delivered}: a loader delivers what it is asked for")
        if self._state is not None and self._state.bridges:
            bridges = [bridge for bridge in self._state.bridges if bridge.junction == f"source:{name}-task"]
            batch = {**batch, **take(fields_across([bridge.field for bridge in bridges], bridges), batch)}
        source.delivered.rows += delivered
        source.delivered.tokens += delivered * (length - self._lookahead) if length is not None else 0
        return batch

    def _finish(self, batch: Batch, moment: Moment) -> Batch:
        batch = self._transforms(batch, moment)
        for name, limits in self._limits.items():
            if name in batch:
                check_limits(" and ".join(self._sources), name, batch[name], limits)
        if self._device is not None:
            batch = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
        return batch


def _epoch_size(loader: Loader) -> EpochSize | None:
    teller = getattr(loader, "epoch_size", None)
    size = teller() if callable(teller) else None
    return size if isinstance(size, EpochSize) else None


def _can_be_tried(source: _Source) -> bool:
    """Whether reading a row and going back leaves no trace; a user's own stream may have only one way."""
    return not isinstance(source.loader, IterableLoader) and (source.part.given is None or isinstance(source.part.given, Built))


def _limits(state: DataState, sources: Mapping[str, _Source]) -> dict[str, tuple[int, int]]:
    """The fields to look at batch by batch: what a loader says of its values, once built, is believed.

    Raises:
        DataError: it says that some lie outside.
    """
    limits: dict[str, tuple[int, int]] = {}
    for bridge in state.bridges:
        if bridge.limits is None:
            continue
        name = bridge.junction.removeprefix("source:").removesuffix("-task")
        own = [other for other in state.bridges if other.junction == bridge.junction]
        ((_, delivered, _),) = fields_across([bridge.field], own)
        spec = sources[name].loader.get_batch_spec().fields.get(delivered)
        if spec is None or spec.bounds is None or not isinstance(spec.bounds[1], int) or state.transforms:
            limits[bridge.field] = bridge.limits
        else:
            refuse_outside(name, delivered, (spec.bounds[0], spec.bounds[1]), bridge.limits)
    return limits
