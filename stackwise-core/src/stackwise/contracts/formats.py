"""Formats: how a folder that another tool wrote becomes a model here, and how a model becomes such a folder.

A format's factory is called with (options, context), like any other. The smallest one keeps a linear model as JSON:

```python
class Plain:
    def example(self):
        return {"rack": {"use": "demo.rack", "width": 4}, …}

    def recognises(self, folder):
        return (folder / "model.json").is_file()

    def read(self, folder):
        saved = json.loads((folder / "model.json").read_text())
        rack = {"use": "demo.rack", "width": saved["width"]}
        return StoredModel(model={"rack": rack, …}, tensors={"rack.stacks.base.0.weight": torch.tensor(saved["weight"]), …})

    def write(self, model, folder, origin, tokenizer):
        saved = {"width": model.rack.options.width, "weight": model.rack.stacks["base"][0].weight.tolist()}
        (folder / "model.json").write_text(json.dumps(saved))
```
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import Factory, frozen

if TYPE_CHECKING:
    import torch


@frozen(kw_only=True)
class StoredModel:
    """A model as a folder holds it."""

    model: Mapping[str, Mapping[str, Any]]
    """`embedding`, `rack` and `head` as in the section `model:` of a config: `use`, and the options that differ from their defaults."""
    tensors: Mapping[str, torch.Tensor]
    """Canonical name → tensor; tied tensors under the first of their names. To keep only one tensor in memory, this may be a mapping that
    reads each tensor when it is accessed. It then has an attribute `shapes`, name → shape, and each tensor is accessed once. If tensors
    are made from several stored ones, it may also have `copy_into(name, target) -> dtype`, which writes them into rows of `target`."""
    weight_adapters: Mapping[str, Mapping[str, Any]] = Factory(dict)
    """Name → a weight adapter as `model.weight_adapters` of a config writes it, `use` and `select` among its keys; its tensors are
    `weight_adapters.<name>.<path>…`."""
    free: tuple[str, ...] = ()
    """`<part>.<option>` of options that have no effect once weights are given, such as the deviation of the initialisation. A config may
    set them to any value, like scheduled options."""
    notes: tuple[str, ...] = ()
    """A sentence for each setting of the folder that is not taken over, although the model stays the same."""


class WeightFormat(Protocol):
    """A format of folders.

    A damaged or unsuitable folder is a mistake of the user: `read` and `write` raise `UserError` with the file, what is wrong, and what
    to do. Every setting and every tensor of a folder must be used, or refused by name.
    """

    def example(self) -> Mapping[str, Mapping[str, Any]]:
        """A tiny `model` section, as `StoredModel.model`, that the format can hold: the conformance kit writes it and reads it back."""
        ...

    def recognises(self, folder: Path) -> bool:
        """Whether a folder is of this format, judged by file names and small files. It must work for any folder."""
        ...

    def read(self, folder: Path) -> StoredModel:
        """The model of a folder.

        Raises:
            UserError: it cannot be a model of installed parts, or a file is damaged.
        """
        ...

    def write(self, model: Any, folder: Path, origin: Path | None, tokenizer: Mapping[str, bytes]) -> None:
        """Write a model's files into a folder that is there and empty.

        Args:
            model: a `stackwise.Model` on the CPU, with `embedding`, `rack` and `head` as their factories built them. A format with an
                attribute `holds_weight_adapters` that is true may get one with weight adapters: `model.attached`, (name, path of
                the module) → the adapter.
            folder: where to write; the caller forces it to disk and renames it.
            origin: the folder of this format that the run began from, if it still exists: other files and settings of the format, such as
                ids of special tokens, are copied from it.
            tokenizer: the files of the tokenizer that the run's data were made with, by name; empty where there is none, or several.

        Raises:
            UserError: the format cannot express this model; all reasons are named.
        """
        ...


@runtime_checkable
class NotesFolders(Protocol):
    """A format that can say from a folder's small files what is not taken over: a run that begins there repeats it in its log."""

    def notes(self, folder: Path) -> tuple[str, ...]:
        """A sentence each."""
        ...


@frozen(kw_only=True)
class TranslatedConfig:
    """A config of another tool, as one of StackWise."""

    text: str
    """YAML, complete and commented."""
    dropped: tuple[str, ...] = ()
    """A sentence for each key that has no meaning here, its name first."""


class TranslatesConfigs(Protocol):
    """A format that can also translate configs of its tool, for `stackwise migrate`."""

    def translates(self, document: Mapping[str, Any]) -> bool:
        """Whether a document is a config of its tool. It must work for any document."""
        ...

    def translate(self, document: Mapping[str, Any]) -> TranslatedConfig:
        """The config that a document means.

        Raises:
            UserError: it cannot be understood.
        """
        ...
