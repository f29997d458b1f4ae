"""Text → ids: bytes as they are, or the vocabularies of the tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stackwise import DataError
from stackwise_providers_data.documents import Document
from stackwise_providers_data.extras import require
from stackwise_providers_data.tokenizer_files import TokenizerFile, vocabulary_name


class TextTokenizer(Protocol):
    """Turns documents into ids."""

    dtype: np.dtype[Any]
    """The smallest unsigned type that holds every id."""
    separator: int | None
    """The id that stands between two documents."""
    key: str
    """What the ids depend on."""
    vocabulary: str
    """Names the vocabulary: equal for tokenizers that differ only in their separator."""

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
        file: it, with what its folder says of special tokens.
        separator: token between documents, by itself or by its role; None: the end of text that the folder names, if it does.
        ids: number of ids.
        learnt: whether it was learnt here, so that its separator is its own and needs no part in the key.

    Raises:
        UserError: the tokenizers library is not installed.
        DataError: the file is not a tokenizer, or has not the separator.
    """

    def __init__(self, file: TokenizerFile, *, separator: str | None, ids: int, learnt: bool) -> None:
        self.separator = file.role("eos") if separator is None else file.id_of(separator)
        self.library = load_tokenizer(file)
        self.vocabulary = file.vocabulary
        self.key = self.vocabulary if learnt else _key_of(file, self.separator)
        self.dtype = np.dtype(np.uint16 if ids <= 2**16 else np.uint32)

    def encode(self, documents: Sequence[Document]) -> list[npt.NDArray[Any]]:
        """The ids of each document, without special tokens of the tokenizer's own template.

        Raises:
            DataError: a document that is not UTF-8.
        """
        encodings = self.library.encode_batch_fast([as_text(*document) for document in documents], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]


def load_tokenizer(file: TokenizerFile) -> Any:
    """The library's object of a tokenizer.

    Where its folder says `split_special_tokens`, text that spells a special token stays text, as it does for learnt vocabularies.

    Raises:
        UserError: the tokenizers library is not installed.
        DataError: the library cannot read the file, or gives its tokens other ids than the file does.
    """
    library = require("tokenizers", "tokenizers", "tokenizer: a vocabulary larger than the bytes")
    try:
        tokenizer = library.Tokenizer.from_buffer(file.content)
    except Exception as fault:  # the library raises nothing narrower
        raise DataError(f"{file.label} is not a tokenizer.json: {fault}") from fault
    for token, id in file.ids.items():
        if (given := tokenizer.token_to_id(token)) != id:
            raise DataError(
                f"{file.label} gives {token!r} the id {id}, and the tokenizers library reads it as {given}: ids follow one another "
                "without a gap, those of the base vocabulary first: save the tokenizer again"
            )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = _splits_special_tokens(file)
    return tokenizer


def _splits_special_tokens(file: TokenizerFile) -> bool:
    return file.settings.get("split_special_tokens") is True


def _key_of(file: TokenizerFile, separator: int | None) -> str:
    split = b"split" if _splits_special_tokens(file) else b""
    return vocabulary_name(file.content + repr(separator).encode() + split)


def as_text(label: str, content: bytes) -> str:
    """A document as text.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as fault:
        other = " (it begins as UTF-16 does)" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{label} is not UTF-8 at byte {fault.start}{other}: convert it, leave it out, or use tokenizer: bytes") from fault
