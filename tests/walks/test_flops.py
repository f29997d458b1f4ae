"""What a plan says that training costs, against the closed form and against torch's count of real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from task_configs import classified, convolved, masked, remembered, seen
from tiny_walks import VOCAB, base, drive, machine_of, memory, plan_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stackwise import ConfigError, StepDone
from stackwise.assembly.pricing import price
from stackwise.reports.plan_text import plan_as_json, plan_as_text
from stackwise.reports.record import flops_at


def decoder(depth: int, width: int = 32, length: int = 48, **sections: Any) -> dict[str, Any]:
    config = base(data={"sources": {"a": memory()}, "batch_size": 2, "seq_len": length}, **sections)
    config["model"]["rack"] |= {"width": width, "ff": 2 * width, "mlp": "gelu", "stacks": [{"base": depth}]}
    return config


def by_hand(depth: int, width: int, length: int, rows: int) -> int:
    """6 FLOPs a weight and token (arXiv 2001.08361, section 2.1), 12 a width for every pair of positions, and AdamW's 14 a parameter."""
    weights = depth * (4 * width * width + 2 * width * 2 * width) + width * VOCAB
    parameters = weights + (2 * depth + 1) * width  # the logits are tied to the embedding
    return rows * length * (6 * weights + 12 * length * width * depth) + 14 * parameters


@pytest.mark.parametrize(("depth", "width", "length"), [(1, 32, 48), (3, 64, 16)])
def test_a_step_of_the_decoder_costs_what_one_counts_by_hand(depth: int, width: int, length: int) -> None:
    (cost,) = price(plan_of(decoder(depth, width, length)))
    assert cost.flops == pytest.approx(12 * by_hand(depth, width, length, 2), rel=0.01)


@pytest.mark.parametrize("config", [masked, classified, convolved, remembered, seen, lambda: decoder(2)], ids=lambda each: each.__name__)
def test_a_plan_counts_what_torch_counts_in_real_steps(config: Any) -> None:
    declared = {**config(), "evaluate": {}}
    (cost,) = price(plan_of(declared))
    assert cost.flops is not None and cost.optimizer_flops is not None
    machine = machine_of(declared)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # torch counts no fused attention of a processor
        drive(machine)
    assert cost.flops - cost.optimizer_flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_muon_costs_the_matrix_products_of_its_steps() -> None:
    config = decoder(2, 64, optimizer={"use": "optim.muon", "lr": 0.01})
    (cost,) = price(plan_of(config))
    assert cost.flops is not None and cost.optimizer_flops is not None
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        drive(machine_of(config))
    products = counter.get_total_flops() - (cost.flops - cost.optimizer_flops)
    assert products <= cost.optimizer_flops <= 1.1 * products  # beside them only sums over entries


def test_blocks_that_are_computed_again_are_named_apart() -> None:
    (plain,) = price(plan_of(decoder(2)))
    config = decoder(2, run={"horizon": "12 steps", "device": "cpu", "parallel": {"recompute": "blocks"}})
    plan = plan_of(config)
    (again,) = price(plan)
    width, length, tokens = 32, 48, 12 * 2 * 48
    assert again.flops == plain.flops and plain.recompute_flops == 0
    forward = 2 * (2 * 6 * width * width + 2 * 2 * length * width)  # of two blocks without their last product, which nothing needs again
    assert again.recompute_flops == tokens * forward
    assert "to compute blocks again" in plan_as_text(plan, (again,)) and "to compute blocks again" not in plan_as_text(plan, (plain,))


def test_an_optimizer_that_says_nothing_is_named() -> None:
    plan = plan_of(decoder(1, optimizer={"use": "optim.torch", "name": "RMSprop", "lr": 0.01}))
    (cost,) = price(plan)
    assert cost.optimizer_flops is None and cost.flops is not None
    assert "does not say what it costs" in plan_as_text(plan, (cost,))


def grown(horizon: str, first: str, **run: Any) -> dict[str, Any]:
    phases = {
        "one": {"until": first},
        "two": {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
    }
    return decoder(1, run={"name": "g", "seed": 3, "horizon": horizon, "device": "cpu", **run}, phases=phases)


@pytest.mark.parametrize("first", ["40%", "40% flops", "4e7 flops"])
def test_a_budget_ends_at_the_first_step_that_reaches_it(first: str) -> None:
    one, three = by_hand(1, 32, 48, 2), by_hand(3, 32, 48, 2)
    plan = plan_of(grown("1e8 flops", first))
    spent = steps = boundary = 0
    while spent < 1e8:
        boundary = boundary or (steps if spent >= 4e7 else 0)
        spent += one if not boundary else three
        steps += 1
    assert plan.schedule.clock.starts == (0, boundary, steps)
    total = sum(cost.flops or 0 for cost in price(plan))
    assert total == pytest.approx(spent, rel=0.001) and 0 <= total - 1e8 < 1.01 * three
    assert plan.schedule.clock.t(boundary) == pytest.approx(boundary * one / 1e8, rel=0.001)


def test_a_batch_that_grows_inside_a_phase_costs_more_from_there_on() -> None:
    config = decoder(1)
    config["data"]["seq_len"] = {"piecewise": {"values": {"0%": 16, "50%": 48}}}
    config["run"]["horizon"] = "1e8 flops"
    short, long = by_hand(1, 32, 16, 2), by_hand(1, 32, 48, 2)
    plan = plan_of(config)
    pieces = plan.schedule.clock.pieces
    assert [float(piece.rate["flops"]) for piece in pieces] == pytest.approx([short, long], rel=0.001)
    assert pieces[1].start == pytest.approx(5e7 / short, abs=1)
    document = plan_as_json(plan, price(plan))
    assert flops_at(document, [0, pieces[1].start, pieces[1].start + 2], [0, 0, 0]) == pytest.approx(
        [0, pieces[1].start * short, pieces[1].start * short + 2 * long], rel=0.001
    )


@pytest.mark.parametrize(
    ("horizon", "first", "rule"),
    [
        ("12 steps", "40% flops", "share of a horizon in flops, and run.horizon is 12 steps"),
        ("1e8 flops", "40% tokens", "share of a horizon in tokens"),
        ("1e8 flops", "2e8 flops", "would run|has no step|after the horizon"),
    ],
)
def test_a_share_of_something_else_is_refused(horizon: str, first: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        plan_of(grown(horizon, first))


def test_a_mistake_beside_a_budget_is_told_alone() -> None:
    config = grown("1e8 flops", "40%")
    config["model"]["rack"]["heads"] = 5
    with pytest.raises(ConfigError) as caught:
        plan_of(config)
    assert all("flops" not in problem.message for problem in caught.value.problems)


def test_data_of_unknown_length_cannot_be_counted_in_flops() -> None:
    config = grown("1e8 flops", "40%")
    del config["data"]["batch_size"]
    config["data"]["sources"] = {"a": [{"tokens": torch.zeros(2, 9, dtype=torch.int64)}] * 9}
    with pytest.raises(ConfigError, match=r"flops"):
        plan_of(config)


def test_every_step_says_what_has_been_spent() -> None:
    config = grown("1e8 flops", "40%")
    machine = machine_of(config)
    assert all(event.flops == 0 for event in drive(machine) if isinstance(event, StepDone))  # nobody priced it


@pytest.mark.parametrize("recompute", ["nothing", "blocks"])
def test_what_saves_memory_moves_no_boundary(recompute: str) -> None:
    one = plan_of(grown("1e8 flops", "40%", parallel={"recompute": recompute}))
    assert one.schedule.clock.starts == plan_of(grown("1e8 flops", "40%")).schedule.clock.starts
