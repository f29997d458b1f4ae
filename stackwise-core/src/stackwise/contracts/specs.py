"""Specs: frozen descriptions of an artifact's boundary, in named dimensions, dtype names and value bounds.

A component's options say its spec (`options.to_spec()`), so junctions are checked before anything is built. The names of
dimensions belong to their component; the planner finds their sizes by joining the components.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Literal

from attrs import Attribute, Factory, field, frozen

from stackwise.errors import did_you_mean

Dim = str | int
"""A named dimension, or a fixed size."""

RUNTIME_DIMS = frozenset({"batch", "time", "source"})
"""Dimensions that may differ from step to step, and so never get one size; `source` is the time dimension of a second sequence."""


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

    `batch`, `time` and `source` (the time dimension of a second sequence) may differ from step to step. Every other name has one size,
    the same wherever the component uses the name; a whole number is a fixed size, as in `TensorSpec("batch 8 8")`. `to_spec()` is called
    while sizes that the config leaves open are still None, so it must name dimensions and not compute with their sizes.

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
    """What one entry stands for (`byte`), for metrics whose name depends on it (`UnitMetric`)."""

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
    """What one epoch of a source holds: whole rows, or entries of a stream that rows are cut from, or ready-made batches. Exactly one of
    the three is given.

    A loader's options may state it before anything is built, by `epoch_size(split) -> EpochSize | None`, which may look at names and
    sizes of files but must not read their content. Where that returns None and a duration counts epochs, the planner calls
    `count_epoch(split)` of the options, if they have it, which reads the data and raises `DataError` where it cannot. A built loader
    states it by `epoch_size()`.
    """

    rows: int | None = None
    entries: int | None = None
    batches: int | None = None
    repeats: bool = True
    """Whether another epoch follows; a run that asks for more of a source that does not repeat is refused before it begins."""


@frozen
class Reading:
    """Some data and which part of it is read. The planner uses it to refuse an evaluation that would read what training reads, unless the
    config allows that.

    A loader's options may state it before anything is built, by `readings(split, whole) -> Iterable[Reading]`, with `split` and `whole`
    as in `BuildContext`. Two readings of the same data overlap, unless both name the same order and their parts of it do not.
    """

    data: str
    """The name of the data, the same for every reader: for instance the resolved path of a file."""
    begin: float = 0.0
    end: float = 1.0
    """The part that is read, as fractions of the data in the given order: from `begin` up to `end`."""
    order: Hashable = None
    """Names that order. Parts of two different orders count as overlapping."""
    key: Hashable = None
    """Tells data of the same name apart: for instance the identity of an array."""

    def meets(self, other: Reading) -> bool:
        """Whether both may read some of the same data."""
        apart = self.order == other.order and (self.end <= other.begin or other.end <= self.begin)
        return (self.data, self.key) == (other.data, other.key) and not apart and self.begin < self.end and other.begin < other.end


@frozen(kw_only=True)
class TransformSpec:
    """What a transform does to the fields of a batch; a transform without a spec changes values only."""

    inputs: Mapping[str, TensorSpec] = Factory(dict)
    """Fields it needs, under the names that the task uses, so that the planner finds a missing one."""
    outputs: Mapping[str, TensorSpec] = Factory(dict)
    """Fields it adds, or gives another dtype, shape or bounds."""
    prepares: bool = False
    """Whether it prepares the data (tokenising, normalising), so that evaluations apply it too, or belongs to training (augmentation)."""


@frozen(kw_only=True)
class EmbeddingSpec:
    """Batch fields in, hidden state out."""

    inputs: Mapping[str, TensorSpec]
    output: TensorSpec = HIDDEN
    losses: tuple[str, ...] = ()
    """Names of the losses that `forward` adds to that of the task (`balance`); the config gives each its weight, `task.auxiliary`. With
    losses or metrics `forward` returns `(hidden, {name: (sum, denominator)})`, with an entry for each of them."""
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
    """Those of `side` that `forward` cannot run without."""
    attention: tuple[str, ...] = ()
    """Attention modes that the rack offers (`causal`, `bidirectional`); both, where an option chooses. A task that needs a mode is refused
    beside a rack that offers only the other. Empty: the rack has no attention, and any task may be used."""
    stacks: Mapping[str, int] = Factory(dict)
    """Stack name → number of blocks, in forward order."""
    residual_outputs: tuple[str, ...] = ()
    """Parameters inside a block (`attention.output.weight`) that make the block the identity when they are zero; growth that preserves the
    function sets them, and their biases, to zero in new blocks."""
    block_path: str = "stacks.{stack}.{index}"
    """Where the parameters of a block are inside the rack; a model from elsewhere may have another path."""
    losses: tuple[str, ...] = ()
    """Names of the losses that `forward` adds, as for an embedding: it then returns `(hidden, {name: (sum, denominator)})`."""
    metrics: tuple[str, ...] = ()
    """Names of the numbers that `forward` reports beside them, in the same map."""


@frozen(kw_only=True)
class HeadSpec:
    """Hidden state in, named outputs out."""

    input: TensorSpec = HIDDEN
    outputs: Mapping[str, TensorSpec]
    side: Mapping[str, TensorSpec] = Factory(dict)
    """Side inputs that `forward` accepts by keyword, such as `mask` for pooling over time; each is passed when the batch has it."""
    ties: Mapping[str, str] = Factory(dict)
    """Own parameter → canonical name of the parameter that it shares (`weight` → `embedding.weight`). The core ties them again after every
    transition."""
    losses: tuple[str, ...] = ()
    """Names of the losses that `forward` adds, as for an embedding: it then returns `(outputs, {name: (sum, denominator)})`."""
    metrics: tuple[str, ...] = ()
    """Names of the numbers that `forward` reports beside them, in the same map."""


@frozen
class Beyond:
    """A lower bound on a dimension of a task: `Beyond("vocab", "symbols", 1)` says vocab >= symbols + 1.

    A task that adds symbols to a loader's ids, such as a mask token, states with it how many more the model needs.
    """

    dim: str
    other: Dim
    by: int


@frozen
class UnitMetric:
    """A metric that is named after the `unit` that the loader's spec gives a field of the batch:
    `UnitMetric("tokens", {"byte": "bits_per_byte"}, "bits_per_token")`."""

    batch_field: str
    names: Mapping[str, str] = field(hash=False)
    """Unit → name."""
    otherwise: str
    """The name for every other unit, and for a field without a unit."""

    def of(self, unit: str | None) -> str:
        """The name for a unit."""
        return self.otherwise if unit is None else self.names.get(unit, self.otherwise)


@frozen(kw_only=True)
class TaskSpec:
    """What a task needs from its surroundings."""

    batch: Mapping[str, TensorSpec]
    """Fields it needs from the loader."""
    optional: Mapping[str, TensorSpec] = Factory(dict)
    """Fields that it uses when a loader delivers them (`segments`, `mask`). A rack must take those that `inputs` names too as side inputs:
    document boundaries that were delivered are never silently ignored. `prepare` refuses what it cannot use, and is called before the
    run to find that out."""
    inputs: Mapping[str, TensorSpec]
    """Fields of the prepared batch for the embedding and as side inputs of the rack. One that is made from an optional field is there
    only when that field is delivered."""
    outputs: Mapping[str, TensorSpec]
    """Outputs of the head that the loss reads."""
    linear_outputs: tuple[str, ...] = ()
    """Those of `outputs` that the loss accepts both as a tensor and as a `LinearOutput`, whichever the head returns."""
    side: tuple[str, ...] = ()
    """Side inputs that the rack must accept: without them the task would not be the one that was asked for."""
    attention: str | None = None
    """Attention mode that the rack must have; None: any."""
    lookahead: int = 0
    """Entries that each row needs beyond seq_len (1 for next-token prediction)."""
    reconstructs: bool = False
    """Whether the inputs contain the targets by design, as in denoising and reconstruction. The conformance kit
    then does not look for targets in them."""
    beyond: tuple[Beyond, ...] = ()
    """Lower bounds on dimensions of this spec."""
    embedded: Mapping[str, tuple[str, str]] = Factory(dict)
    """Side input of the rack → (field of the embedding, field of the prepared batch): the side input is what the embedding makes
    of that field (`{"memory": ("tokens", "source")}`)."""
    metrics: tuple[str | UnitMetric, ...] | None = None
    """All metrics that `loss` may return beside `loss`, so that the names in a config can be checked before the run. None: the task does
    not list them, and any name is accepted."""
    uses_model: bool = False
    """Whether `prepare` calls the model (on-policy sampling, hard negatives). It then gets the argument `model`, a function from a batch to
    outputs by name: the model as it is at that step, in eval mode and without gradients."""
    couples: Literal["rows"] | None = field(default=None, validator=_check_couples)
    """`rows`: the loss of a row depends on the other rows of its batch, as in contrastive learning. A batch cannot be split then, so a
    step is one micro-batch in one process. None: every row counts for itself."""
    reference: Literal["phase entry", "given"] | None = field(default=None, validator=_check_reference)
    """A frozen model in eval mode, whose outputs `loss` gets as `reference`. `phase entry`: a copy of the model at the moment when this
    task first applies, unless the config names another model (`task.reference`). `given`: the config must name one. None: no reference."""


@frozen(kw_only=True)
class OptimizerSpec:
    """What an optimizer keeps for a parameter, and what it computes for it at each step."""

    state_elements: Callable[[tuple[int, ...]], int]
    """Shape of a parameter → number of state entries kept for it, each of the parameter's dtype."""
    named_state_elements: Callable[[str, tuple[int, ...]], int] | None = None
    """Name and shape → the same, for an optimizer that treats parameters differently by name (Muon: hidden matrices and the rest)."""
    step_flops: Callable[[str, tuple[int, ...]], int] | None = None
    """Name and shape of a parameter → FLOPs that one step spends on it; an addition, product, quotient or root of one number counts as
    one. None: unknown. Work on all parameters together, such as clipping, is counted by the core."""
    steps_parts: bool = False
    """Whether it can step DTensors, of which each process holds some rows, like whole parameters: it uses only operations that torch
    defines for them, and its state has the shape of the parameter or is a single number. A run may then shard its model
    (`run.parallel.shard`)."""

    def count(self, name: str, shape: tuple[int, ...]) -> int:
        """State entries kept for the parameter of a canonical name."""
        return self.state_elements(shape) if self.named_state_elements is None else self.named_state_elements(name, shape)


@frozen(kw_only=True)
class AdapterSpec:
    """One tensor in, one tensor out."""

    input: TensorSpec
    output: TensorSpec


Spec = BatchSpec | TransformSpec | EmbeddingSpec | RackSpec | HeadSpec | TaskSpec | OptimizerSpec | AdapterSpec
