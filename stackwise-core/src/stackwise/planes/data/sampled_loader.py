"""A torch DataLoader over a dataset with indices: the same samples in the same order, with a place that can be saved.

The order is the sampler's own, drawn from the loader's generator as it was handed over, or from the run's seed where it has none. Batches
are requested by (epoch, number, indices): of what was delivered before a resume nothing is read or drawn again but the first batch, to
be compared, and what `__getitem__`, `collate_fn` and their libraries draw depends on the request alone, so that the number of workers
changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from stackwise.errors import DataError
from stackwise.planes.data.iterable_loader import VALUES, IterableLoader, hold_to_size, length_of, tensors_of, versions_of
from stackwise.planes.data.randomness import generator_state, own_generators, seeded
from stackwise.planes.data.values import digest_of, own_numbers, sampled_digest
from stackwise.timeline.streams import step_seed, stream_key

PATIENCE_S = 600.0
"""How long a batch of worker processes is waited for, where the DataLoader has no `timeout` of its own."""

WORKER_ERRORS = (RuntimeError, ConnectionError, EOFError)
"""What torch raises in the process that reads when a worker ends: its own sentence, or that of the pipe between them."""


def comes_of_a_worker(error: BaseException) -> bool:
    """Whether an error says that a worker process ended or is waited for; what a dataset raises in a worker begins with "Caught"."""
    if isinstance(error, ConnectionError | EOFError):
        return not str(error).startswith("Caught ")
    return str(error).startswith(("DataLoader worker", "DataLoader timed out"))


class _Request(NamedTuple):
    """One batch before it is read."""

    epoch: int
    number: int
    indices: Any


class _Place(NamedTuple):
    """The next batch: its epoch, its number in it, and the state of the sampler's generator at the start of that epoch."""

    epoch: int
    number: int
    order: torch.Tensor | None


class _Order(NamedTuple):
    """A sampler with what it draws from. Copied before use, so that the user's own objects stay as they were handed over."""

    sampler: Any
    generator: torch.Generator | None
    """The loader's own."""

    @property
    def drawn_from(self) -> torch.Generator | None:
        """The one generator that the order comes from, where there is one."""
        inner = getattr(self.sampler, "sampler", None)
        own = (self.generator, getattr(self.sampler, "generator", None), getattr(inner, "generator", None))
        return next((each for each in own if isinstance(each, torch.Generator)), None)


