"""What the core asks of a component, by shape: nobody inherits from anything here.

A provider publishes `Component` records through the hooks of `hookspecs.py`; each names an options class and a factory as
`"module:attribute"`, loaded only when needed. Factories are called as `factory(options, context)`; an optimizer's as
`factory(options, context, groups)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from attrs import Factory, define, field, frozen

from stackwise.errors import UserError
from stackwise.specs import AdapterSpec, BatchSpec, EmbeddingSpec, HeadSpec, OptimizerSpec, RackSpec, Spec, TaskSpec, TransformSpec

if TYPE_CHECKING:
    import torch

    from stackwise.time import Moment

Kind = Literal[
    "embedding",
    "rack",
    "head",
    "task",
    "optimizer",
    "loader",
    "transform",
    "adapter",
    "weight-adapter",
    "growth",
    "reaction",
    "observer",
]


SPEC_OF: Mapping[Kind, type[Spec]] = {
    "embedding": EmbeddingSpec,
    "rack": RackSpec,
    "head": HeadSpec,
    "adapter": AdapterSpec,
    "task": TaskSpec,
    "optimizer": OptimizerSpec,
    "loader": BatchSpec,
    "transform": TransformSpec,
}
"""Kind → what `to_spec()` of its options gives; the other kinds have no spec."""


@frozen(kw_only=True)
class Component:
    """One thing a provider offers. Its id is `<provider>.<name>`, unique within its kind; the hook it comes from says the kind."""

    name: str
    """Short name in kebab-case (`causal-lm`)."""
    options: str
    """`"module:Class"` of an attrs frozen class (see `stackwise.options`) with `to_spec()`; importable without torch."""
    factory: str
    """`"module:attribute"` called to build the artifact; its module may import torch."""
    summary: str = ""
    """One line for listings."""
    example: Mapping[str, Any] = Factory(dict)
    """A tiny complete set of options, as in a config."""


@frozen(kw_only=True)
class BuildContext:
    """What a factory may know beside its options."""

    seed: int
    """Seed of this component's own stream, derived from the run's seed and the component's place."""
    split: str = "train"
    """`train`, or the name of an evaluation: loaders deliver documents disjoint from training for any other name."""
    steps: int = 1
    """Steps of the whole run."""
    max_rows: int | None = None
    """Most rows asked of a loader at once anywhere on the timeline."""
    max_length: int | None = None
    """Longest row anywhere on the timeline, the task's lookahead included."""
    specs: Mapping[str, Any] = Factory(dict)
    """Specs at the junctions with their solved sizes: `batch`, `embedding`, `rack`, `head`, `task`."""


@frozen(init=False)
class Built:
    """A user's own callable and its options, so that phases can rebuild it: `Built(MyRack, width=64, stacks=[{"base": 2}])`.

    `spec` states the boundary where the default of its kind does not hold (a rack: hidden in, hidden out, blocks under
    `stacks.<stack>.<i>`).
    """

    make: Callable[..., Any]
    options: Mapping[str, Any]
    spec: Any

    def __init__(self, make: Callable[..., Any], spec: Any = None, **options: Any) -> None:
        object.__setattr__(self, "make", make)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "spec", spec)


Batch = Mapping[str, "torch.Tensor"]
"""Field name → tensor; the first dimension is the row."""

Totals = tuple["torch.Tensor", "torch.Tensor | float"]
"""A sum and its denominator."""


class Embedding(Protocol):
    """An `nn.Module`: `forward(**fields) → hidden`, the fields its spec names."""

    def get_spec(self) -> EmbeddingSpec: ...
    def __call__(self, **fields: torch.Tensor) -> torch.Tensor: ...


class Rack(Protocol):
    """An `nn.Module`: `forward(hidden, **side) → hidden`. A plain rack takes no side input and needs no `to_spec`."""

    def to_spec(self) -> RackSpec: ...
    def __call__(self, hidden: torch.Tensor, **side: torch.Tensor) -> torch.Tensor: ...


class Head(Protocol):
    """An `nn.Module`: `forward(hidden, **side) → {output name: tensor}`. Most take no side input."""

    def get_spec(self) -> HeadSpec: ...
    def __call__(self, hidden: torch.Tensor, **side: torch.Tensor) -> Mapping[str, torch.Tensor]: ...


class Task(Protocol):
    """The objective.

    `loss` returns a sum, its denominator (a number of targets) and further metrics, each a sum with its own denominator,
    so that accumulation and several ranks stay exact.
    """

    def get_spec(self) -> TaskSpec: ...
    def prepare(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...
    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]: ...


