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
    """An `nn.Module`: `forward(**fields) → hidden`, called with the batch fields that its spec names.

    The hidden state is [batch, time, width] unless the spec says otherwise. An embedding whose spec names losses or metrics returns
    `(hidden, reported)`. The model calls it in every forward pass, and once more for each side input that a task wants embedded
    (`TaskSpec.embedded`).
    """

    def get_spec(self) -> EmbeddingSpec: ...
    def __call__(self, **fields: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, Reported]: ...


class Rack(Protocol):
    """An `nn.Module`: `forward(hidden, **side) → hidden`. A plain rack takes no side input and needs no `to_spec`.

    A rack that adds to the loss or reports numbers returns `(hidden, reported)`: sums and their denominators over the positions or rows
    that it was given, so that accumulation and several ranks stay exact. The product of two statistics of the whole batch is not such a
    sum; compute the product for each row and add these up. With `data.accumulate` each weighted loss costs one more backward pass,
    because its share is known only once all denominators are.

    Blocks are called `stacks.<stack>.<i>` inside the rack, or what `RackSpec.block_path` says: growth, freezing and optimizer groups find
    parameters by these names. A rack needs no method to grow: the core builds a new one with other options and carries the weights over
    by name. It carries persistent buffers over as well, and saves them in checkpoints: keep in one what the rack remembers from batch to
    batch.

    Each part of the model draws its initial weights with torch as usual: the core seeds torch's generator before it builds the part and
    restores it afterwards. Parts are also built on torch's meta device, to price a plan without using memory, so a factory must not read
    values out of a tensor.
    """

    def to_spec(self) -> RackSpec: ...
    def __call__(self, hidden: torch.Tensor, **side: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, Reported]: ...


@runtime_checkable
class PartwiseRack(Protocol):
    """A rack that can run some of its blocks alone, so that the hidden states before the lowest trained block are computed only once
    (`model.cache: frozen`).

    Blocks are counted in forward order over all stacks. `start` 0 includes what comes before the first block, and `stop` None what comes
    after the last: `forward(hidden, **side)` equals `forward_blocks(hidden, 0, None, **side)`, and running blocks 0 to k and then the rest
    from k gives the same result. Every call gets the same side inputs as `forward`.
    """

    def forward_blocks(self, hidden: torch.Tensor, start: int, stop: int | None, **side: torch.Tensor) -> torch.Tensor: ...


class Head(Protocol):
    """An `nn.Module`: `forward(hidden, **side) → {output name: tensor}`. Most take no side input.

    A head whose spec names losses or metrics returns `(outputs, reported)`, as a rack does.
    """

    def get_spec(self) -> HeadSpec: ...
    def __call__(
        self, hidden: torch.Tensor, **side: torch.Tensor
    ) -> Mapping[str, torch.Tensor] | tuple[Mapping[str, torch.Tensor], Reported]: ...


@runtime_checkable
class LinearHead(Protocol):
    """A head whose last step is one matrix, and that can leave this step to the task (`TaskSpec.linear_outputs`).

    `forward_linear` takes what `forward` takes and returns the same outputs by name, with a `LinearOutput` in place of each matrix
    product. The model calls it instead of `forward` for a task that reads such outputs, unless the head has forward hooks, which would
    then not run.
    """

    def forward_linear(self, hidden: torch.Tensor, **side: torch.Tensor) -> Mapping[str, torch.Tensor | LinearOutput]: ...


class Task(Protocol):
    """The objective. `prepare` is called for every micro-batch, then the model, then `loss`.

    `prepare` makes the batch that the embedding and the loss read. It draws random numbers from `generator` alone, which is seeded anew
    at each step. Before the run it is called with a batch in which every field of the spec has its lowest value: `validate` reports what
    it refuses (`UserError`), and the plan is priced with the shapes that it returns.

    `loss` must compute in float32: under `precision: bf16` outputs may come in bfloat16. It returns a sum, its denominator (the number of
    targets) and further metrics, each a sum with its own denominator, so that accumulation and several ranks stay exact. A metric may
    have any name but `loss`.
    """

    def get_spec(self) -> TaskSpec: ...
    def prepare(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...
    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]: ...


