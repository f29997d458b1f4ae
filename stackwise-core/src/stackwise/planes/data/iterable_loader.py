"""Ready-made batches as loaders: lists, DataLoaders, iterables with a state or a length, generators.

Whatever it draws on the way, a source draws from generators seeded by (run, source, place), so that one seed gives one stream; and its
place is saved so that the next batch after a resume is the next batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from stackwise.contracts.protocols import Batch
from stackwise.contracts.specs import BatchSpec
from stackwise.errors import DataError
from stackwise.planes.data.batches import rows_of
from stackwise.planes.data.randomness import seeded
from stackwise.planes.data.values import digest_of, sampled_digest
from stackwise.timeline.streams import step_seed, stream_key

VALUES = "values"
"""The fact that is a digest of some values; states of older versions do not have it."""


class IterableLoader:
    """A stream of ready-made batches: each `take` is the next one as it comes, starting over at the end.

    Args:
        source: what delivers the batches.
        seed: of the stream that its code draws from.
        fields: names of the entries of batches that are tuples.
    """

    may_reuse = True
    """Whether the memory of a batch may be written over by the next one, as by a generator that fills one buffer."""

    inexact: str | None = None
    """Why a resume cannot be sure to go on with the right batch; None where it is."""

    uncompared = False
    """Whether a resume found that the first batch differs each time it is read, so that it cannot show a change of the data."""

    counted: tuple[str, ...] = ()
    """Numbers that a data set keeps on itself and that a resume found at other values than they had, in words."""

    generators: tuple[torch.Generator, ...] = ()
    """The source's own generators that reading advances: a later run in this process begins where they are then."""

    def __init__(self, source: Any, seed: int = 0, fields: Sequence[str] = ()) -> None:
        self._source, self._fields = source, tuple(fields)
        self._next_key, self._start_key = stream_key(seed, "next"), stream_key(seed, "start")
        self._taken = 0

    @property
    def source(self) -> Any:
        """What delivers the batches, as it was handed over."""
        return self._source

    @property
    def workers(self) -> int:
        """Processes of the source's own that read for it."""
        return int(getattr(self._source, "num_workers", 0) or 0)

    @property
    def lap(self) -> int:
        """Which pass through the source the last batch belongs to, from 0."""
        raise NotImplementedError

    def get_batch_spec(self) -> BatchSpec:
        """Nothing is known of the fields before the first batch."""
        return BatchSpec(fields={})

    def take(self, rows: int | None, length: int | None) -> Batch:
        """The next batch.

        Raises:
            DataError: no batch is left or there never was one, it is not a mapping of tensors, or of a size other than asked for.
        """
        batch = self._named(self._next())
        self._taken += 1
        if rows is not None and (size := rows_of(batch)) != rows:
            raise DataError(
                f"batch {self._taken - 1} has {size} rows where {rows} were asked for: leave data.batch_size out for ready-made batches"
            )
        lengths = {int(tensor.shape[1]) for tensor in batch.values() if tensor.dim() > 1} if length is not None else set()
        if lengths and length not in lengths:
            raise DataError(
                f"the rows of batch {self._taken - 1} are {' and '.join(map(str, sorted(lengths)))} long where {length} were asked for: "
                "leave data.seq_len out for ready-made batches"
            )
        return batch

    def facts(self) -> dict[str, Any]:
        """What distinguishes the source from another one without reading it."""
        return {"kind": type(self._source).__name__}

    def fingerprint(self) -> dict[str, Any]:
        """The same facts, for checkpoints: those of an evaluation's sources are compared there, as no place in them is saved."""
        return self.facts()

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken, and of what."""
        return {"taken": self._taken, "of": self.facts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the batch after `taken`.

        Raises:
            DataError: the state is of another source.
        """
        self._hold_to_source(state)
        self._taken = state["taken"]

    def _hold_to_source(self, state: Mapping[str, Any], *needed: str) -> None:
        """Refuse a place in another source; a state from before facts were saved must at least have what is `needed`."""
        now, saved = self.facts(), state.get("of")
        if isinstance(saved, Mapping) and (
            changed := [key for key in {**saved, **now} if saved.get(key) != now.get(key) and (key in saved or key != VALUES)]
        ):
            changed = changed if "kind" not in changed else ["kind"]
            changes = ", ".join(f"{key} {now.get(key)}, had {saved.get(key)}" for key in changed)
            raise DataError(f"the data changed since the place in them was saved: {changes}: put the data back, or begin a new run")
        if missing := [key for key in ("taken", *needed) if key not in state]:
            raise DataError(
                f"the saved place says no '{missing[0]}', so it is of another kind of source or of an older version: begin a new run"
            )

    def close(self) -> None:
        """Let go of what reads ahead; the place stays."""

    def _next(self) -> object:
        raise NotImplementedError

    def _named(self, batch: object) -> Batch:
        """The batch by field: a mapping is one, and the entries of a tuple are named by itself or by the config."""
        by_field = batch if isinstance(batch, dict) and not self._fields else self._by_field(batch, f"batch {self._taken}")
        for name, value in by_field.items():
            if not isinstance(name, str):
                raise DataError(f"batch {self._taken} names a field {name!r}, which is no text: give its fields names")
            if not isinstance(value, torch.Tensor):
                raise DataError(
                    f"'{name}' of batch {self._taken} is a {type(value).__name__}, and a field is a tensor: convert it, or leave it out"
                )
        return by_field

    def _by_field(self, batch: object, place: str) -> Mapping[str, Any]:
        if isinstance(batch, Sequence) and not isinstance(batch, str):
            names = self._fields or getattr(batch, "_fields", ())
            if not names:
                raise DataError(
                    f"{place} is a {type(batch).__name__} of {len(batch)} without names: name its entries in order by "
                    f"data.fields ([{', '.join(f'field_{i}' for i in range(len(batch)))}]), or deliver a mapping of field name → tensor"
                )
            if len(names) != len(batch):
                raise DataError(f"{place} has {len(batch)} entries, and data.fields names {len(names)}: {', '.join(names)}")
            return dict(zip(names, batch, strict=True))
        if self._fields and isinstance(batch, Mapping):
            raise DataError(
                f"{place} names its own fields ({', '.join(batch)}), so data.fields has nothing to name: leave it out, or rename"
            )
        if not isinstance(batch, Mapping):
            raise DataError(
                f"{place} is a {type(batch).__name__}: a batch is a mapping of field name → tensor; "
                "tensors of all rows become batches as DataLoader(TensorDataset(…), batch_size=…)"
            )
        return batch

    def _is_empty(self) -> DataError:
        return DataError("the iterable of batches is empty: nothing to train on")


