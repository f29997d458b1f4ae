"""The options of the loaders of records: lines of JSON, and rows of a dataset on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from stackwise import BatchSpec, EpochSize, Reading, TensorSpec, Tokenizer, UserError, dimension, option
from stackwise_providers_data.chat_options import TEMPLATE_DOC, Template, check_brings_template, check_template, open_template
from stackwise_providers_data.files import check_globs, globbed_names, parquet_files
from stackwise_providers_data.splits import part_for, part_of_split, readings
from stackwise_providers_data.text_options import HELDOUT, TextOptions
from stackwise_providers_data.tokenizer_options import BYTES, check_tokenizer, token_spec

if TYPE_CHECKING:
    from stackwise_providers_data.records import RecordDocuments, Records

Mode = Literal["text", "labelled", "features", "reply", "preference", "chat", "table"]

_FIELDS = ("text", "label", "features", "prompt", "response", "chosen", "rejected", "messages")
_MASK = TensorSpec("batch time", "bool")
_COUNT = TensorSpec("batch", "int64")
TOOLS = ("tools",)
"""What a conversation has beside its messages, where a record has it."""
_MODES: dict[frozenset[str], Mode] = {
    frozenset({"text"}): "text",
    frozenset({"text", "label"}): "labelled",
    frozenset({"features", "label"}): "features",
    frozenset({"prompt", "response"}): "reply",
    frozenset({"messages"}): "chat",
    frozenset({"chosen", "rejected"}): "preference",
    frozenset({"prompt", "chosen", "rejected"}): "preference",
}


def check_classes(classes: tuple[str, ...] | None) -> None:
    """Check that the classes have different names.

    Raises:
        UserError: a class is named twice, or there is none.
    """
    if classes is not None and (not classes or len(set(classes)) < len(classes)):
        raise UserError(f"classes: {list(classes)}: name at least one, and each once")


@frozen(kw_only=True)
class RecordOptions(TextOptions, ABC):
    """Which fields of a record are read, and what becomes of them."""

    text: str | None = option(None, doc="field with a document")
    label: str | None = option(None, doc="field with the class of the text or the features")
    classes: tuple[str, ...] | None = option(None, doc="labels that are text, in the order of their ids; labels are ids when left out")
    features: str | None = option(None, doc="field with a list of numbers")
    width: int | None = dimension("features", doc="numbers in such a list; those that the model takes when left out")
    prompt: str | None = option(None, doc="field with what is given")
    response: str | None = option(None, doc="field with what follows the prompt")
    chosen: str | None = option(None, doc="field with the better of two responses")
    rejected: str | None = option(None, doc="field with the worse of two responses")
    messages: str | None = option(
        None, doc='field with a conversation, [{"role": "user", "content": "…"}, …]: the assistant\'s turns are learnt'
    )
    template: Template = option(None, doc=TEMPLATE_DOC)
    layout: Literal["joined", "separate"] | None = option(
        None, doc="prompt and response as one row with the number of prompt tokens as `prefix` (the default), or as two rows"
    )
    heldout: float | None = option(
        None,
        doc="share of the records, chosen by a hash of their content, that only evaluations see; 0.05 when left out, and nothing of a "
        "source that an evaluation alone reads",
        minimum=0,
        maximum=1,
    )

    def check(self) -> None:
        """Check that the fields make an example together, and that every option has an effect.

        Raises:
            UserError: fields that make no example, or an option without effect.
        """
        mode = self.mode
        check_tokenizer(self.tokenizer)
        check_classes(self.classes)
        if mode in ("text", "chat"):
            super().check()
            self._refuse(("classes", "layout"), "text alone" if mode == "text" else "conversations")
            if mode == "chat":
                check_template(self.template, self.tokenizer)
            else:
                self._refuse(("template",), "text alone")
            return
        self._refuse(("template",), f"examples of {mode}")
        if self.rows not in (None, "padded"):
            raise UserError(f"rows: {self.rows} rows run through documents: examples of {mode} stand one a row: leave rows out")
        useless = {
            "labelled": ("layout", "overflow"),
            "features": ("layout", "pad", "overflow", "difficulty"),
            "reply": ("classes", "overflow"),
            "preference": ("classes", "layout", "overflow"),
        }
        self._refuse(useless[mode], f"examples of {mode}")
        if mode == "features" and self.tokenizer != BYTES:
            raise UserError("tokenizer: it has no effect on examples of features: leave it out")

    @property
    def share(self) -> float:
        """The share held out."""
        return HELDOUT if self.heldout is None else self.heldout

    @property
    def mode(self) -> Mode:
        """What the named fields are together.

        Raises:
            UserError: the fields make no example.
        """
        named = frozenset(key for key in _FIELDS if getattr(self, key))
        if named not in _MODES:
            ways = "; ".join(" + ".join(sorted(keys)) for keys in _MODES)
            raise UserError(f"the fields named are {', '.join(sorted(named)) or 'none'}: name those of one kind of example: {ways}")
        return _MODES[named]

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of the fields with text, in the order in which they are read."""
        return tuple(key for key in ("text", "messages", "prompt", "response", "chosen", "rejected") if getattr(self, key))

    @property
    def is_padded(self) -> bool:
        """Whether each row holds one document. For conversations this is the default."""
        return super().is_padded or (self.rows is None and self.messages is not None)

    def to_spec(self) -> BatchSpec:
        """The fields of a batch.

        Raises:
            DataError: the file of the tokenizer cannot be read.
        """
        mode = self.mode
        if mode == "text":
            return self.fields(token_spec(self.tokenizer))
        if mode == "chat":
            return BatchSpec(fields={**self.fields(token_spec(self.tokenizer)).fields, "loss_mask": _MASK})
        label = TensorSpec("batch", "int64", bounds=None if self.classes is None else (0, len(self.classes)))
        if mode == "features":
            return BatchSpec(fields={"features": TensorSpec(("batch", "features"), "float32"), "label": label})
        tokens = token_spec(self.tokenizer)
        if mode == "labelled":
            return BatchSpec(fields={"tokens": tokens, "mask": _MASK, "label": label})
        if mode == "reply" and self.layout == "separate":
            return BatchSpec(fields={"prompt": tokens, "prompt_mask": _MASK, "response": tokens, "response_mask": _MASK})
        if mode == "reply":
            return BatchSpec(fields={"tokens": tokens, "mask": _MASK, "prefix": _COUNT})
        return BatchSpec(fields={"chosen": tokens, "chosen_mask": _MASK, "rejected": tokens, "rejected_mask": _MASK, "prefix": _COUNT})

    @abstractmethod
    def records(self) -> Records:
        """Where the records come from.

        Raises:
            UserError: a library is missing.
            DataError: there are no such files.
        """

    def documents(self) -> RecordDocuments:
        """The records with what is read of them.

        Raises:
            UserError: a library is missing.
            DataError: there are no such files.
        """
        from stackwise_providers_data.records import RecordDocuments  # reads the data

        if self.mode == "chat":
            from stackwise_providers_data.chat import Conversations

            return Conversations(self.records(), self, open_template(self.template, self.tokenizer))
        return RecordDocuments(self.records(), self)

    @abstractmethod
    def places(self) -> Iterable[str]:
        """Names of the files that are read.

        Raises:
            DataError: there are no such files.
        """

    def readings(self, split: str, whole: bool) -> Iterable[Reading]:
        """What is read of each file: records are held out by a hash of the fields that are read of them.

        Raises:
            DataError: there are no such files.
        """
        return readings(self.places(), part_for(split, whole, self.heldout), self.share, self.wanted)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Every field that is read."""
        named = [getattr(self, key) for key in (*self.columns, "features", "label")]
        return tuple(dict.fromkeys(name for name in named if name))

    def count_epoch(self, split: str) -> EpochSize | None:
        """What one epoch holds, read through the cache; None where rows depend on the longest row of the run.

        Raises:
            DataError: records that cannot be read or tokenized.
            UserError: a library is missing, or the cache cannot be written.
        """
        from stackwise_providers_data.records import open_texts  # reads the data; the options alone read nothing

        documents, part = self.documents(), part_of_split(split)
        if self.mode == "text":
            return self.epoch_in(open_texts(documents, part))
        if self.mode == "chat":
            from stackwise_providers_data.chat import Conversations, open_conversations

            assert isinstance(documents, Conversations)
            return self.epoch_in(open_conversations(documents, part))
        if self.mode == "features":
            return EpochSize(rows=sum(1 for _ in documents.chosen(part)), repeats=self.repeat)
        return EpochSize(rows=len(open_texts(documents, part).starts) // len(self.columns), repeats=self.repeat)

    def tokenizer_settings(self) -> Mapping[str, Any] | None:
        """What the config says of the tokenizer, as JSON; None of features."""
        return None if self.mode == "features" else super().tokenizer_settings()

    def make_tokenizer(self, sources: Sequence[Any] | None) -> Tokenizer | None:
        """The tokenizer of these options, and with it the chat template that it brings.

        Raises:
            DataError: a file alone, whose template would not stay with the run; or what `TextOptions` raises.
            UserError: a library is missing, or the cache cannot be written.
        """
        if self.mode == "chat" and self.template is None:
            check_brings_template(self.tokenizer)
        return super().make_tokenizer(sources)

    def _refuse(self, keys: tuple[str, ...], where: str) -> None:
        for key in keys:
            if getattr(self, key) is not None:
                raise UserError(f"{key}: it has no effect on {where}: leave it out")


@frozen(kw_only=True)
class JsonlOptions(RecordOptions):
    """Files with a JSON object on every line."""

    paths: tuple[str, ...] = option(doc="globs, `**` included, read from the working directory, or URLs that fsspec opens")

    def check(self) -> None:
        """Check the fields and the globs.

        Raises:
            UserError: fields that make no example, an option without effect, or paths that are not globs.
        """
        super().check()
        check_globs(self.paths)

    def records(self) -> Records:
        """The lines of the files that the globs find."""
        from stackwise_providers_data.records import JsonLines  # reads the data

        return JsonLines(self.paths)

    def places(self) -> Iterable[str]:
        """The files that the globs find."""
        return globbed_names(self.paths)


@frozen(kw_only=True)
class HfDatasetOptions(RecordOptions):
    """A dataset of the datasets library, as its `save_to_disk` writes it, or as a folder of Parquet files."""

    path: str = option(doc="folder of the dataset, as `save_to_disk` wrote it or with Parquet files")
    part: str = option(
        "train", doc="which dataset is read where the folder holds several by name; of Parquet files those that it begins the name of"
    )

    def records(self) -> Records:
        """The rows of the dataset, or of the Parquet files in a folder that is not a saved dataset.

        Raises:
            UserError: the library that reads them is not installed.
            DataError: no such dataset, no such part of it, or a field that it has not.
        """
        from stackwise_providers_data.records import DatasetRows  # reads the data

        wanted = [name for key in (*self.columns, "label", "features") if (name := getattr(self, key))]
        optional = TOOLS if self.mode == "chat" else ()
        if (files := parquet_files(self.path, self.part)) is not None:
            from stackwise_providers_data.tabular_records import ParquetRows  # reads the data

            return ParquetRows(files, wanted, optional, "hf-dataset")
        return DatasetRows(self.path, self.part, wanted, optional)

    def places(self) -> Iterable[str]:
        """The part of the folder, or its Parquet files."""
        files = parquet_files(self.path, self.part)
        return [f"{Path(self.path).resolve()}, part '{self.part}'"] if files is None else globbed_names(files)
