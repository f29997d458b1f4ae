"""The options of the loader of files of arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from stackwise import BatchSpec, DataError, EpochSize, Reading, TensorSpec, UserError, dimension, option
from stackwise_providers_data.array_headers import StoredArray, find_array
from stackwise_providers_data.array_shapes import is_token_stream, refuse_unequal, row_spec, time_fields
from stackwise_providers_data.row_options import RowOptions
from stackwise_providers_data.splits import part_for, part_of_split, readings, rows_of


@frozen(kw_only=True)
class ArrayFilesOptions(RowOptions):
    """Arrays in npy, npz or safetensors files. A single integer array with one axis is a stream of tokens; anything else is rows."""

    files: Mapping[str, str] = option(doc="field → `a.npy`, `a.npz:key` or `a.safetensors:key`, from the working directory")
    documents: str | None = option(None, doc="for a stream: the array with the place where each document begins, from 0 and rising")
    vocab: int | None = dimension("vocab", doc="number of token ids in a stream; the model's when left out")
    time: tuple[str, ...] | None = option(
        None, doc="of rows: fields whose second axis is cut to the row's length; the integer ones with two axes when left out"
    )
    heldout: float | None = option(
        None,
        doc="share at the end of the arrays (of the documents) that only evaluations see; nothing when left out",
        minimum=0,
        maximum=1,
    )

    def check(self) -> None:
        """Check that every option has an effect, and that fields and documents are named.

        Raises:
            UserError: an option without effect, or fields or documents without names.
        """
        super().check()
        if not isinstance(self.files, Mapping) or not self.files:
            raise UserError(f"files: {self.files!r} names no array: write {{tokens: corpus.npy}}")
        if unknown := sorted(set(self.time or ()) - set(self.files)):
            raise UserError(f"time: there is no field '{unknown[0]}'; the files are of {', '.join(map(str, self.files))}")
        if self.rows in ("packed", "padded") and self.documents is None:
            raise UserError(f"rows: {self.rows} rows need to know where documents begin: name an array under `documents`")

    def arrays(self) -> dict[str, StoredArray]:
        """The arrays by field, from their headers.

        Raises:
            DataError: a file that cannot be read or is damaged, arrays without rows, fields of unequal numbers of rows.
        """
        arrays = {field: find_array(field, reference) for field, reference in self.files.items()}
        for array in arrays.values():
            if not array.shape.sizes or 0 in array.shape.sizes:
                raise DataError(f"{array.label}: a shape of {list(array.shape.sizes)} holds no row: give at least one")
        refuse_unequal("files", {field: array.shape for field, array in arrays.items()})
        return arrays

    def is_stream(self, arrays: Mapping[str, StoredArray]) -> bool:
        """Whether the arrays are a stream of tokens.

        Raises:
            UserError: the arrays are rows, and an option is for streams only.
        """
        stream = is_token_stream({field: array.shape for field, array in arrays.items()})
        if not stream:
            for key in ("rows", "documents", "difficulty", "vocab"):
                if getattr(self, key) is not None:
                    raise UserError(f"{key}: it has an effect on one stream of tokens only, and these are rows: leave it out")
        elif self.time is not None:
            raise UserError("time: it has an effect on rows only, and this is a stream of tokens: leave it out")
        return stream

    def time_fields(self) -> frozenset[str]:
        """Fields whose second axis is time."""
        return time_fields(self.time, {field: array.shape for field, array in self.arrays().items()})

    def to_spec(self) -> BatchSpec:
        """A stream of token ids, or the fields with their own sizes.

        Raises:
            DataError: a file that cannot be read or is damaged.
        """
        arrays = self.arrays()
        if not self.is_stream(arrays):
            return row_spec({field: array.shape for field, array in arrays.items()}, self.time_fields())
        (field,) = arrays
        added = self.fields(TensorSpec("batch time", "int64", bounds=(0, "vocab"))).fields
        return BatchSpec(fields={field if name == "tokens" else name: spec for name, spec in added.items()})

    def epoch_size(self, split: str) -> EpochSize | None:
        """Entries or rows of a split, from the headers; None where the documents would have to be read.

        Raises:
            DataError: a file that cannot be read or is damaged.
        """
        arrays = self.arrays()
        total = next(iter(arrays.values())).shape.sizes[0]
        count = len(range(total)[rows_of(part_of_split(split), total, self.heldout)])
        if not self.is_stream(arrays):
            return EpochSize(rows=count, repeats=self.repeat)
        return EpochSize(entries=count, repeats=self.repeat) if self.documents is None else None

    def readings(self, split: str, whole: bool) -> Iterable[Reading]:
        """What is read of each array; the share at its end is held out.

        Raises:
            DataError: a file that cannot be read or is damaged.
        """
        names = [f"{array.path.resolve()}{f':{array.key}' if array.key else ''}" for array in self.arrays().values()]
        return readings(names, part_for(split, whole, self.heldout), self.heldout or 0.0, "from the end")
