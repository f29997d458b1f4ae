"""Memory that does not suffice ends a run in a sentence of the user's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_loaders as brought
from tiny_walks import base, plan_of
from torch import nn

from stackwise import ConfigError, PhaseSchedule, StepDone, TrainingMachine, UserError


class Summed(nn.Module):
    """Ids to one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(1, brought.VOCAB)

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"logits": self.map(batch["tokens"][..., None].float())}


class Greedy(brought.NextToken):
    """Asks for two exbibytes at step 2."""

    def loss(self, outputs: Any, batch: Any) -> Any:
        if len(self.seen) == 3:
            torch.empty(1 << 59)
        return super().loss(outputs, batch)


def machine(data: Any, task: Any, steps: int = 6) -> TrainingMachine:
    model = Summed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainingMachine(model=model, data=data, task=task, optimizer=optimizer, schedule=PhaseSchedule.single(steps=steps))


def batches(count: int = 6) -> list[Any]:
    return [{"tokens": torch.ones(3, 5, dtype=torch.int64), "id": torch.zeros(3)} for _ in range(count)]


def test_memory_that_does_not_suffice_is_told_with_place_batch_and_ways_out() -> None:
    steps = []
    with pytest.raises(UserError) as caught:
        steps += [event.step for event in machine(batches(), Greedy()).train() if isinstance(event, StepDone)]
    for said in ("step 2", "'train'", "tokens [3, 5]", "data.accumulate", "data.batch_size", "data.seq_len", "run.precision"):
        assert said in str(caught.value), said
    assert caught.value.exit_code == 2 and "allocate" in str(caught.value.__cause__)


def test_another_runtime_error_stays_what_it_is() -> None:
    class Wrong(brought.NextToken):
        def loss(self, outputs: Any, batch: Any) -> Any:
            return torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError) as caught:
        list(machine(batches(), Wrong()).train())
    assert not isinstance(caught.value, UserError)


def test_micro_batches_that_no_plan_can_name_stand_at_their_key() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of({**base(), "data": {**base()["data"], "accumulate": 70_000}})
    assert [problem.path for problem in caught.value.problems] == ["data.accumulate"]
