"""Loaders: streams that are the same for one seed, go on where they stopped, and say truly what they deliver."""

from __future__ import annotations

import json
import pickle
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

SAMPLED = 64
"""Number of takes that are compared between two splits."""

LONG = 4 * LENGTH
"""Length of the rows that are compared, so that few are equal by chance."""

BY_CHANCE = 0.25
"""Share of rows that may be equal in two splits: licence headers and blank lines recur in real text."""


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
            bench.same(_take(other, rows), batches[i]), f"after load_state_dict of the state before take {i} other rows come than came then"
        )


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
        training = set(_rows(_loader(subject), length))
        if len(training) >= 8:
            break
    else:
        raise NotApplicable("its example repeats a few rows, so their content does not tell one split from another")
    own = list(_rows(_loader(subject, split="check"), length))
    must(bool(own), "the evaluation has no row")
    shared = sum(row in training for row in own)
    sentence = f"{shared} of the first {len(own)} rows of an evaluation are rows that training sees"
    must(shared <= BY_CHANCE * len(own), sentence)


def check_worker_count(subject: Subject) -> None:
    """A loader built from pickled options in another process is the same; after skipping rows it continues as after taking them.

    Usual cause: a lambda or an open file among the options; `skip` and `take` count differently.
    """
    options, context = pickle.loads(pickle.dumps((subject.options(), subject.context(specs=bench.specs(subject)))))
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
        must(bench.same(_take(other), _take(loader)), "after skip other rows come than after take of the same rows")


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
    """A tokenizer that the options offer is whole: a loader that is given its files delivers the same rows, and they name its vocabulary.

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
        other = subject.registered.load_factory()(given, subject.context(specs=bench.specs(subject)))
    if values := subject.values():
        other.apply_values(values)
    must(bench.same(_take(other), _take(loader)), "a loader that is given its own tokenizer delivers other rows")
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


def _rows(loader: Any, length: int) -> Iterator[bytes]:
    """The first rows as bytes; a loader may come to its end."""
    for _ in range(SAMPLED):
        try:
            batch = _take(loader, ROWS, length)
        except DataError:
            return
        for i in range(ROWS):
            yield b"|".join(
                tensor[i].contiguous().view(torch.uint8).numpy().tobytes() for _, tensor in sorted(batch.items()) if tensor.dim()
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
