"""The loader of arrays in files, mapped into memory where they lie uncompressed.

What an array holds — the bounds of its ids, whether a number is NaN, its digest — is read once: of a large one by a thread, while its first
rows are delivered and checked one by one, and then remembered in the cache by the file's path, size and time of change.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stackwise import BuildContext, DataError
from stackwise_providers_data.array_contents import ArrayContents, Content, contents_of
from stackwise_providers_data.array_headers import StoredArray, find_array
from stackwise_providers_data.array_options import ArrayFilesOptions
from stackwise_providers_data.array_shapes import with_bounds
from stackwise_providers_data.corpus import Corpus
from stackwise_providers_data.late_fingerprint import LateFingerprint
from stackwise_providers_data.mapped_files import MappedFile
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.row_stream import RowStream
from stackwise_providers_data.splits import no_rows, part_of, rows_of
from stackwise_providers_data.text_rows import TextRows, check_pad, cut_rows


def build_array_files(options: ArrayFilesOptions, context: BuildContext) -> TextRows | RowStream:
    """The factory of `array-files`.

    Raises:
        DataError: damaged files, features that are not finite, ids outside the vocabulary, documents out of order, an empty split.
    """
    stored = options.arrays()
    if options.is_stream(stored):
        ((_, array),) = stored.items()
        return _stream(options, array, context)
    contents = {field: contents_of(array, partial(_read, array)) for field, array in stored.items()}
    refuse = {field: partial(_refuse_broken, array) for field, array in stored.items()}
    total = next(iter(stored.values())).shape.sizes[0]
    part = _part(total, options, context, "rows")
    fields = {field: torch.from_numpy(_read(array, aligned=True)[part]) for field, array in stored.items()}
    known = {field: content for field, held in contents.items() if (content := held.known) is not None}
    for field, content in known.items():
        refuse[field](content)
    loader = RowStream(
        fields,
        with_bounds(options.to_spec(), {field: (content.low, content.high) for field, content in known.items()}),
        time=options.time_fields(),
        seed=context.seed,
        shuffle=options.shuffle,
        repeat=options.repeat,
        fingerprint=LateFingerprint({"rows": len(range(total)[part])}, partial(_digest_of, contents, part)),
        name="files",
    )
    loader.hold_to(MappedFile(array.path, array.label) for array in stored.values() if _mapped_from(array, aligned=True) is not None)
    loader.watch({field: partial(held.check, refuse[field]) for field, held in contents.items() if field not in known})
    return loader


def _digest_of(contents: dict[str, ArrayContents], part: slice) -> str:
    digest = hashlib.sha256(json.dumps([[field, contents[field].wait().sha256] for field in sorted(contents)]).encode())
    digest.update(f"{part.start} {part.stop}".encode())
    return digest.hexdigest()


def _refuse_broken(array: StoredArray, content: Content) -> None:
    if content.broken is not None:
        raise DataError(f"{array.label}: row {content.broken} holds NaN or infinity: drop or fill it")


def _refuse_outside(array: StoredArray, vocab: int | None, content: Content) -> None:
    if content.low < 0 or (vocab is not None and content.high >= vocab):
        wrong, bound = content.low if content.low < 0 else content.high, "vocab" if vocab is None else vocab
        raise DataError(f"{array.label}: it holds the id {wrong}; ids lie in [0, {bound})")


def _stream(options: ArrayFilesOptions, array: StoredArray, context: BuildContext) -> TextRows:
    held, refuse = contents_of(array, partial(_read, array)), partial(_refuse_outside, array, options.vocab)
    known = held.known  # looked at once: a thread may set it at any time
    if known is not None:
        refuse(known)
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
    fingerprint = LateFingerprint({"tokens": len(tokens), "first": part.start}, lambda: held.wait().sha256)
    corpus = Corpus(array.label, tokens, starts, 0, fingerprint)
    check_pad(options.pad, options.vocab)
    loader = cut_rows(corpus, options, options.to_spec(), context, has_documents=options.documents is not None)
    loader.hold_to([MappedFile(array.path, array.label)] if _mapped_from(array) is not None else [])
    if known is None:
        loader.watch({loader.field: partial(held.check, refuse)})
    return loader


def _part(total: int, options: ArrayFilesOptions, context: BuildContext, noun: str) -> slice:
    rows = rows_of(part_of(context, options.heldout), total, options.heldout)
    if not len(range(total)[rows]):
        raise no_rows("files", options.heldout, total, noun, context.split)
    return rows


def _starts(reference: str, total: int) -> Indices:
    """Where documents begin. A last entry equal to the number of tokens marks the end and is dropped.

    Raises:
        DataError: not a list of whole numbers, or one that does not begin at 0, does not rise, or goes beyond the tokens.
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


def _mapped_from(array: StoredArray, *, aligned: bool = False) -> int | None:
    """Where in its file an array is mapped; None where it is read."""
    unfit = aligned and array.offset is not None and array.offset % np.dtype(array.shape.dtype).itemsize
    return None if unfit else array.offset


def _read(array: StoredArray, *, aligned: bool = False) -> npt.NDArray[Any]:
    """The array, mapped where it can be; with `aligned` only where torch could share its memory.

    It is mapped copy-on-write, because torch has no read-only tensors.
    """
    dtype = np.dtype(array.shape.dtype)
    if (offset := _mapped_from(array, aligned=aligned)) is not None:
        return np.asarray(np.memmap(array.path, dtype=dtype, mode="c", offset=offset, shape=array.shape.sizes))
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
