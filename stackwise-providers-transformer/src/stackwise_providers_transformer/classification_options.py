"""The options of classification: the task, the embedding of images, the head."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from stackwise import EmbeddingSpec, HeadSpec, TaskSpec, TensorSpec, UserError, dimension, option

_HIDDEN = TensorSpec("batch time width")
_MASK = TensorSpec("batch time", "bool")
_TOKENS = TensorSpec("batch time", "int64", bounds=(0, "vocab"))
_IMAGE = TensorSpec("batch rows columns channels")
_CLASSES = TensorSpec("batch classes")
_FEATURES = TensorSpec("batch features")
_CATEGORIES = TensorSpec("batch columns", "int64", bounds=(0, "vectors"))

RowInput = Literal["tokens", "image", "features", "table"]
ROW_INPUTS = ("tokens", "image", "features", "table")


def row_fields(read: RowInput) -> dict[str, TensorSpec]:
    """The fields of a row that stands as a whole for a class or a number."""
    return {
        "tokens": {"tokens": _TOKENS},
        "image": {"image": _IMAGE},
        "features": {"features": _FEATURES},
        "table": {"features": _FEATURES, "categories": _CATEGORIES},
    }[read]


def row_side(read: RowInput) -> dict[str, TensorSpec]:
    """What may come beside them; segments are seen, and refused."""
    return {"mask": _MASK, "segments": TensorSpec("batch time", "int64")} if read == "tokens" else {}


def row_attention(read: RowInput, asked: str | None) -> str | None:
    """The attention that a rack is asked for: both ways where nothing is said, and none of features, which no neighbours stand beside."""
    return asked or ("bidirectional" if read in ("tokens", "image") else None)


@frozen(kw_only=True)
class ClassificationOptions:
    """What is classified."""

    input: RowInput = option(
        "tokens",
        doc="what is classified: `tokens`, `image` [rows, columns, channels], `features`, or `features` with `categories` (table)",
        choices=ROW_INPUTS,
    )
    attention: Literal["bidirectional", "causal"] | None = option(
        None,
        doc="attention that the rack is asked for: bidirectional when left out, of features and tables none; "
        "causal keeps a pre-trained one's",
        choices=("bidirectional", "causal"),
    )

    def to_spec(self) -> TaskSpec:
        """A label for every row; tokens may come with a mask."""
        fields, side = row_fields(self.input), row_side(self.input)
        return TaskSpec(
            batch={**fields, "label": TensorSpec("batch", "int64", bounds=(0, "classes"))},
            optional=side,
            inputs={**fields, **({"mask": _MASK} if side else {})},
            outputs={"logits": _CLASSES},
            attention=row_attention(self.input, self.attention),
            metrics=("accuracy",),
        )


@frozen(kw_only=True)
class PatchOptions:
    """Square pieces of an image."""

    patch: int = option(doc="edge of a piece, in pixels; it divides rows and columns", minimum=1)
    rows: int = dimension("rows", doc="pixels from top to bottom; the loader's when left out")
    columns: int = dimension("columns", doc="pixels from left to right; the loader's when left out")
    channels: int = dimension("channels", doc="numbers a pixel; the loader's when left out")
    width: int = dimension("width", doc="features of a vector; the rack's when left out")
    positions: Literal["learned", "none"] = option(
        "learned", doc="whether a learned vector for its place is added to every piece", choices=("learned", "none")
    )
    init_std: float = option(0.02, doc="standard deviation of the normal draw that map and positions start from", minimum=0)

    def __attrs_post_init__(self) -> None:
        for name in ("rows", "columns"):
            if (size := getattr(self, name)) and size % self.patch:
                raise UserError(f"patch: pieces of {self.patch} pixels do not divide {size} {name}: choose a divisor of both")

    def to_spec(self) -> EmbeddingSpec:
        """An image in, a position for every piece out."""
        return EmbeddingSpec(inputs={"image": _IMAGE}, output=_HIDDEN)


@frozen(kw_only=True)
class ClassifierOptions:
    """Logits over classes."""

    classes: int = dimension("classes", doc="number of classes; the loader's when left out and it says one")
    width: int = dimension("width", doc="features of the hidden state; the rack's when left out")
    pool: Literal["mean", "first", "last"] = option(
        "mean", doc="what stands for the row: the mean of its positions, its first, or its last real one", choices=("mean", "first", "last")
    )
    init_std: float = option(0.02, doc="standard deviation the matrix starts from; at 0 all classes start equally likely", minimum=0)

    def to_spec(self) -> HeadSpec:
        """Hidden state in, one set of logits a row out; a mask says which positions count."""
        side = {} if self.pool == "first" else {"mask": _MASK}
        return HeadSpec(input=_HIDDEN, outputs={"logits": _CLASSES}, side=side)
