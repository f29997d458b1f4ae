"""The options of the loaders of tables: columns as records of text, or as numbers and categories."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import attrs
from attrs import frozen

from stackwise import BatchSpec, EpochSize, TensorSpec, TextCodec, Tokenizer, UserError, option
from stackwise_providers_data.files import check_globs, globbed_names
from stackwise_providers_data.record_options import TOOLS, Mode, RecordOptions, check_classes
from stackwise_providers_data.splits import part_of_split
from stackwise_providers_data.tokenizer_options import BYTES, TokenizerOptions

if TYPE_CHECKING:
    import torch

    from stackwise_providers_data.records import RecordDocuments, Records
    from stackwise_providers_data.tables import TableDocuments
    from stackwise_providers_data.tabular_records import CellType

_TEXT_KEYS = ("text", "features", "prompt", "response", "chosen", "rejected", "messages", "template", "layout")
_ROW_KEYS = ("width", "rows", "pad", "overflow", "difficulty")


@frozen(kw_only=True)
class TableOptions(RecordOptions, ABC):
    """Records, or rows of numbers and categories with a target or a label."""

    numbers: tuple[str, ...] | None = option(
        None, doc="columns of numbers, read as `features`: less their mean, over their deviation, both of the rows that training sees"
    )
    categories: Mapping[str, int | tuple[str, ...]] | None = option(
        None,
        doc="columns of categories, each with its values, or with how many it has at most: the most frequent ones of the rows that "
        "training sees",
    )
    target: tuple[str, ...] | None = option(
        None, doc="columns of numbers that are predicted; their mean and deviation are taken out of them as well"
    )
    missing: Literal["refuse", "fill"] | None = option(
        None,
        doc="numbers and categories without a value: an error (the default), or the mean and the unknown category",
        choices=("refuse", "fill"),
    )
    unknown: Literal["refuse", "vector"] | None = option(
        None,
        doc="categories that are none of the values: an error, or a vector that each column has for them (the default), with a line that "
        "says how many",
        choices=("refuse", "vector"),
    )

    def check(self) -> None:
        """Check that the columns make an example together, and that every option has an effect.

        Raises:
            UserError: fields that make no example, or an option without effect.
        """
        if not self.is_table:
            self._refuse(("missing", "unknown"), "examples without numbers and categories")
            super().check()
            return
        self._refuse((*_TEXT_KEYS, *_ROW_KEYS), "a table of numbers and categories")
        if self.kept is None and self.tokenizer != BYTES:
            raise UserError("tokenizer: it has no effect on a table of numbers and categories: leave it out")
        if not self.numbers:
            raise UserError("numbers: a table has at least one column of numbers: name one, as numbers: [age]")
        if (self.target is None) == (self.label is None):
            raise UserError("target: a table has either target: [column] of numbers to predict, or label: column of classes: name one")
        if self.classes is not None and self.label is None:
            raise UserError("classes: they belong to a label, and there is none: leave them out")
        check_classes(self.classes)
        self._check_columns()

    def _check_columns(self) -> None:
        if self.target == ():
            raise UserError("target: it names no column: write target: [price]")
        names = self.table_columns
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UserError(f"'{twice[0]}' is named twice: a column is a number, a category, or what is predicted")
        for column, values in self.rooms.items():
            if isinstance(values, tuple) and (len(values) != len(set(values)) or not values):
                raise UserError(f"categories.{column}: name at least one value, and each once")
            if isinstance(values, int) and values < 1:
                raise UserError(f"categories.{column}: {values} is not a number of values: write at least 1, or the values")

    @property
    def is_table(self) -> bool:
        """Whether columns are read as numbers and categories."""
        return self.numbers is not None or self.categories is not None or self.target is not None

    @property
    def kept(self) -> Tokenizer | None:
        """The encoding of the run that these options belong to; None where they learn their own."""
        return self.tokenizer.kept if self.is_table and isinstance(self.tokenizer, TokenizerOptions) else None

    @property
    def mode(self) -> Mode:
        """What the named columns are together.

        Raises:
            UserError: the fields make no example.
        """
        return "table" if self.is_table else super().mode

    @property
    def rooms(self) -> Mapping[str, int | tuple[str, ...]]:
        """Column of categories → its values, or how many it has at most."""
        return self.categories or {}

    @property
    def table_columns(self) -> tuple[str, ...]:
        """Every column of a table, in the order in which they are read."""
        return (*(self.numbers or ()), *self.rooms, *(self.target or ()), *((self.label,) if self.label else ()))

    @property
    def wanted(self) -> tuple[str, ...]:
        """Every column that is read, of a table or of records."""
        return self.table_columns if self.is_table else super().wanted

    @property
    def vectors(self) -> int:
        """Ids of categories: one for every row, one for what each column does not know, and one for each value."""
        return 1 + sum(1 + (len(values) if isinstance(values, tuple) else values) for values in self.rooms.values())

    def to_spec(self) -> BatchSpec:
        """The fields of a batch.

        Raises:
            DataError: the file of a tokenizer cannot be read.
        """
        if not self.is_table:
            return super().to_spec()
        fields = {
            "features": TensorSpec(("batch", len(self.numbers or ())), "float32"),
            "categories": TensorSpec(("batch", 1 + len(self.rooms)), "int64", bounds=(0, self.vectors)),
        }
        if self.target is not None:
            target = TensorSpec(("batch", len(self.target)), "float32")
            return BatchSpec(fields={**fields, "target": target, "target_std": target})
        bounds = None if self.classes is None else (0, len(self.classes))
        return BatchSpec(fields={**fields, "label": TensorSpec("batch", "int64", bounds=bounds)})

    def documents(self) -> RecordDocuments:
        """The records with what is read of them.

        Raises:
            UserError: a library is missing.
            DataError: there are no such files.
        """
        return self.table() if self.is_table else super().documents()

    def table(self) -> TableDocuments:
        """The rows with what is read of them as numbers and categories.

        Raises:
            UserError: a library is missing.
            DataError: there are no such files.
        """
        from stackwise_providers_data.tables import TableDocuments  # reads the data

        return TableDocuments(self.records(), self)

    def rows_of(self, file: str, rows: int) -> Iterator[Mapping[str, torch.Tensor]]:
        """The rows of another file as the run reads its own: `features` and `categories`, without what is predicted.

        Raises:
            DataError: a file that cannot be read, or a row that does not hold what is asked.
            UserError: records that are not table, or a table without the encoding of a run.
        """
        from stackwise_providers_data.tables import read_unlabelled  # reads the data

        if not self.is_table or self.kept is None:
            raise UserError("rows of another file are read for tables of a run: numbers, categories, and what the run has learnt of them")
        return read_unlabelled(self, file, rows, self.kept)

    def records_of(self, file: str, wanted: Sequence[str]) -> Records:
        """The rows of another file: JSON lines or Parquet where its name says so, else lines of cells."""
        from stackwise_providers_data.tabular_records import ObjectRows, ParquetRows  # reads the data

        match file.lower().rpartition(".")[2]:
            case "jsonl" | "ndjson":
                return ObjectRows((file,), wanted)
            case "parquet":
                return ParquetRows((file,), wanted)
        return self.lines_of(file, wanted)

    def lines_of(self, file: str, wanted: Sequence[str]) -> Records:
        """The rows of another file of lines of cells with commas between them."""
        from stackwise_providers_data.tabular_records import CsvRows  # reads the data

        return CsvRows((file,), wanted, self.cell_types(), frozenset(("",)), ",")

    def cell_types(self) -> dict[str, CellType]:
        """Column → what a cell of text there stands for."""
        types: dict[str, CellType] = dict.fromkeys((*(self.numbers or ()), *(self.target or ())), "number")
        types |= dict.fromkeys(self.rooms, "category")
        if self.label is not None:
            types[self.label] = "whole number" if self.classes is None else "category"
        return types

    def tell(self, predictions: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Predictions by row: a number under the name of its column, in its units; a class by its name, and probabilities by class."""
        from stackwise_providers_data.tables import tell_rows  # reads the encoding

        assert self.kept is not None  # rows were read with it
        return tell_rows(self, predictions, self.kept)

    def count_epoch(self, split: str) -> EpochSize | None:
        """What one epoch holds; None where rows depend on the longest row of the run.

        Raises:
            DataError: records that cannot be read or tokenized.
            UserError: a library is missing, or the cache cannot be written.
        """
        if not self.is_table:
            return super().count_epoch(split)
        return EpochSize(rows=sum(1 for _ in self.table().chosen(part_of_split(split))), repeats=self.repeat)

    def tokenizer_settings(self) -> Mapping[str, Any] | None:
        """What decides how text or a table becomes what a model reads, as JSON."""
        if not self.is_table:
            return super().tokenizer_settings()
        rooms = {column: list(values) if isinstance(values, tuple) else values for column, values in self.rooms.items()}
        return {"table": {"numbers": list(self.numbers or ()), "categories": rooms, "target": list(self.target or ())}}

    def make_tokenizer(self, sources: Sequence[Any] | None) -> Tokenizer | None:
        """The tokenizer of the text, or the encoding of a table: means, deviations, values, learnt from the training rows of all `sources`.

        Args:
            sources: options of the sources that share it; None: no data is read, and None is returned where it would have to be.

        Raises:
            DataError: a file that cannot be read, or rows that nothing can be learnt from.
            UserError: a library is missing, or the cache cannot be written.
        """
        if not self.is_table:
            return super().make_tokenizer(sources)
        if sources is None:
            return None
        from stackwise_providers_data.tables import learn_encoding  # reads the data

        return learn_encoding(self, [source.table() for source in sources]).as_tokenizer()

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """The same options, whose loader uses the tokenizer or the encoding of the run."""
        if not self.is_table:
            return super().with_tokenizer(tokenizer)
        from stackwise_providers_data.tables import ENCODING  # numpy, which options do without

        return attrs.evolve(self, tokenizer=TokenizerOptions(file=ENCODING).with_tokenizer(tokenizer))

    @staticmethod
    def codec_of(tokenizer: Tokenizer) -> TextCodec:
        """Text ↔ ids.

        Raises:
            UserError: a table, which is not text, or the tokenizers library is not installed.
            DataError: the files are not a tokenizer.
        """
        from stackwise_providers_data.tables import ENCODING  # numpy, which options do without

        if ENCODING in tokenizer.files:
            raise UserError("the data are a table of numbers and categories, which is not text")
        return RecordOptions.codec_of(tokenizer)


