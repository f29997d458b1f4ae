"""Specs: frozen descriptions of an artifact's boundary, in named dimensions, dtype names and value bounds.

A component's options say its spec (`options.to_spec()`), so junctions are checked before anything is built. Dimensions are
names scoped to their component; the junctions of a plan find their sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Literal

from attrs import Attribute, Factory, field, frozen

from stackwise.errors import did_you_mean

Dim = str | int
"""A named dimension, or a fixed size."""

RUNTIME_DIMS = frozenset({"batch", "time", "source"})
"""Dimensions that the data plane's requests decide at every step, `source` being the time of a second row; never unified to one number."""


AT_ENTRY, GIVEN = "phase entry", "given"
"""What `TaskSpec.reference` may be beside None."""

DTYPES = (
    *("floating", "float16", "bfloat16", "float32", "float64"),
    *("integer", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("bool", "complex64", "complex128"),
)
"""Names that a spec knows: torch's, and `floating` and `integer` for any of the kind."""


def _check_dtype(_: object, attribute: Attribute[str], value: str) -> None:
    if value not in DTYPES:
        raise ValueError(f"{value!r} is not a dtype of a tensor{did_you_mean(value, DTYPES)}")


def _check_reference(_: object, attribute: Attribute[str | None], value: str | None) -> None:
    if value not in (None, AT_ENTRY, GIVEN):
        raise ValueError(
            f"reference: {value!r} is not a model to compare with: write {AT_ENTRY!r} or {GIVEN!r}; a path is named by the config"
        )


def _check_couples(_: object, attribute: Attribute[str | None], value: str | None) -> None:
    if value not in (None, "rows"):
        raise ValueError(f"couples: {value!r} is nothing that a loss couples: write 'rows', or leave it out")


def _dims(value: str | tuple[Dim, ...]) -> tuple[Dim, ...]:
    if isinstance(value, str):
        return tuple(int(part) if part.isdigit() else part for part in value.split())
    return tuple(value)


@frozen
class TensorSpec:
    """One tensor at a boundary: `TensorSpec("batch time width", "float32")`.

    `batch`, `time` and `source` (the time of a second row) change from step to step. Every other name has one size, and one name in one
    component is one size; a whole number is a size of its own, as in `TensorSpec("batch 8 8")`. `to_spec()` is called while sizes that
    the config leaves open are still None, so it gives the name of a dimension and computes with none.

    Raises:
        ValueError: an unknown dtype.
    """

    dims: tuple[Dim, ...] = field(converter=_dims)
    """Names and sizes in order; written as one string or a tuple."""
    dtype: str = field(default="floating", validator=_check_dtype)
    """A torch dtype by name, or `floating` / `integer` for any of the kind."""
    bounds: tuple[int, Dim] | None = None
    """Values v of integer tensors satisfy bounds[0] <= v < bounds[1]; the upper bound may be a dimension: `(0, "vocab")`."""
    unit: str | None = None
    """What one entry stands for (`byte`), where the name of a metric depends on it (`UnitMetric`)."""

    def __str__(self) -> str:
        inner = " ".join(map(str, self.dims))
        bounds = f" in [{self.bounds[0]}, {self.bounds[1]})" if self.bounds else ""
        return f"{self.dtype}[{inner}]{bounds}"


HIDDEN = TensorSpec("batch time width")
"""The usual hidden state."""


@frozen(kw_only=True)
class BatchSpec:
    """The fields of a batch that a loader delivers."""

    fields: Mapping[str, TensorSpec]


@frozen(kw_only=True)
class EpochSize:
    """What one epoch of a source holds: whole rows, entries of a stream that rows are cut from, or ready-made batches. One is given.

    A loader's options may say it cold through `epoch_size(split) -> EpochSize | None`, which may look at names and sizes of
    files but reads no content. Where that is None and a duration counts epochs, they may count them: `count_epoch(split)` reads
    the data, and raises `DataError` where it cannot. The built loader says it through `epoch_size()`.
    """

    rows: int | None = None
    entries: int | None = None
    batches: int | None = None
    repeats: bool = True
    """Whether another epoch follows; a run that asks for more of a source that does not repeat is refused before it begins."""


@frozen
class Reading:
    """Some data and how much of them is read, so that an evaluation does not read what training reads without saying so.

    A loader's options may say it cold through `readings(split, whole) -> Iterable[Reading]`, with `split` and `whole` as a `BuildContext`
    has them. Two readings of the same data meet unless they are apart in one order.
    """

    data: str
    """The name of the data, the same for every reader: for instance the resolved path of a file."""
    begin: float = 0.0
    end: float = 1.0
    """The share of the data that is read, from `begin` up to `end`, in an order of theirs."""
    order: Hashable = None
    """That order; how two different orders relate is not known."""
    key: Hashable = None
    """What distinguishes the data from others of that name: for instance the identity of an array."""

    def meets(self, other: Reading) -> bool:
        """Whether both read something of the same data, as far as is known."""
        apart = self.order == other.order and (self.end <= other.begin or other.end <= self.begin)
        return (self.data, self.key) == (other.data, other.key) and not apart and self.begin < self.end and other.begin < other.end


@frozen(kw_only=True)
class TransformSpec:
    """What a transform does to the fields of a batch; a transform without a spec changes values only."""

    inputs: Mapping[str, TensorSpec] = Factory(dict)
    """Fields it needs, by the names that the task reads them by, so that a missing one shows in the plan."""
    outputs: Mapping[str, TensorSpec] = Factory(dict)
    """Fields it adds, or gives another dtype, shape or bounds."""
    prepares: bool = False
    """Whether it belongs to the data rather than to training (tokenising, normalising): evaluations apply it too."""


@frozen(kw_only=True)
class EmbeddingSpec:
    """Batch fields in, hidden state out."""

    inputs: Mapping[str, TensorSpec]
    output: TensorSpec = HIDDEN
    losses: tuple[str, ...] = ()
    """Names of what `forward` adds to the loss of the task (`balance`), each weighed by the config: `task.auxiliary`. Such a part
    returns `(what it returns else, {name: (sum, denominator)})`, with an entry for each of its losses and metrics."""
    metrics: tuple[str, ...] = ()
    """Names of the numbers that `forward` reports beside them, in the same map."""


@frozen(kw_only=True)
class RackSpec:
    """Hidden state in and out, and what the core may ask of the rack."""

    input: TensorSpec = HIDDEN
    output: TensorSpec = HIDDEN
    side: Mapping[str, TensorSpec] = Factory(dict)
    """Side inputs that `forward` accepts by keyword; each is passed when the batch has it."""
    needs: tuple[str, ...] = ()
    """Those of them that `forward` does not run without."""
    attention: tuple[str, ...] = ()
    """Sides that a position may look to (`causal`, `bidirectional`), both where an option chooses. A task that needs one is refused
    beside a rack that offers only the other; empty: it has none and asks for none."""
    stacks: Mapping[str, int] = Factory(dict)
    """Stack name → number of blocks, in forward order."""
    residual_outputs: tuple[str, ...] = ()
    """Parameters inside a block (`attention.output.weight`) to zero to make the block the identity, as growth that preserves the function
    does; their biases are zeroed with them."""
    block_path: str = "stacks.{stack}.{index}"
    """Where a block's parameters live inside the rack; models from elsewhere name their own."""
    losses: tuple[str, ...] = ()
    """Names of what `forward` adds to the loss, as for an embedding: it then returns `(hidden, {name: (sum, denominator)})`."""
    metrics: tuple[str, ...] = ()
    """Names of the numbers that `forward` reports beside them, in the same map."""


@frozen(kw_only=True)
class HeadSpec:
    """Hidden state in, named outputs out."""

    input: TensorSpec = HIDDEN
    outputs: Mapping[str, TensorSpec]
    side: Mapping[str, TensorSpec] = Factory(dict)
    """Side inputs that `forward` accepts by keyword (`mask`, where it pools over time); each is passed when the batch has it."""
    ties: Mapping[str, str] = Factory(dict)
    """Own parameter → canonical name of the parameter it is (`weight` → `embedding.weight`); re-made after every ETL."""
    losses: tuple[str, ...] = ()
    """Names of what `forward` adds to the loss, as for an embedding: it then returns `(outputs, {name: (sum, denominator)})`."""
    metrics: tuple[str, ...] = ()
    """Names of the numbers that `forward` reports beside them, in the same map."""


@frozen
class Beyond:
    """A dimension of a task that is larger than another: `Beyond("vocab", "symbols", 1)` says vocab >= symbols + 1.

    A task that adds symbols to a loader's ids says in this way how many more the model needs.
    """

    dim: str
    other: Dim
    by: int


@frozen
class UnitMetric:
    """A metric whose name says what an entry of a field of the batch stands for, by the `unit` that the loader's spec gives it:
    `UnitMetric("tokens", {"byte": "bits_per_byte"}, "bits_per_token")`."""

    batch_field: str
    names: Mapping[str, str] = field(hash=False)
    """Unit → name."""
    otherwise: str
    """The name for every other unit, and where none is said."""

    def of(self, unit: str | None) -> str:
        """The name for a unit."""
        return self.otherwise if unit is None else self.names.get(unit, self.otherwise)


@frozen(kw_only=True)
class TaskSpec:
    """What a task needs from its surroundings."""

    batch: Mapping[str, TensorSpec]
    """Fields it needs from the loader."""
    optional: Mapping[str, TensorSpec] = Factory(dict)
    """Fields it uses when a loader delivers them (`segments`, `mask`). Those that `inputs` names too are side inputs which the
    rack must then take: a boundary that is delivered is never ignored. `prepare` refuses what it cannot use, which is found before
    the run."""
    inputs: Mapping[str, TensorSpec]
    """Fields that its prepared batch offers to the embedding and as side inputs; one that it makes of an optional field, where that is
    delivered."""
    outputs: Mapping[str, TensorSpec]
    """Head outputs its loss reads."""
    linear_outputs: tuple[str, ...] = ()
    """Those of them that its loss takes as a tensor or as a `LinearOutput`, whichever the head gives."""
    side: tuple[str, ...] = ()
    """Side inputs the rack must accept for the task to be what it says."""
    attention: str | None = None
    """Attention mode it needs; None: any."""
    lookahead: int = 0
    """Entries each row needs beyond seq_len (1 for next-token prediction)."""
    reconstructs: bool = False
    """Whether its inputs hold what is to be predicted, by design: denoising, reconstruction. A model then learns even from noise."""
    beyond: tuple[Beyond, ...] = ()
    """Dimensions that are larger than others of this spec."""
    embedded: Mapping[str, tuple[str, str]] = Factory(dict)
    """Side input of the rack → (field of the embedding, field of the prepared batch): the side input is what the embedding makes
    of that field (`{"memory": ("tokens", "source")}`)."""
    metrics: tuple[str | UnitMetric, ...] | None = None
    """All metrics that `loss` may return beside `loss`, so that a config that names one is checked before the run; None: the task does
    not say, and any name is taken."""
    uses_model: bool = False
    """Whether `prepare` asks the model (on-policy sampling, hard negatives): it is then called with `model=`, a function from a batch to
    outputs by name, of the model as it is at that step, in eval mode and without gradients."""
    couples: Literal["rows"] | None = field(default=None, validator=_check_couples)
    """`rows`: the loss of a row depends on the other rows of its batch (contrastive learning), so that the loss of a batch is not that
    of its parts, and a step is one micro-batch of one process. None: every row counts for itself."""
    reference: Literal["phase entry", "given"] | None = field(default=None, validator=_check_reference)
    """A frozen model, in eval mode, whose outputs `loss` gets as `reference`. `phase entry`: a copy of the model as it is when this
    task first applies, unless the config names another (`task.reference`). `given`: the config has to name one. None: none is kept."""


@frozen(kw_only=True)
class OptimizerSpec:
    """What an optimizer keeps for a parameter, and what it computes for it at each step."""

    state_elements: Callable[[tuple[int, ...]], int]
    """Shape of a parameter → number of state entries kept for it, each of the parameter's dtype."""
    named_state_elements: Callable[[str, tuple[int, ...]], int] | None = None
    """Name and shape → the same, where the name decides too (Muon: hidden matrices and the rest)."""
    step_flops: Callable[[str, tuple[int, ...]], int] | None = None
    """Name and shape of a parameter → FLOPs of one step of it, each addition, product, quotient and root of a number counted as one; None:
    unknown. What takes them all together, such as clipping, is the core's."""
    steps_parts: bool = False
    """Whether it steps torch's DTensors, of which each process holds some rows, as it steps whole parameters: by operations that torch
    has for them, with state of the shape of the parameter or of one number. A run may then divide its model (`run.parallel.shard`)."""

    def count(self, name: str, shape: tuple[int, ...]) -> int:
        """State entries kept for the parameter of a canonical name."""
        return self.state_elements(shape) if self.named_state_elements is None else self.named_state_elements(name, shape)


@frozen(kw_only=True)
class AdapterSpec:
    """One tensor in, one tensor out."""

    input: TensorSpec
    output: TensorSpec


Spec = BatchSpec | TransformSpec | EmbeddingSpec | RackSpec | HeadSpec | TaskSpec | OptimizerSpec | AdapterSpec
