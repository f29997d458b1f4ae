"""Text ↔ ids, as the tokenizer of a corpus has them, for prompts and for what is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stackwise import DataError, UserError
from stackwise_providers_data.corpus import Documents, open_tokenizer
from stackwise_providers_data.tokenization import LibraryTokenizer, make_tokenizer, recall_learnt
from stackwise_providers_data.tokenizer_options import Tokenizer


class ByteCodec:
    """Every byte of the UTF-8 text is its own id."""

    def encode(self, text: str) -> list[int]:
        """The bytes; those that a command line could not decode are as they were."""
        return list(text.encode(errors="surrogateescape"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 as `\\xNN`."""
        return bytes(ids).decode(errors="backslashreplace")


class LibraryCodec:
    """A tokenizer of the tokenizers library."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """The ids, without special tokens of the tokenizer's own template.

        Raises:
            UserError: text that is not Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as fault:
            raise UserError(f"prompt: it is not UTF-8 at character {fault.start}, and only ids of bytes can stand for that") from fault
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def open_codec(documents: Callable[[], Documents] | None, declared: Tokenizer, fingerprint: Mapping[str, Any]) -> ByteCodec | LibraryCodec:
    """The codec of a corpus.

    Args:
        documents: finds the documents, which a learnt vocabulary that the cache has lost is learnt from again; None where that
            cannot be.
        declared: options of the tokenizer.
        fingerprint: what the corpus was when a model was trained on it.

    Raises:
        DataError: the vocabulary is another one than it was, or cannot be had any more.
        UserError: the tokenizers library is not installed.
    """
    if isinstance(declared, str):
        return ByteCodec()
    known = fingerprint.get("tokenizer")
    if declared.bpe is not None and known is not None and (learnt := recall_learnt(known)) is not None:
        return LibraryCodec(learnt)
    if declared.bpe is None:
        tokenizer = make_tokenizer(declared, lambda: iter(()), lambda: "", "tokenizer")
    elif documents is not None:
        tokenizer = open_tokenizer(documents(), declared)
    else:
        raise DataError(
            "tokenizer: the cache does not hold the vocabulary that was learnt: set STACKWISE_CACHE to the folder that it was learnt in"
        )
    assert isinstance(tokenizer, LibraryTokenizer)
    if known is not None and tokenizer.key != known:
        raise DataError(
            f"tokenizer: the vocabulary has the digest {tokenizer.key}, and the model was trained with {known}: put back the "
            + ("documents that it was learnt from" if declared.bpe is not None else f"file {declared.file!r}")
        )
    return LibraryCodec(tokenizer.library)
