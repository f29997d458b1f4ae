"""Optimizers: what they hold, which values they follow, and what of them survives saving and growth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stackwise.conformance import bench
from stackwise.conformance.building import other_value
from stackwise.conformance.subject import SEED, NotApplicable, Subject, must
from stackwise.contracts.protocols import ParameterGroup
from stackwise.contracts.specs import OptimizerSpec

SHAPES: Mapping[str, tuple[int, ...]] = {"embedding.weight": (5, 3), "rack.norm": (3,), "rack.stacks.base.0.out.weight": (4, 3)}

NEW = "rack.stacks.base.1.out.weight"

STEPS_BEFORE, STEPS_AFTER = 3, 250
"""Steps before a state is taken over, and those compared after it: a counter beside the state may act only after many."""


def check_holds_each_parameter_once(subject: Subject) -> None:
    """Every parameter of every group stands in exactly one torch group, which carries the group's name as `group`.

    Usual cause: vectors left out when matrices go to another optimizer; `"group": group.name` forgotten.
    """
    parameters = _parameters()
    groups = [_group(subject, dict(list(parameters.items())[:1]), "first"), _group(subject, dict(list(parameters.items())[1:]), "default")]
    optimizer = _optimizer(subject, groups)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    missing = [name for name, p in parameters.items() if id(p) not in ids]
    must(not missing, f"{', '.join(missing)} stands in no torch group, so it would never learn")
    must(len(ids) == len(set(ids)) == len(parameters), "a parameter stands in two torch groups, or one that nobody gave is among them")
    for group in groups:
        for torch_group in optimizer.param_groups:
            own = {id(p) for p in torch_group["params"]} & {id(p) for p in group.parameters.values()}
            must(
                not own or torch_group.get("group") == group.name,
                f"a torch group with parameters of '{group.name}' does not say so as `group`",
            )


def check_groups_follow_their_values(subject: Subject) -> None:
    """A value that the core writes into the torch groups has the effect it has when the optimizer is built with it.

    Usual cause: the learning rate read once in the constructor, or kept in another place than `param_groups`.
    """
    first = subject.values()
    if not first:
        raise NotApplicable("none of its options follows time")
    values = {name: other_value(subject, name, value) for name, value in first.items()}
    moved, fresh = _Bowl(subject), _Bowl(subject, values=values)
    for group in moved.optimizer.param_groups:
        for name, value in values.items():
            if name in group and name not in group.get("fixed", ()):
                group[name] = value
    moved.step()
    fresh.step()
    sentence = f"{values} written into the torch groups do not have the effect they have when the optimizer is built with them"
    must(bench.same(moved.weights(), fresh.weights()), sentence)


def check_lowers_a_bowl(subject: Subject) -> None:
    """Some steps on a quadratic bowl, with the values of the example, lower it.

    Usual cause: the sign of the step; a learning rate in the example that is far too large.
    """
    bowl = _Bowl(subject)
    start = bowl.height()
    for _ in range(30):
        bowl.step()
    must(bowl.height() < start, f"30 steps on a quadratic bowl lead from {start:.4g} to {bowl.height():.4g}")


def check_state_elements(subject: Subject) -> None:
    """`OptimizerSpec.count` gives the entries that are really kept for a parameter, by name and shape, so that the memory in a plan is
    right.

    Usual cause: a step counter or a second moment that was added and not counted.
    """
    bowl = _Bowl(subject)
    bowl.step()
    spec = subject.spec()
    if not isinstance(spec, OptimizerSpec):
        raise NotApplicable("it states no spec, so the plan says nothing of its memory")
    for name, parameter in bowl.parameters.items():
        entries = sum(value.numel() for value in bowl.optimizer.state[parameter].values() if isinstance(value, Tensor))
        expected = spec.count(name, tuple(parameter.shape))
        must(entries == expected, f"{entries} entries are kept for {name} of shape {list(parameter.shape)}, and {expected} are stated")


def check_step_flops(subject: Subject) -> None:
    """`OptimizerSpec.step_flops` is no less than the matrix products of a step, as torch counts them, and one FLOP for every entry.

    Usual cause: an optimizer that multiplies matrices and counts as if it took every entry alone.
    """
    spec, bowl = subject.spec(), _Bowl(subject)
    if not isinstance(spec, OptimizerSpec) or spec.step_flops is None:
        raise NotApplicable("it does not say what a step costs, so budgets in FLOPs count the model alone")
    bowl.step()
    with FlopCounterMode(display=False) as counter:
        bowl.step()
    least = max(counter.get_total_flops(), sum(parameter.numel() for parameter in bowl.parameters.values()))
    stated = sum(spec.step_flops(name, tuple(parameter.shape)) for name, parameter in bowl.parameters.items())
    must(stated >= least, f"a step costs at least {least:,} FLOPs, and {stated:,} are stated")


def check_same_next_step(subject: Subject) -> None:
    """An optimizer that gets another's state by parameter takes the same steps from there on, bit for bit.

    Usual cause: a moment or a counter kept in an attribute of the optimizer instead of `state[parameter]`.
    """
    original = _Bowl(subject)
    for _ in range(STEPS_BEFORE):
        original.step()
    resumed = _Bowl(subject, weights=original.weights())
    for name, parameter in resumed.parameters.items():
        resumed.optimizer.state[parameter] = bench.copy_of(dict(original.optimizer.state[original.parameters[name]]))
    for step in range(STEPS_AFTER):
        original.step()
        resumed.step()
        sentence = f"with the same state by parameter, step {step + 1} after {STEPS_BEFORE} differs"
        must(bench.same(original.weights(), resumed.weights()), sentence)


def check_missing_gradients(subject: Subject) -> None:
    """A parameter without a gradient is passed over: it stays as it is, and the others take their step.

    Usual cause: `parameter.grad` used without asking whether it is None.
    """
    whole, partial = _Bowl(subject), _Bowl(subject)
    left_out = next(iter(SHAPES))
    before = partial.weights()[left_out]
    whole.step()
    partial.step(without=left_out)
    must(bench.same(partial.weights()[left_out], before), f"'{left_out}' has no gradient and moves")
    moved = {name: weight for name, weight in partial.weights().items() if name != left_out}
    others = {name: whole.weights()[name] for name in moved}
    must(bench.same(moved, others), "where one parameter has no gradient, the others take another step")


def check_moments(subject: Subject) -> None:
    """State that a torch group declares as `moments` is there, shaped like its parameter and made of the power of the gradient it says.

    Usual cause: a name that was changed in `step` alone; a second moment declared with power 1. Growth then spoils it, or loses it.
    """
    still, once, twice = (_Bowl(subject, weights={name: torch.zeros(shape) for name, shape in SHAPES.items()}) for _ in range(3))
    for size, bowl in enumerate((still, once, twice)):
        bowl.step(gradients={name: size * gradient for name, gradient in _weights().items()})
    moments = {id(p): group.get("moments") for group in once.optimizer.param_groups for p in group["params"]}
    if not any(moments.values()):
        raise NotApplicable("its torch groups declare no moments, so those of grown tensors start anew unless they have torch's names")
    for name, parameter in once.parameters.items():
        for entry, power in (moments[id(parameter)] or {}).items():
            start, single, double = (bowl.optimizer.state[bowl.parameters[name]].get(entry) for bowl in (still, once, twice))
            for value in (single, double):
                shaped = isinstance(value, Tensor) and (not power or value.shape == parameter.shape)
                must(shaped, f"'{entry}' is declared for {name} and is {_form(value)} in its state, not a tensor of its shape")
            left = start if isinstance(start, Tensor) else 0  # what is there without any gradient
            if isinstance(power, int) and power and bool((single - left).any()):
                times = float((double - left).abs().sum() / (single - left).abs().sum())
                sentence = f"'{entry}' is declared to be of power {power}, and twice the gradient makes it {times:.3g} times as large"
                must(abs(times - 2**power) <= 0.01 * 2**power, sentence)


def check_state_survives_growth(subject: Subject) -> None:
    """Among more parameters, those that were there before take the step they would have taken without the new ones.

    Usual cause: state or a step size that depends on the number or the order of the parameters.
    """
    before = _Bowl(subject)
    for _ in range(3):
        before.step()
    plain, larger = _Bowl(subject, weights=before.weights()), _Bowl(subject, weights={NEW: torch.ones(4, 3), **before.weights()})
    for name, parameter in before.parameters.items():
        for bowl in (plain, larger):
            bowl.optimizer.state[bowl.parameters[name]] = bench.copy_of(dict(before.optimizer.state[parameter]))
    plain.step()
    larger.step()
    weights = {name: larger.weights()[name] for name in plain.parameters}
    must(bench.same(plain.weights(), weights), "parameters that were there before take another step once new ones stand beside them")
    must(all(bool(torch.isfinite(weight).all()) for weight in larger.weights().values()), "a new parameter is not finite after one step")


class _Bowl:
    """Some parameters on the way down Σ (p − 1)² / 2, and the optimizer that takes them there."""

    def __init__(self, subject: Subject, values: Mapping[str, float] | None = None, weights: Mapping[str, Tensor] | None = None) -> None:
        self.parameters = {name: nn.Parameter(tensor.clone()) for name, tensor in (weights or _weights()).items()}
        options = subject.options(**(values or {}))
        self.optimizer = _optimizer(subject, [_group(subject, self.parameters, "default", values)], options)

    def height(self) -> float:
        return sum(float((p.detach() - 1).square().sum()) / 2 for p in self.parameters.values())

    def step(self, *, gradients: Mapping[str, Tensor] | None = None, without: str | None = None) -> None:
        for name, parameter in self.parameters.items():
            parameter.grad = parameter.detach() - 1 if gradients is None else gradients[name].clone()
            if name == without:
                parameter.grad = None
        self.optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}


def _weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def _form(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(weight) for name, weight in _weights().items()}


def _group(subject: Subject, parameters: dict[str, nn.Parameter], name: str, values: Mapping[str, float] | None = None) -> ParameterGroup:
    return ParameterGroup(name=name, parameters=parameters, values={**subject.values(), **(values or {})})


def _optimizer(subject: Subject, groups: list[ParameterGroup], options: Any = None) -> torch.optim.Optimizer:
    with bench.seeded(SEED):
        optimizer: torch.optim.Optimizer = subject.build(groups, options=options)
    return optimizer
