"""Loaders: streams that are the same for one seed, go on where they stopped, and deliver what their specs say."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stackwise.conformance import bench, partners
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.protocols import Fingerprinted, vocabulary_of
from stackwise.contracts.specs import BatchSpec
from stackwise.contracts.tokenizers import HasTokenizer, Tokenizer
from stackwise.errors import DataError

SAMPLED = 256
"""Rows of an evaluation that are looked for in training."""

SEARCHED = 2048
"""Rows of training among which they are looked for, at most one epoch."""

FAR = 4096
"""Rows that a loader delivers here at most before another goes on from its state, unless two epochs are fewer."""

AT_ONCE = 4 * ROWS
"""Rows of a take where many are read."""

LONG = 4 * LENGTH
"""Length of the rows that are compared, so that few are equal by chance."""

BY_CHANCE = 0.25
"""Largest share of rows that may be equal in two splits: licence headers and blank lines recur in real text."""

MEASURED = 0.01
"""Share that may be equal in two splits where no row of training recurs in training."""


def check_seeded_rows(subject: Subject) -> None:
    """Two loaders built alike deliver the same rows.

    Usual cause: an order that comes from a set, from the file system, or from torch's own generator instead of `context.seed`.
    """
    first, second = _loader(subject), _loader(subject, chance=SEED + 1)
    for i in range(3):
        must(bench.same(_take(first), _take(second)), f"take {i} of two loaders that were built alike differs")


def check_rows_stay(subject: Subject) -> None:
    """A batch that was taken stays as it was when the next is taken: others are read ahead while it waits.

    Usual cause: one buffer that every take fills again, and a returned view of it.
    """
    loader = _loader(subject)
    first = dict(loader.take(ROWS, LENGTH))
    copies = bench.copy_of(first)
    _take(loader)
    changed = [name for name, tensor in copies.items() if not bench.same(first[name], tensor)]
    must(not changed, f"the next take changes {', '.join(changed)} of the batch before")


def check_resumed_rows(subject: Subject) -> None:
    """A loader that loads the state of another continues as the other does, also when that means going back. The state is plain data.

    Usual cause: a cursor that counts batches, a shuffle buffer or a half-read row that is not in the state.
    """
    loader = _loader(subject)
    states, batches = [], []
    for rows, length in ((1, LENGTH), (3, LENGTH), (ROWS, LENGTH), (2, LENGTH)):
        states.append(bench.copy_of(loader.state_dict()))
        batches.append(_take(loader, rows, length))
    for i in (2, 0, 3, 1):
        _check_plain(states[i])
        other = _loader(subject)
        _take(other, 2)
        other.load_state_dict(bench.copy_of(states[i]))
        rows = next(iter(batches[i].values())).shape[0]
        must(
            bench.same(_take(other, rows), batches[i]),
            f"after load_state_dict of the state before take {i}, other rows come than the first time",
        )
    _check_late_states(subject)


def _check_late_states(subject: Subject) -> None:
    """The same far on in the stream, in the second and third epoch where its end is within reach."""
    loader = _loader(subject)
    epoch = _epoch_rows(subject, loader, LENGTH) or FAR
    places = [int(epoch * 1.2), int(epoch * 2.3)] if epoch * 2.5 < FAR else [FAR // 8]
    ahead, done = min(max(epoch // 2, ROWS), SAMPLED), 0
    try:
        for place in places:
            while done < place:
                done += len(next(iter(_take(loader, min(AT_ONCE, place - done)).values())))
            state = bench.copy_of(loader.state_dict())
            expected = [_take(loader, min(AT_ONCE, ahead)) for _ in range(0, ahead, AT_ONCE)]
            done += sum(len(next(iter(batch.values()))) for batch in expected)
            other = _loader(subject)
            other.load_state_dict(state)
            for i, batch in enumerate(expected):
                sentence = f"after load_state_dict of the state after {place} rows (an epoch has {epoch}) other rows come than came then"
                must(bench.same(_take(other, min(AT_ONCE, ahead)), batch), f"{sentence}, from take {i} on")
    except DataError:
        return  # its one epoch is over


def check_rows_come_once(subject: Subject) -> None:
    """A row of the stream belongs to one take, however many rows are taken at a time, and an epoch has each row once.

    Usual cause: the last row of a take or of an epoch that is the first of the next one again.
    """
    by_size = [list(_rows(_loader(subject), LONG, size, 6 * AT_ONCE)) for size in (AT_ONCE, 1, 3)]
    common = min(map(len, by_size))  # a loader may come to its end
    first, second, third = (Counter(rows[:common]) for rows in by_size)
    must(first == second == third, "the rows are others when fewer are taken at a time")
    loader = _loader(subject)
    epoch = _epoch_rows(subject, loader, LONG)
    rows = list(_rows(loader, LONG, ROWS, min(2 * (epoch or SEARCHED), SEARCHED)))
    if len(set(rows)) < 8 * ROWS:
        raise NotApplicable("its example repeats a few rows, so its rows cannot be told apart by their content")
    gaps = _gaps(rows[: epoch or SAMPLED])
    near = sum(gap <= 2 * ROWS for gap in gaps)
    must(near < 2 or 2 * near <= len(gaps), f"{near} rows come again soon after the first time")
    if epoch and 2 * epoch <= len(rows):
        one, two = Counter(rows[:epoch]), Counter(rows[epoch : 2 * epoch])
        missing = sum((one - two).values())
        must(not 0 < missing <= 2, f"an epoch has {epoch} rows, and {missing} of the first epoch is missing in the second")


def check_batch_spec(subject: Subject) -> None:
    """Fields, shapes, dtypes and bounds of what is taken are those of the spec; rows and length are those asked for.

    Usual cause: a field that is not in the spec, ids above the bound, a last batch that is short.
    """
    loader = _loader(subject)
    declared_spec, own = subject.spec(), loader.get_batch_spec()
    must(isinstance(own, BatchSpec), f"get_batch_spec() gave {type(own).__name__}")
    spec = bench.with_sizes(own, subject.sizes())
    sentence = f"the loader's spec is another than that of its options: {own} and {declared_spec}"
    must(declared_spec is None or spec == bench.with_sizes(declared_spec, subject.sizes()), sentence)
    for rows, length in ((ROWS, LENGTH), (1, 5), (3, LENGTH)):
        batch = _take(loader, rows, length)
        must(batch.keys() == spec.fields.keys(), f"it delivers {', '.join(batch)}: the spec names {', '.join(spec.fields)}")
        for name, field in spec.fields.items():
            _check_field(name, batch[name], field, partners.shape_of(field, rows, length))


def check_splits_are_disjoint(subject: Subject) -> None:
    """An evaluation reads no row that training sees.

    Usual cause: `context.split` is not looked at; rows are held out by position in a stream that is shuffled anew.
    """
    for length in (LONG, LENGTH):
        loader = _loader(subject)
        most = min(_epoch_rows(subject, loader, length) or SEARCHED, SEARCHED)
        training = Counter(_rows(loader, length, AT_ONCE, max(most, 8)))
        if len(training) >= 8:
            break
    else:
        raise NotApplicable("its example repeats a few rows, so its splits cannot be told apart by their content")
    own = list(_rows(_loader(subject, split="check"), length, AT_ONCE, SAMPLED))
    must(bool(own), "the evaluation has no row")
    recurring = sum(times for times in training.values() if times > 1) / training.total()
    shared = sum(row in training for row in own)
    sentence = f"{shared} of the first {len(own)} rows of an evaluation are rows that training sees"
    must(shared <= min(BY_CHANCE, 2 * recurring + MEASURED) * len(own), sentence)


def check_worker_count(subject: Subject) -> None:
    """A loader built from pickled options in another process is the same; after skipping rows it continues as after taking them.

    Usual cause: a lambda or an open file among the options; `skip` and `take` count differently.
    """
    options, context = pickle.loads(pickle.dumps((subject.bound(subject.options()), subject.context(specs=bench.specs(subject)))))
    with bench.seeded(SEED):
        other = subject.registered.load_factory()(options, context)
    loader: Any = _loader(subject)
    if values := subject.values():
        other.apply_values(values)
    must(bench.same(_take(other), _take(loader)), "a loader built from pickled options delivers other rows")
    if hasattr(loader, "skip"):
        _take(other, 3)
        loader.skip(3, LENGTH)
        must(bench.same(other.state_dict(), loader.state_dict()), "skip leaves another state than take of the same rows")
        must(bench.same(_take(other), _take(loader)), "after skip, other rows come than after taking the same rows")


def check_fingerprint(subject: Subject) -> None:
    """`fingerprint()` says which data was read: plain data, the same for the same data, whatever was taken.

    Usual cause: a time stamp, a path of this machine, or a digest over rows in the order of reading.
    """
    first, second = _loader(subject), _loader(subject)
    if not isinstance(first, Fingerprinted):
        raise NotApplicable("it has no fingerprint()")
    _take(second)
    prints = first.fingerprint(), second.fingerprint()
    must(isinstance(prints[0], Mapping), f"fingerprint() gave {type(prints[0]).__name__}")
    json.dumps(dict(prints[0]))
    must(prints[0] == prints[1], "two loaders of the same data have different fingerprints")


def check_tokenizer(subject: Subject) -> None:
    """A tokenizer that the options offer is whole: it is the same each time it is made, and a loader that is given it names its
    vocabulary, and delivers the same rows as one that makes its own, if it can.

    Usual cause: `with_tokenizer` that forgets another option; `make_tokenizer` that gives other bytes each time.
    """
    options = subject.options()
    settings = options.tokenizer_settings() if isinstance(options, HasTokenizer) else None
    if settings is None:
        raise NotApplicable("its options offer no tokenizer")
    json.dumps(dict(settings))
    tokenizer, again = options.make_tokenizer([options]), options.make_tokenizer([options])
    must(isinstance(tokenizer, Tokenizer), f"make_tokenizer of the options alone gave {type(tokenizer).__name__}: it makes a Tokenizer")
    must(tokenizer == again, "two tokenizers of the same options differ")
    given = options.with_tokenizer(tokenizer)
    must(given.tokenizer_settings() == settings, f"with_tokenizer changes the settings {settings} to {given.tokenizer_settings()}")
    loader = _loader(subject)
    with bench.seeded(SEED):
        try:
            alone = subject.registered.load_factory()(options, subject.context(specs=bench.specs(subject)))
        except Exception:
            alone = None  # a run always gives it the tokenizer
    if alone is not None:
        if values := subject.values():
            alone.apply_values(values)
        must(bench.same(_take(alone), _take(loader)), "a loader that is given its own tokenizer delivers other rows")
    named = vocabulary_of(loader.fingerprint()) if isinstance(loader, Fingerprinted) else None
    must(named == tokenizer.vocabulary, f"the loader names the vocabulary {named}, and its tokenizer {tokenizer.vocabulary}")
    ids = options.codec_of(tokenizer).encode("text")
    must(isinstance(options.codec_of(tokenizer).decode(ids), str), "decoding what was encoded gives no text")


def _loader(subject: Subject, split: str = "train", chance: int = SEED) -> Any:
    """A loader of the example; `chance` seeds torch's own generator, which it must not draw from."""
    with bench.seeded(chance):
        loader = subject.build(split=split, specs=bench.specs(subject))
    if values := subject.values():
        loader.apply_values(values)
    return loader


