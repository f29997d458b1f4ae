"""The data plane: sources, their mixture, and the batches of every step, with a ledger of what was delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import define

from stackwise.contracts import Batch, Loader, Scheduled, Transform
from stackwise.errors import DataError, ProviderError
from stackwise.phases import DataState, Part
from stackwise.planes.bridges import fields_across, take
from stackwise.specs import BatchSpec
from stackwise.streams import step_seed, stream_key
from stackwise.time import Moment


class IterableLoader:
    """A plain iterable of batches as a loader: each `take` is the next batch, starting over at the end.

    Raises:
        DataError: empty, a generator that ran out, items that are not mappings of tensors, or a size other than asked for.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._iterator: Iterator[Batch] = iter(batches)
        self._one_shot = self._iterator is batches
        self._taken = 0

    def get_batch_spec(self) -> BatchSpec:
        """Nothing is known of the fields before the first batch."""
        return BatchSpec(fields={})

    def take(self, rows: int | None, length: int | None) -> Batch:
        """The next batch as it comes."""
        batch = next(self._iterator, None)
        if batch is None:
            if self._one_shot:
                raise DataError(f"the iterator of batches ran out after {self._taken}: give a list, or an iterable that can start over")
            self._iterator = iter(self._batches)
            batch = next(self._iterator, None)
            if batch is None:
                raise DataError("the iterable of batches is empty: nothing to train on")
        self._taken += 1
        if not isinstance(batch, Mapping):
            raise DataError(f"batch {self._taken - 1} is a {type(batch).__name__}: a batch is a mapping of field name → tensor")
        if rows is not None and (found := _rows(batch)) != rows:
            raise DataError(
                f"batch {self._taken - 1} has {found} rows where {rows} were asked for: leave data.batch_size out for ready-made batches"
            )
        lengths = {int(tensor.shape[1]) for tensor in batch.values() if tensor.dim() > 1}
        if length is not None and lengths and length not in lengths:
            raise DataError(
                f"the rows of batch {self._taken - 1} are {' and '.join(map(str, sorted(lengths)))} long where {length} were asked for: "
                "leave data.seq_len out for ready-made batches"
            )
        return batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken."""
        return {"taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Wind forward to the batch after `taken`."""
        if self._one_shot and self._taken > state["taken"]:
            raise DataError("an iterator cannot go back: give a list, or an iterable that can start over")
        if not self._one_shot:
            self._iterator, self._taken = iter(self._batches), 0
        while self._taken < state["taken"]:
            self.take(None, None)


def as_loader(source: object) -> Loader:
    """A loader stays itself; any other iterable is adapted.

    Raises:
        DataError: neither.
    """
    if isinstance(source, Loader):
        return source
    if isinstance(source, Iterable):
        return IterableLoader(source)
    raise DataError(f"a {type(source).__name__} is no data: give a loader (take, state_dict) or an iterable of batches")


@define
class Delivered:
    """The ledger's line for one source."""

    rows: int = 0
    tokens: int = 0


@define
class _Source:
    part: Part
    loader: Loader
    delivered: Delivered


BuildLoader = Callable[[str, Part], Loader]
BuildTransform = Callable[[Part], Transform]


