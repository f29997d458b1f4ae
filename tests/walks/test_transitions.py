"""Boundaries one by one: what is lost on purpose, what is parked, what a first update amounts to, and state by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tiny_walks import base, boundaries, drive, machine_of, moments, plan_of, same_tensors, stream, weights
from torch import nn

from stackwise import AdapterSpec, Built, PhaseEntered, StepDone, TensorSpec, UserError
from stackwise.machine.machine import TrainingMachine
from stackwise.planes.optimizer.plane import OptimizerPlane

DEEPER = {"model": {"rack": {"stacks": [{"base": 4}]}}}


def two_phases(second: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    return base(phases={"one": {"until": "6 steps"}, "two": second}, **sections)


def at_boundary(config: Mapping[str, Any]) -> tuple[Any, PhaseEntered, Any]:
    (found,) = boundaries(machine_of(config))
    return found


def test_growth_by_copy_copies_values_and_moments_and_keeps_the_sources() -> None:
    before, entered, after = at_boundary(two_phases({**DEEPER, "enter": {"growth": {"use": "transformer.stack"}}}))
    for name in after.weights:
        source = name.replace("base.2.", "base.0.").replace("base.3.", "base.1.")
        assert torch.equal(after.weights[name], before.weights[source])
        assert same_tensors(after.moments[name], before.moments[source])
        assert int(after.moments[name]["step"]) == 6
    blocks = len([name for name in after.weights if ".base.2." in name or ".base.3." in name])
    assert (entered.copied, entered.moments_copied, entered.fresh, entered.dropped, entered.moments_dropped) == (blocks, blocks, 0, 0, 0)
    assert entered.adopted == entered.moments_kept == len(before.weights)


def test_moments_reset_starts_only_the_copied_ones_anew() -> None:
    before, entered, after = at_boundary(two_phases({**DEEPER, "enter": {"growth": {"use": "transformer.stack", "moments": "reset"}}}))
    assert after.moments.keys() == before.moments.keys()
    assert all(same_tensors(after.moments[name], before.moments[name]) for name in before.moments)
    assert (entered.moments_copied, entered.moments_dropped) == (0, 0)


def test_copies_live_on_their_own() -> None:
    machine = machine_of(two_phases({**DEEPER, "enter": {"growth": {"use": "transformer.stack"}}}))
    drive(machine)
    now, state = weights(machine), machine.optimizer.state_by_name()
    name, copy = "rack.stacks.base.0.mlp.up.weight", "rack.stacks.base.2.mlp.up.weight"
    assert not torch.equal(now[name], now[copy])
    assert state[name]["exp_avg"].data_ptr() != state[copy]["exp_avg"].data_ptr()


def first_update(betas: tuple[float, float], own_counter: bool) -> float:
    """The largest first step, in units of lr, of the output that identity growth zeroed."""
    lr = 1e-3
    config = two_phases(
        {"model": {"rack": {"stacks": [{"base": 3}]}}, "enter": {"growth": {"use": "transformer.identity"}}},
        optimizer={"use": "optim.adamw", "lr": lr, "beta1": betas[0], "beta2": betas[1], "weight_decay": 0, "eps": 0},
        run={"name": "long", "horizon": "7 steps", "device": "cpu"},
    )
    machine = machine_of(config)
    for event in machine.train():
        if isinstance(event, PhaseEntered) and event.phase_index:
            parameter = machine.model.model.get_parameter("rack.stacks.base.2.mlp.down.weight")
            assert not parameter.any()
            if not own_counter:
                zero = torch.zeros_like(parameter)
                machine.optimizer.optimizer.state[parameter] = {
                    "exp_avg": zero,
                    "exp_avg_sq": zero.clone(),
                    "step": torch.tensor(1e6),
                }
        if isinstance(event, StepDone) and event.step == 6:
            return float(weights(machine)["rack.stacks.base.2.mlp.down.weight"].abs().max()) / lr
    raise AssertionError("the run ended early")


def test_the_first_update_of_a_fresh_parameter_is_one_learning_rate() -> None:
    assert first_update((0.9, 0.999), own_counter=True) == pytest.approx(1.0, rel=1e-3)


def test_an_inherited_counter_would_have_made_it_3_16_times_as_large() -> None:
    assert first_update((0.9, 0.999), own_counter=False) == pytest.approx(0.1 / 0.001**0.5, rel=1e-3)


@pytest.mark.parametrize("freeze", [["rack.stacks.base.0"], ["embedding"], ["*.mlp.*"]])
def test_moments_of_a_frozen_part_are_parked_and_come_back(freeze: list[str]) -> None:
    phases = {"one": {"until": "4 steps"}, "two": {"until": "8 steps", "model": {"freeze": freeze}}, "three": {"model": {"freeze": []}}}
    machine = machine_of(base(phases=phases))
    (before, frozen, _), (_, thawed, after) = boundaries(machine)
    idle = [name for name in before.weights if not torch.equal(before.weights[name], after.weights[name])]
    held = set(before.weights) - set(idle)
    assert held and frozen.trainable == frozen.parameters - sum(before.weights[name].numel() for name in held)
    assert thawed.trainable == thawed.parameters and thawed.moments_dropped == frozen.moments_dropped == 0
    for name in held:
        assert same_tensors(after.moments[name], before.moments[name])
        assert int(moments(machine)[name]["step"]) == 8


def test_neither_weight_decay_nor_momentum_moves_a_frozen_parameter() -> None:
    sgd = Built(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.5)
    phases = {
        "one": {"until": "4 steps"},
        "two": {"until": "8 steps", "model": {"freeze": ["rack.stacks.base"]}},
        "three": {"model": {"freeze": []}},
    }
    machine = machine_of(base(optimizer=sgd, phases=phases))
    (before, _, _), (_, _, after) = boundaries(machine)
    names = [name for name in before.weights if name.startswith("rack.stacks.base.")]
    assert names
    for name in names:
        assert torch.equal(after.weights[name], before.weights[name])
        assert torch.equal(after.moments[name]["momentum_buffer"], before.moments[name]["momentum_buffer"])
        assert not torch.equal(weights(machine)[name], after.weights[name])


def test_moments_follow_a_frozen_block_that_is_copied_while_it_is_frozen() -> None:
    phases = {
        "one": {"until": "3 steps"},
        "two": {"until": "6 steps", "model": {"freeze": ["rack.stacks"]}},
        "three": {"until": "9 steps", **DEEPER, "enter": {"growth": {"use": "transformer.stack"}}},
        "four": {"model": {"freeze": []}},
    }
    _, (_, grown, after), (_, _, thawed) = boundaries(machine_of(base(phases=phases)))
    assert grown.moments_copied == grown.copied > 0
    copy, source = "rack.stacks.base.3.mlp.up.weight", "rack.stacks.base.1.mlp.up.weight"
    assert same_tensors(after.moments[copy], after.moments[source]) and int(after.moments[copy]["step"]) == 3
    assert same_tensors(thawed.moments[copy], after.moments[copy])


def test_moments_of_a_block_dropped_while_frozen_never_come_back() -> None:
    phases = {
        "one": {"until": "3 steps"},
        "two": {"until": "6 steps", "model": {"freeze": ["rack.stacks"], "rack": {"stacks": [{"base": 1}]}}},
        "three": {"until": "9 steps", **DEEPER, "enter": {"growth": {"use": "transformer.identity"}}},
        "four": {"model": {"freeze": []}},
    }
    machine = machine_of(base(phases=phases))
    drive(machine)
    state = moments(machine)
    assert int(state["rack.stacks.base.0.mlp.up.weight"]["step"]) == 6
    assert int(state["rack.stacks.base.1.mlp.up.weight"]["step"]) == 3


def test_an_untied_head_begins_with_the_values_and_the_moments_it_shared() -> None:
    before, entered, after = at_boundary(two_phases({"model": {"head": {"tied": False}}}))
    assert "head.weight" not in before.weights
    assert torch.equal(after.weights["head.weight"], before.weights["embedding.weight"])
    assert same_tensors(after.moments["head.weight"], before.moments["embedding.weight"])
    assert (entered.copied, entered.moments_copied, entered.dropped) == (1, 1, 0)


def test_a_head_that_is_tied_gives_up_its_own_matrix() -> None:
    config = two_phases({"model": {"head": {"tied": True}}})
    config["model"]["head"] = {"use": "transformer.lm", "tied": False}
    before, entered, after = at_boundary(config)
    assert "head.weight" in before.weights and "head.weight" not in after.weights
    assert torch.equal(after.weights["embedding.weight"], before.weights["embedding.weight"])
    assert (entered.dropped, entered.moments_dropped) == (1, 1)


def test_another_optimizer_starts_anew_and_the_plan_says_so() -> None:
    config = two_phases({"optimizer": {"use": Built(torch.optim.SGD, lr=0.1)}})
    machine = machine_of(config)
    ((before, entered, _),) = boundaries(machine)
    assert entered.moments_kept == 0 and entered.moments_dropped == len(before.moments)
    transition = machine.schedule.phases[1].transition
    assert transition is not None and "the others start anew" in transition.notes[0]


def test_other_betas_keep_the_moments() -> None:
    before, entered, after = at_boundary(two_phases({"optimizer": {"beta1": 0.8, "beta2": 0.9}}))
    assert entered.moments_kept == len(before.moments) > 0
    assert all(same_tensors(after.moments[name], before.moments[name]) for name in before.moments)


def test_other_groups_keep_the_moments() -> None:
    before, entered, after = at_boundary(two_phases({"optimizer": {"groups": {"norms": {"select": ["*.norm*"], "lr": 0.1}}}}))
    assert entered.moments_kept == len(before.moments) > 0
    assert all(same_tensors(after.moments[name], before.moments[name]) for name in before.moments)


class Twins(nn.Module):
    """Two matrices of one shape, registered in either order, that do different things."""

    def __init__(self, width: int, order: str = "ab") -> None:
        super().__init__()
        for name in order:
            self.register_module(name, nn.Linear(width, width, bias=False))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = self.b(torch.tanh(self.a(hidden)))
        return hidden + turned


def test_state_is_keyed_by_name_when_same_shaped_modules_change_places() -> None:
    model = {**base()["model"], "rack": Built(Twins, width=8, order="ab")}
    model["embedding"] = {"use": "transformer.token", "vocab": 16, "width": 8}
    model["head"] = {"use": "transformer.lm", "width": 8}
    second = {"model": {"rack": {"order": "ba"}}, "optimizer": {"decay": "all"}}  # another decay: the optimizer is made anew
    machine = machine_of(two_phases(second, model=model))
    ((before, entered, after),) = boundaries(machine)
    assert list(before.weights)[1:3] == ["rack.a.weight", "rack.b.weight"]
    assert list(after.weights)[1:3] == ["rack.b.weight", "rack.a.weight"]
    assert not torch.equal(before.weights["rack.a.weight"], before.weights["rack.b.weight"])
    for name in before.weights:
        assert torch.equal(after.weights[name], before.weights[name])
        assert same_tensors(after.moments[name], before.moments[name])
    assert entered.adopted == len(before.weights)


def test_the_order_of_registration_changes_no_value_of_the_run() -> None:
    """Values are copied in by name, so that only names decide what is learnt."""
    finals = []
    for order in ("ab", "ba"):
        model = {**base()["model"], "rack": Built(Twins, width=8, order=order)}
        model["embedding"] = {"use": "transformer.token", "vocab": 16, "width": 8}
        model["head"] = {"use": "transformer.lm", "width": 8}
        machine = machine_of(base(model=model, optimizer={"use": "optim.adamw", "lr": 0.01}))
        machine.model.apply_values(0.0)
        events = machine.train()
        next(events)
        next(events)
        fixed = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for _, parameter in sorted(machine.model.model.named_parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=fixed) / 5)
        list(events)
        finals.append((weights(machine), moments(machine)))
    for name in finals[0][0]:
        torch.testing.assert_close(finals[0][0][name], finals[1][0][name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(finals[0][1][name]["exp_avg"], finals[1][1][name]["exp_avg"], rtol=1e-4, atol=1e-8)


def test_optimizer_state_saved_by_name_is_restored_by_name() -> None:
    machine = machine_of(base())
    drive(machine)
    saved = moments(machine)
    shuffled = dict(reversed(list(saved.items())))
    for state in machine.optimizer.optimizer.state.values():
        state["exp_avg"].zero_()
    machine.optimizer.load_state_by_name(shuffled)
    assert all(same_tensors(moments(machine)[name], saved[name]) for name in saved)
    with pytest.raises(UserError, match=r"embedding\.weight has shape \(3,\)"):
        machine.optimizer.load_state_by_name({"embedding.weight": {"exp_avg": torch.zeros(3)}})


def test_a_width_that_changes_without_an_operator_is_refused_by_name() -> None:
    machine = machine_of(two_phases({"model": {"rack": {"ff": 40}}}))
    with pytest.raises(UserError, match=r"mlp\.\w+\.weight changes its shape"):
        drive(machine)


@pytest.mark.parametrize("growth", ["stack", "identity"])
def test_the_plan_tells_the_truth_about_the_function(growth: str) -> None:
    machine = machine_of(two_phases({**DEEPER, "enter": {"growth": {"use": f"transformer.{growth}"}}}))
    probe = {"tokens": stream(40).view(2, 20)}
    difference = _difference_at_boundary(machine, lambda: machine.model.model(probe)["logits"].detach())
    transition = machine.schedule.phases[1].transition
    assert transition is not None and transition.preserves_function == (growth == "identity")
    assert difference == 0 if transition.preserves_function else difference > 1e-6


@pytest.mark.parametrize("other", [{"rack": {"rope_base": 50}}, {"rack": {"qk_norm": False}}, {"head": {"tied": False}}])
def test_an_operator_over_shapes_answers_for_sizes_alone(other: dict[str, Any]) -> None:
    model = {**other, "rack": {"ff": 40, **other.get("rack", {})}}
    machine = machine_of(two_phases({"model": model, "enter": {"growth": {"use": "transformer.widen-ff"}}}))
    transition = machine.schedule.phases[1].transition
    assert transition is not None and transition.preserves_function == (other == {"rack": {"qk_norm": False}})


def test_other_heads_under_widen_ff_are_refused_because_no_shape_shows_them() -> None:
    machine = machine_of(two_phases({"model": {"rack": {"ff": 40, "heads": 4}}, "enter": {"growth": {"use": "transformer.widen-ff"}}}))
    with pytest.raises(UserError, match=r"'heads' would go from 2 to 4, which changes what attention computes: .* a phase of their own"):
        drive(machine)


def notes_of(config: Mapping[str, Any]) -> str:
    transition = plan_of(config).schedule.phases[1].transition
    assert transition is not None
    return "\n".join(transition.notes)


BESIDE = {
    "use": "optim.adamw",
    "lr": 0.01,
    "clip": 1.0,
    "ema": {"decay": 0.9},
    "lr_scaling": {"width": {"exponent": -1, "base": 8}},
    "groups": {"slow": {"select": ["embedding"], "lr": 1e-3}},
    "reaction": {"use": "optim.plateau", "metric": "train.loss"},
}


def test_the_plan_names_what_ends_with_an_optimizer_that_is_replaced() -> None:
    told = notes_of(two_phases({"optimizer": {"use": "optim.lion", "lr": 1e-3, "clip": 0.5}}, optimizer=BESIDE))
    assert "replaces the whole optimizer, so these end with it: ema, reaction, lr_scaling, groups.slow; repeat what is to go on" in told
    assert "the averaged weights are lost" in told
    assert "reaction optim.plateau ends: its factor on every learning rate is 1 again" in told
    repeated = {**BESIDE, "use": "optim.lion"}
    assert notes_of(two_phases({"optimizer": repeated}, optimizer=BESIDE)).count("\n") == 0  # nothing but the moments


def test_what_is_repeated_beside_another_optimizer_goes_on() -> None:
    machine = machine_of(two_phases({"optimizer": {**BESIDE, "use": "optim.lion"}}, optimizer=BESIDE))
    reactions, averages = [], []
    for event in machine.train():
        if isinstance(event, PhaseEntered):
            reactions.append(machine.optimizer.reaction)
            assert machine.optimizer.average is not None
            averages.append({name: average.clone() for name, average in machine.optimizer.average.state_by_name().items()})
        elif isinstance(event, StepDone) and event.step == 5:
            held = {name: average.clone() for name, average in machine.optimizer.average.state_by_name().items()}  # type: ignore[union-attr]
    assert reactions[0] is reactions[1] is not None
    assert all(torch.equal(averages[1][name], held[name]) for name in held) and averages[1].keys() == held.keys()


def test_a_parameter_that_changes_its_rule_keeps_nothing_that_the_new_rule_does_not() -> None:
    muon = {"use": "optim.muon", "lr": 0.01, "matrices": ["rack.stacks.base.0.mlp.up"]}
    phases = {
        "one": {"until": "4 steps"},
        "two": {"until": "8 steps", "optimizer": {"matrices": ["rack.stacks.base.1.mlp.up"]}},
        "three": {"optimizer": {"matrices": ["rack.stacks.base.0.mlp.up"]}},
    }
    machine = machine_of(base(optimizer=muon, phases=phases))
    found = []
    for event in machine.train():
        if isinstance(event, StepDone) and event.step in (3, 7, 11):
            found.append([moments(machine)[f"rack.stacks.base.{block}.mlp.up.weight"] for block in (0, 1)])
    hidden, rest = {"exp_avg"}, {"exp_avg", "exp_avg_sq", "step"}
    assert [[set(state) for state in pair] for pair in found] == [[hidden, rest], [rest, hidden], [hidden, rest]]
    assert [int(found[1][0]["step"]), int(found[2][1]["step"])] == [4, 4]  # each began to count when its rule began


def test_a_reaction_with_other_options_begins_anew_and_the_plan_says_so() -> None:
    other = {"reaction": {"use": "optim.plateau", "metric": "train.loss", "patience": 3}}
    told = notes_of(two_phases({"optimizer": other}, optimizer=BESIDE))
    assert told == "reaction optim.plateau ends and another begins: its factor on every learning rate is 1 again"


def test_a_parameter_thawed_under_another_rule_keeps_nothing_of_the_rule_it_was_frozen_with() -> None:
    muon = {"use": "optim.muon", "lr": 0.01, "matrices": ["rack.stacks.base.0.mlp.up"]}
    both = ["rack.stacks.base.*.mlp.up"]
    phases = {
        "adamw": {"until": "3 steps"},
        "frozen": {"until": "5 steps", "model": {"freeze": ["rack.stacks.base.1"]}},
        "muon": {"until": "8 steps", "model": {"freeze": []}, "optimizer": {"matrices": both}},
        "back": {"optimizer": {"matrices": ["rack.stacks.base.0.mlp.up"]}},
    }
    machine, name = machine_of(base(optimizer=muon, phases=phases)), "rack.stacks.base.1.mlp.up.weight"
    for event in machine.train():
        if isinstance(event, StepDone) and event.step == 7:
            assert set(moments(machine)[name]) == {"exp_avg"}
    assert int(moments(machine)[name]["step"]) == 4


class Turned(nn.Linear):
    """A map of the hidden state with the parameters of another that it takes the place of."""

    def get_spec(self) -> AdapterSpec:
        hidden = TensorSpec("batch time width")
        return AdapterSpec(input=hidden, output=hidden)


def test_another_adapter_in_the_same_place_starts_anew() -> None:
    model = {**base()["model"], "adapters": {"embedding-rack": [{"use": "core.project", "width_in": 8, "width_out": 8}]}}
    spec = AdapterSpec(input=TensorSpec("batch time width"), output=TensorSpec("batch time width"))
    turned = Built(Turned, spec=spec, in_features=8, out_features=8)
    config = two_phases({"model": {"adapters": {"embedding-rack": [turned]}}}, model=model)
    assert notes_of(config) == "adapter core.project of embedding-rack is replaced by Turned: its parameters start anew"
    before, entered, after = at_boundary(config)
    name = "adapters.embedding-rack.0.weight"
    assert (entered.fresh, entered.dropped) == (2, 1)
    assert not torch.equal(after.weights[name], before.weights[name]) and name not in after.moments


def test_the_plan_names_an_adapter_that_goes_away() -> None:
    steps = [{"use": "core.project", "width_in": 8, "width_out": 8}] * 2
    model = {**base()["model"], "adapters": {"embedding-rack": steps}}
    told = "adapter core.project of embedding-rack goes away, and its parameters with it"
    assert notes_of(two_phases({"model": {"adapters": {"embedding-rack": steps[:1]}}}, model=model)) == told
    assert notes_of(two_phases({"model": {"adapters": {"embedding-rack": None}}}, model=model)) == f"{told}\n{told}"


def test_a_finished_module_cannot_start_anew() -> None:
    head = nn.Module()
    head.weight = nn.Parameter(torch.randn(16, 8))  # type: ignore[assignment]  # a plain head
    head.forward = lambda hidden: {"logits": hidden @ head.weight.t()}  # type: ignore[method-assign]  # as above
    parts = {**base()["model"], "head": head}
    with pytest.raises(UserError, match=r"head\.weight is to start anew, but its module is the very object that was there"):
        drive(machine_of(two_phases({"enter": {"fresh": ["head"]}}, model=parts)))


def test_a_group_of_frozen_parameters_waits_until_they_learn() -> None:
    groups = {"groups": {"slow": {"select": ["embedding"], "lr": 0.001}}}
    phases = {"one": {"until": "6 steps", "model": {"freeze": ["embedding"]}}, "two": {"model": {"freeze": []}}}
    machine = machine_of(base(optimizer={"use": "optim.adamw", "lr": 0.01, **groups}, phases=phases))
    seen = [
        {group["group"] for group in machine.optimizer.optimizer.param_groups}
        for event in machine.train()
        if isinstance(event, PhaseEntered)
    ]
    assert seen == [{"default"}, {"default", "slow"}]


def _difference_at_boundary(machine: TrainingMachine, outputs: Callable[[], torch.Tensor]) -> float:
    before = None
    for event in machine.train():
        if isinstance(event, StepDone) and event.step == 5:
            before = outputs()
        if isinstance(event, PhaseEntered) and event.phase_index:
            assert before is not None
            return float((outputs() - before).abs().max())
    raise AssertionError("the run has no boundary")


def test_a_finished_optimizer_cannot_be_taken_into_another_phase_with_other_parameters() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"missing \['bias'\]"):
        OptimizerPlane.of(torch.optim.SGD([model.weight], lr=1), dict(model.named_parameters()))
    plane = OptimizerPlane.of(torch.optim.SGD(model.parameters(), lr=1), dict(model.named_parameters()))
    state = machine_of(base()).schedule.phases[0].state
    assert state is not None
    with pytest.raises(UserError, match="finished object"):
        plane.enter(state.optimizer, {"weight": model.weight}, 0.0)
