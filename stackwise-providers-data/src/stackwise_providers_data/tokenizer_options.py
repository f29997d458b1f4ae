"""How text becomes tokens, as a config says it; nothing here needs a tokenizer library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen

from stackwise import TensorSpec, Tokenizer, UserError, option
from stackwise_providers_data.tokenizer_files import TokenizerFile, tokenizer_at, tokenizer_in, tokenizer_of_run

BYTES = "bytes"
SEPARATOR = "<|endoftext|>"
TOKENIZER_DOC = (
    "`bytes`, {bpe: 4096} learnt from the training documents, {file: tokenizer.json or a folder as Hugging Face writes it}, or "
    "{run: a former run, its tokenizer}"
)


@frozen(kw_only=True)
class BpeTraining:
    """A byte-level BPE vocabulary that is learnt (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2)."""

    vocab: int = option(4096, doc="number of token ids: 256 bytes, one separator, the rest merges", minimum=257, maximum=2**31 - 1)
    min_frequency: int = option(2, doc="how often a pair occurs before it is merged", minimum=1)


@frozen(kw_only=True)
class TokenizerOptions:
    """One of three ways to a vocabulary larger than the bytes."""

    bpe: BpeTraining | int | None = option(
        None, doc="size of a byte-level BPE learnt from the training documents of all sources with equal settings"
    )
    file: str | None = option(None, doc="path of a `tokenizer.json`, or of a folder that holds one as Hugging Face writes it")
    run: str | None = option(None, doc="run directory, final weights or export whose tokenizer is used")
    separator: str | None = option(
        None,
        doc="token between documents, by itself or by its role (`eos`); when left out the end of text that a folder or a run names, "
        "else none",
    )
    kept: Tokenizer | None = field(default=None, init=False, eq=False, repr=False)
    """The tokenizer of the run that these options belong to; it stands in for what the options name."""

    def __attrs_post_init__(self) -> None:
        if sum(way is not None for way in (self.bpe, self.file, self.run)) != 1:
            raise UserError("tokenizer: give one of bpe: 4096, file: path/to/tokenizer.json and run: path/to/a/run")
        if self.separator is not None and self.bpe is not None:
            raise UserError(f"separator: a learnt vocabulary separates documents by {SEPARATOR!r} of its own: leave it out, or give a file")
        if isinstance(self.bpe, int):
            BpeTraining(vocab=self.bpe)  # refuses a size out of range

    @property
    def training(self) -> BpeTraining | None:
        """How a vocabulary is learnt; None where one is read."""
        return BpeTraining(vocab=self.bpe) if isinstance(self.bpe, int) else self.bpe

    def settings(self) -> dict[str, Any]:
        """What the config says, as JSON."""
        if self.training is not None:
            return {"bpe": attrs.asdict(self.training)}
        way = {"file": self.file} if self.file is not None else {"run": self.run}
        return way if self.separator is None else {**way, "separator": self.separator}

    def with_tokenizer(self, tokenizer: Tokenizer) -> TokenizerOptions:
        """The same options, for a run that has this tokenizer."""
        bound = attrs.evolve(self)
        object.__setattr__(bound, "kept", tokenizer)
        return bound

    def read(self) -> TokenizerFile | None:
        """The tokenizer that is used; None where one is to be learnt.

        Raises:
            DataError: the file, folder or run cannot be read, or holds no tokenizer.
        """
        if self.kept is not None:
            return tokenizer_in(self.kept)
        if self.file is not None:
            return tokenizer_at(self.file)
        return None if self.run is None else tokenizer_of_run(self.run)


TokenizerChoice = str | TokenizerOptions
"""`bytes`, or one of the others."""


def check_tokenizer(tokenizer: object) -> None:
    """Check that a tokenizer given as text is `bytes`.

    Raises:
        UserError: it is not.
    """
    if isinstance(tokenizer, str) and tokenizer != BYTES:
        raise UserError(f"tokenizer: {tokenizer!r} is none: write bytes, {{bpe: 4096}}, {{file: path/to/tokenizer.json}} or {{run: path}}")


def settings_of(tokenizer: TokenizerChoice) -> Mapping[str, Any]:
    """What the config says of a tokenizer, as JSON."""
    return {"tokenizer": BYTES} if isinstance(tokenizer, str) else tokenizer.settings()


def token_spec(tokenizer: TokenizerChoice) -> TensorSpec:
    """Ids below the vocabulary, with the unit that metrics need.

    Raises:
        DataError: the file of the tokenizer cannot be read.
    """
    unit = "byte" if isinstance(tokenizer, str) else None
    return TensorSpec("batch time", "int64", bounds=(0, vocab_size(tokenizer)), unit=unit)


def vocab_size(tokenizer: TokenizerChoice) -> int:
    """Number of ids: 256, as many as are asked for, or one more than the largest of the file, added tokens included.

    Raises:
        DataError: the file of the tokenizer cannot be read.
    """
    if isinstance(tokenizer, str):
        return 256
    if tokenizer.training is not None:
        return tokenizer.training.vocab
    file = tokenizer.read()
    assert file is not None
    return file.size


def pad_id(pad: int | None, tokenizer: TokenizerChoice) -> int:
    """The id after the end of a padded row: the one given, the pad token that the tokenizer names, or 0.

    Raises:
        DataError: the file of the tokenizer cannot be read.
    """
    if pad is not None or isinstance(tokenizer, str):
        return pad or 0
    file = tokenizer.read()
    return 0 if file is None else file.role("pad") or 0