class ReferencedTask(Protocol):
    """A task whose spec declares a `reference`: its loss also gets the outputs of the frozen copy on the same prepared batch."""

    def get_spec(self) -> TaskSpec: ...
    def prepare(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...
    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, *, reference: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]: ...


@runtime_checkable
class PreparesEvaluations(Protocol):
    """A task that prepares the batches of evaluations otherwise than those of training (an estimator of lower variance)."""

    def prepare_evaluation(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...


@frozen(kw_only=True)
class GenerationSettings:
    """How a model continues a prompt.

    Raises:
        UserError: a value out of its range.
    """

    tokens: int
    """Number of tokens to generate."""
    temperature: float = 1.0
    """What logits are divided by before a token is drawn; 0: the likeliest one is taken."""
    top_k: int | None = None
    """Draw among the k likeliest tokens only."""
    top_p: float | None = None
    """Draw among the fewest likeliest tokens only that together have at least this probability."""
    steps: int | None = None
    """Forward passes of a task that fills in several tokens at once; None: as many as tokens."""
    cache: bool = True
    """Whether what was computed for earlier tokens is kept, where the model can."""
    ids: int | None = None
    """Only ids below may be generated (those of the loader); None: all that the model knows."""

    def __attrs_post_init__(self) -> None:
        rules = (
            ("tokens", self.tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "a finite number of at least 0"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise UserError(f"{name}: {getattr(self, name)} is out of range: it is {rule}")


@runtime_checkable
class Generates(Protocol):
    """A task whose model can continue a prompt."""

    def generate(
        self,
        model: Callable[[Batch], Mapping[str, torch.Tensor]],
        prompt: torch.Tensor,
        settings: GenerationSettings,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The prompt [T] with `settings.tokens` tokens behind it, int64; every draw comes from the generator.

        Raises:
            UserError: a prompt that is empty where one is needed, or too long; a setting that has no effect on this task.
        """
        ...


class TextCodec(Protocol):
    """Text ↔ the token ids of a loader."""

    def encode(self, text: str) -> Sequence[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@runtime_checkable
class HasTextCodec(Protocol):
    """The options of a loader whose ids stand for text."""

    def text_codec(self, fingerprint: Mapping[str, Any]) -> TextCodec | None:
        """The codec of the ids that the loader delivers; None where these options deliver no text.

        Args:
            fingerprint: what the loader said of its data when the model was trained; empty where nothing is known.

        Raises:
            DataError: what the codec is made from is gone, or is not what it was.
        """
        ...


@runtime_checkable
class Loader(Protocol):
    """A deterministic stream with a cursor. `take` delivers the next rows; a row belongs to exactly one `take`.

    `length` is the entries of a row (seq_len plus the task's lookahead), None where the config declares no seq_len.
    """

    def get_batch_spec(self) -> BatchSpec: ...
    def take(self, rows: int | None, length: int | None) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A loader that can say which data it read: file count, bytes and a digest."""

    def fingerprint(self) -> Mapping[str, Any]: ...


@runtime_checkable
class Skippable(Protocol):
    """A loader that can move past rows without making them: `skip` leaves the state that `take` of the same would leave."""

    def skip(self, rows: int | None, length: int | None) -> None: ...


@runtime_checkable
class Scheduled(Protocol):
    """An artifact with options that follow time; called with the values in force whenever they change."""

    def apply_values(self, values: Mapping[str, float]) -> None: ...


@runtime_checkable
class Stateful(Protocol):
    """A task, transform or observer that changes as it is used: what it holds goes into every checkpoint and comes back on resume."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Transform(Protocol):
    """A change of the batch between loader and task, with its own random stream."""

    def __call__(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...


@define(kw_only=True)
class ParameterGroup:
    """Parameters that share their values, by canonical name.

    An optimizer turns each into one or more torch groups and gives every one of them `"group": name`. A torch group may name
    entries that are not to follow in `"fixed": (...)`, and say in `"moments": {"exp_avg": 1, "exp_avg_sq": 2}` which state entries
    shaped like the parameter it keeps: each with the power of the gradient that it is made of, or `"weight"` for one that is
    itself a weight. Growth maps exactly these; where the entry is missing or empty, the names of torch's own optimizers are known.
    """

    name: str
    parameters: dict[str, torch.nn.Parameter]
    values: dict[str, float] = field(factory=dict)
    """The group's effective options (lr, weight_decay, …)."""


OptimizerFactory = Callable[[Any, BuildContext, Sequence[ParameterGroup]], "torch.optim.Optimizer"]


@frozen(kw_only=True)
class CopyOf:
    """A tensor takes the values of an old one: new[i, j, …] = old[index[0][i], index[1][j], …] · factors[0][i] · factors[1][j] · …

    A dimension that `index` does not name is taken as it is. Moments follow the same index.
    """

    source: str
    """Canonical name in the old model."""
    index: Mapping[int, tuple[int, ...]] = Factory(dict)
    """Dimension → old position of every new one; −1: no source, the entry is `rest`."""
    factors: Mapping[int, tuple[float, ...]] = Factory(dict)
    """Dimension → factor of every new position."""
    gradient: Mapping[int, tuple[float, ...]] = Factory(dict)
    """Dimension → what the map does to the gradient at every new position, so that moments made of it follow (m·g, v·g²)."""
    rest: Literal["module", "zeros"] = "module"
    """Entries without a source: as the module initialises them, or zero."""

    @property
    def whole(self) -> bool:
        """Whether the tensor is taken as it is."""
        return not self.index and not self.factors


@frozen(kw_only=True)
class Fresh:
    """A grown tensor starts anew: as its module initialises it, or all zero."""

    init: Literal["module", "zeros"] = "module"


Origin = CopyOf | Fresh


@frozen(kw_only=True)
class GrowthRequest:
    """What an operator is asked: one rack before and after; all of it cold."""

    old_stacks: Mapping[str, int]
    new_stacks: Mapping[str, int]
    residual_outputs: tuple[str, ...] = ()
    """Parameters of a block that `RackSpec` names as its residual outputs."""
    old_options: Mapping[str, Mapping[str, Any]] = Factory(dict)
    """Role (`embedding`, `rack`, `head`) → options before, as filled; empty in a loop of the user's own."""
    new_options: Mapping[str, Mapping[str, Any]] = Factory(dict)


@frozen(kw_only=True)
class BlockOrigin:
    """Where a new block comes from: an old block by stack and index, or fresh (`source` None)."""

    source: tuple[str, int] | None
    zero_residual: bool = False
    """Start with residual outputs of zero: the block is the identity at first."""
    gated: bool = False
    """Multiply the outputs of the residual branches by the operator's option `gate`, which follows time and ends at 1."""


class GrowthOperator(Protocol):
    """How new blocks come into being: a pure map from new blocks to old ones."""

    @property
    def preserves_function(self) -> bool:
        """Whether the outputs stay as they were (to fp32 rounding)."""
        ...

    def map_blocks(self, request: GrowthRequest) -> Mapping[tuple[str, int], BlockOrigin]:
        """(stack, index) of every block of the new rack → its origin.

        Raises:
            ValueError: the change is none this operator can make; the sentence says which it can.
        """
        ...


@runtime_checkable
class ParameterGrowth(Protocol):
    """An operator that maps tensor by tensor (width growth)."""

    def map_parameters(
        self, old: Mapping[str, tuple[int, ...]], new: Mapping[str, tuple[int, ...]], request: GrowthRequest
    ) -> Mapping[str, Origin]:
        """Shapes by canonical name, before and after → origins of the new parameters it has something to say about.

        Blocks go by their new names; where a block comes from is `map_blocks`' to say. A tied parameter appears once in each,
        under its first name; adapters of junctions and of weights appear too.

        Raises:
            ValueError: the change is none this operator can make; the sentence says which it can.
        """
        ...


class WeightAdapter(Protocol):
    """Trainable glue beside one frozen matrix (LoRA): an `nn.Module` from the layer's input to what is added to its output.

    Its factory is called as `factory(options, context, weight)` with the matrix [out, in] that it stands beside, on the meta
    device or not; it makes a module that adds nothing at first.
    """

    def __call__(self, input: torch.Tensor) -> torch.Tensor: ...

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix [out, in] that gives alone what matrix and adapter give together."""
        ...


@runtime_checkable
class TrainsElsewhere(Protocol):
    """An optimizer whose parameters hold other weights in training than those to judge and keep: `eval` shows these, `train` goes on."""

    def eval(self) -> object: ...
    def train(self) -> object: ...


class Reaction(Protocol):
    """A declared answer to the training signal (plateau): a factor on every learning rate, inside a stated envelope.

    A pure function of the numbers it was shown. Its options say `envelope() → (lowest, highest)` factor, which the plan prints, and
    may say `watches() → names`, which the plan holds against the evaluations that there are.
    """

    factor: float
    """In force; 1 at first."""

    def watch(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Take in numbers: `train.loss` after every step, `<evaluation>.<metric>` after every evaluation.

        Returns:
            Why the factor changed, in a sentence; None when it did not.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Adapter(Protocol):
    """Glue at a junction of the model: an `nn.Module` from tensor to tensor."""

    def get_spec(self) -> AdapterSpec: ...
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor: ...


Observer = Callable[[Any], None]
"""Called with every event of the training machine; one that raises is dropped with a warning."""
