"""`Loss` with cross-entropy: what is left out of its mean is left out of everything, and a step without any label is told as that."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stackwise
from stackwise import DataError, Loss, StepDone

CLASSES = 5
FEATURES = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, -100, -100, 2, 3, -100, 4, 0, 0])
SHARES = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1])
CUT = (0, 4, 8, 10)
"""Three micro-batches: two labels of four rows, three of four, two of two."""


def batches(labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"x": FEATURES[low:high], "label": labels[low:high]} for low, high in pairwise(CUT)]


class Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def steps(function: Any, data: list[dict[str, torch.Tensor]], model: nn.Module, **declared: Any) -> list[StepDone]:
    machine = stackwise.assemble(
        stackwise.experiment(
            run={"seed": 1, "horizon": "1 steps", "device": "cpu"},
            data={"sources": {"rows": data}, "accumulate": len(data)},
            model=model,
            task=Loss(function, "label"),
            optimizer=stackwise.Built(torch.optim.SGD, lr=0.1),
            **declared,
        )
    )
    return [event for event in machine.train() if isinstance(event, StepDone)]


FORMS: dict[str, tuple[Callable[..., Any], int]] = {
    "module": (nn.CrossEntropyLoss(), -100),
    "function": (F.cross_entropy, -100),
    "another label ignored": (nn.CrossEntropyLoss(ignore_index=0), 0),
    "partial": (partial(F.cross_entropy, ignore_index=0), 0),
    "weighted": (nn.CrossEntropyLoss(weight=SHARES), -100),
    "weighted and smoothed": (nn.CrossEntropyLoss(weight=SHARES, label_smoothing=0.1), -100),
}


@pytest.mark.parametrize("form", FORMS)
def test_micro_batches_with_ignored_labels_make_the_update_of_one_batch(form: str) -> None:
    function, ignored = FORMS[form]
    labels = torch.where(LABELS == -100, ignored, LABELS)
    plain = Linear(3, CLASSES)
    model = deepcopy(plain)
    expected = function(plain(FEATURES), labels)
    expected.backward()
    (done,) = steps(function, batches(labels), model)
    assert done.loss == pytest.approx(expected.item(), rel=1e-6)
    assert plain.weight.grad is not None
    torch.testing.assert_close(model.weight.detach(), plain.weight.detach() - 0.1 * plain.weight.grad, rtol=0, atol=1e-6)


def test_entries_of_ignored_labels_count_nothing() -> None:
    plain = Linear(3, CLASSES)
    (done,) = steps(nn.CrossEntropyLoss(reduction="none"), batches(LABELS), deepcopy(plain))
    assert done.loss == pytest.approx(F.cross_entropy(plain(FEATURES), LABELS).item(), rel=1e-6)


def own(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, label)


@pytest.mark.parametrize("function", [nn.CrossEntropyLoss(), F.cross_entropy, own], ids=["module", "function", "own"])
def test_no_label_is_told_as_that_and_counts_nothing(function: Any) -> None:
    none = {"x": FEATURES, "label": torch.full((10,), -100)}
    with pytest.raises(DataError, match="had a target"):
        steps(function, [none], Linear(3, CLASSES))
    some = {"x": FEATURES, "label": LABELS.clamp(min=0)}
    plain = Linear(3, CLASSES)
    model = deepcopy(plain)
    expected = F.cross_entropy(plain(FEATURES), some["label"])
    expected.backward()
    (done,) = steps(function, [none, some], model)
    assert not done.skipped and done.loss == pytest.approx(expected.item(), rel=1e-6)
    assert plain.weight.grad is not None
    torch.testing.assert_close(model.weight.detach(), plain.weight.detach() - 0.1 * plain.weight.grad, rtol=0, atol=1e-6)


def test_a_function_of_ones_own_is_a_mean_over_rows() -> None:
    plain = Linear(3, CLASSES)
    (done,) = steps(own, batches(LABELS.clamp(min=0)), deepcopy(plain))
    assert done.loss == pytest.approx(F.cross_entropy(plain(FEATURES), LABELS.clamp(min=0)).item(), rel=1e-6)
