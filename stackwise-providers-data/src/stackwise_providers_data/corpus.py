"""Documents → one sequence of tokens with the places where documents begin; large or learnt ones as memory maps in the cache.

The tokens of a corpus depend on the content of its documents and on the tokenizer alone, so they are kept under the digests of both. Which
content lies in files is remembered by their paths, sizes and times of change: unchanged files are not read again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
import numpy.typing as npt
from attrs import frozen

from stackwise import DataError
from stackwise_providers_data.cache import cache_folder, obtain, read_entry, recall, remember
from stackwise_providers_data.permutation import Indices
from stackwise_providers_data.progress_lines import ProgressLines
from stackwise_providers_data.spans import Spans
from stackwise_providers_data.tokenization import ByteTokenizer, Document, TextTokenizer, make_tokenizer
from stackwise_providers_data.tokenizer_options import Tokenizer

_IN_MEMORY_BYTES = 64 << 20
_BATCH_BYTES, _BATCH_DOCUMENTS = 4 << 20, 1024
_RACY_NS = 2 * 10**9
_FORMAT = 2


class Documents(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str:
        """What messages call them."""
        ...

    @property
    def noun(self) -> str:
        """What one is, in the plural."""
        ...

    def files(self) -> Sequence[Path]:
        """Every file that the documents of both splits are read from."""
        ...

    def identity(self) -> Any:
        """What else decides which documents a split holds, as JSON."""
        ...

    def read(self, *, held: bool) -> Iterator[Document]:
        """The documents that are held out, or the others; at least one.

        Raises:
            DataError: none, or one that cannot be read.
        """
        ...


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
    beside: Mapping[str, npt.NDArray[Any]] = attrs.Factory(dict)
    """Field → one entry a token, delivered as the tokens are."""

    def spans(self) -> Spans:
        """The documents without their separators."""
        return Spans(self.starts, np.append(self.starts[1:] - self.between, len(self.tokens)).astype(np.int64, copy=False))


def open_corpus(documents: Documents, declared: Tokenizer, *, held: bool, ends: tuple[bool, ...] | None = None) -> Corpus:
    """The tokens of a split.

    Args:
        documents: where they come from.
        declared: options of the tokenizer.
        held: the documents held out, or the others.
        ends: None: a separator between two documents. Else for each document of a recurring group whether a separator ends it,
            which then belongs to it.

    Raises:
        DataError: documents that cannot be read or tokenized, or changed meanwhile.
        UserError: a library is missing, or the cache cannot be written.
    """
    files = documents.files()
    if isinstance(declared, str) and sum(path.stat().st_size for path in files) <= _IN_MEMORY_BYTES:
        return _in_memory(documents, held, ends)
    key, racy = _listing_key(documents, files, declared, held, ends)
    if not racy and (listed := recall(key)) is not None and (found := _listed(documents, listed)) is not None:
        return found
    tokenizer = open_tokenizer(documents, declared)
    digest = _digest(documents, held=held)
    name = f"tokens-{_FORMAT}-{digest[:32]}-{tokenizer.key}{'' if ends is None else '-' + ''.join('se'[end] for end in ends)}"
    path, notes = obtain(name, lambda folder: _write(documents, tokenizer, held, ends, digest, folder))
    if not racy:
        remember(key, {"entry": name})
    return _mapped(documents, path, notes)


def open_tokenizer(documents: Documents, declared: Tokenizer) -> TextTokenizer:
    """The tokenizer of documents, learnt from their training split where options ask for that.

    Raises:
        DataError: a file that is no tokenizer; documents that cannot be read.
        UserError: a library is missing, or the cache cannot be written.
    """
    return make_tokenizer(declared, lambda: documents.read(held=False), lambda: _digest(documents, held=False), documents.name)


def _in_memory(documents: Documents, held: bool, ends: tuple[bool, ...] | None) -> Corpus:
    tokenizer = make_tokenizer("bytes", lambda: iter(()), lambda: "", documents.name)
    layout = _Layout(tokenizer, ends)
    pieces = list(layout.pieces(documents.read(held=held)))
    tokens = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint8)
    notes = layout.notes(hashlib.sha256(tokens.data).hexdigest())
    return Corpus(documents.name, tokens, np.array(layout.starts, dtype=np.int64), notes["between"], _fingerprint(documents, notes))


def _mapped(documents: Documents, path: Path, notes: Mapping[str, Any]) -> Corpus:
    tokens: npt.NDArray[Any] = np.empty(0, dtype=notes["dtype"])
    if notes["tokens"]:
        tokens = np.asarray(np.memmap(path / "tokens.bin", dtype=notes["dtype"], mode="r"))
    starts = np.asarray(np.memmap(path / "starts.bin", dtype=np.int64, mode="r"))
    return Corpus(documents.name, tokens, starts, notes["between"], _fingerprint(documents, notes))


def _listed(documents: Documents, listed: Mapping[str, Any]) -> Corpus | None:
    path = cache_folder() / Path(str(listed.get("entry"))).name
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
    documents: Documents, files: Sequence[Path], declared: Tokenizer, held: bool, ends: tuple[bool, ...] | None
) -> tuple[str, bool]:
    """The name under which the entry of these files is remembered, and whether a file is too young for its time to tell of changes."""
    stats = [(str(path.resolve()), (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    tokenizer: Any = declared if isinstance(declared, str) else attrs.asdict(declared)
    if not isinstance(declared, str) and declared.file is not None:
        tokenizer["digest"] = hashlib.sha256(Path(declared.file).read_bytes()).hexdigest()
    text = json.dumps([_FORMAT, documents.name, documents.identity(), stats, tokenizer, held, ends])
    youngest = max((changed for _, _, changed in stats), default=0)
    return f"listing-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json", youngest > time.time_ns() - _RACY_NS


def _digest(documents: Documents, *, held: bool) -> str:
    content = _Content()
    for _ in content.passing(documents.read(held=held)):
        pass
    return content.hexdigest()


def _write(
    documents: Documents, tokenizer: TextTokenizer, held: bool, ends: tuple[bool, ...] | None, digest: str, folder: Path
) -> Mapping[str, Any]:
    layout, content, written = _Layout(tokenizer, ends), _Content(), hashlib.sha256()
    progress = ProgressLines(f"{documents.name}: tokenizing, megabytes read", sum(p.stat().st_size for p in documents.files()), scale=10**6)
    with (folder / "tokens.bin").open("wb") as file:
        for piece in layout.pieces(content.passing(documents.read(held=held))):
            file.write(piece.data)
            written.update(piece.data)
            progress.reached(content.size)
    if content.hexdigest() != digest:
        raise DataError(f"{documents.name}: the documents changed while they were read: start again when nothing writes to them")
    np.array(layout.starts, dtype=np.int64).tofile(folder / "starts.bin")
    return layout.notes(written.hexdigest())


class _Content:
    """A digest of documents that pass by: their sizes and contents."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.size = 0

    def passing(self, documents: Iterable[Document]) -> Iterator[Document]:
        for label, content in documents:
            self._digest.update(len(content).to_bytes(8, "little"))
            self._digest.update(content)
            self.size += len(content)
            yield label, content

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _Layout:
    """Lays tokenized documents one behind another."""

    def __init__(self, tokenizer: TextTokenizer, ends: tuple[bool, ...] | None) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        separator = () if tokenizer.separator is None else (tokenizer.separator,)
        self._separator = np.array(separator, dtype=tokenizer.dtype)
        self.starts: list[int] = []
        self._size = 0

    def pieces(self, documents: Iterable[Document]) -> Iterator[npt.NDArray[Any]]:
        for batch in _batches(documents):
            for ids in self._tokenizer.encode(batch):
                if self._ends is None and self.starts:
                    yield self._placed(self._separator)
                self.starts.append(self._size)
                yield self._placed(ids)
                if self._ends is not None and self._ends[(len(self.starts) - 1) % len(self._ends)]:
                    yield self._placed(self._separator)

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

    def _placed(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self._size += len(ids)
        return ids


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
