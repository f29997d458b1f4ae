"""Several processes share out the micro-batches of a step: together they deliver what one would deliver, and all stand at one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_walks import base, machine_of, memory

from stackwise.contracts.specs import BatchSpec, TensorSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import BatchShape, DataState
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.share import Share
from stackwise.timeline.duration import Moment
from stackwise.timeline.schedules import Curve, Knot


class Rows:
    """A loader whose row i is filled with i; it hears whether rows were made or skipped."""

    def __init__(self, *, skips: bool) -> None:
        self.position, self.made = 0, 0
        if skips:
            self.skip = self._skip

    def get_batch_spec(self) -> BatchSpec:
        return BatchSpec(fields={"tokens": TensorSpec("batch time", "int64")})

    def take(self, rows: int | None, length: int | None) -> dict[str, torch.Tensor]:
        assert rows is not None and length is not None
        first = self.position
        self.position, self.made = first + rows, self.made + rows
        return {"tokens": torch.arange(first, first + rows).unsqueeze(1).repeat(1, length)}

    def _skip(self, rows: int, length: int) -> None:
        self.position += rows

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


def noise(batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A transform that draws."""
    return {**batch, "noise": torch.rand(batch["tokens"].shape, generator=generator)}


def plane_of(share: Share, accumulate: int, *, skips: bool) -> tuple[DataPlane, dict[str, Rows]]:
    loaders = {name: Rows(skips=skips) for name in "ab"}
    plane = DataPlane(lambda name, part: loaders[name], build_transform=lambda part: noise, seed=5, share=share)
    falling = Curve((Knot(0.0, 2.0, "linear"), Knot(1.0, 0.5, "hold")))
    state = DataState(
        sources={name: Part(kind="loader", id=name) for name in "ab"},
        mix={"a": Curve.constant(1.0), "b": falling},
        shapes=((0, BatchShape.of(batch_size=3, seq_len=2, accumulate=accumulate)),),
        transforms=(Part(kind="transform", id="noise"),),
    )
    plane.enter(state, lookahead=1)
    return plane, loaders


@given(st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_processes_together_deliver_the_micro_batches_of_one(ranks: int, accumulate: int, skips: bool) -> None:
    whole, _ = plane_of(Share(), accumulate, skips=skips)
    shared = [plane_of(Share(rank, ranks), accumulate, skips=skips)[0] for rank in range(ranks)]
    for step in range(6):
        moment = Moment(step, step / 6, "p", 0, step / 6, 0)
        wanted = whole.batches(moment)
        own = [plane.batches(moment) for plane in shared]
        assert sum(map(len, own)) == accumulate
        for index, batch in enumerate(wanted):
            theirs = own[index % ranks][index // ranks]
            assert all(torch.equal(batch[name], theirs[name]) for name in ("tokens", "noise"))
        assert all(plane.state_dict() == whole.state_dict() for plane in shared)


def test_rows_of_others_are_not_made_where_the_loader_can_skip() -> None:
    plane, loaders = plane_of(Share(1, 2), 2, skips=True)
    for step in range(5):
        plane.batches(Moment(step, step / 6, "p", 0, step / 6, 0))
    made = sum(loader.made for loader in loaders.values())
    first = 3  # of each source the first request is made by everybody, because it is checked
    assert 5 * 3 <= made <= 5 * 3 + first


def test_micro_batches_of_a_step_draw_different_noise() -> None:
    plane, _ = plane_of(Share(), 3, skips=False)
    noises = [batch["noise"] for batch in plane.batches(Moment(4, 0.5, "p", 0, 0.5, 0))]
    assert not any(torch.equal(noises[i], noises[j]) for i in range(3) for j in range(i))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_dropout_of_a_micro_batch_depends_on_its_own_number_alone(index: int) -> None:
    """What a micro-batch draws is the same when those before it are not computed in this process."""
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "dropout": 0.5, "stacks": [{"base": 2}]}
    data = {"sources": {"a": memory()}, "batch_size": 2, "seq_len": 4, "accumulate": 3}
    config = base(data=data, model={**base()["model"], "rack": rack})
    losses: list[float] = []
    machine = machine_of(config)
    forward = machine._step._forward

    def hear(batch: Any, moment: Any) -> Any:
        result = forward(batch, moment)
        losses.append(result[0].item())
        return result

    machine._step._forward = hear  # type: ignore[method-assign]
    next(event for event in machine.train() if type(event).__name__ == "StepDone")
    alone = machine_of(config)
    alone.live.enter(alone.schedule.phases[0])
    batch = alone.data.batches(alone.schedule.at(step=0))[index]
    alone._step.seed(0, index)
    assert alone._step._forward(batch, alone.schedule.at(step=0))[0].item() == losses[index]