class AskingTask(Protocol):
    """A task whose spec says `uses_model`: `prepare` may call the model, `model(batch) → outputs by name`, as it is at that step, in eval
    mode and without gradients.

    Batches of such a task are not prepared ahead. To price the plan, `prepare` gets a stand-in for the model whose outputs are zero.
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
    """A task whose spec declares a `reference`: `loss` also gets the outputs of the frozen model for the same prepared batch."""

    def get_spec(self) -> TaskSpec: ...
    def prepare(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...
    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, *, reference: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]: ...


@runtime_checkable
class PreparesEvaluations(Protocol):
    """A task that prepares evaluation batches in another way than training batches, for instance for an estimate of lower variance."""

    def prepare_evaluation(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...


@runtime_checkable
class Loader(Protocol):
    """A deterministic stream with a cursor. `take` delivers the next rows; a row belongs to exactly one `take`.

    The data plane calls `take` whenever a step needs rows, and expects exactly `rows` rows of exactly `length` entries. `length` is
    seq_len plus the task's lookahead, or None where the config declares no seq_len; `rows` is None where it declares no batch_size.
    `state_dict` is the whole state: loaders with equal state deliver equal rows, and `load_state_dict` may move forward or back. For
    every `BuildContext.split` but `train` a loader must deliver rows that training does not see; the seed is the same for every split.

    The loaders of all phases are built before the first step. Each then delivers one row of every length, and its state is restored. The
    `get_batch_spec` of a built loader may state `bounds` that its options could not know; the core trusts them, and checks the values of
    every batch where there are none. Under `run.workers` the factory is called in other processes with equal options and context, and
    must build an equal loader. Mixing, transfer to the device and the count of delivered rows belong to the core.

    Raises:
        DataError: by `take`, where nothing can be delivered.
    """

    def get_batch_spec(self) -> BatchSpec: ...
    def take(self, rows: int | None, length: int | None) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A loader that can say which data it read: file count, bytes and a digest.

    Under the key `vocabulary` it may name the vocabulary of its ids as a string, such as the digest of a tokenizer. Before the first step
    the names of all sources, evaluations and starting weights are compared, and two different ones are refused unless the config says
    `run: {vocabularies: several}`. A loader without that key is not compared. The fingerprint is saved with the weights.
    """

    def fingerprint(self) -> Mapping[str, Any]: ...


def vocabulary_of(fingerprint: Mapping[str, Any] | None) -> str | None:
    """The vocabulary that a fingerprint names; None where it names none."""
    named = None if fingerprint is None else fingerprint.get("vocabulary")
    return None if named is None else str(named)


@runtime_checkable
class Skippable(Protocol):
    """A loader that can move past rows without making them: `skip` leaves the loader in the same state as `take` with the same arguments.
    Reader processes use it to pass over each other's rows."""

    def skip(self, rows: int | None, length: int | None) -> None: ...


@runtime_checkable
class Scheduled(Protocol):
    """An artifact with options that follow time. Every component with `scheduled` options must have this method.

    The core calls it with all current values by name, when a phase begins and whenever one changes. A loader gets the call before the first
    `take` of a step whose values differ, in the order of the steps; what the loader derives from them is part of its state.
    """

    def apply_values(self, values: Mapping[str, float]) -> None: ...


