"""What the core asks of a component, as protocols: a component need not inherit from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import define, field

from stackwise.contracts.specs import (
    AdapterSpec,
    BatchSpec,
    EmbeddingSpec,
    HeadSpec,
    RackSpec,
    TaskSpec,
)

if TYPE_CHECKING:
    import torch

    from stackwise.contracts.events import RunFacts
    from stackwise.contracts.outputs import LinearOutput
    from stackwise.timeline.duration import Moment
    from stackwise.timeline.provided import ScheduleWindow

Batch = Mapping[str, "torch.Tensor"]
"""Field name → tensor; the first dimension is the row."""


Totals = tuple["torch.Tensor", "torch.Tensor | float"]
"""A sum and its denominator."""


Reported = Mapping[str, Totals]
"""What a part of the model adds to the loss or reports, by the names of its spec: `losses` and `metrics`."""


class Embedding(Protocol):
    """An `nn.Module`: `forward(**fields) → hidden`, the fields its spec names; with losses or metrics in its spec `(hidden, reported)`.

    The model calls it in every forward pass, and once more for each side input that a task says is embedded (`TaskSpec.embedded`).
    """

    def get_spec(self) -> EmbeddingSpec: ...
    def __call__(self, **fields: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, Reported]: ...


class Rack(Protocol):
    """An `nn.Module`: `forward(hidden, **side) → hidden`. A plain rack takes no side input and needs no `to_spec`.

    One that adds to the loss or reports numbers returns `(hidden, reported)`: sums and their denominators over the positions or rows
    that it was given, so that accumulation and several ranks stay exact. A statistic of all rows multiplied by another is no such
    sum: take it row by row. With `data.accumulate` each weighed loss costs one more backward pass, as its share is known only when all
    denominators are.

    Blocks are called `stacks.<stack>.<i>` inside the rack, or what `RackSpec.block_path` says: growth, freezing and optimizer groups find
    parameters by these names. A rack needs no method to grow: it is built anew with other options, and weights go over by name. So do
    persistent buffers, which checkpoints hold: what a rack remembers from batch to batch is one.

    Parts of the model draw initial weights with torch as usual, from a stream that the core seeds for each and puts back. They are also
    built on torch's meta device, to price a plan without memory: a factory reads no value out of a tensor.
    """

    def to_spec(self) -> RackSpec: ...
    def __call__(self, hidden: torch.Tensor, **side: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, Reported]: ...


@runtime_checkable
class PartwiseRack(Protocol):
    """A rack that can run some of its blocks alone, so that the hidden states before the lowest trained block are computed once
    (`model.cache: frozen`).

    Blocks are counted in forward order over all stacks. With `start` 0 what comes before the blocks is run too, and with `stop` None what
    comes after them: `forward(hidden, **side)` is `forward_blocks(hidden, 0, None, **side)`, and running 0 to k and then from k on gives
    the same. Side inputs are those of `forward`, whole in each part.
    """

    def forward_blocks(self, hidden: torch.Tensor, start: int, stop: int | None, **side: torch.Tensor) -> torch.Tensor: ...


class Head(Protocol):
    """An `nn.Module`: `forward(hidden, **side) → {output name: tensor}`. Most take no side input. As for a rack, `(outputs, reported)`."""

    def get_spec(self) -> HeadSpec: ...
    def __call__(
        self, hidden: torch.Tensor, **side: torch.Tensor
    ) -> Mapping[str, torch.Tensor] | tuple[Mapping[str, torch.Tensor], Reported]: ...


@runtime_checkable
class LinearHead(Protocol):
    """A head whose last step is one matrix, and that can leave this step to the task (`TaskSpec.linear_outputs`).

    `forward_linear` takes what `forward` takes and gives the same outputs by name, those that are a product as `LinearOutput`. It is
    called in place of `forward` for a task that reads them so, unless the head has forward hooks, which it would skip.
    """

    def forward_linear(self, hidden: torch.Tensor, **side: torch.Tensor) -> Mapping[str, torch.Tensor | LinearOutput]: ...


class Task(Protocol):
    """The objective. `prepare` is called for every micro-batch, then the model, then `loss`.

    `prepare` makes the batch that the embedding and the loss read. Every draw comes from `generator`, which is seeded anew at each step.
    It is tried before the run on a batch of its spec's fields at their lowest values: what it refuses (`UserError`) is told by
    `validate`, and the shapes that it makes are what the plan prices.

    `loss` computes in float32: under `precision: bf16` outputs may come in bfloat16. It returns a sum, its denominator (a number of
    targets) and further metrics, each a sum with its own denominator, so that accumulation and several ranks stay exact. A metric may
    have any name but `loss`.
    """

    def get_spec(self) -> TaskSpec: ...
    def prepare(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...
    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]: ...


class AskingTask(Protocol):
    """A task whose spec says `uses_model`: it asks the model while it prepares a batch, `model(batch) → outputs by name`, as it is at that
    step, in eval mode and without gradients.

    Batches are then not prepared ahead. What it asks is priced with a stand-in whose outputs are zero.
    """

    def get_spec(self) -> TaskSpec: ...
    def prepare(
        self,
        batch: Batch,
        moment: Moment,
        generator: torch.Generator,
        *,
        model: Callable[[Batch], Mapping[str, torch.Tensor]],
    ) -> Batch: ...
    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]: ...


class ReferencedTask(Protocol):
    """A task whose spec declares a `reference`: its loss also gets the outputs of the frozen model on the same prepared batch."""

    def get_spec(self) -> TaskSpec: ...
    def prepare(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...
    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, *, reference: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]: ...


@runtime_checkable
class PreparesEvaluations(Protocol):
    """A task that prepares the batches of evaluations in another way than those of training (an estimator of lower variance)."""

    def prepare_evaluation(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...


@runtime_checkable
class Loader(Protocol):
    """A deterministic stream with a cursor. `take` delivers the next rows; a row belongs to exactly one `take`.

    The data plane calls `take` whenever a step needs rows: exactly so many, of exactly that length. `length` is the entries of a row
    (seq_len plus the task's lookahead), None where the config declares no seq_len, and `rows` None where it declares no batch_size.
    `state_dict` is the whole state: loaders with equal state deliver equal rows, and `load_state_dict` may go forward or back. For any
    `BuildContext.split` but `train` the rows are none that training sees; the seed is the same for every split.

    Loaders of all phases are built before the first step, and each delivers one row of every length and is put back. The `get_batch_spec`
    of a built loader may give `bounds` that its options could not know: the core believes them, and looks at every batch without. Under
    `run.workers` the factory is called in other processes, with equal options and context, and builds an equal loader. Mixing, transfer to
    the device and the count of what was delivered belong to the core.

    Raises:
        DataError: of `take`, where nothing can be delivered.
    """

    def get_batch_spec(self) -> BatchSpec: ...
    def take(self, rows: int | None, length: int | None) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A loader that can say which data it read: file count, bytes and a digest.

    Under the key `vocabulary` it may say, in text, which vocabulary its ids are of, such as the digest of a tokenizer. Two different texts
    never meet in one model unless the config says `run: {vocabularies: several}`: sources, evaluations and the weights to start from
    are compared before the first step. A loader without that key is not compared. The fingerprint is kept with the weights.
    """

    def fingerprint(self) -> Mapping[str, Any]: ...


def vocabulary_of(fingerprint: Mapping[str, Any] | None) -> str | None:
    """The vocabulary that a fingerprint names; None where it names none."""
    named = None if fingerprint is None else fingerprint.get("vocabulary")
    return None if named is None else str(named)


@runtime_checkable
class Skippable(Protocol):
    """A loader that can move past rows without making them: `skip` leaves the state that `take` of the same would leave. Reader
    processes pass over each other's rows with it."""

    def skip(self, rows: int | None, length: int | None) -> None: ...


@runtime_checkable
class Scheduled(Protocol):
    """An artifact with options that follow time: whoever has `scheduled` options has this method.

    It is called with all values in force, by name, when the phase begins and whenever one changes; of a loader before the first `take` of
    a step whose values differ, in the order of the steps, and what the loader makes of them belongs in its state.
    """

    def apply_values(self, values: Mapping[str, float]) -> None: ...


@runtime_checkable
class Stateful(Protocol):
    """A task, transform or observer that changes as it is used: what it holds goes into every checkpoint and comes back on resume.

    The state is a map with names, of plain values, tensors and such maps. Modules keep theirs in persistent buffers instead.
    """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Transform(Protocol):
    """A change of the batch between loader and task, with its own random stream.

    It returns a new batch and leaves the one it got as it was. It is called for batches of training, and of evaluations too where its spec
    says `prepares`.
    """

    def __call__(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...


@define(kw_only=True)
class ParameterGroup:
    """Parameters that share their values, by canonical name.

    An optimizer turns each into one or more torch groups and gives every one of them `"group": name`. A torch group may name
    entries that are not to follow in `"fixed": (...)`, and say in `"moments": {"exp_avg": 1, "exp_avg_sq": 2}` which state entries
    shaped like the parameter it keeps: each with the power of the gradient that it is made of, or `"weight"` for one that is
    itself a weight. Growth maps exactly these; where the entry is missing or empty, the names of torch's own optimizers are known.

    State is kept by parameter: the core moves it to the next optimizer by name. At growth a state tensor shaped like its parameter is
    mapped with it, and a scalar, such as a step count, is taken as it is.
    """

    name: str
    parameters: dict[str, torch.nn.Parameter]
    """By canonical name; a float32 master in place of each parameter in bfloat16 or float16, which the core rounds after the step."""
    values: dict[str, float] = field(factory=dict)
    """The group's effective options (lr, weight_decay, …)."""


class WeightAdapter(Protocol):
    """A trainable addition to one frozen matrix (LoRA): an `nn.Module` from the layer's input to what is added to its output, which the
    model calls in every forward pass.

    Its factory is called as `factory(options, context, weight)` with the matrix [out, in] that it stands beside, on the meta
    device or not; it makes a module that adds nothing at first.
    """

    def __call__(self, input: torch.Tensor) -> torch.Tensor: ...

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix [out, in] that gives the same output as matrix and adapter together; the given matrix is not changed."""
        ...


@runtime_checkable
class TrainsElsewhere(Protocol):
    """An optimizer whose parameters hold other weights in training than those to judge and keep: `eval` shows these, `train` goes on."""

    def eval(self) -> object: ...
    def train(self) -> object: ...


class Reaction(Protocol):
    """A declared reaction to training (plateau): a factor on every learning rate, inside a stated envelope. The machine calls
    `watch` after every step and every evaluation.

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


@runtime_checkable
class StopsRun(Protocol):
    """A reaction that may end the run: it is saved, evaluated and finished as at the horizon, and the event `Stopped` says why."""

    stops: str | None
    """Why the run ends, in a sentence, once it does; None while it goes on. It follows from the reaction's state."""


class StepSchedule(Protocol):
    """A number that follows time, of a provider's own shape: pure, so that it is planned; built without torch.

    The planner calls it before the run for every step of its window and its end. Options of a schedule that reads a file may have
    `fingerprint()`, a map that the plan keeps, such as `{"sha256": …}`.
    """

    def value(self, step: int, window: ScheduleWindow) -> float:
        """The value before a step of the window, counted from 0; `step == window.steps` is its end, and is held from there on.

        Raises:
            UserError: its options do not fit the window; the message says why.
        """
        ...


class Adapter(Protocol):
    """A module at a junction of the model: an `nn.Module` from tensor to tensor, which the model calls in every forward pass."""

    def get_spec(self) -> AdapterSpec: ...
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor: ...


Observer = Callable[[Any], None]
"""Called with every event of the run, in order; one that raises is dropped with a warning, and the run goes on. One with an attribute
`retries` (a whole number) is asked again at the next event instead, so many failures in a row; the event that it failed on is lost to it.
It lets events pass that it does not know."""


@runtime_checkable
class MeetsRun(Protocol):
    """An observer that wants to know which run its events come from."""

    def meet(self, facts: RunFacts) -> None:
        """Called once in each process, before the first event, where there is a run directory."""
        ...


@runtime_checkable
class LeavesRun(Protocol):
    """An observer that wants to know when a process is done with the run, and its files are complete."""

    def leave(self, status: str) -> None:
        """Called once in each process that ends by itself, after the last event and the final weights, where there is a run directory; of
        an observer that was dropped as well.

        Args:
            status: as in `status.json`: `finished`, `stopped by …`, `interrupted` or `failed: …`.
        """
        ...
