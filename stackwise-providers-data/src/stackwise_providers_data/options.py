"""The options of the loaders of files and of memory, and the specs they declare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from stackwise import BatchSpec, EpochSize, TensorSpec, TextCodec, UserError, dimension, option
from stackwise_providers_data.array_shapes import ArrayShape, array_shapes, identity, is_token_stream, row_spec, time_fields
from stackwise_providers_data.files import FileDocuments, check_globs, globbed, stdlib_files
from stackwise_providers_data.row_options import RowOptions
from stackwise_providers_data.tokenizer_options import BYTES, Tokenizer, check_tokenizer, token_spec

_HELDOUT_FILES = "share of the files, chosen by a hash of their path, that only evaluations see"
TOKENIZER_DOC = "`bytes`, {bpe: {vocab: 4096}} learnt from the training split, or {file: tokenizer.json}"


@frozen(kw_only=True)
class FileCorpusOptions(RowOptions, ABC):
    """Text of files, one document each."""

    tokenizer: Tokenizer = option(BYTES, doc=TOKENIZER_DOC)
    heldout: float = option(0.05, doc=_HELDOUT_FILES, minimum=0, maximum=1)

    def check(self) -> None:
        """Refuse options that cannot be.

        Raises:
            UserError: so it is.
        """
        super().check()
        check_tokenizer(self.tokenizer)

    @abstractmethod
    def documents(self) -> FileDocuments:
        """The files.

        Raises:
            DataError: none are found.
        """

    def to_spec(self) -> BatchSpec:
        """Rows of ids.

        Raises:
            DataError: the file of the tokenizer cannot be read.
        """
        return self.fields(token_spec(self.tokenizer))

    def epoch_size(self, split: str) -> EpochSize | None:
        """What one epoch holds, from the sizes of the files; None where only a tokenizer could say.

        Raises:
            DataError: no files for the split.
        """
        if self.tokenizer != BYTES:
            return None
        return self.epoch_of(self.documents().sizes(held=split != "train"), between=1)

    def count_epoch(self, split: str) -> EpochSize | None:
        """What one epoch holds, tokenized through the cache; None where rows depend on the longest row of the run.

        Raises:
            DataError: files that cannot be read or tokenized.
            UserError: a library is missing, or the cache cannot be written.
        """
        from stackwise_providers_data.corpus import open_corpus  # reads the data; the options alone read nothing

        return self.epoch_in(open_corpus(self.documents(), self.tokenizer, held=split != "train"))

    def text_codec(self, fingerprint: Mapping[str, Any]) -> TextCodec:
        """Text ↔ the ids that are delivered.

        Raises:
            DataError: the vocabulary is another one than that of the fingerprint, or cannot be had any more.
        """
        from stackwise_providers_data.text_codec import open_codec  # reads a cache; the options alone read nothing

        return open_codec(self.documents, self.tokenizer, fingerprint)


@frozen(kw_only=True)
class StdlibOptions(FileCorpusOptions):
    """The standard library's sources."""

    def documents(self) -> FileDocuments:
        """The library's files, its tests left out.

        Raises:
            DataError: none lie where the library says.
        """
        return FileDocuments("python-stdlib", stdlib_files(), self.heldout)


@frozen(kw_only=True)
class TextFilesOptions(FileCorpusOptions):
    """Files found by globs."""

    paths: tuple[str, ...] = option(doc="globs, `**` included, read from the working directory")

    def check(self) -> None:
        """Refuse options that cannot be.

        Raises:
            UserError: so it is.
        """
        super().check()
        check_globs(self.paths)

    def documents(self) -> FileDocuments:
        """The files that the globs find.

        Raises:
            DataError: a glob without a match.
        """
        return FileDocuments("text-files", globbed(self.paths), self.heldout)


@frozen(kw_only=True)
class MemoryOptions:
    """Arrays that are already in memory.

    Two values are equal when they hold the same array objects: contents are not compared.
    """

    arrays: Any = field(
        eq=identity,
        hash=False,
        repr=lambda arrays: f"{{{', '.join(map(str, arrays))}}}",
        metadata={
            "doc": "field → array (numpy, torch, nested lists): one integer array with one axis is a stream of tokens, all else are rows"
        },
    )
    vocab: int | None = dimension("vocab", doc="number of token ids in a stream; the model's when left out")
    time: tuple[str, ...] | None = option(
        None, doc="fields whose second axis is time, cut to the row's length; the integer ones with two axes when left out"
    )
    heldout: float = option(0.0, doc="share at the end of the arrays that only evaluations see", minimum=0, maximum=1)
    shuffle: bool = option(True, doc="whether every epoch has an order of its own")
    repeat: bool = option(True, doc="whether another epoch follows the first; without, asking for more is an error")

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.arrays, Mapping) or not self.arrays:
            raise UserError(f"arrays: a {type(self.arrays).__name__} where fields with their arrays belong: write {{tokens: [...]}}")
        if unknown := sorted(set(self.time or ()) - set(self.arrays)):
            raise UserError(f"time: there is no field '{unknown[0]}'; the arrays are {', '.join(map(str, self.arrays))}")

    def shapes(self) -> dict[str, ArrayShape]:
        """Shape and dtype of every array.

        Raises:
            DataError: ragged lists, or arrays without rows.
        """
        return array_shapes(self.arrays)

    def time_fields(self) -> frozenset[str]:
        """Fields whose second axis is time."""
        return time_fields(self.time, self.shapes())

    def to_spec(self) -> BatchSpec:
        """A stream of token ids, or the fields with their own sizes.

        Raises:
            DataError: ragged lists, or arrays without rows.
        """
        shapes = self.shapes()
        if is_token_stream(shapes):
            return BatchSpec(fields={name: TensorSpec("batch time", "int64", bounds=(0, "vocab")) for name in shapes})
        if self.vocab is not None:
            raise UserError("vocab: it has an effect on one stream of tokens only, and these are rows: leave it out")
        return row_spec(shapes, self.time_fields())

    def epoch_size(self, split: str) -> EpochSize:
        """Entries of a stream, or rows, of a split.

        Raises:
            DataError: ragged lists, or arrays without rows.
        """
        shapes = self.shapes()
        rows = next(iter(shapes.values())).sizes[0]
        held = round(self.heldout * rows)
        count = rows - held if split == "train" else held
        return EpochSize(entries=count, repeats=self.repeat) if is_token_stream(shapes) else EpochSize(rows=count, repeats=self.repeat)