class ListLoader(IterableLoader):
    """A list or tuple of batches."""

    may_reuse = False

    def __init__(self, source: Any, seed: int = 0, fields: Sequence[str] = ()) -> None:
        super().__init__(source, seed, fields)
        self._count = len(source)
        self._first = digest_of(source[0]) if source else None
        self._values = sampled_digest(source)
        self._versions: list[tuple[int, ...]] = []

    @property
    def lap(self) -> int:
        """By its length."""
        return max(self._taken - 1, 0) // len(self._source) if self._source else 0

    def facts(self) -> dict[str, Any]:
        """Its length, and digests of its first batch and of a sample of all batches."""
        return {"kind": "list", "batches": self._count, "first batch": self._first, VALUES: self._values}

    def _next(self) -> object:
        if not self._source:
            raise self._is_empty()
        if len(self._source) != self._count:
            hold_to_size("a list", "batches", len(self._source), self._count)
        number = self._taken % self._count
        if not number:
            self._hold_to_values()
        return self._source[number]

    def _hold_to_values(self) -> None:
        """Refuse batches that were changed in place since they were first read, as every epoch and evaluation reads the same list."""
        versions = [versions_of(batch) for batch in self._source]
        self._versions = self._versions or versions
        for number, (now, then) in enumerate(zip(versions, self._versions, strict=True)):
            if now != then:
                raise DataError(
                    f"a tensor of batch {number} was changed in place since it was first read, and every epoch and evaluation reads the "
                    "same list: leave it as it is in forward and loss (x * 2 for x.mul_(2)), or bring a DataLoader, which makes its own"
                )


def versions_of(batch: object) -> tuple[int, ...]:
    """How often each tensor of a batch was changed in place; torch does not count it for one made in inference mode."""
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors_of(batch))


