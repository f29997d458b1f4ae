"""`run.compile`: how many graphs a timeline needs, and that it learns the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_walks import base, machine_of, weights
from torch import nn

from stackwise import Built, PhaseEntered, RackSpec, StepDone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),  # torch's own, as it compiles
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles C++ on a CPU, and there is no compiler"),
]


@pytest.fixture(autouse=True)
def unknown() -> Iterator[None]:
    """Nothing is compiled yet, and the process's settings come back."""
    from torch._dynamo import config

    limit = config.recompile_limit
    torch._dynamo.reset()
    yield
    config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced and differentiated as ever, and run as they are: where they are counted, no C++ need be made of them."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **how: compile_module(module, backend="aot_eager", **how))


def graphs() -> int:
    from torch._dynamo.utils import counters

    assert not counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


def walk(config: dict[str, Any], *, compiled: bool | str) -> tuple[list[float], dict[str, int], dict[str, torch.Tensor]]:
    """Losses, graphs made so far at the end of every phase, and the final weights."""
    from torch._dynamo.utils import counters

    counters.clear()
    machine = machine_of({**config, "run": {**config["run"], "compile": compiled, "probe": False}})
    told, made = [], {}
    for event in machine.train():
        if isinstance(event, StepDone):
            told.append(event.loss)
            made[event.phase] = graphs()
    return told, made, weights(machine)


def model(depth: int, **options: Any) -> dict[str, Any]:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": depth}], **options}
    return {**base()["model"], "rack": rack}


def twelve_blocks_share_one_graph() -> None:
    """And no schedule makes another; what is learnt is the same."""
    falling = {"linear": {"from": 0.01, "to": 0.001}}
    optimizer = {"use": "optim.adamw", "lr": falling, "weight_decay": falling, "beta1": {"linear": {"from": 0.8, "to": 0.9}}}
    config = base(model=model(12), optimizer=optimizer)
    told, made, values = walk(config, compiled=True)
    plain, none, expected = walk(config, compiled=False)
    assert made == {"train": 1} and none == {"train": 0}
    assert told == pytest.approx(plain, rel=1e-5)
    for name, tensor in values.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-3)  # Adam makes a whole step of a rounding near zero


@pytest.mark.usefixtures("traced_only")
def test_twelve_blocks_share_one_graph_and_schedules_make_no_other() -> None:
    twelve_blocks_share_one_graph()


@pytest.mark.rare  # half a minute of C++; what is ours are the graphs, which are traced above as they are here
def test_twelve_blocks_learn_the_same_in_the_code_that_torch_makes_of_their_graph() -> None:
    twelve_blocks_share_one_graph()


@pytest.mark.usefixtures("traced_only")
def test_dropout_that_follows_time_makes_one_graph() -> None:
    config = base(model=model(3, dropout={"linear": {"from": 0.4, "to": 0.1}}))
    assert walk(config, compiled=True)[1] == {"train": 1}


def deepened() -> dict[str, Any]:
    """Two blocks, four, six of which two come in through a gate, and six."""
    gate = {"linear": {"from": 0, "to": 1, "over": "phase"}}
    phases = {
        "one": {"until": "3 steps"},
        "deeper": {"until": "6 steps", "model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
        "gated": {
            "until": "9 steps",
            "model": {"rack": {"stacks": [{"base": 6}]}},
            "enter": {"growth": {"use": "transformer.gated", "gate": gate}},
        },
        "open": {},
    }
    return base(model=model(2), phases=phases)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    ("compiled", "graphs"),
    [(True, {"one": 1, "deeper": 1, "gated": 2, "open": 2}), ("whole", {"one": 1, "deeper": 2, "gated": 3, "open": 4})],
)
def test_a_new_depth_or_gate_makes_graphs_only_where_they_are_met(compiled: bool | str, graphs: dict[str, int]) -> None:
    """Block by block a new depth makes none, and a gate one for the blocks that have it; whole, each rack makes one."""
    told, made, _ = walk(deepened(), compiled=compiled)
    assert made == graphs
    assert told == pytest.approx(walk(deepened(), compiled=False)[0], rel=1e-5)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("compiled", [True, "whole"])
def test_blocks_behind_a_frozen_prefix_are_compiled_one_by_one_in_either_way(compiled: bool | str) -> None:
    config = base(model={**model(3), "cache": "frozen", "freeze": ["embedding", "rack.stacks.base.0"]})
    told, made, _ = walk(config, compiled=compiled)
    assert made["train"] > 0
    assert told == pytest.approx(walk(config, compiled=False)[0], rel=1e-5)


