"""The task in force, exchanged at boundaries like any part, and the frozen reference model it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import nn

from stackwise.contracts.answers import MAPS, calling, expect_state, mark
from stackwise.contracts.protocols import Batch, Scheduled, Stateful, Task
from stackwise.contracts.specs import AT_ENTRY, GIVEN
from stackwise.curriculum.parts import Part
from stackwise.curriculum.reported import undeclared, unweighed
from stackwise.errors import ProviderError, StackwiseError, UserError
from stackwise.planes.followers import Follower
from stackwise.planes.model.module import Model
from stackwise.planes.model.reported import split
from stackwise.timeline.schedules import Curve

_NUMBERS = (int, float, torch.Tensor)


class Added(NamedTuple):
    """A loss that a part of the model adds."""

    name: str
    """`<role>.<name>`."""
    pair: torch.Tensor
    """[2]: its sum and its denominator."""
    weight: float
    """What the config weighs it with at this instant."""


class Judged(NamedTuple):
    """The loss of a batch."""

    total: torch.Tensor
    """The task's sum."""
    weight: torch.Tensor | float
    """Its denominator."""
    metrics: Mapping[str, tuple[Any, Any]]
    """Name → sum and denominator, of the task and of parts of the model."""
    added: tuple[Added, ...] = ()
    """What trains beside the task's loss."""


def check_loss(task: object, result: Any, fault: type[StackwiseError] = ProviderError) -> None:
    """Check a result of a task's `loss` against its contract: a sum, its denominator, further metrics.

    Args:
        task: named in the message.
        result: of its `loss`.
        fault: raised where the result breaks the contract; a task given in code is its user's.
    """
    if not isinstance(result, tuple) or len(result) != 3:
        what = f"{_loss_of(task)} is no (total, weight, metrics) but {_short(result)}"
        raise fault(f"{what}: return the sum, its denominator and a map of metrics")
    total, weight, metrics = result
    if not isinstance(total, torch.Tensor) or total.dim() != 0 or total.is_complex():
        raise fault(_no_total(task, total))
    if not isinstance(weight, _NUMBERS) or (isinstance(weight, torch.Tensor) and weight.dim() != 0):
        raise fault(f"the weight of {_loss_of(task)} is {_short(weight)}: it is one number, the denominator of the sum")
    pairs = metrics.values() if isinstance(metrics, MAPS) else [metrics]
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise fault(f"the metrics of {_loss_of(task)} are {_short(metrics)}: they map a name to a sum and its denominator")
    if "loss" in metrics:
        raise fault(f"{_loss_of(task)} names a metric 'loss', which is the name of total / weight: call it otherwise")


def check_weight(task: object, weight: torch.Tensor | float, fault: type[StackwiseError]) -> None:
    """Check the first denominator of a task's loss; it is read on the host, for which a device is waited for.

    Raises:
        ProviderError: it is negative; UserError for a task given in code.
    """
    if float(weight) < 0:
        raise fault(
            f"the weight of the loss of {type(task).__name__} is {float(weight):g}: the denominator of a sum is not negative, or training "
            "would climb"
        )


def _no_total(task: object, total: object) -> str:
    what = f"the total of {_loss_of(task)} is {_short(total)}"
    return f"{what}: it is one number, a sum over targets, that gradients flow back from"


def _loss_of(task: object) -> str:
    return f"the loss of {type(task).__name__}"


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}{'' if value.requires_grad else ' without gradient'}"
    return f"{type(value).__name__} of length {len(value)}" if hasattr(value, "__len__") else type(value).__name__


class Loaded(NamedTuple):
    """A model from outside the run."""

    model: nn.Module
    sha256: str
    """Of its weights."""


