"""What is brought in code and keeps something from step to step is saved, or refused by name; so is what surrounds the call."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import stackwise
from stackwise import Built, DataError, Loss, StepDone, UserError

POINTS = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
LABELS = (POINTS[:, 0] > 0).long()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.layer(points)


def machine(model: type[nn.Module] = Net, source: Any = None, task: Any = None, optimizer: Any = None) -> Any:
    source = DataLoader(TensorDataset(POINTS, LABELS), batch_size=4) if source is None else source
    return stackwise.assemble(
        stackwise.experiment(
            run={"name": "r", "seed": 1, "horizon": "8 steps", "device": "cpu", "probe": False},
            task=task or Loss(nn.CrossEntropyLoss(), "labels"),
            data={"sources": {"s": source}, "fields": ["points", "labels"]},
            model={"module": Built(model)},
            optimizer=optimizer or Built(torch.optim.SGD, lr=0.1),
        )
    )


class Mean(Net):
    """Keeps a number, a tensor or a list as a plain attribute."""

    def __init__(self, start: Callable[[], Any] = float) -> None:
        super().__init__()
        self.kept = start()

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        if isinstance(self.kept, list):
            self.kept.append(1)
            return super().forward(points) * len(self.kept)
        self.kept = self.kept + (points.mean().item() if isinstance(self.kept, float) else points.mean())
        return super().forward(points) + self.kept


class MeanTensor(Mean):
    def __init__(self) -> None:
        super().__init__(lambda: torch.zeros(()))


class MeanList(Mean):
    def __init__(self) -> None:
        super().__init__(list)


class Said(Mean):
    """Says it as extra state."""

    def get_extra_state(self) -> Any:
        return self.kept

    def set_extra_state(self, state: Any) -> None:
        self.kept = state


class Cached(Net):
    """Makes a table at its first use, as positions often are, and leaves there what gradients flow through."""

    def __init__(self) -> None:
        super().__init__()
        self.table: torch.Tensor | None = None

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.arange(2.0)
        self.last = super().forward(points + self.table)
        return self.last


@pytest.mark.parametrize("model", [Mean, MeanTensor, MeanList])
def test_a_plain_attribute_that_a_step_changes_is_named(model: type[nn.Module]) -> None:
    with pytest.raises(UserError, match=r"rack\.kept"):
        list(machine(model).train())


@pytest.mark.parametrize("model", [Said, Cached])
def test_what_says_its_state_and_what_a_first_use_makes_are_taken(model: type[nn.Module]) -> None:
    assert sum(1 for event in machine(model).train() if isinstance(event, stackwise.StepDone)) == 8


class Unregistered(Net):
    """Its second layer stands in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(2, 2)]

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return super().forward(self.layers[0](points))


def test_a_parameter_that_nothing_trains_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[2, 2\]|\[2\]"):
        list(machine(Unregistered).train())
    scale = nn.Parameter(torch.ones(()))
    with pytest.raises(UserError, match=r"shape \[\]"):
        list(machine(task=Loss(lambda output, labels: F.cross_entropy(output * scale, labels), "labels")).train())


class Center(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(2))

    def forward(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.center = 0.5 * self.center + output.detach().mean(0)
        return F.cross_entropy(output + self.center, labels)


class Scale:
    """A loss that is an object and says its state."""

    def __init__(self) -> None:
        self.factor = 1.0

    def __call__(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.factor *= 1.5
        return self.factor * F.cross_entropy(output, labels)

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor = state["factor"]


class Silent(Scale):
    state_dict = load_state_dict = None  # type: ignore[assignment]


@pytest.mark.parametrize("loss", [Center, Scale])
def test_what_a_loss_keeps_is_saved(loss: Callable[[], Any]) -> None:
    whole = [event.loss for event in machine(task=Loss(loss(), "labels")).train() if isinstance(event, stackwise.StepDone)]
    begun, losses = machine(task=Loss(loss(), "labels")), []
    for event in begun.train():
        if isinstance(event, stackwise.StepDone):
            losses.append(event.loss)
            if len(losses) == 4:
                saved = begun.state()
                break
    resumed = machine(task=Loss(loss(), "labels"))
    resumed.restore(saved)
    losses += [event.loss for event in resumed.train() if isinstance(event, stackwise.StepDone)]
    assert losses == whole


def test_a_loss_that_keeps_something_and_says_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"Silent\.factor"):
        list(machine(task=Loss(Silent(), "labels")).train())


class Counting(torch.optim.SGD):
    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return super().step(closure)


class Remembering(torch.optim.SGD):
    """Keeps something of each parameter, or of each group."""

    def __init__(self, params: Any, entry: Callable[[], Any], lr: float = 0.1, in_group: bool = False) -> None:
        super().__init__(params, lr=lr)
        self._entry = entry
        self._in_group = in_group

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]  # as torch's
        for group in self.param_groups:
            if self._in_group:
                group["kept"] = self._entry()
            else:
                self.state[group["params"][0]]["kept"] = self._entry()
        return super().step(closure)


