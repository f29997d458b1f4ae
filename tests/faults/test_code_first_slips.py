"""What torch users write at first in code: each slip is answered by a sentence with the form to write, and none by a TypeError.

Each right answer was written down before it was run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import stackwise
from stackwise import Built, Loss, UserError

POINTS, LABELS = torch.randn(32, 2), torch.zeros(32, dtype=torch.int64)


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.layer(points)


class Sized(Net):
    def __init__(self, width: int) -> None:
        super().__init__(width)


def loader() -> Any:
    return DataLoader(TensorDataset(POINTS, LABELS), batch_size=4)


def generator() -> Iterator[Any]:
    yield {"points": POINTS, "labels": LABELS}


def other() -> Any:
    return Net().parameters()


def trained(**keys: Any) -> None:
    right: dict[str, Any] = {
        "run": {"name": "r", "horizon": "2 steps", "device": "cpu"},
        "task": Loss(nn.CrossEntropyLoss(), "labels"),
        "data": {"sources": {"s": loader()}, "fields": ["points", "labels"]},
        "model": Built(Net),
        "optimizer": Built(SGD, lr=0.1),
    }
    for _ in stackwise.assemble(stackwise.experiment(**{**right, **keys})).train():
        pass


SLIPS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "the parameters by name": (lambda: trained(optimizer=Built(SGD, params=other(), lr=0.1)), ("Built(SGD, lr=…)",)),
    "the parameters by place": (lambda: Built(AdamW, other(), lr=0.1), ("Built(AdamW, <option>=…)", "given its parameters")),
    "an option by place": (lambda: Built(Net, 16), ("Built(Net, <option>=…)",)),
    "a module in Built": (lambda: trained(model=Built(Net())), ("Built(Net, <option>=…)", "built already")),
    "an optimizer in Built": (lambda: trained(optimizer=Built(SGD(other(), lr=0.1))), ("Built(SGD, <option>=…)", "built already")),  # type: ignore[arg-type]  # the slip
    "a name in Built": (lambda: trained(optimizer=Built("torch.optim.SGD")), ("'torch.optim.SGD'", "the class")),  # type: ignore[arg-type]  # the slip
    "the optimizer of another module": (lambda: trained(optimizer=SGD(other(), lr=0.1)), ("Built(SGD, lr=…)", "another module's")),
    "a scheduler as a key": (lambda: trained(lr_scheduler=StepLR), ("'lr': {'cosine'",)),
    "a scheduler as an option": (lambda: trained(optimizer=Built(SGD, lr=0.1, lr_scheduler=StepLR)), ("'lr': {'cosine'",)),
    "a scheduler as the optimizer": (lambda: trained(optimizer=StepLR(SGD(other(), lr=0.1), 3)), ("'lr': {'cosine'",)),
    "an option that it does not take": (lambda: trained(model=Built(Net, widht=8)), ("model.module.widht", "'width'")),
    "an option that it does not run without": (lambda: trained(model=Built(Sized)), ("Built(Sized, width=…)",)),
    "an option of the optimizer": (
        lambda: trained(optimizer=Built(SGD, lr=0.1, weight_deacy=0.1)),
        ("optimizer.weight_deacy", "'weight_decay'"),
    ),
    "a class as the model": (lambda: trained(model=Net), ("Built(Net, <option>=…)",)),
    "a loader as the sources": (lambda: trained(evaluate={"held": {"every": "1 steps", "sources": loader()}}), ("{<name>: loader}",)),
    "a loader as the evaluation": (lambda: trained(evaluate={"held": loader()}), ("sources: {<name>: …}",)),
    "a generator function": (lambda: trained(data={"sources": {"s": generator}}), ("generator()", "Built(generator)")),
    "a data set": (
        lambda: trained(data={"sources": {"s": TensorDataset(POINTS, LABELS)}}),
        ("DataLoader(TensorDataset(…), batch_size=…)",),
    ),
    "tensors as the data": (lambda: trained(data={"sources": {"s": (POINTS, LABELS)}}), ("DataLoader(TensorDataset(…), batch_size=…)",)),
    "a loss as the task": (lambda: trained(task=nn.CrossEntropyLoss()), ("Loss(function, '<target field>')",)),
    "a loss without its target": (lambda: trained(task=Loss(nn.CrossEntropyLoss())), ("Loss(function, 'labels')",)),
    "targets as a list": (lambda: Loss(nn.CrossEntropyLoss(), ["labels"]), ("Loss(function, 'labels')",)),  # type: ignore[arg-type]  # the slip
    "epochs as a key": (lambda: trained(epochs=3), ("run: {horizon: 3 epochs}",)),
    "a path to assemble": (lambda: stackwise.assemble("exp.yaml"), ("stackwise.load(path)",)),  # type: ignore[arg-type]  # the slip
    "a map to run": (lambda: stackwise.run({"run": {}}), ("stackwise.experiment(",)),  # type: ignore[arg-type]  # the slip
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_answered_with_the_form_to_write(slip: str) -> None:
    made, forms = SLIPS[slip]
    with pytest.raises(UserError) as caught:
        made()
    assert [form for form in forms if form not in str(caught.value)] == [], str(caught.value)
