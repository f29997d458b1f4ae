"""Hooks that keep something of their own are named, with what they keep; torch's own hooks and those without a memory are not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.utils.data import DataLoader, Dataset

import stackwise
from stackwise import Built, Loss, PhaseEntered, RunStarted, StepDone
from stackwise.machine.hooks import keeping_functions, keeping_hooks

SEEN: dict[str, Any] = {}
CALLS = 0


class Tracker:
    """A hook that is an object, and one that is its method."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: Any) -> None:
        self.count += 1

    def of_gradient(self, gradient: torch.Tensor) -> None:
        self.count += 1


def counting() -> Any:
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1

    return hook


def averaging() -> Any:
    mean = [0.0]

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        mean[0] = 0.9 * mean[0] + 0.1 * float(gradient.mean())
        return gradient - mean[0]

    return hook


def masking() -> Any:
    mask = torch.ones(2)
    return lambda gradient: gradient * mask


def of_the_module(*_: Any) -> None:
    SEEN["last"] = True


def of_the_process(*_: Any) -> None:
    global CALLS
    CALLS += 1


def doubling() -> Any:
    factor = 2.0
    return lambda module, args, output: output * factor


def forward(module: nn.Module, hook: Any) -> None:
    module.register_forward_hook(hook)


def of_bias(module: Any, hook: Any) -> None:
    module.bias.register_hook(hook)


@pytest.mark.parametrize(
    ("register", "hook", "kept"),
    [
        (forward, counting(), "count"),
        (forward, partial(counting()), "count"),
        (forward, of_the_module, "SEEN"),
        (nn.Module.register_forward_pre_hook, of_the_process, "CALLS"),
        (nn.Module.register_full_backward_hook, Tracker(), "Tracker (its object)"),
        (of_bias, averaging(), "mean"),
        (of_bias, masking(), "mask"),
        (of_bias, Tracker().of_gradient, "Tracker (its object)"),
        (forward, doubling(), None),
        (forward, lambda module, args, output: output, None),
    ],
)
def test_a_hook_is_named_with_what_it_keeps(register: Any, hook: Any, kept: str | None) -> None:
    layer = nn.Linear(2, 2)
    register(layer, hook)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    assert [what for _, what in keeping_hooks(nn.ModuleDict({"layer": layer}), optimizer)] == ([] if kept is None else [kept])


def test_hooks_of_torch_and_of_what_is_saved_are_not_named() -> None:
    norms = nn.utils.parametrizations
    model = nn.Sequential(norms.weight_norm(nn.Linear(2, 2)), norms.spectral_norm(nn.Linear(2, 2)), nn.utils.spectral_norm(nn.Linear(2, 2)))
    model.append(norms.orthogonal(nn.Linear(2, 2)))
    model.append(nn.utils.prune.l1_unstructured(nn.Linear(2, 2), "weight", amount=1))
    model.register_forward_hook(lambda module, args, output: output + model[0].bias.sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert list(keeping_hooks(model, optimizer)) == []
    optimizer.register_step_post_hook(counting())
    assert [what for _, what in keeping_hooks(model, optimizer)] == ["count"]


def weighed() -> Any:
    weights, target = torch.ones(2), "labels"
    return lambda output, labels: (nn.functional.cross_entropy(output, labels, weight=weights), target)[0]


def growing() -> Any:
    calls: list[int] = []

    def loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return nn.functional.cross_entropy(output, labels) * len(calls)

    return loss


def with_a_default(output: Any, labels: Any, calls: list[int] = []) -> Any:  # noqa: B006  # what is to be found
    calls.append(1)


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (counting(), "count"),
        (growing(), "calls"),
        (partial(growing()), "calls"),
        (of_the_process, "CALLS"),
        (with_a_default, "a default of its arguments"),
        (weighed(), None),
        (of_the_module, None),
        (nn.functional.cross_entropy, None),
        (nn.CrossEntropyLoss(), None),
        (None, None),
    ],
)
def test_a_function_that_a_step_calls_is_named_where_it_changes_what_is_around_it(function: Any, kept: str | None) -> None:
    assert [what for _, what in keeping_functions({"the loss": function})] == ([] if kept is None else [kept])


class Counted(Dataset[Any]):
    """Says how often it was asked by the number that it keeps."""

    def __init__(self, start: int = 0) -> None:
        self.calls, self.size = start, 32
        self.cache: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        self.cache.setdefault(index, torch.randn(2))
        return torch.tensor([float(index), 1.0]), index % 2


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.layer.register_forward_hook(counting())

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.layer(points)


def machine() -> Any:
    return stackwise.assemble(
        stackwise.experiment(
            run={"name": "r", "horizon": "8 steps", "device": "cpu"},
            task=Loss(nn.CrossEntropyLoss(), "labels"),
            data={"sources": {"s": DataLoader(Counted(), batch_size=4)}, "fields": ["points", "labels"]},
            model={"module": Built(Hooked)},
            optimizer=Built(torch.optim.SGD, lr=0.01),
        )
    )


def test_a_run_says_so_as_it_begins_and_as_it_goes_on_with_what_its_data_set_counted() -> None:
    first, saved = machine(), None
    notes = [note for event in first.train() if isinstance(event, PhaseEntered) for note in event.notes]
    assert len(notes) == 1 and "rack.layer" in notes[0] and "keeps count" in notes[0]

    stopped = machine()
    for event in stopped.train():
        if isinstance(event, StepDone) and event.step == 4:
            saved = stopped.state()
            break
    second = machine()
    second.restore(saved)
    told = next(event.notes for event in second.train() if isinstance(event, RunStarted))
    assert len(told) == 3
    assert "calls of its Counted was 20" in told[0] and "the length of cache of its Counted was 20" in told[1]
    assert "rack.layer" in told[2] and all("'s'" in note for note in told[:2])