def tensors_of(batch: object) -> list[torch.Tensor]:
    """The tensors of a batch, whether it names them or not."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, Sequence) else ()
    return [value for value in values if isinstance(value, torch.Tensor)]


class RepeatedLoader(IterableLoader):
    """An iterable, begun again wherever it ends. One with a length is held to it, because epochs are counted by it."""

    def __init__(self, source: Any, seed: int = 0, fields: Sequence[str] = ()) -> None:
        super().__init__(source, seed, fields)
        self._iterator: Iterator[object] | None = None
        self._number = 0
        """Batches of the present epoch so far."""
        self._lap = 0

    @property
    def lap(self) -> int:
        """Counted from where this object was made or put back to."""
        return self._lap

    def _next(self) -> object:
        for _ in range(2):
            if self._iterator is None:
                with seeded(step_seed(self._start_key, self._taken)):
                    self._iterator = iter(self._source)
            with seeded(step_seed(self._next_key, self._taken)):
                batch = next(self._iterator, None)
            self._hold_to_length(over=batch is None)
            if batch is not None:
                self._number += 1
                return batch
            self._iterator, self._number = None, 0
            self._lap += 1
            self._end()
        raise self._is_empty()

    def _hold_to_length(self, *, over: bool) -> None:
        length, number = length_of(self._source), self._number
        if length is None or (number == length if over else number < length):
            return
        raise DataError(
            f"a {type(self._source).__name__} has a length of {length} and delivers {number if over else 'more'} batches an epoch: "
            "mend its __len__, because epochs are counted by it"
        )

    def _end(self) -> None:
        """An epoch is over."""


class ReplayedLoader(RepeatedLoader):
    """An iterable that keeps no state: a resume reads it again from its start, and compares its first batch with the one it began with."""

    def __init__(self, source: Any, seed: int = 0, fields: Sequence[str] = ()) -> None:
        super().__init__(source, seed, fields)
        self._one_shot = isinstance(source, Iterator)
        if length_of(source) is None:
            self.inexact = (
                f"a {type(source).__name__} has neither a state nor a length, so nobody can tell whether it would go on where it stopped"
            )
        generator = getattr(source, "generator", None)
        self._generator = generator if isinstance(generator, torch.Generator) else None
        self._order = None if self._generator is None else self._generator.get_state()
        self.generators = (self._generator,) if self._generator is not None and isinstance(source, DataLoader) else ()
        self._first: str | None = None

    def _next(self) -> object:
        batch = super()._next()
        if not self._taken:
            self._recognise(batch)
        return batch

    def _end(self) -> None:
        if self._one_shot:
            raise DataError(f"the iterator of batches ran out after {self._taken}: give a list, or an iterable that can start over")

    def _recognise(self, batch: object) -> None:
        digest = digest_of(self._named(batch))
        if self._first is not None and self._first != digest:
            raise DataError(
                f"a {type(self._source).__name__} was read again from its start and delivers another first batch than before: give it a "
                "fixed order, or state_dict and load_state_dict (torchdata's StatefulDataLoader has them)"
            )
        self._first = digest

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken, of what, and a digest of the first."""
        return {**super().state_dict(), "first": self._first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read on from the start to the batch after `taken`.

        Raises:
            DataError: an iterator that is further already, or an iterable that begins with another batch than before.
        """
        self._hold_to_source(state, "first")
        if self._taken > state["taken"] or not self._one_shot:
            if self._one_shot:
                raise DataError("an iterator cannot go back: give a list, or an iterable that can start over")
            self._iterator, self._taken, self._number = None, 0, 0
            if self._generator is not None and self._order is not None:
                self._generator.set_state(self._order)
        self._first = state["first"] or self._first
        while self._taken < state["taken"]:
            self.take(None, None)


class StatefulLoader(RepeatedLoader):
    """An iterable that knows its own place: `state_dict` and `load_state_dict`, as torchdata's StatefulDataLoader has them."""

    def __init__(self, source: Any, seed: int = 0, fields: Sequence[str] = ()) -> None:
        super().__init__(source, seed, fields)
        sampler = getattr(source, "sampler", None)
        own = getattr(sampler, "generator", None)
        if isinstance(own, torch.Generator) and source.generator is None and type(sampler).__module__.startswith("torchdata."):
            own.manual_seed(step_seed(self._start_key, 0))  # torchdata made it, from a seed that every process draws anew
        elif isinstance(source, DataLoader):
            self.generators = tuple({id(each): each for each in (source.generator, own) if isinstance(each, torch.Generator)}.values())

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken, in all and of the present epoch, of what, and the state of the iterable."""
        return {**super().state_dict(), "number": self._number, "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the iterable its state; the next batch begins an iteration of it.

        Raises:
            DataError: the state is of another source.
        """
        self._hold_to_source(state, "number", "source")
        self._iterator, self._taken, self._number = None, state["taken"], state["number"]
        self._source.load_state_dict(state["source"])


def hold_to_size(what: str, noun: str, now: int | None, then: int | None) -> None:
    """Refuse a source that has grown or shrunk in training, because a resume could not read the same again.

    Raises:
        DataError: it has.
    """
    if now != then:
        raise DataError(f"{what} has {now} {noun}, and had {then} when the run began: data stay as they are while they are trained on")


def length_of(source: object) -> int | None:
    """How many batches an iterable says it holds."""
    if isinstance(source, Iterator) or not hasattr(source, "__len__"):
        return None
    try:
        return len(source)
    except (TypeError, NotImplementedError):  # a DataLoader over an iterable dataset that has none
        return None
