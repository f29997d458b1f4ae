"""`model.start`: from a run or a file, with everything that does not fit named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_walks import base, drive, machine_of, weights

from stackwise import PhaseEntered, UserError
from stackwise.errors import StackwiseError
from stackwise.machine.machine import TrainingMachine

LORA = {"style": {"use": "transformer.lora", "rank": 2, "select": ["rack"]}}


def model(path: Path | None = None, *, drop: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    start = {} if path is None else {"start": {"from": str(path), **({"drop": drop} if drop else {})}}
    return {**base()["model"], **start, **changes}


def begun(config: dict[str, Any]) -> tuple[TrainingMachine, PhaseEntered]:
    """A machine before its first step."""
    machine = machine_of(config)
    entered = next(event for event in machine.train() if isinstance(event, PhaseEntered))
    return machine, entered


@pytest.fixture
def trained(tmp_path: Path) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights of a finished run, and its directory."""
    machine = machine_of(base())
    drive(machine)
    (tmp_path / "final").mkdir()
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "status.json").write_text('{"status": "finished"}')
    save_file(weights(machine), tmp_path / "final" / "weights.safetensors")
    return weights(machine), tmp_path


@pytest.mark.parametrize("place", [".", "final", "final/weights.safetensors"])
def test_a_run_a_directory_and_a_file_give_the_same_weights(trained: Any, place: str) -> None:
    values, run = trained
    machine, entered = begun(base(model=model(run / place)))
    assert all(torch.equal(p, values[name]) for name, p in machine.model.model.named_parameters())
    assert (entered.copied, entered.fresh, entered.dropped) == (len(values), 0, 0)
    assert machine.optimizer.state_by_name() == {}


def test_what_is_dropped_starts_as_it_would_without_a_file(trained: Any) -> None:
    values, run = trained
    scratch, _ = begun(base())
    machine, entered = begun(base(model=model(run, drop=["rack.stacks.base.1", "rack.norm"])))
    fresh = weights(scratch)
    for name, tensor in weights(machine).items():
        anew = name.startswith(("rack.stacks.base.1.", "rack.norm"))
        assert torch.equal(tensor, fresh[name] if anew else values[name]), name
    assert entered.fresh == sum(name.startswith(("rack.stacks.base.1.", "rack.norm")) for name in values)


def test_missing_left_over_misshapen_and_wrongly_tied_tensors_are_all_named_at_once(trained: Any) -> None:
    values, run = trained
    given = {name: tensor for name, tensor in values.items() if name != "rack.norm.weight"}
    given |= {"rack.extra": torch.zeros(1), "head.weight": values["embedding.weight"] + 1}
    given |= {f"rack.stacks.base.{i}.mlp.up.weight": torch.zeros(3, 8) for i in range(2)}
    save_file(given, run / "other.safetensors")
    with pytest.raises(UserError) as caught:
        begun(base(model=model(run / "other.safetensors")))
    told = str(caught.value).splitlines()[1:]
    assert [line.strip() for line in told] == [
        "missing in the weights: rack.norm.weight",
        "not in the model: rack.extra",
        "of another shape: rack.stacks.base.0.mlp.up.weight is [3, 8] in the weights and [24, 8] in the model",
        "of another shape: rack.stacks.base.1.mlp.up.weight is [3, 8] in the weights and [24, 8] in the model",
        "tied in the model, but different in the weights: head.weight and embedding.weight",
    ]
    begun(base(model=model(run / "other.safetensors", drop=["rack.norm", "rack.extra", "*.mlp.up", "head"])))


def test_a_drop_that_matches_nothing_is_refused_with_near_names(trained: Any) -> None:
    with pytest.raises(StackwiseError, match=r"selector 'rack\.nrom' matches no parameter.*rack\.norm"):
        begun(base(model=model(trained[1], drop=["rack.nrom"])))


def test_no_weights_at_the_place_are_said_with_the_places_tried(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are no weights at .*weights\.safetensors is not a file; give a run"):
        begun(base(model=model(tmp_path)))
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        begun(base(model=model(tmp_path / "broken.safetensors")))


def test_the_final_weights_of_before_a_run_was_extended_are_not_its_final_ones(trained: Any) -> None:
    _, run = trained
    (run / "status.json").write_text('{"status": "stopped by SIGTERM"}')
    with pytest.raises(UserError, match=r"has not finished: finish it by `stackwise resume .*`, or export a checkpoint of it by"):
        begun(base(model=model(run)))


def test_a_start_then_growth_grows_the_trained_weights(trained: Any) -> None:
    values, run = trained
    deep = {"model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": "transformer.stack"}}}
    slow = {"use": "optim.adamw", "lr": 0.0}
    machine = machine_of(base(model=model(run), optimizer=slow, phases={"one": {"until": "4 steps"}, "two": deep}))
    drive(machine)
    for name, tensor in weights(machine).items():
        source = name.replace("base.2.", "base.0.").replace("base.3.", "base.1.")
        assert torch.equal(tensor, values[source]), name


def test_adapters_beside_a_trained_base_begin_as_they_are_and_a_part_of_one_is_named(trained: Any) -> None:
    values, run = trained
    machine, entered = begun(base(model=model(run, weight_adapters=LORA, freeze=["rack"])))
    assert all(torch.equal(p, values[n]) for n, p in machine.model.model.named_parameters() if n in values)
    added = [name for name in weights(machine) if name.startswith("weight_adapters.style.")]
    assert added and entered.fresh == len(added)
    save_file({**values, added[0]: weights(machine)[added[0]]}, run / "half.safetensors")
    with pytest.raises(UserError) as caught:
        begun(base(model=model(run / "half.safetensors", weight_adapters=LORA, freeze=["rack"])))
    assert str(caught.value).splitlines()[1:] == [f"  missing in the weights: {name}" for name in sorted(added[1:])]
    begun(base(model=model(run, drop=["weight_adapters"], weight_adapters=LORA, freeze=["rack"])))  # as it was written before