def _take(loader: Any, rows: int = ROWS, length: int = LENGTH) -> dict[str, Tensor]:
    return bench.copy_of(dict(loader.take(rows, length)))  # type: ignore[no-any-return]  # a copy is of the type it was


def _gaps(rows: list[bytes]) -> list[int]:
    """For every row that came before: how many rows ago."""
    last: dict[bytes, int] = {}
    gaps = []
    for i, row in enumerate(rows):
        if row in last:
            gaps.append(i - last[row])
        last[row] = i
    return gaps


def _epoch_rows(subject: Subject, loader: Any, length: int) -> int | None:
    """Rows of this length in an epoch, if the loader or its options know them."""
    options = subject.options()
    size = loader.epoch_size() if hasattr(loader, "epoch_size") else None
    if size is None and hasattr(options, "epoch_size"):
        size = options.epoch_size("train")
    if size is None:
        return None
    return size.rows if size.entries is None else size.entries // length  # type: ignore[no-any-return]  # an EpochSize


def _rows(loader: Any, length: int, at_once: int, count: int) -> Iterator[bytes]:
    """The first rows as bytes; a loader may come to its end."""
    for start in range(0, count, at_once):
        try:
            batch = _take(loader, min(at_once, count - start), length)
        except DataError:
            return
        for i in range(min(at_once, count - start)):
            yield b"|".join(
                tensor[i].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                for _, tensor in sorted(batch.items())
                if tensor.dim()
            )