class DataPlane:
    """Owns the loaders; delivers the micro-batches of each step by the declared mixture.

    The row-by-row choice of source is the one with the largest debt (declared share so far minus delivered), so the
    realised mixture follows the integral of the declared weights and depends on nothing else.

    Args:
        build: makes the loader of a declared source; called once a source and again only when its structure changes.
        build_transform: makes a declared transform.
        device: where batches go.
        seed: the run's seed, for the transforms' streams.
    """

    def __init__(
        self,
        build: BuildLoader,
        *,
        build_transform: BuildTransform | None = None,
        device: torch.device | None = None,
        seed: int = 0,
    ) -> None:
        self._build, self._build_transform = build, build_transform
        self._device = device if device is not None and device.type != "cpu" else None
        self._seed = seed
        self._sources: dict[str, _Source] = {}
        self._parked: dict[str, _Source] = {}
        """Sources a phase dropped: they keep their read position for a later phase that names them again."""
        self._debt: dict[str, float] = {}
        self._transforms: list[tuple[Part, Transform, torch.Generator, int]] = []
        self._state: DataState | None = None
        self._lookahead = 0

    @classmethod
    def of(cls, batches: object, device: torch.device | None = None) -> DataPlane:
        """A plane over one finished source: a loader, or an iterable of batches."""
        loader = as_loader(batches)
        plane = cls(lambda name, part: loader, device=device)
        plane._sources["data"] = _Source(Part(kind="loader", id=type(batches).__name__, given=batches), loader, Delivered())
        plane._debt["data"] = 0.0
        return plane

    def enter(self, state: DataState, *, lookahead: int) -> None:
        """Cross into a declared state: build new sources, drop those no longer named, keep the read position of the rest."""
        known = {**self._parked, **self._sources}
        sources = {}
        for name, part in state.sources.items():
            source = known.get(name)
            if source is None or source.part.structure != part.structure:
                source = _Source(part, as_loader(self._build(name, part)), source.delivered if source else Delivered())
            sources[name] = source
        self._enter_transforms(state.transforms)
        self._parked = {name: source for name, source in known.items() if name not in sources}
        self._debt = {name: self._debt.get(name, 0.0) for name in sources}
        self._sources, self._state, self._lookahead = sources, state, lookahead

    def _enter_transforms(self, parts: Sequence[Part]) -> None:
        known = {(i, part.structure): rest for i, (part, *rest) in enumerate(self._transforms)}
        self._transforms = [(part, *(known.get((i, part.structure)) or self._new_transform(i, part))) for i, part in enumerate(parts)]

    def _new_transform(self, index: int, part: Part) -> tuple[Transform, torch.Generator, int]:
        assert self._build_transform is not None
        transform = self._build_transform(part)
        if part.curves and not isinstance(transform, Scheduled):
            raise ProviderError(
                f"{part.id} declares options that follow time ({', '.join(part.curves)}) but the transform has no apply_values"
            )
        return transform, torch.Generator(), stream_key(self._seed, "transform", index, part.id)

    def batches(self, moment: Moment) -> list[Batch]:
        """The micro-batches of one step."""
        if self._state is None:
            return [self._finish(self._take_only(None, None), moment)]
        shape = self._state.shape(moment.step)
        length = None if shape.seq_len is None else shape.seq_len + self._lookahead
        return [self._finish(self._take(rows, length, moment), moment) for rows in shape.micro_batches]

    def ledger(self) -> dict[str, dict[str, int]]:
        """Rows and tokens delivered by source over the whole run, sources no longer named included."""
        return {name: {"rows": s.delivered.rows, "tokens": s.delivered.tokens} for name, s in {**self._parked, **self._sources}.items()}

    def fingerprints(self) -> dict[str, Mapping[str, Any]]:
        """What each source that can say so has read."""
        return {name: s.loader.fingerprint() for name, s in self._sources.items() if hasattr(s.loader, "fingerprint")}

    def state_dict(self) -> dict[str, Any]:
        """Read positions, ledger and mixture debts, by source name."""
        return {
            "sources": {name: source.loader.state_dict() for name, source in {**self._parked, **self._sources}.items()},
            "ledger": self.ledger(),
            "debt": dict(self._debt),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved into the same declared sources.

        Raises:
            DataError: the saved sources are not the declared ones.
        """
        known = {**self._parked, **self._sources}
        if set(state["sources"]) != set(known):
            raise DataError(f"saved read positions are of {sorted(state['sources'])}, the declared sources are {sorted(known)}")
        for name, source in known.items():
            source.loader.load_state_dict(state["sources"][name])
            source.delivered = Delivered(**state["ledger"][name])
        self._debt = dict(state["debt"])

    def _take_only(self, rows: int | None, length: int | None) -> Batch:
        return self._take_from(next(iter(self._sources)), rows, length)

    def _take(self, rows: int | None, length: int | None, moment: Moment) -> Batch:
        if len(self._sources) == 1:
            return self._take_only(rows, length)
        if rows is None:
            raise DataError(f"{len(self._sources)} sources are mixed row by row: declare data.batch_size")
        parts = []
        for name, count in self._shares(rows, moment.t).items():
            if count:
                parts.append((name, self._take_from(name, count, length)))
        return _join(parts)

    def _shares(self, rows: int, t: float) -> dict[str, int]:
        assert self._state is not None
        weights = {name: self._state.mix[name](t) for name in self._sources}
        total = sum(weights.values())
        if not total > 0:
            raise DataError(f"the weights of data.mix are {weights} at t={t:g}: at least one is above zero")
        shares = {name: weight / total for name, weight in weights.items()}
        counts = dict.fromkeys(shares, 0)
        debt = self._debt
        for _ in range(rows):
            for name, share in shares.items():
                debt[name] += share
            chosen = max((name for name in shares if shares[name] > 0), key=lambda name: debt[name])
            debt[chosen] -= 1.0
            counts[chosen] += 1
        return counts

    def _take_from(self, name: str, rows: int | None, length: int | None) -> Batch:
        """The next rows of one source, checked the first time, bridged to the task, and counted."""
        source = self._sources[name]
        batch = source.loader.take(rows, length)
        if not source.delivered.rows:
            check_batch(name, batch, source.loader.get_batch_spec(), length)
        if rows is not None and _rows(batch) != rows:
            raise ProviderError(
                f"source '{name}' was asked for {rows} rows and delivered {_rows(batch)}: a loader delivers what it is asked for"
            )
        if self._state is not None and self._state.bridges:
            bridges = [bridge for bridge in self._state.bridges if bridge.junction == f"source:{name}-task"]
            batch = {**batch, **take(fields_across([bridge.field for bridge in bridges], bridges), batch)}
        delivered = rows if rows is not None else _rows(batch)
        source.delivered.rows += delivered
        source.delivered.tokens += delivered * (length - self._lookahead) if length is not None else 0
        return batch

    def _finish(self, batch: Batch, moment: Moment) -> Batch:
        for part, transform, generator, key in self._transforms:
            if part.curves:
                transform.apply_values(part.values_at(moment.t))  # type: ignore[attr-defined]  # checked when it was built
            batch = transform(batch, moment, generator.manual_seed(step_seed(key, moment.step)))
        if self._device is not None:
            batch = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
        return batch


def check_batch(source: str, batch: Batch, spec: BatchSpec, length: int | None = None) -> None:
    """Hold the first batch of a source against its own spec and the `length` that was asked for.

    Raises:
        ProviderError: a field missing, or of another rank or dtype than declared.
        DataError: values outside the declared bounds, or features that are not finite.
    """
    if not isinstance(batch, Mapping):
        raise ProviderError(f"source '{source}' delivered a {type(batch).__name__}: a batch is a mapping of field name → tensor")
    for name, expected in spec.fields.items():
        if name not in batch:
            raise ProviderError(f"source '{source}' declares the field '{name}' but delivers {sorted(batch)}")
        tensor = batch[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.dim() != len(expected.dims) or expected.dtype not in (dtype, "floating" if tensor.is_floating_point() else "integer"):
            raise ProviderError(f"source '{source}' declares '{name}' as {expected} but delivers {dtype}{list(tensor.shape)}")
        if length is not None and expected.dims[1:2] == ("time",) and tensor.shape[1] != length:
            raise ProviderError(f"source '{source}' was asked for rows of {length} and delivers '{name}' as {list(tensor.shape)}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"source '{source}': '{name}' holds values that are not finite in its first batch")
        if expected.bounds is not None and isinstance(expected.bounds[1], int) and tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
            if low < expected.bounds[0] or high >= expected.bounds[1]:
                declared = f"{expected.bounds[0]}..{expected.bounds[1] - 1}"
                raise DataError(f"source '{source}': '{name}' holds {low}..{high}, outside its declared range {declared}")


def _rows(batch: Batch) -> int:
    return int(next(iter(batch.values())).shape[0])


def _join(parts: Sequence[tuple[str, Batch]]) -> Batch:
    if len(parts) == 1:
        return parts[0][1]
    first_name, first = parts[0]
    for name, batch in parts[1:]:
        if set(batch) != set(first):
            raise DataError(
                f"source '{name}' delivers {sorted(batch)}, source '{first_name}' delivers {sorted(first)}: "
                "sources of one mixture share their fields"
            )
    return {field: torch.cat([batch[field] for _, batch in parts]) for field in first}
