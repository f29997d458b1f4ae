"""The loader of arrays in files, mapped into memory where they lie uncompressed.

What a large array holds — the bounds of its ids, whether a number is NaN, its digest — is read once and remembered in the cache by the
file's path, size and time of change.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from attrs import asdict, frozen

from stackwise import BuildContext, DataError
from stackwise_providers_data.array_headers import StoredArray, find_array
from stackwise_providers_data.array_options import ArrayFilesOptions
from stackwise_providers_data.array_shapes import with_bounds
from stackwise_providers_data.cache import recall, remember
from stackwise_providers_data.corpus import Corpus
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.progress_lines import ProgressLines
from stackwise_providers_data.row_stream import RowStream
from stackwise_providers_data.splits import no_rows, part_of, rows_of
from stackwise_providers_data.text_rows import TextRows, check_pad, cut_rows

_REMEMBERED_BYTES = 64 << 20
_CHUNK_ENTRIES = 1 << 20
_RACY_NS = 2 * 10**9


@frozen(kw_only=True)
class Content:
    """What an array holds."""

    sha256: str
    low: int = 0
    high: int = 0
    """Bounds of integer entries, both included."""
    broken: int | None = None
    """First row with an entry that is not finite."""


def build_array_files(options: ArrayFilesOptions, context: BuildContext) -> TextRows | RowStream:
    """The factory of `array-files`.

    Raises:
        DataError: damaged files, features that are not finite, ids outside the vocabulary, documents out of order, an empty split.
    """
    stored = options.arrays()
    if options.is_stream(stored):
        ((_, array),) = stored.items()
        return _stream(options, array, context)
    contents = {field: _content(array) for field, array in stored.items()}
    for field, content in contents.items():
        if content.broken is not None:
            raise DataError(f"{stored[field].label}: row {content.broken} holds NaN or infinity: drop or fill it")
    total = next(iter(stored.values())).shape.sizes[0]
    part = _part(total, options, context, "rows")
    fields = {field: torch.from_numpy(_read(array, aligned=True)[part]) for field, array in stored.items()}
    digest = hashlib.sha256(json.dumps([[field, content.sha256] for field, content in sorted(contents.items())]).encode())
    digest.update(f"{part.start} {part.stop}".encode())
    return RowStream(
        fields,
        with_bounds(options.to_spec(), {field: (content.low, content.high) for field, content in contents.items()}),
        time=options.time_fields(),
        seed=context.seed,
        shuffle=options.shuffle,
        repeat=options.repeat,
        fingerprint={"rows": len(range(total)[part]), "sha256": digest.hexdigest()},
        name="files",
    )


def _stream(options: ArrayFilesOptions, array: StoredArray, context: BuildContext) -> TextRows:
    content = _content(array)
    if content.low < 0 or (options.vocab is not None and content.high >= options.vocab):
        wrong, bound = content.low if content.low < 0 else content.high, "vocab" if options.vocab is None else options.vocab
        raise DataError(f"{array.label}: it holds the id {wrong}; ids lie in [0, {bound})")
    total = array.shape.sizes[0]
    starts = np.zeros(1, dtype=np.int64)
    if options.documents is None:
        part = _part(total, options, context, "tokens")
    else:
        starts = _starts(options.documents, total)
        chosen = _part(len(starts), options, context, "documents")
        edges = np.append(starts, total)
        part = slice(int(edges[chosen.start]), int(edges[chosen.stop]))
        starts = starts[chosen] - part.start
    tokens = _read(array)[part]
    fingerprint = {"tokens": len(tokens), "first": part.start, "sha256": content.sha256}
    corpus = Corpus(array.label, tokens, starts, 0, fingerprint)
    check_pad(options.pad, options.vocab)
    return cut_rows(corpus, options, options.to_spec(), context, has_documents=options.documents is not None)


def _part(total: int, options: ArrayFilesOptions, context: BuildContext, noun: str) -> slice:
    rows = rows_of(part_of(context, options.heldout), total, options.heldout)
    if not len(range(total)[rows]):
        raise no_rows("files", options.heldout, total, noun, context.split)
    return rows


def _starts(reference: str, total: int) -> Indices:
    """The places where documents begin; a last one at the very end of the tokens is taken for that end.

    Raises:
        DataError: no whole numbers with one axis, not from 0, not rising, or beyond the tokens.
    """
    array = find_array("documents", reference)
    label = array.label.removeprefix("files.")
    if not array.shape.is_integer or len(array.shape.sizes) != 1 or not array.shape.sizes[0]:
        raise DataError(f"{label}: {array.shape.dtype}{list(array.shape.sizes)} are no places: give one axis of whole numbers")
    starts = np.asarray(_read(array), dtype=np.int64)
    if len(starts) > 1 and starts[-1] == total:
        starts = starts[:-1]
    if starts[0] != 0 or bool((np.diff(starts) <= 0).any()) or starts[-1] >= total:
        raise DataError(f"{label}: places where documents begin start at 0, rise, and lie below the {total} tokens: mend them")
    return starts


def _read(array: StoredArray, *, aligned: bool = False) -> npt.NDArray[Any]:
    """The array, mapped where it can be; with `aligned` only where torch could share its memory.

    It is mapped copy-on-write, because torch has no read-only tensors.
    """
    dtype = np.dtype(array.shape.dtype)
    if array.offset is not None and not (aligned and array.offset % dtype.itemsize):
        return np.asarray(np.memmap(array.path, dtype=dtype, mode="c", offset=array.offset, shape=array.shape.sizes))
    if array.path.suffix == ".safetensors":
        with array.path.open("rb") as file:
            file.seek(array.offset or 0)
            count = int(np.prod(array.shape.sizes))
            return np.fromfile(file, dtype=dtype, count=count).reshape(array.shape.sizes)
    loaded = np.load(array.path, allow_pickle=False)
    if array.key is None:
        return np.ascontiguousarray(loaded)
    with loaded:
        return np.ascontiguousarray(loaded[array.key])


def _content(array: StoredArray) -> Content:
    status = array.path.stat()
    if status.st_size <= _REMEMBERED_BYTES:
        return _scan(array)
    identity = json.dumps([str(array.path.resolve()), array.key, status.st_size, status.st_mtime_ns])
    name = f"array-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    racy = status.st_mtime_ns > time.time_ns() - _RACY_NS
    if not racy and (known := recall(name)) is not None and set(known) == {"sha256", "low", "high", "broken"}:
        return Content(**known)
    content = _scan(array)
    if not racy:
        remember(name, asdict(content))
    return content


def _scan(array: StoredArray) -> Content:
    entries = _read(array)
    digest = hashlib.sha256(f"{array.shape.dtype} {list(array.shape.sizes)}\n".encode())
    low, high, broken = 0, 0, None
    rows = max(1, _CHUNK_ENTRIES // max(1, entries[0].size))
    progress = ProgressLines(f"{array.label}: reading, rows", len(entries))
    for first in range(0, len(entries), rows):
        chunk = np.ascontiguousarray(entries[first : first + rows])
        digest.update(chunk.data.cast("B") if chunk.size else b"")
        if array.shape.is_integer:
            low, high = min(low, int(chunk.min())), max(high, int(chunk.max()))
        elif array.shape.dtype != "bool" and broken is None and not bool((finite := np.isfinite(chunk)).all()):
            broken = first + int(np.flatnonzero(~finite.reshape(len(chunk), -1).all(axis=1))[0])
        progress.reached(first)
    return Content(sha256=digest.hexdigest(), low=low, high=high, broken=broken)
