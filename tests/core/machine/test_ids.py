"""An id that no table has a row for is put down to who made it: a data set, a source or a transform, never to the embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stackwise
from stackwise import Built, DataError, Loss, ProviderError
from stackwise.contracts.answers import callback_of
from stackwise.curriculum.parts import Part
from stackwise.planes.data.makers import fault_of

IDS, LABELS = torch.arange(32) % 8, torch.arange(32) % 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(8, 4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(ids))


class Shift:
    """A transform that makes ids of its own at step 2."""

    def __call__(self, batch: Any, moment: Any, generator: Any) -> Any:
        return {**batch, "ids": batch["ids"] + 100 * (moment.step == 2)}


def refusal(ids: torch.Tensor, labels: torch.Tensor, evaluated: torch.Tensor | None = None, **data: Any) -> str:
    def loader(ids: torch.Tensor) -> Any:
        return DataLoader(TensorDataset(ids, labels), batch_size=4)

    beside: Any = {} if evaluated is None else {"evaluate": {"held": {"every": "4 steps", "sources": {"theirs": loader(evaluated)}}}}
    machine = stackwise.assemble(
        stackwise.experiment(
            run={"name": "r", "horizon": "8 steps", "device": "cpu", "probe": False},
            task=Loss(nn.CrossEntropyLoss(), "labels"),
            data={"sources": {"mine": loader(ids)}, "fields": ["ids", "labels"], **data},
            model=Built(Net),
            optimizer=Built(torch.optim.SGD, lr=0.1),
            **beside,
        )
    )
    with pytest.raises(DataError) as caught:
        list(machine.train())
    return str(caught.value)


def with_one(values: torch.Tensor, wrong: int) -> torch.Tensor:
    changed = values.clone()
    changed[21] = wrong
    return changed


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: refusal(with_one(IDS, 8), LABELS), ("'mine'", "'ids' holds 8,", "[8, 4]", "0 to 7")),
        (lambda: refusal(with_one(IDS, -1), LABELS), ("'mine'", "'ids' holds -1,", "0 to 7")),
        (lambda: refusal(IDS, with_one(LABELS, 3)), ("'mine'", "'labels' holds 3,", "0 to 2")),
        (lambda: refusal(IDS, LABELS, evaluated=with_one(IDS, 9)), ("'theirs'", "'ids' holds 9,", "0 to 7")),
        (lambda: refusal(IDS, LABELS, transforms=[Built(Shift)]), ("'mine'", "transform Shift", "'ids' holds 100,", "0 to 7")),
    ],
)
def test_source_field_id_and_size_are_told(made: Callable[[], str], said: tuple[str, ...]) -> None:
    told = made()
    assert [part for part in said if part not in told] == []


@attrs.define
class Says:
    """A source whose ids are 0 to 7 by its own word, or that says nothing."""

    part: Part
    told: tuple[int, int] | None
    name: str = "a"

    def bounds(self, name: str) -> tuple[int, int] | None:
        return self.told


def test_it_is_the_fault_of_whoever_breaks_its_word() -> None:
    own, theirs = Part(kind="transform", id="Shift", given=Shift()), Part(kind="transform", id="waves.shift")
    provided, brought = Part(kind="loader", id="waves.rows"), Part(kind="loader", id="DataLoader", given=object())
    right = (0, 8)
    for part, told, transforms, kind, blamed in (
        (provided, right, [], ProviderError, ("waves.rows", "take")),
        (provided, None, [], DataError, None),
        (brought, None, [], DataError, None),
        (provided, right, [theirs], ProviderError, ("waves.shift", "a batch")),
        (provided, right, [own], DataError, None),
        (provided, None, [theirs], DataError, None),
    ):
        fault: Any = fault_of([Says(part, told)], transforms, ["tokens"], 9, "'tokens' holds 9")  # type: ignore[list-item]  # it says bounds
        assert (type(fault), callback_of(fault)) == (kind, blamed), (part.id, told, transforms)