def _check_field(name: str, tensor: Tensor, field: Any, shape: tuple[int, ...]) -> None:
    """Compare one field of a batch with its spec and the shape that was asked for."""
    must(tuple(tensor.shape) == shape, f"'{name}' has shape {tuple(tensor.shape)}: {field} is {shape} here")
    kind = {"floating": tensor.dtype.is_floating_point, "integer": not tensor.dtype.is_floating_point and tensor.dtype != torch.bool}
    must(kind.get(field.dtype, tensor.dtype == partners.dtype_of(field)), f"'{name}' is {tensor.dtype}: {field.dtype} is promised")
    if field.bounds is not None:
        low, high = int(tensor.min()), int(tensor.max())
        must(field.bounds[0] <= low and high < field.bounds[1], f"'{name}' goes from {low} to {high}: {field} is promised")


def _check_plain(state: Any) -> None:
    """Fail unless the state is made of maps, lists, numbers, text and tensors: it is saved as JSON beside a file of tensors."""
    if isinstance(state, Mapping):
        for key, inner in state.items():
            must(isinstance(key, str), f"the state has the key {key!r}: keys are text")
            _check_plain(inner)
    elif isinstance(state, list | tuple):
        for inner in state:
            _check_plain(inner)
    else:
        plain = state is None or isinstance(state, bool | int | float | str | Tensor)
        must(plain, f"the state holds a {type(state).__name__}: maps, lists, numbers, text and tensors can be saved")
