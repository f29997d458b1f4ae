"""Documents → one sequence of tokens with the places where documents begin; large or learnt ones as memory maps in the cache.

The tokens of a corpus depend on the content of its documents and on the tokenizer alone, so they are kept under the digests of both. Which
content lies in files is remembered by their paths, sizes and times of change: unchanged files are not read again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import Factory, frozen

from stackwise import DataError
from stackwise_providers_data.bpe import learn_bpe
from stackwise_providers_data.cache import cache_folder, obtain, read_entry, recall, remember
from stackwise_providers_data.documents import ContentDigest, Document, Documents, digest_of
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.progress_lines import ProgressLines
from stackwise_providers_data.spans import Spans
from stackwise_providers_data.splits import Part
from stackwise_providers_data.tokenization import ByteTokenizer, LibraryTokenizer, TextTokenizer
from stackwise_providers_data.tokenizer_options import TokenizerChoice

_IN_MEMORY_BYTES = 64 << 20
_BATCH_BYTES, _BATCH_DOCUMENTS = 4 << 20, 1024
_AHEAD = 2
"""Number of batches that are tokenized while an earlier one is stored."""
_RACY_NS = 2 * 10**9
_FORMAT = 2


@frozen(eq=False)
class Corpus:
    """Tokens and documents."""

    name: str
    tokens: npt.NDArray[Any]
    starts: Indices
    """Where each document begins, its first token or its separator if it has none."""
    between: int
    """Separators after each document but the last that do not belong to it: 0 or 1."""
    fingerprint: Mapping[str, Any]
    beside: Mapping[str, npt.NDArray[Any]] = Factory(dict)
    """Field → one entry a token, delivered as the tokens are."""

    def spans(self) -> Spans:
        """The documents without their separators."""
        return Spans(self.starts, np.append(self.starts[1:] - self.between, len(self.tokens)).astype(np.int64, copy=False))


def open_corpus(documents: Documents, declared: TokenizerChoice, part: Part, ends: tuple[bool, ...] | None = None) -> Corpus:
    """The tokens of a part of the documents.

    Args:
        documents: where they come from.
        declared: options of the tokenizer.
        part: which of them.
        ends: None: a separator between two documents. Else for each document of a recurring group whether a separator ends it,
            which then belongs to it.

    Raises:
        DataError: documents that cannot be read or tokenized, changed meanwhile, or are all empty.
        UserError: a library is missing, or the cache cannot be written.
    """
    corpus = _opened(documents, declared, part, ends)
    count = len(corpus.starts)
    if count > 1 and ends is None and len(corpus.tokens) <= corpus.between * (count - 1):
        raise DataError(f"{documents.name}: none of the {count:,} documents holds any text: name the field or the files that do")
    return corpus


def _opened(documents: Documents, declared: TokenizerChoice, part: Part, ends: tuple[bool, ...] | None) -> Corpus:
    files = documents.files()
    if isinstance(declared, str) and sum(path.stat().st_size for path in files) <= _IN_MEMORY_BYTES:
        return _in_memory(documents, part, ends)
    key, racy = _listing_key(documents, files, declared, part, ends)
    if not racy and (listing := recall(key)) is not None and (known := _of_listing(documents, listing)) is not None:
        return known
    tokenizer = open_tokenizer(documents, declared)
    digest = digest_of([documents], part)
    name = f"tokens-{_FORMAT}-{digest[:32]}-{tokenizer.key}{'' if ends is None else '-' + ''.join('se'[end] for end in ends)}"
    path, notes = obtain(name, lambda folder: _write(documents, tokenizer, part, ends, digest, folder))
    if not racy:
        remember(key, {"entry": name})
    return _mapped(documents, path, notes)


def open_tokenizer(documents: Documents, declared: TokenizerChoice) -> TextTokenizer:
    """The tokenizer that options declare; one that belongs to no run yet is learnt from the training part of these documents alone.

    Raises:
        DataError: a file that is not a tokenizer; documents that cannot be read.
        UserError: a library is missing, or the cache cannot be written.
    """
    if isinstance(declared, str):
        return ByteTokenizer()
    file, training = declared.read(), declared.training
    if file is None and training is not None:
        file = learn_bpe(training, [documents])
    assert file is not None
    ids = file.size if training is None else training.vocab
    return LibraryTokenizer(file, separator=declared.separator, ids=ids, learnt=training is not None)


def _in_memory(documents: Documents, part: Part, ends: tuple[bool, ...] | None) -> Corpus:
    layout = _Layout(ByteTokenizer(), ends)
    pieces = list(layout.pieces(documents.read(part)))
    tokens = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint8)
    notes = layout.notes(hashlib.sha256(tokens.data).hexdigest())
    return Corpus(documents.name, tokens, np.array(layout.starts, dtype=np.int64), notes["between"], _fingerprint(documents, notes))


def _mapped(documents: Documents, path: Path, notes: Mapping[str, Any]) -> Corpus:
    tokens: npt.NDArray[Any] = np.empty(0, dtype=notes["dtype"])
    if notes["tokens"]:
        tokens = np.asarray(np.memmap(path / "tokens.bin", dtype=notes["dtype"], mode="r"))
    starts = np.asarray(np.memmap(path / "starts.bin", dtype=np.int64, mode="r"))
    return Corpus(documents.name, tokens, starts, notes["between"], _fingerprint(documents, notes))


def _of_listing(documents: Documents, listing: Mapping[str, Any]) -> Corpus | None:
    path = cache_folder() / Path(str(listing.get("entry"))).name
    notes = read_entry(path)
    return None if notes is None else _mapped(documents, path, notes)


def _fingerprint(documents: Documents, notes: Mapping[str, Any]) -> dict[str, Any]:
    counted = "bytes" if notes["dtype"] == "uint8" else "tokens"
    learnt = {"tokenizer": notes["tokenizer"]} if "tokenizer" in notes else {}
    return {
        documents.noun: notes["documents"],
        counted: notes["tokens"],
        "sha256": notes["sha256"],
        **learnt,
        "vocabulary": notes["vocabulary"],
    }


def _listing_key(
    documents: Documents, files: Sequence[Path], declared: TokenizerChoice, part: Part, ends: tuple[bool, ...] | None
) -> tuple[str, bool]:
    """The name under which the entry of these files is remembered, and whether a file is so new that its time would not show a further
    change.
    """
    stats = [(str(path.resolve()), (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    tokenizer: Any = declared
    if not isinstance(declared, str):
        file = declared.read()
        beside = [] if file is None else [file.vocabulary, dict(file.settings)]
        tokenizer = [declared.settings(), *beside]
    text = json.dumps([_FORMAT, documents.name, documents.identity(), stats, tokenizer, part, ends], default=str)
    youngest = max((changed for _, _, changed in stats), default=0)
    return f"listing-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json", youngest > time.time_ns() - _RACY_NS


def _write(
    documents: Documents, tokenizer: TextTokenizer, part: Part, ends: tuple[bool, ...] | None, digest: str, folder: Path
) -> Mapping[str, Any]:
    layout, content, written = _Layout(tokenizer, ends), ContentDigest(), hashlib.sha256()
    progress = ProgressLines(f"{documents.name}: tokenizing, megabytes read", sum(p.stat().st_size for p in documents.files()), scale=10**6)
    with (folder / "tokens.bin").open("wb") as file:
        for piece in layout.pieces(content.through(documents.read(part))):
            file.write(piece.data)
            written.update(piece.data)
            progress.reached(content.size)
    if content.hexdigest() != digest:
        raise DataError(f"{documents.name}: the documents changed while they were read: start again when nothing writes to them")
    np.array(layout.starts, dtype=np.int64).tofile(folder / "starts.bin")
    return layout.notes(written.hexdigest())


class _Layout:
    """Lays tokenized documents one after another."""

    def __init__(self, tokenizer: TextTokenizer, ends: tuple[bool, ...] | None) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        separator = () if tokenizer.separator is None else (tokenizer.separator,)
        self._separator = np.array(separator, dtype=tokenizer.dtype)
        self.starts: list[int] = []
        self._size = 0

    def pieces(self, documents: Iterable[Document]) -> Iterator[npt.NDArray[Any]]:
        for ids in _encoded(self._tokenizer, documents):
            if self._ends is None and self.starts:
                yield self._counted(self._separator)
            self.starts.append(self._size)
            yield self._counted(ids)
            if self._ends is not None and self._ends[(len(self.starts) - 1) % len(self._ends)]:
                yield self._counted(self._separator)

    def notes(self, digest: str) -> dict[str, Any]:
        between = len(self._separator) if self._ends is None else 0
        dtype = self._tokenizer.dtype.name
        about = {} if isinstance(self._tokenizer, ByteTokenizer) else {"tokenizer": self._tokenizer.key}
        return {
            "documents": len(self.starts),
            "tokens": self._size,
            "dtype": dtype,
            "between": between,
            "sha256": digest,
            **about,
            "vocabulary": self._tokenizer.vocabulary,
        }

    def _counted(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self._size += len(ids)
        return ids


def _encoded(tokenizer: TextTokenizer, documents: Iterable[Document]) -> Iterator[npt.NDArray[Any]]:
    """The ids of each document. The tokenizers library encodes a batch on all cores; the batches after it keep them busy while Python
    makes arrays of what they return."""
    if isinstance(tokenizer, ByteTokenizer):
        for batch in _batches(documents):
            yield from tokenizer.encode(batch)
        return
    with ThreadPoolExecutor(_AHEAD, "stackwise-tokenizing") as pool:
        coming: deque[Future[list[npt.NDArray[Any]]]] = deque()
        for batch in _batches(documents):
            coming.append(pool.submit(tokenizer.encode, batch))
            if len(coming) > _AHEAD:
                yield from coming.popleft().result()
        while coming:
            yield from coming.popleft().result()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