@pytest.mark.parametrize("entry", [lambda: deque([1]), lambda: {1}, lambda: [{"own": object()}]])
@pytest.mark.parametrize("in_group", [False, True])
def test_a_state_of_an_optimizer_that_no_file_holds_is_the_users_and_refused_at_the_first_step(entry: Any, in_group: bool) -> None:
    steps = []
    with pytest.raises(UserError, match="Remembering"):
        steps += [e for e in machine(optimizer=Built(Remembering, lr=0.1, entry=entry, in_group=in_group)).train() if type(e) is StepDone]
    assert not steps


def test_a_state_of_an_optimizer_that_a_file_holds_is_taken() -> None:
    made = machine(optimizer=Built(Remembering, lr=0.1, entry=lambda: {"a": (1, [torch.ones(2), None, "x", 2.5])}))
    assert len([event for event in made.train() if type(event) is StepDone]) == 8


class Late(torch.optim.SGD):
    """Keeps something odd of each parameter from its fifth step on."""

    def __init__(self, params: Any, odd: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self._odd = odd

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]  # as torch's
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["steps"] = state.get("steps", 0) + 1
            state["exp_avg"] = torch.zeros_like(parameter)
            if state["steps"] > 4:
                state |= self._odd
        return super().step(closure)


@pytest.mark.parametrize(
    ("odd", "said"),
    [({"memo": {1}}, "memo, a set"), ({"exp_avg": torch.zeros(7)}, r"exp_avg of shape \[7\]"), ({"late": torch.ones(1)}, None)],
)
def test_a_state_of_an_optimizer_that_turns_odd_later_is_refused_at_the_save(odd: Any, said: str | None) -> None:
    made = machine(optimizer=Built(Late, lr=0.1, odd=odd))
    for event in made.train():
        if type(event) is StepDone and event.step == 3:
            made.state()
        if type(event) is StepDone and event.step == 5:
            break
    if said is None:
        assert "late" in made.state()["optimizer"]["parameters"]["rack.layer.weight"]
        return
    with pytest.raises(UserError, match=f"Late keeps.*{said}"):
        made.state()


def test_an_optimizer_that_counts_on_itself_is_refused() -> None:
    with pytest.raises(UserError, match=r"Counting\.count"):
        list(machine(optimizer=Built(Counting, lr=0.1)).train())


@pytest.mark.parametrize(
    "loss",
    [
        partial(F.cross_entropy, reduction="sum"),
        partial(partial(F.cross_entropy, label_smoothing=0.1), reduction="sum"),
        partial(nn.MSELoss(reduction="sum")),
    ],
)
def test_a_partial_loss_that_sums_is_refused(loss: Any) -> None:
    with pytest.raises(UserError, match="sum"):
        Loss(loss, "labels")


class Drawing(Dataset[Any]):
    """Draws from a generator of its own, in a transform."""

    def __init__(self, generator: Any) -> None:
        self.transform = {"jitter": [generator]}

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        generator = self.transform["jitter"][0]
        drawn = torch.rand((), generator=generator) if isinstance(generator, torch.Generator) else generator.random()
        return POINTS[index] + float(drawn), LABELS[index]


@pytest.mark.parametrize("generator", [np.random.default_rng(0), random.Random(0), torch.Generator()])
def test_a_dataset_that_draws_from_its_own_generator_is_refused(generator: Any) -> None:
    with pytest.raises(DataError, match=r"transform\.jitter\.0"):
        list(machine(source=DataLoader(Drawing(generator), batch_size=4)).train())


