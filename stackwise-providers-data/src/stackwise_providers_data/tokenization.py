"""Text → ids: bytes as they are, or the vocabularies of the tokenizers library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
import numpy.typing as npt

from stackwise import DataError
from stackwise_providers_data.cache import cache_folder, obtain, read_entry, recall, remember
from stackwise_providers_data.extras import require
from stackwise_providers_data.progress_lines import ProgressLines
from stackwise_providers_data.tokenizer_options import SEPARATOR, BpeTraining, Tokenizer, file_vocab, vocab_size

Document = tuple[str, bytes]
"""Where a document comes from, for messages, and its content."""


class TextTokenizer(Protocol):
    """What turns documents into ids."""

    dtype: np.dtype[Any]
    """The smallest unsigned type that holds every id."""
    separator: int | None
    """The id that stands between two documents."""
    key: str
    """What the ids depend on."""
    vocabulary: str
    """Which text each id stands for; equal for tokenizers that differ in their separator alone."""

    def encode(self, documents: Sequence[Document]) -> list[npt.NDArray[Any]]: ...


class ByteTokenizer:
    """Every byte is its own id; documents are separated by NUL."""

    dtype = np.dtype(np.uint8)
    separator: int | None = 0
    key = vocabulary = "bytes"

    def encode(self, documents: Sequence[Document]) -> list[npt.NDArray[Any]]:
        """The bytes of each document."""
        return [np.frombuffer(content, dtype=np.uint8) for _, content in documents]


class LibraryTokenizer:
    """A tokenizer of the tokenizers library.

    Args:
        tokenizer: the library's own object.
        content: its `tokenizer.json`, whose digest names the vocabulary.
        separator: the id between documents.
        ids: number of ids.
        learnt: whether it was learnt here, so that its separator is its own and needs no part in the key.
    """

    def __init__(self, tokenizer: Any, content: bytes, *, separator: int | None, ids: int, learnt: bool) -> None:
        self.library = tokenizer
        self.separator = separator
        self.key = _key(content if learnt else content + repr(separator).encode())
        self.vocabulary = _key(content)
        self.dtype = np.dtype(np.uint16 if ids <= 2**16 else np.uint32)

    def encode(self, documents: Sequence[Document]) -> list[npt.NDArray[Any]]:
        """The ids of each document, without special tokens of the tokenizer's own template.

        Raises:
            DataError: a document that is not UTF-8.
        """
        encodings = self.library.encode_batch_fast([as_text(*document) for document in documents], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]


def as_text(label: str, content: bytes) -> str:
    """A document as text.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as fault:
        raise DataError(f"{label} is not UTF-8 at byte {fault.start}: convert it, leave it out, or use tokenizer: bytes") from fault


def make_tokenizer(
    declared: Tokenizer, training: Callable[[], Iterator[Document]], training_digest: Callable[[], str], name: str
) -> TextTokenizer:
    """The tokenizer that options declare.

    Args:
        declared: the options.
        training: the documents of the training split.
        training_digest: digest of their content.
        name: the corpus, for messages.

    Raises:
        UserError: the tokenizers library is not installed.
        DataError: a file that is no tokenizer, or that has not the separator.
    """
    if isinstance(declared, str):
        return ByteTokenizer()
    library = require("tokenizers", "tokenizers", "tokenizer: a vocabulary larger than the bytes")
    if declared.bpe is not None:
        content = _trained(library, declared.bpe, training, training_digest(), name)
        return LibraryTokenizer(_learnt(library, content), content, separator=0, ids=declared.bpe.vocab, learnt=True)
    assert declared.file is not None
    vocab = file_vocab(declared.file)
    if declared.separator is not None and declared.separator not in vocab:
        raise DataError(f"tokenizer.separator: {declared.separator!r} is no token of {declared.file!r}: name one that is, or leave it out")
    content = Path(declared.file).read_bytes()
    try:
        tokenizer = library.Tokenizer.from_buffer(content)
    except Exception as fault:  # the library raises nothing narrower
        raise DataError(f"tokenizer.file: {declared.file!r} is no tokenizer.json: {fault}") from fault
    tokenizer.no_padding()
    tokenizer.no_truncation()
    separator = None if declared.separator is None else vocab[declared.separator]
    return LibraryTokenizer(tokenizer, content, separator=separator, ids=vocab_size(declared), learnt=False)


def _trained(library: Any, options: BpeTraining, training: Callable[[], Iterator[Document]], digest: str, name: str) -> bytes:
    """The `tokenizer.json` of a BPE learnt from the training split, learnt once for the same content and options."""
    identity = f"{attrs.asdict(options)} {library.__version__} {digest}"
    path, _ = obtain(
        f"bpe-{hashlib.sha256(identity.encode()).hexdigest()[:32]}", lambda folder: _train(library, options, training, folder, name)
    )
    content = (path / "tokenizer.json").read_bytes()
    if recall(note := _note(_key(content))) is None:
        remember(note, {"entry": path.name})
    return content


def recall_learnt(key: str) -> Any:
    """The library's object of a vocabulary that was learnt, by its key; None where the cache does not hold it any more."""
    noted = recall(_note(key))
    path = None if noted is None else cache_folder() / Path(str(noted.get("entry"))).name
    if path is None or read_entry(path) is None:
        return None
    content = (path / "tokenizer.json").read_bytes()
    return _learnt(require("tokenizers", "tokenizers", "a learnt vocabulary"), content) if _key(content) == key else None


def _learnt(library: Any, content: bytes) -> Any:
    tokenizer = library.Tokenizer.from_buffer(content)
    tokenizer.encode_special_tokens = True  # a document that spells the separator holds that text, not its end
    return tokenizer


def _key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _note(key: str) -> str:
    return f"learnt-{key}.json"


def _train(library: Any, options: BpeTraining, training: Callable[[], Iterator[Document]], folder: Path, name: str) -> Mapping[str, Any]:
    byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=options.vocab,
        min_frequency=options.min_frequency,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(training(), name), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"vocab": tokenizer.get_vocab_size()}


def _texts(documents: Iterator[Document], name: str) -> Iterator[str]:
    progress, read = ProgressLines(f"{name}: learning a vocabulary, megabytes read", 0, scale=10**6), 0
    for label, content in documents:
        read += len(content)
        progress.reached(read)
        yield as_text(label, content)