class SampledLoader(IterableLoader):
    """A DataLoader with a sampler, read from any place."""

    def __init__(self, source: DataLoader[Any], seed: int = 0, fields: Sequence[str] = ()) -> None:
        super().__init__(source, seed, fields)
        self._seed = seed
        sampler = source.sampler if source.batch_sampler is None else source.batch_sampler
        self._unused = self._copied(_Order(sampler, source.generator))
        self._is_plain = all(type(each).__module__.startswith("torch.utils.data") for each in (source.sampler, sampler))
        """Whether the sampler is torch's own: it draws when an epoch begins, and keeps nothing but its generator from epoch to epoch."""
        generator = self._unused.drawn_from
        self._begin = self._place = _Place(0, 0, None if generator is None else generator.get_state())
        self._first: str | None = None
        """A digest of the very first batch, of a dataset whose values do not lie open; None before it, and where reading it twice gives
        two."""
        self._values, self._samples = sampled_digest(source.dataset), length_of(source.dataset)
        self._numbers = own_numbers(source.dataset)
        """Those that the data set keeps on itself, as it was handed over."""
        self._batches: Iterator[object] | None = None
        self._requested: deque[_Place] = deque()
        """The place after each batch that is on its way."""
        self._lent: tuple[object, tuple[int, ...]] = ((), ())
        """The last batch, and how often its tensors were changed when it was delivered."""
        self._changed: list[torch.Tensor] = []
        """Tensors of a batch that forward changed in place, kept so that no new one can have their memory."""

    def _copied(self, order: _Order) -> _Order:
        dataset = self._source.dataset
        try:
            return deepcopy(order, {id(dataset): dataset})  # samplers refer to the dataset, which is not copied with them
        except Exception as error:  # copying runs code of the object, which may raise anything
            raise DataError(
                f"the sampler of this DataLoader cannot be copied ({type(error).__name__}: {error}), so its order cannot be found again on "
                "a resume: make it copyable, or use torchdata's StatefulDataLoader"
            ) from error

    def _next(self) -> object:
        if self._batches is None:
            self._requested.clear()
            self._batches = self._read(self._requests(self._place))
        if not self._changed:
            lent, then = self._lent
            self._changed = [t for t, now, was in zip(tensors_of(lent), versions_of(lent), then, strict=True) if now != was]
        try:
            batch = next(self._batches)
        except StopIteration:
            self._batches = None
            raise self._is_empty() from None
        except WORKER_ERRORS as error:
            if not (self._source.num_workers and comes_of_a_worker(error)):
                raise
            raise DataError(
                f"batch {self._place.number} of epoch {self._place.epoch} did not come ({error}): a worker of this DataLoader was ended "
                "from outside (short of memory?), or waits; look at its dataset, or give it a longer `timeout`"
            ) from error
        if self._values is None and self._first is None and self._place[:2] == (0, 0):
            self._first = digest_of(self._named(batch))
        self._hold_to_memory(batch)
        self._place = self._requested.popleft()
        if not self._source.num_workers:  # what a worker delivers is a copy
            self._lent = batch, versions_of(batch)
        return batch

    def _hold_to_memory(self, batch: object) -> None:
        """Refuse a batch in memory that forward has changed: its dataset keeps it, so what follows reads the change."""
        changed = {tensor.untyped_storage().data_ptr() for tensor in self._changed}
        if changed and any(tensor.untyped_storage().data_ptr() in changed for tensor in tensors_of(batch)):
            raise DataError(
                "a batch of this DataLoader was changed in place and is memory that its dataset keeps, so that every further epoch and "
                "evaluation reads the change: leave it as it is in forward and loss (x * 2 for x.mul_(2)), or clone in the dataset"
            )

    def _requests(self, start: _Place) -> Iterator[_Request]:
        """Every request from a place on, without end."""
        order = self._copied(self._unused)
        generator = order.drawn_from
        epoch = start.epoch if self._is_plain else 0  # a sampler of the user's may keep anything from epoch to epoch: walk it through them
        if self._is_plain and generator is not None and start.order is not None:
            generator.set_state(start.order)
        while True:
            hold_to_size("its dataset", "samples", length_of(self._source.dataset), self._samples)
            begun = None if generator is None else generator.get_state()
            number = -1
            for number, indices in enumerate(self._epoch(order, epoch)):
                if (epoch, number) >= (start.epoch, start.number):
                    self._requested.append(_Place(epoch, number + 1, begun))
                    yield _Request(epoch, number, indices)
            if number < 0:
                return
            epoch += 1

    def _epoch(self, order: _Order, epoch: int) -> Iterator[Any]:
        """What the sampler draws in one epoch, as a plain loop over the loader has it."""
        key = stream_key(self._seed, "order", epoch)
        with seeded(step_seed(key, 0)):
            for each in (order.sampler, getattr(order.sampler, "sampler", None)):
                if callable(set_epoch := getattr(each, "set_epoch", None)):
                    set_epoch(epoch)
            if order.generator is not None:  # a DataLoader draws the seed of its workers first
                torch.empty((), dtype=torch.int64).random_(generator=order.generator)
            indices = iter(order.sampler)
        for draw in count(1):
            with seeded(step_seed(key, draw)) if draw == 1 or not self._is_plain else nullcontext():
                try:
                    drawn = next(indices)
                except StopIteration:
                    return
            yield drawn

    def _read(self, requests: Iterator[_Request]) -> Iterator[object]:
        source = self._source
        fetch = _Fetch(source.dataset, source.collate_fn, source.batch_sampler is not None, self._seed)
        if not source.num_workers:
            return map(fetch.__getitem__, requests)
        return iter(
            DataLoader(
                fetch,  # type: ignore[arg-type]  # it is indexed by requests
                batch_size=None,
                sampler=requests,
                collate_fn=_as_it_is,
                num_workers=source.num_workers,
                pin_memory=source.pin_memory,
                timeout=source.timeout or PATIENCE_S,
                worker_init_fn=source.worker_init_fn,
                multiprocessing_context=source.multiprocessing_context,
                prefetch_factor=source.prefetch_factor,
            )
        )

    @property
    def lap(self) -> int:
        """The epoch."""
        return self._place.epoch

    def facts(self) -> dict[str, Any]:
        """The samples there are with some of their values, and what their order and their batches come from."""
        source = self._source
        order = source.batch_sampler if source.batch_size is None and source.batch_sampler is not None else source.sampler
        drawn = "its own generator" if self._unused.drawn_from is not None else "run.seed"
        batches = {"batch_size": source.batch_size, "drop_last": source.drop_last}
        held = {"samples": self._samples, VALUES: self._values}
        return {**super().facts(), **held, "sampler": type(order).__name__, "order drawn from": drawn, **batches}

    def state_dict(self) -> dict[str, Any]:
        """The place, a digest of the first batch, and the numbers that the data set has changed on itself, which are not put back."""
        now = own_numbers(self._source.dataset)
        counts = {name: number for name, number in now.items() if number != self._numbers.get(name)}
        return {**super().state_dict(), **self._place._asdict(), "first": self._first, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place. Of what was delivered nothing is read again but the first batch, once in a process, to be compared.

        Raises:
            DataError: the place is one in another source, or in one with other values.
        """
        self._hold_to_source(state, *_Place._fields)
        self.close()
        if self._values is None and (first := state.get("first")) is not None and first != self._first:
            self._first = self._recognised(first)
            self.uncompared = self._first is None
        self._taken = state["taken"]
        self.counted = tuple(self._counted(state.get("counts")))
        self._place = _Place(state["epoch"], state["number"], state["order"])

    def _counted(self, saved: object) -> Iterator[str]:
        """The numbers on the data set that a stopped run left at other values than they have now."""
        now, kind = own_numbers(self._source.dataset), type(self._source.dataset).__name__
        for name, number in saved.items() if isinstance(saved, Mapping) else ():
            if name in now and now[name] != number:
                yield f"{name} of its {kind} was {number} where the run stopped and is {now[name]}"

    def _recognised(self, first: str) -> str | None:
        """The digest of the first batch, which is read again; None of a source that gives another one each time."""
        digests = []
        for _ in range(2):  # the second time only where they differ: seeds are alike, so a source that differs from itself has its own
            batches = self._read(islice(self._requests(self._begin), 1))
            digests.append(digest_of(self._named(next(batches, {}))))
            self._requested.clear()
            if digests[-1] == first:
                return first
        if digests[0] != digests[1]:
            return None
        raise DataError(
            "the data changed since the place in them was saved: the first batch holds other values than it did: put the data back, or "
            "begin a new run"
        )

    def close(self) -> None:
        """End the workers; the next batch starts them anew."""
        self._batches = None


class _Fetch:
    """The dataset by requests; it runs in the workers, where there are any."""

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], batched: bool, seed: int) -> None:
        self.dataset, self.collate, self.batched, self.seed = dataset, collate, batched, seed
        self.generators = own_generators(dataset)

    def __getitem__(self, request: _Request) -> object:
        """The batch, made on generators of its own.

        Raises:
            DataError: the dataset raises StopIteration, which would pass for the end of the data, or draws from a generator that it keeps.
        """
        before = [generator_state(generator) for generator in self.generators.values()]
        try:
            with seeded(step_seed(stream_key(self.seed, "rows", request.epoch), request.number)):
                batch = self._made(request.indices)
        except StopIteration as error:
            raise DataError(f"the dataset raised StopIteration{_among(request)}: let it end by its length") from error
        except Exception as error:
            error.add_note(f"raised{_among(request)}")
            raise
        for (name, generator), state in zip(self.generators.items(), before, strict=True):
            if state != generator_state(generator):
                raise DataError(
                    f"the dataset draws from {name}, a {type(generator).__name__} of its own, whose place no checkpoint holds, so a resume "
                    "would draw other numbers: draw from torch's, numpy's or Python's own functions, which are seeded for every batch"
                )
        return batch

    def _made(self, indices: Any) -> object:
        if not self.batched:
            samples = self.dataset[indices]
        elif callable(getattr(self.dataset, "__getitems__", None)):
            samples = self.dataset.__getitems__(indices)
        else:
            samples = [self.dataset[index] for index in indices]
        return self.collate(samples)


def _among(request: _Request) -> str:
    return f" among the samples {request.indices!s:.80} (batch {request.number} of epoch {request.epoch})"


def _as_it_is(batch: object) -> object:
    return batch