class Failing(Dataset[Any]):
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        if index == 9:
            raise self.error("mine")
        return POINTS[index], LABELS[index]


def test_an_error_of_a_dataset_names_its_samples_and_is_no_end() -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        list(machine(source=DataLoader(Failing(ValueError), batch_size=4)).train())
    assert any("[8, 9, 10, 11]" in note for note in caught.value.__notes__)
    with pytest.raises(DataError, match=r"StopIteration.*\[8, 9, 10, 11\]"):
        list(machine(source=DataLoader(Failing(StopIteration), batch_size=4)).train())


def test_an_error_of_a_loss_names_its_fields() -> None:
    with pytest.raises(RuntimeError) as caught:
        list(machine(source=DataLoader(TensorDataset(POINTS, LABELS.int()), batch_size=4)).train())
    assert any("'labels' torch.int32" in note for note in caught.value.__notes__)


class InPlace(Net):
    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return super().forward(points.mul_(2))


def test_a_list_whose_batches_are_changed_in_place_is_refused() -> None:
    with pytest.raises(DataError, match="batch 0"):
        list(machine(InPlace, [(POINTS[:4].clone(), LABELS[:4]), (POINTS[4:8].clone(), LABELS[4:8])]).train())
    assert list(machine(InPlace).train())  # a DataLoader makes new ones


class Whole(Dataset[Any]):
    """Hands out batches that it keeps, or copies of them."""

    def __init__(self, *, copies: bool) -> None:
        self.batches, self.copies = [each.clone() for each in POINTS.split(4)], copies

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        batch = self.batches[index]
        return (batch.clone() if self.copies else batch), LABELS[4 * index : 4 * index + 4]


def test_memory_of_a_dataset_that_forward_changes_in_place_is_refused_when_it_comes_again() -> None:
    with pytest.raises(DataError, match="memory that its dataset keeps"):
        list(machine(InPlace, DataLoader(Whole(copies=False), batch_size=None)).train())
    assert list(machine(InPlace, DataLoader(Whole(copies=True), batch_size=None)).train())
    assert list(machine(Net, DataLoader(Whole(copies=False), batch_size=None)).train())


def scheduled(parameters: Any, lr: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=lr)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1)
    return optimizer


def test_a_scheduler_around_an_optimizer_is_refused_as_nothing_steps_it() -> None:
    with pytest.raises(UserError, match=r"rate would stay at 0\.01: give Built\(torch\.optim\.SGD"):
        list(machine(optimizer=Built(scheduled, lr=0.1)).train())
    model = Net()
    experiment = stackwise.experiment(
        run={"name": "r", "horizon": "2 steps", "device": "cpu"},
        task=Loss(nn.CrossEntropyLoss(), "labels"),
        data={"sources": {"s": DataLoader(TensorDataset(POINTS, LABELS), batch_size=4)}, "fields": ["points", "labels"]},
        model=model,
        optimizer=scheduled(model.parameters(), lr=0.1),
    )
    with pytest.raises(UserError, match="a scheduler of torch"):
        list(stackwise.assemble(experiment).train())


def test_a_field_that_is_no_text_is_refused() -> None:
    class Numbered(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return {"points": POINTS[index], "labels": LABELS[index], 3: POINTS[index]}

    experiment = stackwise.experiment(
        run={"name": "r", "horizon": "2 steps", "device": "cpu"},
        task=Loss(nn.CrossEntropyLoss(), "labels"),
        data=DataLoader(Numbered(), batch_size=4),
        model=Net(),
        optimizer=Built(torch.optim.SGD, lr=0.1),
    )
    with pytest.raises(DataError, match="3"):
        list(stackwise.assemble(experiment).train())


@pytest.mark.parametrize(
    ("around", "named"),
    [
        (torch.no_grad, "no_grad"),
        (torch.inference_mode, "inference_mode"),
        (lambda: torch.autocast("cpu", torch.bfloat16), "autocast"),
        (lambda: torch.device("meta"), "meta"),
        (nullcontext, ""),
    ],
)
def test_what_surrounds_a_run_does_not_change_it_in_silence(around: Callable[[], Any], named: str) -> None:
    trained = machine()
    with around(), pytest.raises(UserError, match=named) if named else nullcontext():
        assert list(trained.train())
