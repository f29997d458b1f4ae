"""The data plane: sources, their mixture, and the batches of every step, with a ledger of what was delivered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import tee
from typing import Any

import torch

from stackwise.contracts.answers import calling
from stackwise.contracts.protocols import Batch, Loader, Stateful
from stackwise.contracts.specs import EpochSize
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import DataState
from stackwise.errors import DataError, StackwiseError
from stackwise.planes.data.batches import check_limits, copied, join_rows
from stackwise.planes.data.iterable_loader import IterableLoader
from stackwise.planes.data.makers import fault_of
from stackwise.planes.data.read_ahead import ReadAhead
from stackwise.planes.data.readers.processes import ProcessLoader, ReaderStopped
from stackwise.planes.data.ready_made import as_loader
from stackwise.planes.data.requests import Requests, StepRequest, Takes
from stackwise.planes.data.share import WHOLE, Share
from stackwise.planes.data.sources import Delivered, Source, lines_of
from stackwise.planes.data.transforms import BuildTransform, Transforms
from stackwise.timeline.duration import Moment
from stackwise.timeline.schedules import Curve
from stackwise.timeline.streams import step_seed, stream_key

BuildLoader = Callable[[str, Part], Any]


class DataPlane:
    """Owns the loaders; delivers the micro-batches of each step by the declared mixture.

    What a step reads depends on the schedule and on nothing else, so batches may be made ahead of their step, by a thread or
    by reader processes, without changing the stream; only what a step has taken counts.

    Args:
        build: makes the loader of a declared source; called once a source and again only when its structure changes.
        build_transform: makes a declared transform.
        device: where batches go.
        seed: the run's seed, for the streams of transforms and of ready-made batches.
        read_ahead: steps whose batches are made ahead by a thread.
        workers: reader processes a source; `build` then gives `ProcessLoader`s.
        share: the micro-batches of a step that are made here; the rows of others are passed over.
    """

    def __init__(
        self,
        build: BuildLoader,
        *,
        build_transform: BuildTransform | None = None,
        device: torch.device | None = None,
        seed: int = 0,
        read_ahead: int = 0,
        workers: int = 0,
        share: Share = WHOLE,
    ) -> None:
        self.share = share  # may be set before the first step
        self._build, self._transforms, self._seed = build, Transforms(build_transform, seed), seed
        self._device = device if device is not None and device.type != "cpu" else None
        self._workers = workers
        self._requests = Requests()
        self._debts = self._requests.debts
        """What the mixture owes each source after the last step that was read; later steps may have been asked for."""
        self._sources: dict[str, Source] = {}
        self._parked: dict[str, Source] = {}
        """Sources a phase dropped: they keep their read position for a later phase that names them again."""
        self._following: list[Source] = []
        """Sources with options that follow time."""
        self._copies = False
        """Whether a batch may lie in memory that the next one is written into."""
        self._finishes = False
        """Whether anything is done to a batch that was read."""
        self._limits: dict[str, tuple[int, int]] = {}
        """Of fields whose values a source does not say: those that the task takes."""
        self._drops: frozenset[str] = frozenset()
        """Fields that go no further than the transforms."""
        self._ready: list[Source] = []
        """Sources of phases to come, built to be looked at, in the order in which they are needed."""
        self._state: DataState | None = None
        self._asked: deque[tuple[int, StepRequest]] = deque()
        """Steps whose rows are asked of the reader processes already."""
        self._coming: Iterator[Moment] = iter(())
        self._ahead = ReadAhead(self._produce, self._snapshot, read_ahead)
        self._open = False

    @classmethod
    def of(cls, batches: object, device: torch.device | None = None, seed: int = 0) -> DataPlane:
        """A plane over one finished source: a loader, or an iterable of batches."""
        part = Part(kind="loader", id=type(batches).__name__, given=batches)
        plane = cls(lambda name, part: batches, device=device, seed=seed)
        plane.enter(DataState(sources={"data": part}, mix={"data": Curve.constant(1.0)}, accept_inexact_resume=True), lookahead=0)
        return plane

    def enter(self, state: DataState, *, lookahead: int) -> None:
        """Cross into a declared state: build new sources, drop those no longer named, keep the read position of the rest."""
        self.close()
        known = {**self._parked, **self._sources}
        sources = {}
        for name, part in state.sources.items():
            source = known.get(name)
            if source is None or source.part.structure != part.structure:
                source = Source(name, part, self._loader(name, part, state), source.delivered if source else Delivered())
            else:
                source.follow(part)
            sources[name] = source
        self._transforms.enter(state.transforms)
        self._limits = {}
        for source in sources.values():
            self._limits |= source.cross(state)
        self._drops = frozenset(bridge.field for bridge in state.bridges if bridge.kind == "drop")
        self._parked = {name: source for name, source in known.items() if name not in sources}
        self._sources, self._state = sources, state
        self._requests.enter(state, sources, lookahead)
        self._following = [source for source in sources.values() if source.part.curves]
        self._copies = any(isinstance(source.loader, IterableLoader) and source.loader.may_reuse for source in sources.values())
        self._finishes = bool(self._transforms or self._drops or self._limits or self._device)

    def expect(self, fields: frozenset[str]) -> None:
        """Hold the sources to the fields that are read, where only the finished parts say which; what transforms read is not known."""
        if self._state is not None and not self._state.transforms:
            for source in self._sources.values():
                source.expect(fields, self._drops)

    def open(self, moments: Iterator[Moment]) -> None:
        """Begin to read ahead for the steps that are left of a phase."""
        if any(isinstance(source.loader, IterableLoader) for source in self._sources.values()):
            return  # their code may draw from the process's generators, which belong to the model while a thread would read
        coming, self._coming = tee(moments)
        self._asked.clear()
        self._open = True  # before the thread starts, which asks for it
        self._ahead.open(coming)

    def close(self) -> None:
        """Stop reading ahead; what was made and not taken is dropped, and the read positions are those of the last step taken."""
        if self._open:
            further = self._ahead.close() or bool(self._asked)
            self._open = False
            if further:
                self.load_state_dict(self._ahead.state())

    def end(self) -> None:
        """Stop reading ahead and end reader processes: the run is over."""
        self.close()
        for source in (*self._all().values(), *self._ready):
            if isinstance(source.loader, ProcessLoader | IterableLoader):
                source.loader.close()

    def brought(self) -> dict[str, IterableLoader]:
        """The sources of ready-made batches, those of phases to come included."""
        sources = (*self._all().values(), *self._ready)
        return {source.name: source.loader for source in sources if isinstance(source.loader, IterableLoader)}

    def lap(self) -> int:
        """How often the only source has started over, if it delivers ready-made batches; else 0."""
        loader = self._sources[only].loader if (only := self._requests.only) is not None else None
        return loader.lap if isinstance(loader, IterableLoader) else 0

    def batches(self, moment: Moment) -> list[Batch]:
        """The micro-batches of one step that belong to this process."""
        return self._ahead.next(moment) if self._open else self._produce(moment)

    def pass_over(self, moment: Moment) -> list[Batch]:
        """Move past one step, whose batches are made in other processes; there is none here."""
        request = self._request(moment)
        for takes in request.takes:
            self._pass_over(takes, request)
        self._debts = request.debts
        return []

    def micro_batches(self, step: int) -> int:
        """How many micro-batches a step has, over all processes."""
        return 1 if self._state is None else len(self._state.shape(step).micro_batches)

    def fault_of(self, fields: Sequence[str], value: int, sentence: str) -> StackwiseError:
        """The error for a value that these fields should not hold, of the class of whoever made it."""
        return fault_of(list(self._sources.values()), self._transforms.parts, fields, value, sentence)

    def stateful_transforms(self) -> list[Stateful]:
        """The transforms of the phase in force that keep a state."""
        return self._transforms.stateful()

    def ledger(self) -> dict[str, dict[str, int]]:
        """Rows and tokens delivered by source over the whole run, sources no longer named included."""
        lines: dict[str, dict[str, int]] = self._ahead.state()["ledger"] if self._open else lines_of(self._all())
        return lines

    def fingerprints(self) -> dict[str, Mapping[str, Any]]:
        """What each source that can say so reads, sources no longer named included."""
        return {name: dict(source.fingerprint) for name, source in self._all().items() if source.fingerprint is not None}

    def fingerprints_to_come(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Source and what it reads, for all that say it, sources of phases to come included; one name may stand for several of them."""
        sources = (*self._all().values(), *self._ready)
        return [(source.name, dict(source.fingerprint)) for source in sources if source.fingerprint is not None]

    def vocabularies(self) -> list[tuple[str, str]]:
        """Source and vocabulary of its ids, for all that say it, sources of phases to come included."""
        return [(each.name, each.vocabulary) for each in (*self._all().values(), *self._ready) if each.vocabulary is not None]

    def state_dict(self) -> dict[str, Any]:
        """Read positions, ledger and mixture as of the last step taken, by source name."""
        return self._ahead.state() if self._open else self._snapshot()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved into the same declared sources and transforms.

        Raises:
            DataError: the saved ones are not the declared ones.
        """
        known = self._all()
        if set(state["sources"]) != set(known):
            raise DataError(f"saved read positions are of {sorted(state['sources'])}, the declared sources are {sorted(known)}")
        for name, source in known.items():
            source.go_to(state["sources"][name])
            source.delivered = Delivered.of(state["ledger"][name])
            source.follower.forget()
        self._parked = {name: self._parked[name] for name in state["sources"] if name in self._parked}
        self._transforms.load_state_dict(state["transforms"])
        self._asked.clear()
        self._debts = dict(state["mixture"]["debts"])
        self._requests.owe(self._debts)

    def _all(self) -> dict[str, Source]:
        return {**self._parked, **self._sources}

    def _snapshot(self) -> dict[str, Any]:
        known = self._all()
        return {
            "sources": {name: source.state() for name, source in known.items()},
            "ledger": lines_of(known),
            "mixture": {"debts": self._debts},
            "transforms": self._transforms.state_dict(),
        }

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
        ready: list[Source] = []
        sizes = []
        for state, lookahead, moment in phases:
            self.enter(state, lookahead=lookahead)
            ready += [source for source in self._sources.values() if source not in ready]
            self._try(state, moment)
            sizes.append({name: source.epoch_size() for name, source in self._sources.items()})
        self._transforms.enter(())
        self._ready, self._sources, self._parked, self._state = ready, {}, {}, None
        return sizes

    def _try(self, state: DataState, moment: Moment) -> None:
        """One row of every source at every length of a phase, through bridges and transforms."""
        if not all(source.can_be_tried() for source in self._sources.values()):
            return
        before = {name: source.state() for name, source in self._sources.items()}
        transforms = self._transforms.state_dict()
        for length, rows in dict.fromkeys((shape.seq_len, None if shape.rows is None else 1) for _, shape in state.shapes):
            self._transforms.begin(moment)
            self._finish(self._read([(name, rows) for name in self._sources], length, self._requests.length(length)), moment)
            self._transforms.load_state_dict(transforms)
            for name, source in self._sources.items():
                with calling(source.part.id, "load_state_dict"):
                    source.loader.load_state_dict(before[name])

    def _loader(self, name: str, part: Part, state: DataState) -> Loader:
        """The loader of a source that begins: one that was made ready, else a new one."""
        for source in self._ready:
            if source.name == name and source.part.structure == part.structure:
                self._ready.remove(source)
                return source.loader
        loader = as_loader(self._build(name, part), step_seed(stream_key(self._seed, "batches", name), 0), state.fields)
        if isinstance(loader, IterableLoader) and loader.inexact is not None and not state.accept_inexact_resume:
            raise DataError(
                f"source '{name}': {loader.inexact}: give it a `__len__` and a fixed order, or `state_dict` and `load_state_dict` "
                "(torchdata's StatefulDataLoader has them), or say `data.accept_inexact_resume: true`"
            )
        return loader

    # -- making a step's batches ----------------------------------------------------------------------------------

    def _produce(self, moment: Moment) -> list[Batch]:
        if self._finishes:
            self._transforms.begin(moment)
        request = self._next_asked(moment) if self._workers and self._open else self._request(moment)
        try:
            batches = self._read_own(request)
        except ReaderStopped as error:
            raise ReaderStopped(f"step {moment.step}, {error}") from error
        self._debts = request.debts
        return [self._finish(batch, moment, index) for index, batch in self.share.indices(batches)] if self._finishes else batches

    def _read_own(self, request: StepRequest) -> list[Batch]:
        """The micro-batches of a step that belong here, read before the first of them is used; the rows of the others are passed over."""
        copies = self._copies and len(request.takes) > 1
        batches = []
        for index, takes in enumerate(request.takes):
            if self.share.owns(index):
                batch = self._read(takes, request.seq_len, request.length)
                batches.append(copied(batch) if copies else batch)
            else:
                self._pass_over(takes, request)
        return batches

    def _pass_over(self, takes: Takes, request: StepRequest) -> None:
        for name, rows in takes:
            self._sources[name].pass_over(rows, request.length, request.seq_len)

    def _next_asked(self, moment: Moment) -> StepRequest:
        """The request of a step; those of the coming steps are made, and their rows asked of the reader processes, as well."""
        while len(self._asked) <= self._workers and (coming := next(self._coming, None)) is not None:
            self._asked.append((coming.step, self._request(coming)))
        step, request = self._asked.popleft()
        assert step == moment.step
        return request

    def _request(self, moment: Moment) -> StepRequest:
        """What a step takes; loaders get the values of their options at its time, and reader processes are asked for its rows."""
        for source in self._following:
            source.follower.apply(moment.t)
        request = self._requests.of(moment)
        if self._workers:
            for name, rows in (pair for takes in request.takes for pair in takes):
                if isinstance(loader := self._sources[name].loader, ProcessLoader):
                    loader.ask(rows, request.length)
        return request

    def _read(self, takes: Sequence[tuple[str, int | None]], seq_len: int | None, length: int | None) -> Batch:
        """One micro-batch."""
        if len(takes) == 1:
            ((name, rows),) = takes
            return self._sources[name].take(rows, length, seq_len)
        return join_rows([(name, self._sources[name].take(rows, length, seq_len)) for name, rows in takes])

    def _finish(self, batch: Batch, moment: Moment, index: int = 0) -> Batch:
        batch = self._transforms(batch, moment, index)
        if self._drops:
            batch = {name: tensor for name, tensor in batch.items() if name not in self._drops}
        for name, limits in self._limits.items():
            if name in batch:
                check_limits(" and ".join(self._sources), name, batch[name], limits)
        if self._device is not None:
            batch = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
        return batch
