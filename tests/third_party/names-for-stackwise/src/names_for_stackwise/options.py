"""The options of every component, and the spec that each declares. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from names_for_stackwise.names import ALPHABET, KINDS, encode
from stackwise import (
    BatchSpec,
    DataError,
    EmbeddingSpec,
    HeadSpec,
    RackSpec,
    Stack,
    TaskSpec,
    TensorSpec,
    dimension,
    option,
    stacks,
)

LETTERS = TensorSpec("batch time", "int64", bounds=(0, 1 + len(ALPHABET)))
KIND = TensorSpec("batch", "int64", bounds=(0, len(KINDS)))
LOGITS = TensorSpec(("batch", len(KINDS)))


@frozen(kw_only=True)
class NamesOptions:
    """Options of the loader."""

    shuffle: bool = option(True, doc="whether every epoch of training has an order of its own")

    def to_spec(self) -> BatchSpec:
        """Letters of names, and the kind of each character."""
        return BatchSpec(fields={"letters": LETTERS, "kind": KIND})

    def rows_of(self, file: str, rows: int) -> Iterator[Mapping[str, Any]]:
        """Names of another file, one a line."""
        import torch

        lines = Path(file).read_text(encoding="utf-8").split("\n")
        names = [line.strip().upper() for line in lines if line.strip()]
        if odd := [name for name in names if not set(name) <= set(ALPHABET)]:
            raise DataError(f"{file}: '{odd[0]}' is no name of a character: letters, digits, blanks and '-'")
        for first in range(0, len(names), rows):
            yield {"letters": torch.tensor([encode(name) for name in names[first : first + rows]])}

    def tell(self, predictions: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Kinds by their letter."""
        columns = {name: tensor.tolist() for name, tensor in predictions.items()}
        columns |= {"kind": [KINDS[i] for i in columns["kind"]]} if "kind" in columns else {}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@frozen(kw_only=True)
class LettersOptions:
    """Options of the embedding."""

    width: int = dimension("width", doc="features at each letter")

    def to_spec(self) -> EmbeddingSpec:
        """Letters in; the hidden state has the usual form, batch time width."""
        return EmbeddingSpec(inputs={"letters": LETTERS})


@frozen(kw_only=True)
class ReaderOptions:
    """Options of the rack."""

    width: int = dimension("width", doc="features at each letter")
    stacks: tuple[Stack, ...] = stacks(doc="blocks in forward order")

    def to_spec(self) -> RackSpec:
        """A letter sees both sides; a block whose `out` is zero is the identity."""
        blocks = {stack.name: stack.blocks for stack in self.stacks}
        return RackSpec(attention=("bidirectional",), stacks=blocks, residual_outputs=("out.weight",))


@frozen(kw_only=True)
class KindsOptions:
    """Options of the head."""

    width: int = dimension("width", doc="features at each letter")

    def to_spec(self) -> HeadSpec:
        """A logit for every kind."""
        return HeadSpec(outputs={"logits": LOGITS})


@frozen(kw_only=True)
class KindOptions:
    """Options of the task."""

    smoothing: float = option(0.05, doc="share of each target that is spread over all kinds", minimum=0, below=1)

    def to_spec(self) -> TaskSpec:
        """Letters and kinds from the loader; the model sees the letters."""
        fields = {"letters": LETTERS, "kind": KIND}
        return TaskSpec(batch=fields, inputs={"letters": LETTERS}, outputs={"logits": LOGITS}, metrics=("accuracy",))


@frozen(kw_only=True)
class RateOptions:
    """Options of the schedule."""

    peak: float = option(doc="highest value", minimum=0)
    warmup: int = option(20, doc="steps of the rise", minimum=1)
