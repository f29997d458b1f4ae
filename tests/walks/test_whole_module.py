"""A whole `nn.Module` as the model: trained as a plain loop trains it, grown, frozen, adapted, saved under its own names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import mse_loss

import stackwise
from stackwise import Built, ConfigError, Loss, Phase, RackSpec, StepDone, UserError

ROWS, STEPS = 8, 4
GROWTH = {"growth": {"use": "transformer.stack"}}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.out(torch.tanh(self.inner(hidden)))
        return hidden + added


class Net(nn.Module):
    """Blocks below another module, a matrix used twice, a persistent and a passing buffer."""

    def __init__(self, depth: int = 2, width: int = 4) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Block(width) for _ in range(depth))})
        self.inlet, self.outlet = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.outlet.weight = self.inlet.weight
        self.register_buffer("scale", torch.ones(width))
        self.rates = torch.linspace(0, 0.1, depth).tolist()  # needs real values, as drop rates by depth do

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.inlet(x) if shift is None else self.inlet(x) + shift
        for block in self.encoder.get_submodule("layers").children():
            hidden = block(hidden)
        y: torch.Tensor = self.outlet(hidden) * self.scale
        return y


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(x, x.flip(1) ** 2) for x in torch.randn(STEPS, ROWS, 4, generator=generator)]


def declared(model: Any, phases: list[Phase] | None = None, **changes: Any) -> stackwise.Experiment:
    sections = {
        "run": {"name": "whole", "seed": 5, "horizon": f"{STEPS} steps"},
        "task": Loss(mse_loss, "y"),
        "data": {"sources": {"pairs": batches()}, "fields": ["x", "y"]},
        "model": model,
        "optimizer": Built(torch.optim.AdamW, lr=0.01),
        **({"phases": phases} if phases else {}),
    }
    return stackwise.experiment(**{**sections, **changes})


def grown(**deep: Any) -> list[Phase]:
    return [Phase("shallow", until="50%"), Phase("deep", model={"module": {"depth": 4}}, **{"enter": GROWTH, **deep})]


def blocks(**options: Any) -> dict[str, Any]:
    return {"module": Built(Net, **{"depth": 2, **options}), "blocks": {"encoder.layers": "depth"}}


def trained(experiment: stackwise.Experiment) -> stackwise.TrainingMachine:
    machine = stackwise.assemble(experiment)
    assert sum(isinstance(event, StepDone) for event in machine.train()) == STEPS
    return machine


def finished(experiment: stackwise.Experiment, directory: Path) -> dict[str, torch.Tensor]:
    stackwise.run(experiment, output=directory, stream=io.StringIO())
    return load_file(directory / "final" / "weights.safetensors")


def test_a_run_trains_a_module_as_a_plain_loop_does() -> None:
    torch.manual_seed(0)
    plain, given = Net(), Net()
    given.load_state_dict(plain.state_dict())
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    for x, y in batches():
        mse_loss(plain(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained(declared(given))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(given.parameters(), plain.parameters(), strict=True))


def test_final_weights_load_into_the_plain_module(tmp_path: Path) -> None:
    """After growth, with a tied matrix, and with low-rank adapters that were merged."""
    low_rank = {"low": {"use": "transformer.lora", "rank": 1, "select": ["rack.encoder"]}}
    phases = [Phase("adapted", until="25%", model={"weight_adapters": low_rank, "freeze": ["rack"]})]
    merged = Phase("shallow", until="50%", model={"weight_adapters": {"low": None}, "freeze": []})
    experiment = declared(blocks(), [*phases, merged, *grown()[1:]])
    weights, net = finished(experiment, tmp_path / "run"), Net(depth=4)
    net.load_state_dict(weights)
    x = batches()[0][0]
    machine = trained(experiment)
    with torch.no_grad():
        assert torch.equal(net(x), machine.model.model({"x": x})["output"])
    assert weights.keys() == net.state_dict().keys()
    with pytest.raises(UserError):
        stackwise.load_exported(tmp_path / "run" / "final")


def test_training_starts_from_the_modules_own_state_dict(tmp_path: Path) -> None:
    net = Net()
    save_file({name: tensor.clone() for name, tensor in net.state_dict().items()}, tmp_path / "own.safetensors")
    still = {"optimizer": Built(torch.optim.SGD, lr=0.0)}
    own = finished(declared({**blocks(), "start": {"from": str(tmp_path / "own.safetensors")}}, **still), tmp_path / "one")
    again = finished(declared({**blocks(), "start": {"from": str(tmp_path / "one")}}, **still), tmp_path / "two")
    for name, tensor in net.state_dict().items():
        assert torch.equal(own[name], tensor) and torch.equal(again[name], tensor)


def test_growth_copies_the_named_list_and_adopts_the_rest() -> None:
    plan = stackwise.make_plan(declared(blocks(), grown()), stackwise.discover())
    assert [phase.state.model.stacks for phase in plan.schedule if phase.state] == [{"encoder.layers": 2}, {"encoder.layers": 4}]
    machine = stackwise.assemble(plan)
    receipts = []
    for event in machine.train():
        if isinstance(event, stackwise.PhaseEntered):
            receipts.append((event.adopted, event.copied, event.fresh, event.dropped))
    assert receipts == [(0, 0, 9, 0), (9, 8, 0, 0)]  # four parameters a block, and the tied matrix


def test_growth_that_keeps_the_function_keeps_the_outputs() -> None:
    zeroed = {"growth": {"use": "transformer.identity"}}
    outputs = blocks(spec=RackSpec(residual_outputs=("out.weight",)))
    plan = stackwise.make_plan(declared(outputs, grown(enter=zeroed)), stackwise.discover())
    promised = plan.schedule.phases[1].transition
    assert promised is not None and promised.preserves_function
    assert [event.probe_change for event in stackwise.assemble(plan).train() if hasattr(event, "probe_change")] == [None, 0.0]


def test_selectors_freeze_and_group_blocks() -> None:
    groups = {"slow": {"select": ["rack.encoder.layers.1"], "lr": 0.0}}
    optimizer = {"use": Built(torch.optim.SGD, lr=0.1), "groups": groups}
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trained(declared({"module": net, "freeze": ["rack.encoder.layers.0-0"]}, optimizer=optimizer))
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"inlet.weight", "outlet.weight"}


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 2 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt

    whole = finished(declared(blocks(), grown()), tmp_path / "whole")
    run = {"name": "whole", "seed": 5, "horizon": f"{STEPS} steps", "checkpoint": {"every": "1 steps"}}
    with pytest.raises(KeyboardInterrupt):
        finished(declared(blocks(), grown(), run=run, observers=[stop]), tmp_path / "run")
    stackwise.run(declared(blocks(), grown(), run=run, observers=[stop]), output=tmp_path / "run", stream=io.StringIO(), resume="must")
    resumed = load_file(tmp_path / "run" / "final" / "weights.safetensors")
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_loss_counts_rows_entries_or_what_it_says() -> None:
    """Three forms of one loss give one mean, also over two micro-batches of 8 and 4 rows, where a mean of means would not."""
    uneven = [(x, y) if i % 2 else (x[:4], y[:4]) for i, (x, y) in enumerate(batches() * 2)]
    data = {"sources": {"pairs": uneven}, "fields": ["x", "y"], "accumulate": 2}
    forms = [mse_loss, nn.MSELoss(reduction="none"), lambda y, target: ((y - target).square().sum(), target.numel())]
    losses = [
        [
            event.loss
            for event in stackwise.assemble(declared(Built(Net), task=Loss(form, "y"), data=data)).train()
            if isinstance(event, StepDone)
        ]
        for form in forms
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[1] == pytest.approx(losses[2], rel=1e-5)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.LazyLinear(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.map(x)
        return y


REFUSED = {
    "growth of a finished module": ("enter.growth", {"module": Net()}, [*grown()[:1], Phase("deep", enter=GROWTH)]),
    "growth without blocks": ("enter.growth", {"module": Built(Net, depth=2)}, grown()),
    "new parameters without blocks": ("phases.deep.model", {"module": Built(Net, depth=2)}, grown(enter={})),
    "new blocks without growth": ("model.module.depth", blocks(), grown(enter={})),
    "no residual outputs": ("enter.growth", blocks(), grown(enter={"growth": {"use": "transformer.identity"}})),
    "wrong residual outputs": ("model", blocks(spec=RackSpec(residual_outputs=("no.weight",))), grown()),
    "a list that is not there": ("model", {"module": Built(Net, depth=2), "blocks": {"layers": "depth"}}, grown()),
    "another number of blocks": (
        "model",
        {"module": Built(Net, depth=2, width=4), "blocks": {"encoder.layers": "width"}},
        [Phase("one", until="50%"), Phase("two")],
    ),
    "an option that is not given": ("model.blocks.encoder.layers", {"module": Built(Net), "blocks": {"encoder.layers": "depth"}}, None),
    "blocks of a finished module": ("model.blocks.encoder.layers", {"module": Net(), "blocks": {"encoder.layers": "depth"}}, None),
    "a rack beside it": ("model.rack", {**blocks(), "rack": Net()}, None),
    "a component id": ("model.module", {"module": {"use": "transformer.decoder"}}, None),
    "a class": ("model.module", Net, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_the_first_step(case: str) -> None:
    path, model, phases = REFUSED[case]
    with pytest.raises(ConfigError) as refusal:
        stackwise.assemble(declared(model, phases))
    assert path in [problem.path for problem in refusal.value.problems]


@pytest.mark.parametrize("model", [torch.compile(Net()), nn.DataParallel(Net()), Lazy(), Built(Lazy), Net().double(), nn.LSTM(4, 4)])
def test_a_module_that_cannot_be_trained_as_it_is_is_the_users_to_change(model: Any) -> None:
    with pytest.raises(UserError):
        trained(declared(model))


def test_fields_that_are_not_there_are_named() -> None:
    wrong = {"sources": {"pairs": batches()}, "fields": ["a", "b"]}
    with pytest.raises(UserError, match="'x'"):
        trained(declared(Built(Net), data=wrong, task=Loss(mse_loss, "b")))
    with pytest.raises(UserError, match="'y'"):
        trained(declared(Built(Net), data=wrong))
    with pytest.raises(UserError, match="parameters"):
        Loss(nn.Linear(2, 2), "y")


def test_a_field_that_forward_names_is_passed_by_name() -> None:
    shifted = [{"x": x, "y": y, "shift": torch.full_like(x, 0.5)} for x, y in batches()]
    one, other = Net(), Net()
    other.load_state_dict(one.state_dict())
    trained(declared(one, data=shifted))
    trained(declared(other))
    assert not torch.equal(one.inlet.weight, other.inlet.weight)


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


def test_a_parameter_without_a_gradient_and_hooks_stay_as_they_are() -> None:
    net, calls = Unused(), []
    spare = net.spare.weight.clone()
    net.register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    trained(declared(net))
    assert torch.equal(net.spare.weight, spare) and calls == [(ROWS, 4)] * STEPS


class Looked(nn.Module):
    """Ids in, a map out; above 256 an id in bfloat16 would be another one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.map = nn.Embedding(300, 4), nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.map(self.table(ids)), "ids": ids}


def test_a_module_held_in_sixteen_bits_gets_its_ids_and_gives_float32() -> None:
    def loss(outputs: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        assert outputs["y"].dtype == torch.float32 and outputs["ids"].tolist() == [257, 299]
        return mse_loss(outputs["y"], y)

    data = [{"ids": torch.tensor([257, 299]), "y": torch.zeros(2, 4)}]
    machine = trained(declared({"module": Built(Looked), "precision": {"rack": "bfloat16"}}, data=data, task=Loss(loss, "y")))
    assert {parameter.dtype for parameter in machine.model.model.parameters()} == {torch.bfloat16}
