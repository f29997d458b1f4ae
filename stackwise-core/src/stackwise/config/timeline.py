"""The merged tree → an `Experiment`: every phase has its effective sections, and every mistake is reported once, with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from stackwise.config.experiment import (
    EnterConfig,
    Experiment,
    PhaseConfig,
)
from stackwise.config.faults import Fault
from stackwise.config.hints import unknown_key
from stackwise.config.keys import FORMAT, IN_PHASE, PLANES, SECTIONS
from stackwise.config.merging import apply_replace, merge
from stackwise.config.nodes import Node, describe
from stackwise.config.run import RunConfig
from stackwise.config.section import Section, broken_name
from stackwise.config.sections import (
    Read,
    read_data,
    read_enter,
    read_evaluations,
    read_model,
    read_observers,
    read_optimizer,
    read_run,
    read_task,
    read_until,
)
from stackwise.errors import Position, Problem, did_you_mean

_KEYS_OF_A_PHASE = (*IN_PHASE, *PLANES)

_T = TypeVar("_T")


def read_experiment(root: Node, default_name: str) -> Experiment:
    """Read a merged config.

    Args:
        root: the tree, `extends` and overrides already applied.
        default_name: what the run is called when the config does not say.
    """
    problems, written = _Problems(), root
    root = apply_replace(root)
    _check_format(root, problems)
    run, faults = read_run(root.child("run"), default_name)
    problems.add(root, faults)
    evaluate, faults = read_evaluations(root.child("evaluate"))
    problems.add(root, faults)
    problems.add(root, tuple(_unknown_evaluations(run, [each.name for each in evaluate])))
    observers, faults = read_observers(root.child("observers"))
    problems.add(root, faults)
    phases = _read_phases(root, problems)
    problems.add(root, tuple(_unknown_stalls(phases, [each.name for each in evaluate])))
    return Experiment(
        run=run,
        phases=phases,
        evaluate=evaluate,
        observers=observers,
        resolved=written.printable(),
        problems=problems.in_reading_order(),
        tree=written,
    )


def _unknown_evaluations(run: RunConfig, names: Sequence[str]) -> Iterator[Fault]:
    """Metrics of evaluations that do not exist, and keys of a metric that is not named."""
    best, watched = run.checkpoint.best_metric, run.stop.watched
    if best is not None and (name := best[0].partition(".")[0]) not in names:
        yield Fault(
            ("run", "checkpoint", "best"), f"there is no evaluation '{name}' to choose the best checkpoint by{did_you_mean(name, names)}"
        )
    if watched is not None and (name := watched[0].partition(".")[0]) not in names:
        yield Fault(("run", "stop", "metric"), f"there is no evaluation '{name}' to stop the run by{did_you_mean(name, names)}")
    for key in ("patience", "least"):
        if watched is None and getattr(run.stop, key) is not None:
            yield Fault(("run", "stop", key), "is of a metric, and none is named: write `metric: <evaluation>.<metric>` beside it")


def _unknown_stalls(phases: Sequence[PhaseConfig], names: Sequence[str]) -> Iterator[Fault]:
    """Metrics of evaluations that do not exist."""
    for phase in phases:
        if phase.stalls is not None and (name := phase.stalls.stalls.partition(".")[0]) not in names:
            message = f"there is no evaluation '{name}' to end the phase by{did_you_mean(name, names)}"
            yield Fault(("phases", phase.name, "until", "stalls"), message)


class _Problems:
    """The mistakes, each once, because a mistake in the base config turns up again in every phase."""

    def __init__(self) -> None:
        self._problems: dict[object, Problem] = {}

    def add(self, tree: Node, faults: tuple[Fault, ...], names: tuple[str, ...] = ()) -> None:
        """Give faults their positions. A missing key has none, so it is reported once, in the first phase that lacks it."""
        for fault in faults:
            near = tree.nearest(fault.path)
            path = ".".join(fault.path)
            place = path if near.layer < 0 or (fault.missing and fault.path[0] != "enter") else f"phases.{names[near.layer]}.{path}"
            key = (path, fault.message) if fault.missing else (place, fault.message, near.position)
            self._problems.setdefault(key, Problem(fault.message, place, near.position))

    def in_reading_order(self) -> tuple[Problem, ...]:
        """Source by source, from top to bottom."""
        sources = list(dict.fromkeys(problem.where.source for problem in self._problems.values() if problem.where))
        return tuple(sorted(self._problems.values(), key=lambda problem: _order(problem.where, sources)))


def _order(where: Position | None, sources: list[str]) -> tuple[int, int, int]:
    return (-1, 0, 0) if where is None else (sources.index(where.source), where.line or 0, where.column or 0)


def _check_format(root: Node, problems: _Problems) -> None:
    section = Section(root, (), "a config is a map of sections")
    for key in section.children:
        if key not in SECTIONS:
            section.fault((key,), unknown_key(key, SECTIONS, section.children[key].plain()))
    version = section.take("stackwise")
    if version is not None and not (type(version.value) is int and version.value == FORMAT):
        section.fault(("stackwise",), f"{describe(version.plain())} is not a config format that is read here: write `stackwise: {FORMAT}`")
    problems.add(root, tuple(section.faults))


class _Cached:
    """Reads each node once: a section that a phase leaves unchanged is the same node, so it gives the same config."""

    def __init__(self) -> None:
        self._results: dict[tuple[Any, int], tuple[Node | None, Any]] = {}

    def __call__(self, read: Callable[[Node | None], Read[_T]], node: Node | None) -> Read[_T]:
        key = (read, id(node))
        if key not in self._results:
            self._results[key] = (node, read(node))
        result: Read[_T] = self._results[key][1]
        return result


def _read_phases(root: Node, problems: _Problems) -> tuple[PhaseConfig, ...]:
    deltas = _phase_nodes(root, problems)
    names = tuple(deltas)
    effective = Node("map", {key: root.value[key] for key in PLANES if key in root.entries}, root.position)
    cached = _Cached()
    phases = []
    for index, (name, delta) in enumerate(deltas.items()):
        changes = {key: delta.entries[key] for key in PLANES if key in delta.entries}
        effective = apply_replace(merge(effective, Node("map", changes, delta.position).in_layer(index)))
        own = {key: delta.entries[key].in_layer(index) for key in ("until", "enter") if key in delta.entries}
        tree = Node("map", {**effective.value, **own}, effective.position, effective.layer)
        end, faults = read_until(own.get("until"), ("phases", name, "until"), last=index == len(names) - 1)
        problems.add(root, faults)
        enter, faults = read_enter(own.get("enter"))
        problems.add(tree, faults, names)
        phases.append(_phase(name, index, names, end, enter, tree, cached, problems))
    return tuple(phases)


def _phase(
    name: str, index: int, names: tuple[str, ...], end: Any, enter: EnterConfig, tree: Node, cached: _Cached, problems: _Problems
) -> PhaseConfig:
    task, task_faults = cached(read_task, tree.child("task"))
    data, data_faults = cached(read_data, tree.child("data"))
    model, model_faults = cached(read_model, tree.child("model"))
    optimizer, optimizer_faults = cached(read_optimizer, tree.child("optimizer"))
    problems.add(tree, (*task_faults, *data_faults, *model_faults, *optimizer_faults), names)
    return PhaseConfig(
        name=name,
        index=index,
        until=end[0],
        stalls=end[1],
        task=task,
        data=data,
        model=model,
        optimizer=optimizer,
        enter=enter,
        tree=tree,
        names=names,
    )


def _phase_nodes(root: Node, problems: _Problems) -> Mapping[str, Node]:
    """The deltas by name; one empty delta named `train` where the config has no phases."""
    single = {"train": Node("map", {}, root.position)}
    node = root.child("phases")
    if node is None or node.is_null:
        return single
    if node.kind == "map" and not node.value:
        problems.add(root, (Fault(("phases",), "there is no phase in it: name one, or leave `phases` out for a single one"),))
        return single
    if node.kind != "map":
        message = f"{describe(node.plain())} is not a map: write phases: {{<name>: {{until: 50%, …}}}}"
        problems.add(root, (Fault(("phases",), message),))
        return single
    deltas: dict[str, Node] = {}
    for name, delta in node.value.items():
        if name in _KEYS_OF_A_PHASE and len(node.value) > 1:
            message = f"stands beside the phases, as if it were one: indent it below the phase it belongs to, <name>: {{{name}: …}}"
            problems.add(root, (Fault(("phases", name), message),))
            continue
        if broken := broken_name(name):
            problems.add(root, (Fault(("phases", name), broken),))
        problems.add(root, _stray_keys(name, delta))
        deltas[name] = delta if delta.kind == "map" else Node("map", {}, delta.position)
    return deltas or single


def _stray_keys(name: str, delta: Node) -> tuple[Fault, ...]:
    """Faults for keys that a phase cannot have."""
    section = Section(delta, ("phases", name), "write {until: 50%, …}")
    for key, child in delta.entries.items():
        if key in SECTIONS and key not in _KEYS_OF_A_PHASE:
            section.fault((key,), "unknown key in a phase — it stands outside the phases and holds for the whole run")
        elif key not in _KEYS_OF_A_PHASE:
            section.fault((key,), unknown_key(key, _KEYS_OF_A_PHASE, child.plain()).replace("unknown key", "unknown key in a phase", 1))
    return tuple(section.faults)
