"""The state of a model by name: one comparison, and module state that goes through a resume and through growth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from own_blocks import WIDTH, Deeper, config
from tiny_walks import machine_of
from torch import nn
from torch.nn.utils import parametrizations

from stackwise import StepDone, UserError
from stackwise.planes.model.state import check_savable, differences, load_named_state, load_named_tensors, named_state, named_tensors, write
from stackwise.storage.checkpoints.store import CheckpointStore


class Counting(nn.Module):
    """Adds a map that grows with the number of its calls in training, which it keeps as a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count()
        added: torch.Tensor = torch.tanh(self.map(hidden)) * (1 + 0.05 * (0 if self.calls is None else self.calls))
        return added


class Extra(Counting):
    """As an extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def count(self) -> None:
        self.calls += 1

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class Passing(Counting):
    """As a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def count(self) -> None:
        self.calls += 1


class LazilyPassing(Counting):
    """As a buffer that is not there before the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", None, persistent=False)

    def count(self) -> None:
        self.calls = torch.ones(()) if self.calls is None else self.calls + 1


class Views(Counting):
    """As one of buffers that are views, repeats, empty, whole numbers and transposed."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(64.0).view(8, 8)
        self.register_buffer("upper", whole[:4])
        self.register_buffer("middle", whole[2:6])
        self.register_buffer("repeated", torch.ones(1).expand(5))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("turned", torch.arange(12.0).view(3, 4).t())

    def count(self) -> None:
        self.calls += 1


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.map(hidden)
        return mapped


GROWN = {
    "one": {"until": "6 steps"},
    "two": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": Deeper()}},
}


@pytest.mark.parametrize("block", [Extra, Passing, LazilyPassing, Views, Spectral])
@pytest.mark.parametrize(("phases", "at"), [({}, 4), (GROWN, 6), (GROWN, 9)])
def test_a_resume_is_the_uninterrupted_run(block: Callable[[], nn.Module], phases: dict[str, Any], at: int, tmp_path: Any) -> None:
    declared = config(block, **({"phases": phases} if phases else {}))
    machine, store, losses = machine_of(declared), CheckpointStore(tmp_path), []
    for event in machine.train():
        if isinstance(event, StepDone):
            losses.append(event.loss)
            if event.step == at - 1:
                store.save(at, machine.state(), {})
    store.close()
    resumed = machine_of(declared)
    checkpoint = store.newest()[0]
    assert checkpoint is not None
    resumed.restore(checkpoint.load_state())
    assert [event.loss for event in resumed.train() if isinstance(event, StepDone)] == losses[at:]


@pytest.mark.parametrize("block", [Extra, Passing, LazilyPassing, Views])
def test_module_state_of_a_block_that_goes_on_goes_on_through_growth(block: Callable[[], nn.Module]) -> None:
    machine = machine_of(config(block, phases=GROWN))
    for event in machine.train():
        if isinstance(event, StepDone) and event.step in (5, 6):
            blocks = list(machine.model.model.get_submodule("rack.stacks.base").children())
            held = [int(each.calls) for each in blocks]
            assert held == ([6, 6] if event.step == 5 else [7, 7, 1])


def test_a_buffer_that_only_its_constructor_writes_is_as_the_new_constructor_makes_it() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("table", torch.randn(3), persistent=False)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            mapped: torch.Tensor = self.map(hidden)
            return mapped

    machine = machine_of(config(Table, phases=GROWN))
    tables = {}
    for event in machine.train():
        if isinstance(event, StepDone):
            tables[event.step] = machine.model.model.get_buffer("rack.stacks.base.0.table").clone()
    assert torch.equal(tables[0], tables[5]) and torch.equal(tables[6], tables[11]) and not torch.equal(tables[5], tables[6])


class Pair(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, 3), nn.Linear(width, 3, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("mean", torch.zeros(2))


def test_every_kind_of_difference_is_named_once_and_nothing_is_written() -> None:
    own = dict(Pair().named_parameters(remove_duplicate=False)) | {"mean": torch.zeros(2)}
    saved = {"a.weight": torch.ones(3, 4), "b.weight": torch.zeros(3, 4), "mean": torch.zeros(2).double(), "c": torch.zeros(1)}
    assert differences(own, saved) == [
        "missing in the weights: a.bias",
        "not in the model: c",
        "of another dtype: mean is float64 in the weights and float32 in the model",
        "tied in the model, but different in the weights: b.weight and a.weight",
    ]
    assert differences(own, {"a.weight": torch.ones(2, 2)}, {"a.bias", "mean"}) == [
        "of another shape: a.weight is [2, 2] in the weights and [3, 4] in the model"
    ]
    model = Pair()
    before = model.a.bias.detach().clone()
    with pytest.raises(UserError) as caught:
        load_named_tensors(model, {**named_tensors(Pair()), "a.weight": torch.zeros(1)}, "the weights in x")
    assert str(caught.value).startswith("the weights in x are not this model's:\n  of another shape: a.weight")
    assert torch.equal(model.a.bias, before)


def test_what_was_named_is_loaded_to_the_bit() -> None:
    one, two = Pair(), Pair()
    load_named_state(two, named_state(one), "the weights")
    assert all(torch.equal(tensor, named_state(one)[name]) for name, tensor in named_state(two).items())
    assert list(named_tensors(one)) == ["a.weight", "a.bias", "mean"]


def test_an_extra_state_that_is_missing_or_left_over_is_named() -> None:
    model = Extra()
    state = named_state(model)
    with pytest.raises(UserError, match="missing in the weights: _extra_state"):
        load_named_state(model, {name: value for name, value in state.items() if name != "_extra_state"}, "the weights")
    with pytest.raises(UserError, match=r"not in the model: map\._extra_state"):
        load_named_state(model, {**state, "map._extra_state": 1}, "the weights")


def test_a_tensor_that_repeats_its_memory_is_written_once() -> None:
    repeated = torch.zeros(1, 3).expand(4, 3)
    write(repeated, torch.tensor([1.0, 2, 3]).expand(4, 3))
    assert repeated.tolist() == [[1, 2, 3]] * 4


def test_what_no_file_holds_is_refused_by_name_before_the_run() -> None:
    wide = nn.Module()
    wide.kernel = nn.Parameter(torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(UserError, match="kernel is complex128"):
        check_savable(wide)
    odd = Extra()
    odd.get_extra_state = lambda: {"open": [object()]}  # type: ignore[method-assign]  # of this one object
    with pytest.raises(UserError, match="_extra_state holds a object"):
        check_savable(nn.Sequential(odd))
