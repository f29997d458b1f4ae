"""Text ↔ ids, as the tokenizer of a run has them, for prompts and for what is generated."""

from __future__ import annotations

from collections.abc import Sequence

from stackwise import Tokenizer, UserError
from stackwise_providers_data.tokenization import load_tokenizer
from stackwise_providers_data.tokenizer_files import TokenizerFile, tokenizer_in


class ByteCodec:
    """Every byte of the UTF-8 text is its own id."""

    start: int | None = None
    """No byte begins a document."""

    def encode(self, text: str) -> list[int]:
        """The bytes; those that a command line could not decode are as they were."""
        return list(text.encode(errors="surrogateescape"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are not UTF-8 as `\\xNN`."""
        return bytes(ids).decode(errors="backslashreplace")


class LibraryCodec:
    """A tokenizer of the tokenizers library.

    Raises:
        UserError: the library is not installed.
        DataError: the library cannot read the file.
    """

    def __init__(self, file: TokenizerFile) -> None:
        self._tokenizer = load_tokenizer(file)
        roles = (file.role("bos"), file.role("eos"))
        self.start: int | None = next((id for id in roles if id is not None), None)
        """What stands before a document: its begin, or the end of the one before."""

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


def codec_of(tokenizer: Tokenizer) -> ByteCodec | LibraryCodec:
    """The codec of the tokenizer of a run.

    Raises:
        UserError: the tokenizers library is not installed.
        DataError: the files are not a tokenizer.
    """
    if tokenizer.vocabulary == "bytes":
        return ByteCodec()
    return LibraryCodec(tokenizer_in(tokenizer))
