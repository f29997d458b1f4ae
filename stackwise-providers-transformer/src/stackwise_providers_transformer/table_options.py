"""The options of tables: the embedding of features and categories, the rack of MLPs, the head and the task of regression."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from stackwise import EmbeddingSpec, HeadSpec, RackSpec, Stack, TaskSpec, TensorSpec, dimension, option, scheduled, stacks
from stackwise_providers_transformer.classification_options import ROW_INPUTS, RowInput, row_attention, row_fields, row_side
from stackwise_providers_transformer.options import MLPS

_HIDDEN = TensorSpec("batch time width")
_MASK = TensorSpec("batch time", "bool")
_TARGETS = TensorSpec("batch targets")


@frozen(kw_only=True)
class FeaturesOptions:
    """Numbers and categories of a row."""

    features: int = dimension("features", doc="numbers of a row; the loader's when left out")
    categories: bool = option(True, doc="whether rows have `categories` beside their numbers; each id of one has a vector")
    columns: int = dimension("columns", doc="categories of a row; the loader's when left out")
    vectors: int = dimension("vectors", doc="number of ids of all categories; the loader's bound when left out")
    width: int = dimension("width", doc="features of the hidden state; the rack's when left out")
    positions: Literal["one", "columns"] = option(
        "one",
        doc="whether a row is one position, the sum of its columns' vectors, or each column is a position, for racks that mix them",
        choices=("one", "columns"),
    )
    init_std: float = option(
        0.02, doc="standard deviation of the normal draw a vector starts from; those of unknown categories start at 0", minimum=0
    )

    def to_spec(self) -> EmbeddingSpec:
        """Numbers, and ids of categories where there are some, in; hidden state out."""
        return EmbeddingSpec(inputs=row_fields("table" if self.categories else "features"), output=_HIDDEN)


@frozen(kw_only=True)
class MLPOptions:
    """Residual blocks of an MLP."""

    width: int = dimension("width", doc="features at each position")
    stacks: tuple[Stack, ...] = stacks(doc="named stacks of blocks in forward order, as [{base: 4}, {top: 2}]")
    mlp: Literal["swiglu", "geglu", "geglu-tanh", "reglu", "gelu", "gelu-tanh", "relu", "silu"] = option(
        "gelu", doc="form of a block's MLP: gated (the first four), or an activation between two maps", choices=MLPS
    )
    ff: int | None = option(None, doc="hidden features of the MLP; 2 times the width when left out", minimum=1)
    norm: Literal["rmsnorm", "layernorm"] = option("layernorm", doc="form of every norm", choices=("rmsnorm", "layernorm"))
    dropout: float = scheduled(0.0, doc="share of each residual branch's output that is zeroed in training", minimum=0, maximum=1)
    init_std: float = option(0.02, doc="standard deviation of the normal draw a matrix starts from", minimum=0)

    def to_spec(self) -> RackSpec:
        """Hidden state in and out; every position by itself, so that no mask or attention of others is taken."""
        return RackSpec(
            input=_HIDDEN,
            output=_HIDDEN,
            stacks={stack.name: stack.blocks for stack in self.stacks},
            residual_outputs=("mlp.down.weight", "mlp.down.bias"),
        )


@frozen(kw_only=True)
class RegressionHeadOptions:
    """Numbers of a whole row."""

    targets: int = dimension("targets", doc="numbers that are predicted; the loader's when left out")
    width: int = dimension("width", doc="features of the hidden state; the rack's when left out")
    pool: Literal["mean", "first", "last"] = option(
        "mean", doc="what stands for the row: the mean of its positions, its first, or its last real one", choices=("mean", "first", "last")
    )
    init_std: float = option(0.02, doc="standard deviation the matrix starts from; at 0 every prediction starts at 0", minimum=0)

    def to_spec(self) -> HeadSpec:
        """Hidden state in, predictions of a row out; a mask says which positions count."""
        side = {} if self.pool == "first" else {"mask": _MASK}
        return HeadSpec(input=_HIDDEN, outputs={"prediction": _TARGETS}, side=side)


@frozen(kw_only=True)
class RegressionOptions:
    """What is read to predict numbers."""

    input: RowInput = option(
        "table",
        doc="fields that are read: `features` and `categories` (table), `features` alone, `tokens`, or `image` [rows, columns, channels]",
        choices=ROW_INPUTS,
    )
    attention: Literal["bidirectional", "causal"] | None = option(
        None,
        doc="attention that the rack is asked for; bidirectional when left out, of features and tables none",
        choices=("bidirectional", "causal"),
    )

    def to_spec(self) -> TaskSpec:
        """Numbers to predict for every row; their deviations may come with them, and tokens with a mask."""
        fields, side = row_fields(self.input), row_side(self.input)
        return TaskSpec(
            batch={**fields, "target": _TARGETS},
            optional={**side, "target_std": _TARGETS},
            inputs={**fields, **({"mask": _MASK} if side else {})},
            outputs={"prediction": _TARGETS},
            attention=row_attention(self.input, self.attention),
            metrics=("squared_error", "absolute_error"),
        )