@frozen(kw_only=True)
class ParquetOptions(TableOptions):
    """Rows of Parquet files."""

    paths: tuple[str, ...] = option(doc="globs, `**` included, read from the working directory, or URLs that fsspec opens")

    def check(self) -> None:
        """Check the columns and the globs.

        Raises:
            UserError: columns that make no example, an option without effect, or paths that are not globs.
        """
        super().check()
        check_globs(self.paths)

    def records(self) -> Records:
        """The rows of the files that the globs find."""
        from stackwise_providers_data.tabular_records import ParquetRows  # reads the data

        return ParquetRows(self.paths, self.wanted, TOOLS if self.mode == "chat" else ())

    def places(self) -> Iterable[str]:
        """The files that the globs find."""
        return globbed_names(self.paths)


@frozen(kw_only=True)
class CsvOptions(TableOptions):
    """Rows of CSV files, whose first line names the columns."""

    paths: tuple[str, ...] = option(doc="globs, `**` included, read from the working directory, or URLs that fsspec opens")
    delimiter: str = option(",", doc="the one character between two cells")
    empty: tuple[str, ...] = option(("",), doc="cells of numbers, categories, targets and labels that hold no value, as ['', NA]")

    def check(self) -> None:
        """Check the columns, the globs and the delimiter.

        Raises:
            UserError: columns that make no example, an option without effect, paths that are not globs, or no single character.
        """
        super().check()
        check_globs(self.paths)
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise UserError(f"delimiter: {self.delimiter!r} is not one character that can stand between cells: write ',', ';' or \"\\t\"")
        if self.features is not None or self.messages is not None:
            raise UserError("features, messages: cells of a CSV hold no lists: name columns under numbers, or use jsonl or parquet")

    def records(self) -> Records:
        """The rows of the files that the globs find."""
        from stackwise_providers_data.tabular_records import CsvRows  # reads the data

        return CsvRows(self.paths, self.wanted, self.cell_types(), frozenset(self.empty), self.delimiter)

    def lines_of(self, file: str, wanted: Sequence[str]) -> Records:
        """The rows of another file, with the delimiter and the empty cells of the run's own."""
        from stackwise_providers_data.tabular_records import CsvRows  # reads the data

        return CsvRows((file,), wanted, self.cell_types(), frozenset(self.empty), self.delimiter)

    def places(self) -> Iterable[str]:
        """The files that the globs find."""
        return globbed_names(self.paths)