@runtime_checkable
class Stateful(Protocol):
    """A task, transform or observer with state of its own: the state is saved in every checkpoint and restored on resume.

    It is a dict with string keys; values are plain values, tensors and such dicts. Modules keep their state in persistent buffers instead.
    """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Transform(Protocol):
    """Changes a batch between loader and task, with its own random stream.

    It returns a new batch and does not change the one that it got. It is called for training batches, and for evaluation batches too
    where its spec says `prepares`.
    """

    def __call__(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch: ...


@define(kw_only=True)
class ParameterGroup:
    """Parameters with the same option values (learning rate, weight decay), by canonical name.

    An optimizer's factory turns each `ParameterGroup` into one or more torch groups and gives each of these `"group": name`, by which
    the core finds them to write the scheduled values. Two more entries of a torch group are optional. `"fixed": ("weight_decay",)` names
    values that the core must not write. `"moments": {"exp_avg": 1, "exp_avg_sq": 2}` names the state tensors shaped like the parameter:
    1 for one that is linear in the gradient, 2 for one made of its square, `"weight"` for one that is itself a weight. Growth maps
    exactly these; without the entry it goes by the names that torch's own optimizers use.

    State is kept by parameter: the core moves it to the next optimizer by name. At growth a state tensor shaped like its parameter is
    mapped with it, and a scalar, such as a step count, is kept as it is.
    """

    name: str
    parameters: dict[str, torch.nn.Parameter]
    """By canonical name. For a parameter in bfloat16 or float16 this is its float32 master copy, which the core rounds after the step."""
    values: dict[str, float] = field(factory=dict)
    """The group's effective options (lr, weight_decay, …)."""


class WeightAdapter(Protocol):
    """A trainable addition to one frozen matrix (LoRA): an `nn.Module` that maps the layer's input [..., in] to what is added to the
    layer's output [..., out].

    The model calls it in every forward pass. Its factory is called as `factory(options, context, weight)` with the matrix [out, in],
    which may lie on the meta device. A new adapter must add zero.
    """

    def __call__(self, input: torch.Tensor) -> torch.Tensor: ...

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix [out, in] that gives the same output as matrix and adapter together; the given matrix is not changed."""
        ...


@runtime_checkable
class TrainsElsewhere(Protocol):
    """An optimizer that trains other weights than those to evaluate and save (schedule-free optimizers): `eval` puts the latter into the
    parameters, and `train` puts the former back."""

    def eval(self) -> object: ...
    def train(self) -> object: ...


class Reaction(Protocol):
    """A declared reaction to the training signal, such as halving the learning rate on a plateau: a factor on every learning rate, within
    a stated envelope. The machine calls `watch` after every step and every evaluation.

    The factor must follow from the numbers shown to `watch` alone. The options have `envelope() → (lowest, highest)` factor, which the
    plan prints, and may have `watches() → names of metrics`, which the plan checks against the declared evaluations.
    """

    factor: float
    """The current factor; 1 at first."""

    def watch(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Receive new numbers: `train.loss` after every step, `<evaluation>.<metric>` after every evaluation.

        Returns:
            If the factor changed, a sentence that says why; None otherwise.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class StopsRun(Protocol):
    """A reaction that may end the run early: the run is then saved, evaluated and finished as at its horizon, and the event `Stopped`
    gives the reason."""

    stops: str | None
    """None while the run goes on; a sentence with the reason once it is to end. It must follow from the reaction's state."""


class StepSchedule(Protocol):
    """A number that follows time, in a shape of the provider's own: a pure function of the step, built without torch.

    The planner calls `value` before the run, for every step of the schedule's window and for the window's end. The options of a schedule
    that reads a file may have `fingerprint()`, a map such as `{"sha256": …}` that is kept in the plan.
    """

    def value(self, step: int, window: ScheduleWindow) -> float:
        """The value in force at a step of the window, counted from 0. The value at `step == window.steps`, its end, holds from then on.

        Raises:
            UserError: its options do not fit the window; the message says why.
        """
        ...


class Adapter(Protocol):
    """A module at a junction of the model: an `nn.Module` from tensor to tensor, which the model calls in every forward pass."""

    def get_spec(self) -> AdapterSpec: ...
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor: ...


Observer = Callable[[Any], None]
"""Called with every event of the run, in order. It must ignore events that it does not know. When an observer raises, it is dropped with a
warning and the run goes on. An observer with an attribute `retries` (a whole number) may fail that many times in a row before it is
dropped; the events that it failed on are not repeated."""


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
        """Called once in each process that is not killed, after the last event and the final weights, where there is a run directory. A
        dropped observer gets the call as well.

        Args:
            status: as in `status.json`: `finished`, `stopped by …`, `interrupted` or `failed: …`.
        """
        ...
