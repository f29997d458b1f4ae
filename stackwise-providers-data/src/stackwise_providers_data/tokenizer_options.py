"""How text becomes tokens, as a config says it; nothing here needs a tokenizer library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise import DataError, TensorSpec, UserError, option

BYTES = "bytes"
SEPARATOR = "<|endoftext|>"


@frozen(kw_only=True)
class BpeTraining:
    """A byte-level BPE vocabulary learnt from the training split (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2)."""

    vocab: int = option(4096, doc="number of token ids: 256 bytes, one separator, the rest merges", minimum=257, maximum=2**31 - 1)
    min_frequency: int = option(2, doc="how often a pair occurs before it is merged", minimum=1)


@frozen(kw_only=True)
class TokenizerOptions:
    """One of two ways to a vocabulary larger than the bytes."""

    bpe: BpeTraining | None = option(None, doc="learn a byte-level BPE from the training split; it is kept in the cache")
    file: str | None = option(None, doc="path of a `tokenizer.json` as the tokenizers library writes it")
    separator: str | None = option(None, doc="token of that file to put between documents; none when left out")

    def __attrs_post_init__(self) -> None:
        if (self.bpe is None) == (self.file is None):
            raise UserError("tokenizer: give either bpe: {vocab: 4096} or file: path/to/tokenizer.json")
        if self.separator is not None and self.file is None:
            raise UserError(f"separator: a learnt vocabulary separates documents by {SEPARATOR!r} of its own: leave it out, or give a file")


Tokenizer = str | TokenizerOptions
"""`bytes`, or one of the two others."""


def check_tokenizer(tokenizer: object) -> None:
    """Refuse text other than `bytes`.

    Raises:
        UserError: so it is.
    """
    if isinstance(tokenizer, str) and tokenizer != BYTES:
        raise UserError(f"tokenizer: {tokenizer!r} is none: write bytes, {{bpe: {{vocab: 4096}}}} or {{file: path/to/tokenizer.json}}")


def token_spec(tokenizer: Tokenizer) -> TensorSpec:
    """Ids below the vocabulary, with the unit that metrics need.

    Raises:
        DataError: the file of the tokenizer cannot be read.
    """
    unit = "byte" if isinstance(tokenizer, str) else None
    return TensorSpec("batch time", "int64", bounds=(0, vocab_size(tokenizer)), unit=unit)


def vocab_size(tokenizer: Tokenizer) -> int:
    """Number of ids: 256, as many as are asked for, or one more than the largest of the file.

    Raises:
        DataError: the file of the tokenizer cannot be read.
    """
    if isinstance(tokenizer, str):
        return 256
    if tokenizer.bpe is not None:
        return tokenizer.bpe.vocab
    assert tokenizer.file is not None
    return 1 + max(file_vocab(tokenizer.file).values())


def file_vocab(path: str) -> dict[str, int]:
    """Token → id of a `tokenizer.json`.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    try:
        content: Any = json.loads(Path(path).read_bytes())
        vocab = content["model"]["vocab"]
        if isinstance(vocab, list):  # a unigram model lists pairs of token and score in the order of their ids
            vocab = {token: i for i, (token, _) in enumerate(vocab)}
        ids = {**vocab, **{entry["content"]: entry["id"] for entry in content.get("added_tokens", ())}}
    except OSError as fault:
        raise DataError(f"tokenizer.file: {path!r} cannot be read: {fault.strerror}: mend the path") from fault
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DataError(f"tokenizer.file: {path!r} is no tokenizer.json: save one with the tokenizers library") from fault
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids.values()):
        raise DataError(f"tokenizer.file: the vocabulary of {path!r} is empty or holds ids that are no whole numbers")
    return ids