@pytest.mark.rare  # half a minute of C++
def test_a_rack_in_one_graph_learns_the_same_in_the_code_that_torch_makes_of_it() -> None:
    config = base(model=model(3))
    told, made, _ = walk(config, compiled="whole")
    assert made == {"train": 1}
    assert told == pytest.approx(walk(config, compiled=False)[0], rel=1e-5)


@pytest.mark.usefixtures("traced_only")
def test_what_is_unfrozen_after_compilation_gets_its_gradient() -> None:
    phases = {"one": {"until": "4 steps", "model": {"freeze": ["rack.stacks.base.0", "embedding"]}}, "two": {"model": {"freeze": []}}}
    config = base(model=model(2), phases=phases)
    machine = machine_of({**config, "run": {**config["run"], "compile": True}})
    before: dict[str, torch.Tensor] = {}
    for event in machine.train():
        if isinstance(event, PhaseEntered):
            before = weights(machine)
        if isinstance(event, StepDone) and event.step in (3, 4):
            still = {name for name, tensor in weights(machine).items() if torch.equal(tensor, before[name])}
            frozen = {name for name in before if name.startswith(("rack.stacks.base.0.", "embedding"))}
            assert still == (frozen if event.step == 3 else set())


class Scaled(nn.Module):
    """A block with a plain number that follows time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rate = nn.Linear(8, 8), 1.0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = hidden + self.rate * self.inner(hidden)
        return scaled


class ScaledRack(nn.Module):
    """Two of them."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.stacks = nn.ModuleDict({"base": nn.ModuleList([Scaled(), Scaled()])})
        self.apply_values({"rate": rate})

    def to_spec(self) -> RackSpec:
        return RackSpec(stacks={"base": 2})

    def apply_values(self, values: dict[str, float]) -> None:
        for block in self.stacks["base"]:
            block.rate = values["rate"]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.stacks["base"]:
            hidden = block(hidden)
        return hidden


@pytest.mark.rare
def test_a_plain_number_that_follows_time_is_not_compiled_for_each_value() -> None:
    rack = Built(ScaledRack, rate={"linear": {"from": 0.1, "to": 0.9}})
    sized = {role: {**base()["model"][role], "width": 8} for role in ("embedding", "head")}
    made = walk(base(model={**sized, "rack": rack}), compiled=True)[1]
    assert made["train"] <= 3


@pytest.mark.rare
def test_a_resume_is_exact_to_the_bit_whatever_lengths_came_before() -> None:
    """At the second length torch would make one graph for all lengths, which a process that begins there would not have."""
    phases = {"short": {"until": "2 steps"}, "long": {"until": "5 steps", "data": {"seq_len": 24}}, "longest": {"data": {"seq_len": 40}}}
    run = {"name": "lengths", "seed": 3, "horizon": "8 steps", "device": "cpu", "compile": True, "probe": False}
    config = base(run=run, model=model(2), phases=phases)
    saved: dict[int, Any] = {}
    whole = machine_of(config)
    for event in whole.train():
        if isinstance(event, StepDone) and event.step in (2, 5):
            saved[event.step] = deepcopy(whole.state())
    for state in saved.values():
        torch._dynamo.reset()  # as in another process
        rest = machine_of(config)
        rest.restore(state)
        for _ in rest.train():
            pass
        for name, tensor in weights(whole).items():
            assert torch.equal(weights(rest)[name], tensor), name


@pytest.mark.rare
def test_more_variants_than_torch_allows_by_default_are_all_compiled() -> None:
    from torch._dynamo.utils import counters

    parts = ["attention_norm", "attention.qkv", "attention.output", "mlp_norm", "mlp.gate", "mlp.up", "mlp.down"]
    freezes = [[f"*.{part}"] for part in parts] + [[f"*.{one}", f"*.{parts[i - 1]}"] for i, one in enumerate(parts[:4])]
    phases = {f"p{i}": {"until": f"{i + 1} steps", "model": {"freeze": freeze}} for i, freeze in enumerate(freezes)}
    run = {"name": "many", "seed": 3, "horizon": f"{len(freezes)} steps", "device": "cpu"}
    _, made, _ = walk(base(run=run, model=model(2), phases=phases), compiled=True)
    assert made[f"p{len(freezes) - 1}"] >= len(freezes) > 8
    assert not [key for key in counters if "limit" in key and counters[key]]