class Objective:
    """Owns the task, and its reference.

    Args:
        build: builds the task of a declared part; None for a finished task.
        load: loads the saved weights that a task names as its reference into a model.
    """

    def __init__(self, build: Callable[[Part], Task] | None = None, load: Callable[[str, nn.Module], Loaded] | None = None) -> None:
        self._build, self._load = build, load
        self._curves: Mapping[str, Curve] = {}
        self._weights: dict[str, float] = {}
        self._agreed: object = None
        """The losses of the model that the weights were last checked against."""
        self._part: Part | None = None
        self._compared: tuple[object, str | None] = (None, None)
        """The task that `reference` belongs to, and where it comes from."""
        self.compares: str | None = None
        """What the declared task compares with, `phase entry` or a path."""
        self.reference_from: tuple[str, str] | None = None
        """Path and sha256 of a reference outside the run."""
        self.reference: nn.Module | None = None
        """The frozen model that the task in force compares with; None where it asks for none."""
        self._follower: Follower | None = None
        self.task: Task
        self.uses_model = False
        """Whether the task asks the model while it prepares a batch."""
        self._linear: tuple[str, ...] = ()
        """Outputs that the task reads as they are said."""
        self.fault: type[StackwiseError] = UserError
        """Whose fault a broken contract of the task is: of the provider, or of the user who gave it in code."""
        self._looked_at_loss: bool | None = None
        """Whether the weight that was last looked at is of a loss that trains; None before the first."""

    @classmethod
    def of(cls, task: Task, auxiliary: Mapping[str, float] | None = None, reference: nn.Module | None = None) -> Objective:
        """An objective around a finished task, with the weights of what parts of the model add to its loss, and what it compares with."""
        objective = cls()
        objective._weights = dict(auxiliary or {})
        objective._hold(task)
        if reference is not None:
            objective.hold_reference(reference)
        return objective

    @property
    def name(self) -> str:
        """The task's id, or its class where it was given in code."""
        return self._part.id if self._part is not None else type(self.task).__name__

    def check_prepared(self, prepared: Any) -> None:
        """Check a batch that a task prepared.

        Raises:
            ProviderError: it is not a map of tensors; UserError for a task given in code.
        """
        called = type(self.task).__name__
        if not isinstance(prepared, MAPS):
            raise self.fault(f"{called}.prepare returned {_short(prepared)}: it returns the batch, a map from field to tensor")
        for name, field in prepared.items():
            if not isinstance(field, torch.Tensor):
                raise self.fault(f"{called}.prepare returned {_short(field)} as the field '{name}': every field is a tensor")

    @property
    def lookahead(self) -> int:
        """Entries that each row needs beyond seq_len."""
        return self.task.get_spec().lookahead

    def enter(self, part: Part, auxiliary: Mapping[str, Curve] | None = None, reference: str | None = None) -> None:
        """Cross into a declared task; a new one is built only when its structure changes.

        Args:
            part: the declaration.
            auxiliary: `<role>.<name>` of a loss that a part of the model adds → its weight.
            reference: what the task compares with, `phase entry` or a path.
        """
        self.compares = reference
        self._curves, self._agreed = auxiliary or {}, None
        self._weights = {name: curve.knots[0].value for name, curve in self._curves.items()}
        changed = self._part is None or self._part.structure != part.structure
        task = self._build(part) if changed and self._build is not None else self.task
        self._part, self._follower = part, Follower(part, task, "the task")
        self._hold(task)

    def _hold(self, task: Task) -> None:
        """Put a task in force, and read once what its spec says of every step."""
        spec = task.get_spec()
        self.fault = ProviderError if self._part is not None and self._part.given is None else UserError
        self.task, self.uses_model, self._linear = task, spec.uses_model, tuple(spec.linear_outputs)
        self._looked_at_loss = None

    def take_reference(self, model: nn.Module) -> bool:
        """Take what a new task compares with, a copy of the model or one from outside the run; drop that of the task before.

        Returns:
            Whether a reference was taken.

        Raises:
            UserError: a model outside the run that cannot be read, or none where a finished task needs one.
        """
        if self._compared == (wanted := self._wanted()):
            return False
        self._compared, self.reference, self.reference_from = wanted, None, None
        if (source := wanted[1]) is None:
            return False
        if source == GIVEN:
            raise UserError("the task compares with another model: give it, Settings(reference=model)")
        self.hold_reference(deepcopy(model) if source == AT_ENTRY else self._loaded(source, model))
        return True

    def _wanted(self) -> tuple[object, str | None]:
        """The task in force, and what it compares with."""
        return self.task, self.task.get_spec().reference if self._part is None else self.compares

    def _loaded(self, source: str, beside: nn.Module) -> nn.Module:
        assert self._load is not None  # of declared tasks
        loaded = self._load(source, beside)
        self.reference_from = source, loaded.sha256
        device = next((tensor.device for tensor in (*beside.parameters(), *beside.buffers())), None)
        return loaded.model if device is None else loaded.model.to(device)

    def load_reference(self, source: str, sha256: str, beside: nn.Module) -> None:
        """Take the model outside the run that a checkpoint names.

        Raises:
            UserError: it cannot be read, or is no longer the one that the run has compared with.
        """
        model = self._loaded(source, beside)
        assert self.reference_from is not None
        if (now := self.reference_from[1]) != sha256:
            raise UserError(
                f"task.reference: the weights at {source} have the sha256 {now}, and this run has compared with {sha256}: put "
                "those back, or begin a new phase with another reference"
            )
        self.hold_reference(model)

    def hold_reference(self, reference: nn.Module) -> None:
        """Compare with this model."""
        self._compared, self.reference = self._wanted(), reference.requires_grad_(False).eval()

    def loss(self, model: nn.Module, prepared: Batch) -> Judged:
        """The task's loss of a batch, with the outputs of the reference where there is one, and what parts of the model add.

        Raises:
            ProviderError: what the task returned is not a loss; UserError for a task given in code.
            UserError: a loss of a part has no weight, or a weight has no loss.
        """
        return self.judged(model, self._outputs(model, prepared), prepared)

    def _outputs(self, model: nn.Module, prepared: Batch) -> Mapping[str, torch.Tensor]:
        """What a model makes of a batch, as the task reads it."""
        outputs: Mapping[str, torch.Tensor]
        outputs = model(prepared, self._linear) if self._linear and isinstance(model, Model) else model(prepared)
        return outputs

    def judged(self, model: nn.Module, outputs: Mapping[str, torch.Tensor], prepared: Batch) -> Judged:
        """The loss, as `loss` gives it, of what the model made of a batch."""
        names: Mapping[str, bool] = getattr(model, "reported", {})
        outputs, reported = split(outputs, names) if names else (outputs, {})
        trains = torch.is_grad_enabled()
        result = self.judge(outputs, prepared)
        if trains and not result[0].requires_grad:
            with calling(self.name, "loss"):
                raise self.fault(_no_total(self.task, result[0]))
        if self._looked_at_loss is not trains:
            with calling(self.name, "loss"):
                check_weight(self.task, result[1], self.fault)
            self._looked_at_loss = trains
        total, weight, metrics = result
        if not names and not self._weights:
            return Judged(total, weight, metrics)
        if self._agreed is not names:
            self._agree(names)
            self._agreed = names
        added = tuple(Added(name, reported[name], weight) for name, weight in self._weights.items())
        beside = {name: tuple(pair.detach()) for name, pair in reported.items()}
        return Judged(total, weight, {**metrics, **beside}, added)

    def _agree(self, names: Mapping[str, bool]) -> None:
        losses = [name for name, is_loss in names.items() if is_loss]
        for name in (name for name in losses if name not in self._weights):
            raise UserError(unweighed(name))
        for name in (name for name in self._weights if name not in losses):
            raise UserError(undeclared(name, losses))

    def judge(self, outputs: Mapping[str, torch.Tensor], prepared: Batch) -> Any:
        """What the task returns as the loss of these outputs, with those of the reference where there is one.

        Args:
            outputs: of the model.
            prepared: the batch that it saw.

        Raises:
            ProviderError: what the task returned is not a loss; UserError for a task given in code.
        """
        try:
            if self.reference is None:
                result: Any = self.task.loss(outputs, prepared)
            else:
                with torch.no_grad():
                    compared, _ = split(self._outputs(self.reference, prepared), getattr(self.reference, "reported", {}))
                result = self.task.loss(outputs, prepared, reference=compared)  # type: ignore[call-arg]  # its spec declares it
            check_loss(self.task, result, self.fault)
        except BaseException as error:
            mark(error, self.name, "loss")
            raise
        return result

    @contextmanager
    def fixed(self, values: Mapping[str, Mapping[str, float]]) -> Iterator[Task]:
        """The task with fixed values (by task id) for the options that follow time; afterwards those in force return."""
        own = values.get(self._part.id, {}) if self._part is not None else {}
        if not own or self._follower is None or not isinstance(self.task, Scheduled):
            yield self.task
            return
        handing = calling(self.name, "apply_values")
        with handing:
            self.task.apply_values({**self._follower.values, **own})
        try:
            yield self.task
        finally:
            with handing:
                self.task.apply_values(self._follower.values)

    def state_dict(self) -> dict[str, Any]:
        """State of the task; empty for a stateless one."""
        with calling(self.name, "state_dict"):
            return expect_state(self.task.state_dict()) if isinstance(self.task, Stateful) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            UserError: there is state and the task takes none.
        """
        if isinstance(self.task, Stateful):
            with calling(self.name, "load_state_dict"):
                self.task.load_state_dict(state)
            if self._follower is not None:
                self._follower.forget()
        elif state:
            raise UserError(f"the saved task holds {', '.join(sorted(state))}, and {type(self.task).__name__} takes no state")

    @property
    def moves(self) -> bool:
        """Whether a value or a weight follows time."""
        follows = self._follower is not None and self._follower.moves
        return follows or not all(curve.is_constant for curve in self._curves.values())

    def apply_values(self, t: float) -> None:
        """Hand the task the values in force at t, if they changed, and weigh added losses by those of t."""
        if self._curves:
            self._weights = {name: curve(t) for name, curve in self._curves.items()}
        if self._follower is not None:
            self._follower.apply(t)
