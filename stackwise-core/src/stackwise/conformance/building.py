"""The factory of any component: it builds, it leaves the process alone, and what it builds takes the values in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Generator, nn

from stackwise.conformance import bench
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.components import Kind
from stackwise.contracts.protocols import ParameterGroup
from stackwise.errors import UserError
from stackwise.host.isolation import guarded

_METHODS: Mapping[Kind, tuple[str, ...]] = {
    "embedding": ("get_spec",),
    "head": ("get_spec",),
    "adapter": ("get_spec",),
    "task": ("get_spec", "prepare", "loss"),
    "loader": ("get_batch_spec", "take", "state_dict", "load_state_dict"),
    "growth": ("map_blocks", "preserves_function"),
    "reaction": ("watch", "factor", "state_dict", "load_state_dict"),
    "weight-adapter": ("forward", "merged"),
    "transform": ("__call__",),
    "observer": ("__call__",),
}
"""What an artifact of a kind must have, beside the class of modules and optimizers; a plain rack leaves its spec to its options."""

_UNLIKELY = 8_236_541_907
"""A seed that nobody sets."""


def check_builds(subject: Subject) -> None:
    """The factory builds from the example what its kind is: a module, an optimizer, an object with the methods of the contract.

    Usual cause: the factory's signature is not `(options, context)`; a method has another name.
    """
    try:
        made = built(subject)
    except UserError as error:
        if isinstance(error.__cause__, ImportError):
            raise NotApplicable(f"an optional library is not installed: {error}") from error
        raise
    if subject.kind == "optimizer":
        must(isinstance(made, torch.optim.Optimizer), f"it was built as a {type(made).__name__}: an optimizer is a torch.optim.Optimizer")
    for name in _METHODS.get(subject.kind, ()):
        must(hasattr(made, name), f"{type(made).__name__} has no '{name}', which {subject.article} {subject.kind} has")


def check_leaves_the_process_alone(subject: Subject) -> None:
    """Building and using a component changes nothing of the process: no reseeding, no default dtype, no directory, no threads.

    Usual cause: `torch.manual_seed`, `torch.set_default_dtype`, `os.chdir` or `random.seed` in a factory or a forward pass.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_UNLIKELY)
        with guarded() as changed:
            state = torch.get_rng_state()
            used(subject)
            reseeded = torch.initial_seed() != _UNLIKELY
            torch.set_rng_state(state)
    must(not reseeded, "it seeds torch's generator, which every other part of a run draws from: draw from the generator that is given")
    must(not changed, f"it changes {' and '.join(changed)}, which belongs to the whole process")


def check_values_arrive(subject: Subject) -> None:
    """An artifact that `apply_values` moved to other values behaves as one that was built with them.

    Usual cause: `apply_values` is missing, misses an option, or a module deep inside keeps the value it was built with.
    """
    first = subject.values()
    if not first:
        raise NotApplicable("none of its options follows time")
    compared = 0
    for name, value in first.items():
        other = other_value(subject, name, value)
        try:
            wanted = _behaviour(subject, built(subject, options=subject.options(**{name: other})))
        except UserError:
            continue  # beside the other options of the example, no other value is allowed
        moved = built(subject)
        must(hasattr(moved, "apply_values"), f"{type(moved).__name__} has no apply_values, but {name} follows time")
        moved.apply_values({**first, name: other})
        told = f"{name} = {other:g} given through apply_values does not have the effect it has when it is built with it"
        must(bench.same(_behaviour(subject, moved), wanted), told)
        compared += 1
    if not compared:
        raise NotApplicable("beside the other options of its example, what may follow time allows one value only")


def built(subject: Subject, options: Any = None) -> Any:
    """The artifact, whatever its kind."""
    if subject.kind in ("embedding", "rack", "head", "adapter", "weight-adapter"):
        return bench.build_module(subject, options=options)
    with bench.seeded(SEED):
        if subject.kind == "optimizer":
            parameters = {"weight": nn.Parameter(torch.ones(3, 2))}
            group = ParameterGroup(name="default", parameters=parameters, values=subject.values())
            return subject.build([group], options=options)
        return subject.build(options=options, specs=bench.specs(subject))


def used(subject: Subject) -> Any:
    """Build it and use it once, as a run would; what came out."""
    made = built(subject)
    match subject.kind:
        case "embedding" | "rack" | "head" | "adapter" | "task" | "transform" | "loader":
            return _behaviour(subject, made)
        case "optimizer":
            for group in made.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.ones_like(parameter)
            made.step()
        case "weight-adapter":
            return made(torch.ones(2, 3))
        case "reaction":
            return made.watch(0, {"train.loss": 1.0})
    return None


def _behaviour(subject: Subject, made: Any) -> Any:
    """What an artifact gives for the same input and the same random streams."""
    uses: Mapping[Kind, Callable[[], Any]] = {
        "loader": lambda: made.take(ROWS, LENGTH),
        "task": lambda: _of_task(subject, made),
        "transform": lambda: dict(made(bench.rows(subject), bench.MOMENT, Generator().manual_seed(SEED))),
    }
    if subject.kind in uses:
        with bench.seeded(SEED):
            return bench.copied(uses[subject.kind]())
    task = bench.task_of(subject)
    model = bench.model_around(subject, made).train()
    with bench.seeded(SEED), torch.no_grad():
        return bench.copied(model(bench.prepared(subject, task)))


def _of_task(subject: Subject, task: Any) -> list[Any]:
    batch = bench.prepared(subject, task)
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
