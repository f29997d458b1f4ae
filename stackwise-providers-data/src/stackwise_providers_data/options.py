"""The options of the loaders of text files, and the specs that they declare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from attrs import frozen

from stackwise import BatchSpec, EpochSize, Reading, option
from stackwise_providers_data.files import FileDocuments, check_globs, globbed, is_url, stdlib_files
from stackwise_providers_data.splits import part_for, part_of_split, readings
from stackwise_providers_data.text_options import HELDOUT, TextOptions
from stackwise_providers_data.tokenizer_options import BYTES, token_spec


@frozen(kw_only=True)
class FileCorpusOptions(TextOptions, ABC):
    """Text of files, one document each."""

    heldout: float | None = option(
        None,
        doc="share that only evaluations see: of the files, chosen by a hash of their path, or of their text where they are too few for "
        "that; 0.05 when left out, and nothing of a source that an evaluation alone reads",
        minimum=0,
        maximum=1,
    )

    @property
    def share(self) -> float:
        """The share held out."""
        return HELDOUT if self.heldout is None else self.heldout

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
        return self.epoch_of(self.documents().sizes(part_of_split(split)), between=1)

    def readings(self, split: str, whole: bool) -> Iterable[Reading]:
        """What is read of each file.

        Raises:
            DataError: none are found.
        """
        return self.documents().readings(part_for(split, whole, self.heldout))

    def count_epoch(self, split: str) -> EpochSize | None:
        """What one epoch holds, tokenized through the cache; None where rows depend on the longest row of the run.

        Raises:
            DataError: files that cannot be read or tokenized.
            UserError: a library is missing, or the cache cannot be written.
        """
        from stackwise_providers_data.corpus import open_corpus  # reads the data; the options alone read nothing

        return self.epoch_in(open_corpus(self.documents(), self.tokenizer, part_of_split(split)))


@frozen(kw_only=True)
class StdlibOptions(FileCorpusOptions):
    """The standard library's sources."""

    def documents(self) -> FileDocuments:
        """The library's files, its tests left out.

        Raises:
            DataError: none lie where the library says.
        """
        return FileDocuments("python-stdlib", stdlib_files(), self.share)


@frozen(kw_only=True)
class TextFilesOptions(FileCorpusOptions):
    """Files found by globs."""

    paths: tuple[str, ...] = option(doc="globs, `**` included, read from the working directory, or URLs that fsspec opens")

    def check(self) -> None:
        """Check the tokenizer and the globs.

        Raises:
            UserError: one of them is none.
        """
        super().check()
        check_globs(self.paths)

    def readings(self, split: str, whole: bool) -> Iterable[Reading]:
        """What is read of each file; files elsewhere are known by their URLs, and not fetched."""
        part, elsewhere = part_for(split, whole, self.heldout), [path for path in self.paths if is_url(path)]
        local = [path for path in self.paths if not is_url(path)]
        found = FileDocuments("text-files", globbed(local), self.share).readings(part) if local else []
        return [*found, *readings(elsewhere, part, self.share, "files")]

    def documents(self) -> FileDocuments:
        """The files that the globs find.

        Raises:
            DataError: a glob without a match.
        """
        from stackwise_providers_data.remote_files import located  # the cache, which the options do without

        return FileDocuments("text-files", located(self.paths), self.share)
