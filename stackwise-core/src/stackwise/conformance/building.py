"""The factory of any component: it builds, it leaves the process alone, and what it builds follows the values of its schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Generator, nn

from stackwise.conformance import bench
from stackwise.conformance.subject import LENGTH, ROWS, SEED, STEPS, NotApplicable, Subject, must
from stackwise.contracts.answers import METHODS
from stackwise.contracts.components import Kind
from stackwise.contracts.protocols import ParameterGroup
from stackwise.errors import UserError
from stackwise.host.isolation import guarded
from stackwise.timeline.provided import ScheduleWindow

_UNLIKELY = 8_236_541_907
"""A seed that no component will set."""


def check_builds(subject: Subject) -> None:
    """From the example the factory builds what its kind asks for: a module, an optimizer, an object with the methods of the contract.

    Usual cause: the factory's signature is not `(options, context)`; a method has another name.
    """
    try:
        artifact = artifact_of(subject)
    except UserError as error:
        if isinstance(error.__cause__, ImportError):
            raise NotApplicable(f"an optional library is not installed: {error}") from error
        raise
    if subject.kind == "optimizer":
        must(
            isinstance(artifact, torch.optim.Optimizer),
            f"it was built as a {type(artifact).__name__}: an optimizer is a torch.optim.Optimizer",
        )
    for name in METHODS.get(subject.kind, ()):
        must(hasattr(artifact, name), f"{type(artifact).__name__} has no '{name}', which {subject.article} {subject.kind} has")


def check_leaves_the_process_alone(subject: Subject) -> None:
    """Building and using a component changes nothing in the process: no reseeding, no default dtype, no directory, no threads.

    Usual cause: `torch.manual_seed`, `torch.set_default_dtype`, `os.chdir` or `random.seed` in a factory or a forward pass.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_UNLIKELY)
        with guarded() as changed:
            state = torch.get_rng_state()
            use_once(subject)
            reseeded = torch.initial_seed() != _UNLIKELY
            torch.set_rng_state(state)
    must(not reseeded, "it seeds torch's generator, which every other part of a run draws from: draw from the generator that is given")
    must(not changed, f"it changes {' and '.join(changed)}, which belongs to the whole process")


def check_values_arrive(subject: Subject) -> None:
    """After `apply_values` an artifact behaves like one that was built with these values.

    Usual cause: `apply_values` is missing, misses an option, or a module deep inside keeps the value it was built with.
    """
    first = subject.values()
    if not first:
        raise NotApplicable("none of its options follows time")
    comparisons = 0
    for name, value in first.items():
        other = other_value(subject, name, value)
        try:
            expected = _behaviour(subject, artifact_of(subject, options=subject.options(**{name: other})))
        except UserError:
            continue  # beside the other options of the example, no other value is allowed
        changed_later = artifact_of(subject)
        must(hasattr(changed_later, "apply_values"), f"{type(changed_later).__name__} has no apply_values, but {name} follows time")
        changed_later.apply_values({**first, name: other})
        sentence = f"{name} = {other:g} given through apply_values does not have the effect it has when it is built with it"
        must(bench.same(_behaviour(subject, changed_later), expected), sentence)
        comparisons += 1
    if not comparisons:
        raise NotApplicable("beside the other options of its example, what may follow time allows one value only")


def artifact_of(subject: Subject, options: Any = None) -> Any:
    """The artifact, whatever its kind."""
    if subject.kind in ("embedding", "rack", "head", "adapter", "weight-adapter"):
        return bench.build_module(subject, options=options)
    with bench.seeded(SEED):
        if subject.kind == "optimizer":
            parameters = {"weight": nn.Parameter(torch.ones(3, 2))}
            group = ParameterGroup(name="default", parameters=parameters, values=subject.values())
            return subject.build([group], options=options)
        return subject.build(options=options, specs=bench.specs(subject))


def use_once(subject: Subject) -> Any:
    """Build it, use it once as a run would, and return the result."""
    artifact = artifact_of(subject)
    match subject.kind:
        case "embedding" | "rack" | "head" | "adapter" | "task" | "transform" | "loader":
            return _behaviour(subject, artifact)
        case "optimizer":
            for group in artifact.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.ones_like(parameter)
            artifact.step()
        case "weight-adapter":
            return artifact(torch.ones(2, 3))
        case "reaction":
            return artifact.watch(0, {"train.loss": 1.0})
        case "schedule":
            return artifact.value(0, ScheduleWindow.of_steps(STEPS, 1.0))
    return None


def _behaviour(subject: Subject, artifact: Any) -> Any:
    """What an artifact gives for the same input and the same random streams."""
    uses: Mapping[Kind, Callable[[], Any]] = {
        "loader": lambda: artifact.take(ROWS, LENGTH),
        "task": lambda: _task_result(subject, artifact),
        "transform": lambda: dict(artifact(bench.rows(subject), bench.MOMENT, Generator().manual_seed(SEED))),
    }
    if subject.kind in uses:
        with bench.seeded(SEED):
            return bench.copy_of(uses[subject.kind]())
    task = bench.task_of(subject)
    model = bench.model_around(subject, artifact).train()
    with bench.seeded(SEED), torch.no_grad():
        return bench.copy_of(model(bench.prepare(subject, task)))


def _task_result(subject: Subject, task: Any) -> list[Any]:
    batch = bench.prepare(subject, task)
    judged = bench.objective(task, bench.model_around(subject))
    total, weight, metrics = judged.judge(bench.outputs(subject, batch), batch)
    return [batch, total.detach(), float(weight), {name: [float(part) for part in pair] for name, pair in metrics.items()}]


def other_value(subject: Subject, name: str, value: float) -> float:
    """Another value that the option's own rules allow."""
    attribute = next(a for a in attrs.fields(subject.registered.load_options()) if a.name == name)
    low, high = attribute.metadata.get("minimum"), attribute.metadata.get("maximum")
    for other in (value / 2 + 0.25, value + 1.0, value / 2, value - 1.0):
        if other != value and (low is None or other >= low) and (high is None or other <= high):
            return float(other)
    return value
