"""The workshop: a plan's declarations and finished objects → artifacts and planes. The only caller of factories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn

from stackwise.assembly.given import checked, checked_module, without_scheduler
from stackwise.assembly.outside import as_faults_of
from stackwise.contracts.answers import METHODS, WrongAnswer, calling, expect, expect_artifact
from stackwise.contracts.components import SPEC_OF, BuildContext, Built
from stackwise.contracts.protocols import Observer, ParameterGroup, Reaction
from stackwise.contracts.specs import TaskSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.errors import ConfigError, UserError
from stackwise.host.discovery import build_loader
from stackwise.machine.evaluation import Evaluation
from stackwise.machine.observers import Observers
from stackwise.machine.placement import Placement
from stackwise.plan import EvaluationPlan, Plan
from stackwise.plan.reads import shortages
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.readers.processes import ProcessLoader
from stackwise.planes.model.initialisation import build_seed, building_on, check_shapes, drawing_from
from stackwise.planes.model.whole import check_unwrapped
from stackwise.timeline.streams import step_seed, stream_key


class Workshop:
    """Builds every artifact that a plan declares; planes get only its bound methods.

    Args:
        plan: the compiled experiment.
        device: where modules are built; `meta` to price them without weights.
    """

    def __init__(self, plan: Plan, device: str = "cpu") -> None:
        self._plan, self._device = plan, torch.device(device)
        self._seed = plan.experiment.run.seed
        self._joined = {
            id(part): joined for phase, joined in reversed(list(zip(plan.schedule, plan.joined, strict=True))) for part in _parts(phase)
        }
        self._declared = {
            id(part): plan.experiment.phases[phase.index]
            for phase in reversed(list(plan.schedule))
            if phase.state is not None
            for part in phase.state.data.sources.values()
        }
        """id of a source's part → the phase that declares it."""

    def module(self, role: str, part: Part, step: int, *extra: Any) -> nn.Module:
        """A module of the model; its constructor draws from the stream of its role at the step."""
        with drawing_from(build_seed(self._seed, role, step)), calling(part.id, "its factory"):
            return checked_module(part, self._build(part, role, *extra))

    def _build(self, part: Part, role: str, *extra: Any) -> Any:
        """Build a module on the device; on the CPU first if a user's constructor needs real values, as `linspace(...).tolist()` does."""
        try:
            with building_on(self._device):
                return self._make(part, role, *extra)
        except Exception:
            if self._device.type != "meta" or not isinstance(part.given, Built):
                raise
        return _without_weights(self._make(part, role, *extra))

    def task(self, part: Part) -> Any:
        """The objective of a declared task."""
        return checked(part, self._make(part, "task"))

    def reaction(self, part: Part) -> Reaction:
        """An answer to the training signal."""
        reaction: Reaction = self._make(part, "reaction")
        return reaction

    def transform(self, part: Part) -> Any:
        """A transform of batches."""
        return self._make(part, "transform")

    def observers(self, parts: Sequence[Part]) -> Observers:
        """Consumers of events, with the names that messages call them by."""
        names = []
        for part in parts:
            of = None if part.given is not None else self._plan.registry.get("observer", part.id)
            names.append(("", part.id) if of is None else (of.id, f"'{of.id}' ({of.distribution} {of.version})"))
        return Observers([self.observer(part) for part in parts], names)

    def observer(self, part: Part) -> Observer:
        """A consumer of events."""
        observer: Observer = self._make(part, "observer")
        return observer

    def optimizer(self, part: Part, t: float, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        """An optimizer over parameter groups, with the values in force at t."""
        if isinstance(part.given, Built):
            entries = [{"params": list(g.parameters.items()), "group": g.name, **g.values} for g in groups]
            with as_faults_of(part):
                optimizer: torch.optim.Optimizer = part.given.make(entries, **part.options_at(t))
            return without_scheduler(optimizer)
        result: torch.optim.Optimizer = checked(part, self._make(part, "optimizer", groups, t=t))
        if part.given is not None:
            return without_scheduler(result)
        names = {"default", *(group.name for group in groups)}
        with calling(part.id, "its factory"):
            for group in result.param_groups:
                name = group.get("group", "default")
                expect(name in names, name, f"one of {', '.join(sorted(names))} as the `group` of a torch group")
        return result

    def data(self, split: str, placement: Placement) -> DataPlane:
        """The data plane of a split."""
        run, training = self._plan.experiment.run, split == "train"
        workers = run.workers if training else 0
        return DataPlane(
            partial(self._placed_loader, split=split, workers=workers),
            build_transform=self.transform,
            device=placement.device,
            seed=self._seed,
            read_ahead=_depth(run.read_ahead, placement) if training else 0,
            workers=workers,
        )

    def _placed_loader(self, name: str, part: Part, *, split: str, workers: int) -> Any:
        """The loader of a source; errors in its data name the source's place in the config."""
        try:
            return self._loader(name, part, split, workers)
        except (ConfigError, WrongAnswer):
            raise
        except UserError as error:
            phase = self._declared.get(id(part))
            of_training = phase is not None or split == "train"
            path = f"data.sources.{name}" if of_training else f"evaluate.{split}.sources.{name}"
            problem = (phase or self._plan.experiment).problem(path, str(error))
            raise type(error)(str(problem)) from error

    def _loader(self, name: str, part: Part, split: str, workers: int) -> Any:
        """The loader of a source, in reader processes if the run asks for them and the source is not a finished object."""
        if not workers or (part.given is not None and not isinstance(part.given, Built)):
            return self._make(part, f"data.{name}", split=split)
        options = self._options(part, 0.0)
        if isinstance(part.given, Built):
            return ProcessLoader(partial(part.given.make, **options), workers)
        return ProcessLoader(partial(build_loader, part.id, options, self._context(part, f"data.{name}", split)), workers)

    def evaluation(self, declared: EvaluationPlan, placement: Placement) -> Evaluation:
        """A named evaluation, its data checked and entered."""
        data = self.data(declared.name, placement)
        first = self._plan.schedule.at(step=0)
        data.rehearse([(declared.state, declared.lookahead, first)])
        data.enter(declared.state, lookahead=declared.lookahead)
        return Evaluation(
            name=declared.name,
            data=data,
            state=declared.state,
            batches=declared.batches,
            values=declared.values,
            seed=self._seed,
            weights=declared.weights,
        )

    def _make(self, part: Part, consumer: str, *extra: Any, split: str = "train", t: float = 0.0) -> Any:
        if part.given is not None and not isinstance(part.given, Built):
            if isinstance(part.given, nn.Module):
                check_unwrapped(part.given, consumer)
                check_shapes(part.given, consumer)
            return _without_weights(part.given) if self._device.type == "meta" else part.given
        options = self._options(part, t)
        with as_faults_of(part):
            if isinstance(part.given, Built):
                return part.given.make(*extra, **_plain_stacks(options))
            component = self._plan.registry.get(part.kind, part.id)  # type: ignore[arg-type]  # a Part's kind is a Kind
            with calling(part.id, "its factory"):
                artifact = component.build(options, self._context(part, consumer, split), *extra)
                if component.kind in SPEC_OF or component.kind in METHODS:
                    expect_artifact(component.kind, artifact)
            return artifact

    def _options(self, part: Part, t: float) -> Any:
        """The options of a part with the values in force at t; those of a loader with its tokenizer."""
        options = part.options_at(t)
        return self._plan.tokenizers.bind(part.id, options) if part.kind == "loader" and part.given is None else options

    def _context(self, part: Part, consumer: str, split: str) -> BuildContext:
        plan = self._plan
        return BuildContext(
            seed=step_seed(stream_key(self._seed, consumer), 0),
            split=split,
            whole=part.kind == "loader" and split != "train" and id(part) not in self._declared,
            steps=plan.schedule.steps,
            max_rows=plan.max_rows,
            max_length=plan.max_length,
            specs=self._joined.get(id(part), plan.joined[0]).specs(),
        )


def read_first_rows(plan: Plan, data: DataPlane) -> None:
    """Read a row of every source of the timeline.

    Raises:
        DataError: data that cannot be trained on.
        ConfigError: a source does not repeat and holds fewer rows than the run reads.
    """
    schedule, declared = plan.schedule, plan.experiment.phases
    reads = [
        (phase.state, task.lookahead if isinstance(task := joined.drafts.task.spec, TaskSpec) else 0, schedule.at(step=phase.start))
        for phase, joined in zip(schedule, plan.joined, strict=True)
        if phase.state is not None
    ]
    sizes = data.rehearse([(state.data, lookahead, moment) for state, lookahead, moment in reads])
    if problems := shortages(schedule.clock, schedule.phases, plan.joined, declared, sizes):
        raise ConfigError(problems)


def _depth(declared: int | None, placement: Placement) -> int:
    """Steps to read ahead: with a GPU the reader thread is free, on a CPU it costs what it saves."""
    if declared is not None:
        return declared
    return 0 if placement.is_cpu else 2


def _parts(phase: CompiledPhase) -> Iterator[Part]:
    """Every part that a phase declares."""
    if (state := phase.state) is None:
        return
    yield from (state.task, state.model.embedding, state.model.rack, state.model.head, state.optimizer.part)
    yield from (part for adapters in state.model.adapters.values() for part in adapters)
    yield from (declared.part for declared in state.model.weight_adapters.values())
    yield from (*state.data.sources.values(), *state.data.transforms)


def _without_weights(given: Any) -> Any:
    """A copy of a finished module on the meta device, without memory for weights; anything else is returned as it is."""
    if not isinstance(given, nn.Module):
        return given
    weights: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in given.parameters()}
    buffers = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in given.buffers()}
    return deepcopy(given, {**weights, **buffers})


def _plain_stacks(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a user's callable, with `stacks` as an ordered dict of name → blocks."""
    if "stacks" not in options:
        return dict(options)
    return {**options, "stacks": {stack.name: stack.blocks for stack in options["stacks"]}}
