"""One source of the data plane: its loader, what it has delivered, and how its batches are bridged to the task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from attrs import define, field

from stackwise.contracts.answers import calling, expect, expect_state, mark
from stackwise.contracts.components import Built
from stackwise.contracts.protocols import Batch, Fingerprinted, Loader, Skippable, vocabulary_of
from stackwise.contracts.specs import BatchSpec, EpochSize
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import DataState
from stackwise.errors import DataError, ProviderError
from stackwise.planes.data.batches import check_batch, refuse_outside, rows_of
from stackwise.planes.data.iterable_loader import IterableLoader
from stackwise.planes.data.readers.processes import ReaderStopped
from stackwise.planes.followers import Follower
from stackwise.planes.model.bridges import Field, fields_across, take


@define
class Delivered:
    """The ledger's line for one source."""

    rows: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Delivered:
        """Read a saved line.

        Raises:
            TypeError, ValueError: it is none.
        """
        if any(type(count) is not int or count < 0 for count in saved.values()):
            raise ValueError(f"a line of the ledger is {dict(saved)}: it counts rows and tokens")
        return cls(**saved)


@define(eq=False)
class Source:
    """A loader in use."""

    name: str
    part: Part
    loader: Loader
    delivered: Delivered = field(factory=Delivered)
    follower: Follower = field(init=False)
    fingerprint: Mapping[str, Any] | None = field(init=False)
    """What the loader reads, asked at once: later it may belong to a thread or be a process that has ended."""
    fields: tuple[Field, ...] = ()
    """The fields that change their name or dtype on the way to the task."""
    reads: frozenset[str] | None = None
    """What may be delivered to the phase: fields that are read, and those that are dropped; None where that is not known."""
    _looked_at: Collection[str] = ()
    """The fields of the last batch that was checked against them."""
    _spec: BatchSpec | None = None
    """What the loader said of its batches when the first came; None before."""
    _form: tuple[object, ...] | None = None
    """Of the last batch that was checked, where each is: one like it need not be."""
    _answers: bool = field(init=False)
    """Whether a provider answers for every batch; what is given in code is its user's, who may vary it."""

    def __attrs_post_init__(self) -> None:
        self.follow(self.part)
        self.fingerprint = None
        if isinstance(self.loader, Fingerprinted):
            with calling(self.part.id, "fingerprint"):
                self.fingerprint = self.loader.fingerprint()
                expect(isinstance(self.fingerprint, Mapping), self.fingerprint, "a map of plain values")

    @property
    def vocabulary(self) -> str | None:
        """Which vocabulary the ids are of, where the loader says it."""
        return vocabulary_of(self.fingerprint)

    def follow(self, part: Part) -> None:
        """Go on under a declaration of the same structure, whose schedules may be others."""
        self.part, self.follower = part, Follower(part, self.loader, "the loader")
        self._answers = part.given is None

    def cross(self, state: DataState) -> dict[str, tuple[int, int]]:
        """Take over the bridges to the task of a phase, once for all of its batches.

        Args:
            state: the data of the phase; with transforms, values are looked at batch by batch, because they change on the way.

        Returns:
            Field → the values that the task takes, for those whose values the loader does not state.

        Raises:
            DataError: the loader states values that the task does not take.
        """
        own = [bridge for bridge in state.bridges if bridge.junction == f"source:{self.name}-task"]
        drops = frozenset(bridge.field for bridge in own if bridge.kind == "drop")
        own = [bridge for bridge in own if bridge.kind != "drop"]
        self.fields = fields_across([bridge.field for bridge in own], own)
        declares = not isinstance(self.loader, IterableLoader)  # what it declares was checked against the task while the run was planned
        self.reads, self._looked_at = None if declares or state.reads is None else state.reads | drops, ()
        limits: dict[str, tuple[int, int]] = {}
        for bridge in own:
            if bridge.limits is None:
                continue
            ((_, delivered, _),) = fields_across([bridge.field], own)
            spec = self.loader.get_batch_spec().fields.get(delivered)
            if state.transforms or spec is None or spec.bounds is None or not isinstance(spec.bounds[1], int):
                limits[bridge.field] = bridge.limits
            else:
                refuse_outside(self.name, delivered, (spec.bounds[0], spec.bounds[1]), bridge.limits)
        return limits

    def state(self) -> dict[str, Any]:
        """The loader's cursor."""
        try:
            return expect_state(self.loader.state_dict())
        except BaseException as error:
            mark(error, self.part.id, "state_dict")
            raise

    def take(self, rows: int | None, length: int | None, seq_len: int | None) -> Batch:
        """The next rows: checked the first time, bridged to the task, and counted.

        Args:
            rows: how many.
            length: entries of a row, the task's lookahead included.
            seq_len: positions of a row, which the ledger counts.
        """
        try:
            batch = self.loader.take(rows, length)
        except BaseException as error:
            mark(error, self.part.id, "take")
            for kind in (DataError, ReaderStopped):
                if isinstance(error, kind):
                    raise kind(f"source '{self.name}': {error}") from error
            raise
        try:
            if self._spec is None:
                self._spec = self.loader.get_batch_spec()
            first = not self.delivered.rows
            form = _form(batch, length) if self._answers else None
            if first or form != self._form:
                check_batch(self.name, batch, self._spec, length, values=first)
                self._form = form
            if self.reads is not None and batch.keys() != self._looked_at:
                self._refuse_unread(batch, self.reads)
            delivered = rows_of(batch)
            if rows is not None and delivered != rows:
                wanted = "1 row" if rows == 1 else f"{rows} rows"
                raise ProviderError(
                    f"source '{self.name}' was asked for {wanted} and delivered {delivered}: a loader delivers what it is asked for"
                )
        except Exception as error:
            mark(error, self.part.id, "take")
            raise
        if self.fields:
            batch = {**batch, **take(self.fields, batch)}
        self._count(delivered, seq_len)
        return batch

    def pass_over(self, rows: int | None, length: int | None, seq_len: int | None) -> None:
        """Leave the next rows to another process: they are counted as `take` counts them, and made only where nothing else will do.

        The first batch is always made, because it is checked; rows that come as ready-made batches are counted by looking at them.
        """
        if rows is None or not self.delivered.rows or not isinstance(self.loader, Skippable):
            self.take(rows, length, seq_len)
            return
        try:
            with calling(self.part.id, "skip"):
                self.loader.skip(rows, length)
        except DataError as error:
            raise DataError(f"source '{self.name}': {error}") from error
        self._count(rows, seq_len)

    def _count(self, rows: int, seq_len: int | None) -> None:
        self.delivered.rows += rows
        self.delivered.tokens += rows * seq_len if seq_len is not None else 0

    def expect(self, fields: frozenset[str], drops: frozenset[str]) -> None:
        """Hold the first batch of the phase to the fields that are read and those that are dropped, by the names of the task."""
        renamed = {field.name: field.source for field in self.fields}
        if isinstance(self.loader, IterableLoader):
            self.reads, self._looked_at = frozenset(renamed.get(name, name) for name in fields) | drops, ()

    def _refuse_unread(self, batch: Batch, reads: frozenset[str]) -> None:
        """What a batch holds beyond what is read is refused: it may be the padding that somebody counts on."""
        if unread := [name for name in batch if name not in reads]:
            names = ", ".join(unread)
            absent = ", ".join(f"'{name}'" for name in sorted(reads - batch.keys()))
            lacks = f" (what is read and not there: {absent})" if absent else ""
            raise DataError(
                f"source '{self.name}' delivers {names}, which nothing reads{lacks}: say `data.drop: [{names}]` where that is meant, name "
                f"it in the task's spec, as a target, Loss(function, '{unread[0]}'), or as an argument of the module's forward, or give it "
                "the name that is read by `data.rename`"
            )
        self._looked_at = frozenset(batch)

    def bounds(self, name: str) -> tuple[int, int] | None:
        """The values that the loader says a field has, by its name after renames; None where it does not say."""
        delivered = {field.name: field.source for field in self.fields}.get(name, name)
        spec = self.loader.get_batch_spec().fields.get(delivered)
        if spec is None or spec.bounds is None or not isinstance(spec.bounds[1], int):
            return None
        return spec.bounds[0], spec.bounds[1]

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Put the loader at a saved place.

        Raises:
            DataError: it is a place in other data.
            TypeError: it is no place.
        """
        if not isinstance(place, Mapping):
            raise TypeError(f"the place saved for source '{self.name}' is {place!r:.40}, and a place is a map")
        try:
            with calling(self.part.id, "load_state_dict"):
                self.loader.load_state_dict(place)
        except DataError as error:
            raise DataError(f"source '{self.name}': {error}") from error

    def epoch_size(self) -> EpochSize | None:
        """What one epoch holds, where the loader says so."""
        size_of = getattr(self.loader, "epoch_size", None)
        with calling(self.part.id, "epoch_size"):
            size: EpochSize | None = size_of() if callable(size_of) else None
            expect(size is None or isinstance(size, EpochSize), size, "an EpochSize or None")
        return size

    def can_be_tried(self) -> bool:
        """Whether reading a row and going back leaves no trace; a user's own stream may have only one way."""
        return not isinstance(self.loader, IterableLoader) and (self.part.given is None or isinstance(self.part.given, Built))


def _form(batch: Batch, length: int | None) -> tuple[object, ...]:
    """What a batch has to have by its spec: fields, dtypes and sizes, and the length that was asked for."""
    try:
        return length, *[(name, tensor.dtype, tensor.shape) for name, tensor in batch.items()]
    except AttributeError:  # no map of tensors
        return ()


def lines_of(sources: Mapping[str, Source]) -> dict[str, dict[str, int]]:
    """The ledger: what each source has delivered."""
    return {name: {"rows": source.delivered.rows, "tokens": source.delivered.tokens} for name, source in sources.items()}
