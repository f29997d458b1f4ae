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
    """`embedding`, `rack` and `head` as the section `model:` of a config writes them: `use`, and options in their shortest form. What is
    left out is at its default."""
    tensors: Mapping[str, torch.Tensor]
    """Canonical name → tensor; tied ones under the first of their names. A mapping that makes each when it is asked for it keeps one in
    memory; it says by an attribute `shapes`, name → shape, what it would give, and is then asked for each once. One that makes a tensor of
    several may offer `copy_into(name, target) -> dtype`, which writes them into the target's rows instead."""
    weight_adapters: Mapping[str, Mapping[str, Any]] = Factory(dict)
    """Name → a weight adapter as `model.weight_adapters` of a config writes it, `use` and `select` among its keys; its tensors are
    `weight_adapters.<name>.<path>…`."""
    free: tuple[str, ...] = ()
    """`<part>.<option>` of options that change nothing of a model whose weights are given, as the deviation it was drawn with; a config
    may say of them what it likes, as of options that follow time."""
    notes: tuple[str, ...] = ()
    """What of the folder is not taken over though nothing is lost by it, a sentence each."""


class WeightFormat(Protocol):
    """A format of folders.

    Bad folders are the user's: `read` and `write` raise `UserError` with the file, what is wrong, and what to do. Every setting of a
    folder is used or refused by name, and so is every tensor.
    """

    def example(self) -> Mapping[str, Mapping[str, Any]]:
        """A tiny `model` section, as `StoredModel.model`, that the format can hold: the conformance kit writes it and reads it back."""
        ...

    def recognises(self, folder: Path) -> bool:
        """Whether a folder is of this format, from its names and small files; any folder may be asked about."""
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
            origin: the folder of this format that the run began from, if it is still there: what the format keeps beside the model (ids of
                special tokens, say) is taken over from it.
            tokenizer: the files of the tokenizer that the run's data were made with, by name; empty where there is none, or several.

        Raises:
            UserError: the format has no words for this model; all reasons are named.
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
    """What a format may offer beside: configs of its tool become configs here, for `stackwise migrate`."""

    def translates(self, document: Mapping[str, Any]) -> bool:
        """Whether a document is a config of its tool; any document may be asked about."""
        ...

    def translate(self, document: Mapping[str, Any]) -> TranslatedConfig:
        """The config that a document means.

        Raises:
            UserError: it cannot be understood.
        """
        ...
