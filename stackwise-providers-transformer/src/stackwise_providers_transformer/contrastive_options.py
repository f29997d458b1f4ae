"""The options of contrastive learning: the task and the head."""

from __future__ import annotations

from typing import Literal

from attrs import evolve, frozen

from stackwise import HeadSpec, TaskSpec, TensorSpec, UserError, dimension, option, scheduled
from stackwise_providers_transformer.classification_options import ROW_INPUTS, RowInput, row_attention, row_fields, row_side

_HIDDEN = TensorSpec("batch time width")
_MASK = TensorSpec("batch time", "bool")
_VECTOR = TensorSpec("batch vector")

OTHER = "other_"
"""Prefix of the field names of the second view."""


@frozen(kw_only=True)
class ContrastiveOptions:
    """Each view of a row is to find the other view of that row among those of the batch."""

    input: RowInput = option(
        "tokens",
        doc="what is read: `tokens`, `image` [rows, columns, channels], `features`, or `features` with `categories` (table)",
        choices=ROW_INPUTS,
    )
    views: Literal["pair", "same"] = option(
        "pair",
        doc="whether the second view is delivered too, in fields called `other_…`, or is the row once more, which dropout and transforms "
        "tell from the first (SimCSE)",
        choices=("pair", "same"),
    )
    temperature: float = scheduled(0.07, doc="similarities are divided by it", minimum=1e-4)
    attention: Literal["bidirectional", "causal"] | None = option(
        None,
        doc="attention that the rack is asked for; bidirectional when left out, of features and tables none",
        choices=("bidirectional", "causal"),
    )

    def to_spec(self) -> TaskSpec:
        """Two rows of each kind, one vector for each; the loss is of the whole batch at once."""
        fields, side = row_fields(self.input), row_side(self.input)
        second = {f"{OTHER}{name}": field for name, field in fields.items()} if self.views == "pair" else {}
        masks = {"mask": _MASK, **({f"{OTHER}mask": _MASK} if second else {})} if side else {}
        return TaskSpec(
            batch={**fields, **second},
            optional={**masks, **({"segments": side["segments"]} if side else {})},
            inputs={**fields, **({"mask": _MASK} if side else {})},
            outputs={"vector": _VECTOR},
            attention=row_attention(self.input, self.attention),
            metrics=("accuracy",),
            couples="rows",
            reconstructs=self.views == "same",
        )


@frozen(kw_only=True)
class VectorOptions:
    """A vector for a whole row."""

    vector: int = option(doc="numbers of the vector", minimum=1)
    width: int = dimension("width", doc="features of the hidden state; the rack's when left out")
    pool: Literal["mean", "first", "last"] = option(
        "mean", doc="what stands for the row: the mean of its positions, its first, or its last real one", choices=("mean", "first", "last")
    )
    init_std: float = option(0.02, doc="standard deviation the matrix starts from", minimum=0)

    def __attrs_post_init__(self) -> None:
        if self.init_std == 0:
            raise UserError("init_std: at 0 all vectors are equal, so rows cannot be told apart: raise it")

    def to_spec(self) -> HeadSpec:
        """Hidden state in, a vector a row out; a mask says which positions count."""
        side = {} if self.pool == "first" else {"mask": _MASK}
        return HeadSpec(input=_HIDDEN, outputs={"vector": evolve(_VECTOR, dims=("batch", self.vector))}, side=side)
