"""Sections of a config → their classes. Mistakes are collected, not raised; the default stands in for a wrong value."""

from __future__ import annotations

from typing import Any, TypeVar

import attrs

from stackwise.config.experiment import EnterConfig, EvaluateConfig, UntilConfig
from stackwise.config.faults import Fault, faults_of
from stackwise.config.nodes import KeyPath, Node, describe
from stackwise.config.planes import (
    DataConfig,
    GroupConfig,
    ModelConfig,
    OptimizerConfig,
    Ref,
    ReferenceConfig,
    StartConfig,
    TaskConfig,
    WeightAdapterConfig,
)
from stackwise.config.run import RunConfig
from stackwise.config.section import Section
from stackwise.config.strict import MISTAKES, convert
from stackwise.contracts.components import Built, Deferred
from stackwise.contracts.specs import AT_ENTRY
from stackwise.errors import did_you_mean
from stackwise.timeline.duration import Duration
from stackwise.timeline.schedules import Constant

_T = TypeVar("_T")

OPTIMIZER_KEYS = ("groups", "clip", "lr_scaling", "ema", "reaction")
"""Keys of `optimizer:` that the core reads itself."""

TASK_KEYS = ("auxiliary", "reference")
"""Keys of `task:` that the core reads itself."""

Read = tuple[_T, tuple[Fault, ...]]
"""The result, and the mistakes in what was read."""


_EVALUATION = "{every: 5%, batches: 16}, with data of its own as its sources: {<name>: …}"
_SOURCES = "write sources: {<name>: {use: <provider>.<component>}}, in code {<name>: loader}"


def read_run(node: Node | None, default_name: str) -> Read[RunConfig]:
    """`run:`; its name defaults to the file's."""
    section = Section(node, ("run",), "write run: {horizon: 500 steps}")
    ready = {} if "name" in section.children else {"name": default_name}
    run = section.build(RunConfig, ready, {"name": default_name, "horizon": "1 steps"})
    return run, tuple(section.faults)


def read_task(node: Node | None) -> Read[TaskConfig]:
    """`task:`; `TASK_KEYS` belong to the core, all other keys to the component."""
    section = Section(None, ("task",), "")
    part = section.ref(node, (), owned=TASK_KEYS)
    if node is not None and node.kind == "map":
        section.children = {key: child for key, child in node.entries.items() if key in TASK_KEYS and not child.is_null}
    ready: dict[str, Any] = {"part": part}
    if (weights := section.take("auxiliary")) is not None:
        ready["auxiliary"] = _read_auxiliary(section, weights)
    if (reference := section.take("reference")) is not None:
        ready["reference"] = _read_reference(section, reference)
    task = section.build(TaskConfig, ready)
    return task, tuple(section.faults)


def _read_reference(section: Section, node: Node) -> ReferenceConfig | None:
    """`reference:`, a map with `from`, or that alone."""
    if isinstance(node.value, str) and node.value:
        return ReferenceConfig(from_=node.value)
    inner = Section(node, ("task", "reference"), "write reference: {from: <run, export or folder>}")
    if "from" not in inner.children and not inner.faults:
        inner.fault(("from",), "is missing: write `phase entry`, or name a run that has finished, an export or a folder", missing=True)
    reference = inner.build(ReferenceConfig, {}, {"from": AT_ENTRY}) if inner.children else None
    section.faults += inner.faults
    return reference


def _read_auxiliary(section: Section, node: Node) -> dict[str, Any]:
    """`auxiliary:`, `<role>.<loss>` → weight; `--set task.auxiliary.rack.balance=…` writes a map in a map."""
    inner = Section(node, ("task", "auxiliary"), "write auxiliary: {rack.<loss>: 0.01}")
    weights: dict[str, Any] = {}
    for name, child in inner.children.items():
        nested = child.kind == "map" and name in ("embedding", "rack", "head")
        for key, weight in {f"{name}.{loss}": entry for loss, entry in child.entries.items()}.items() if nested else [(name, child)]:
            if key in weights:
                inner.fault((name,), f"'{key}' has two weights, one written '{key}' and one in a map under '{name}': keep one")
            elif not weight.is_null:
                weights[key] = weight.plain()
    section.faults += inner.faults
    return weights


def read_data(node: Node | None) -> Read[DataConfig]:
    """`data:`; without a mix, all sources weigh the same."""
    section = Section(node, ("data",), "write data: {sources: {<name>: {use: <provider>.<component>}}}")
    nodes = section.take_map("sources", _SOURCES)
    if not nodes and not section.faults:
        section.fault(("sources",), "is missing: name at least one source, {<name>: {use: <provider>.<component>}}", missing=True)
    sources = {name: section.ref(child, ("sources", name)) for name, child in nodes.items()}
    transforms = section.refs(section.take("transforms"), ("transforms",))
    data = section.build(DataConfig, {"sources": sources, "transforms": transforms})
    if data.step_tokens is not None and data.accumulate is not None:
        section.fault(("accumulate",), "stands beside step_tokens, which splits a step by itself: keep one of the two")
    if not data.mix:
        return attrs.evolve(data, mix=dict.fromkeys(sources, Constant(value=1.0))), tuple(section.faults)
    for name, weight in data.mix.items():
        if name not in sources:
            section.fault(("mix", name), f"there is no source '{name}'{did_you_mean(name, sources)}")
        elif isinstance(weight, Constant) and weight.value < 0:
            section.fault(("mix", name), f"a weight of {weight.value:g} is below zero: only ratios of weights above zero have a meaning")
    for name in sources:
        if name not in data.mix:
            section.fault(("mix",), f"source '{name}' has no weight: give it one (0 leaves it out)")
    if all(isinstance(weight, Constant) and weight.value == 0 for weight in data.mix.values()):
        section.fault(("mix",), "all weights are zero: nothing would be read")
    return data, tuple(section.faults)


def read_model(node: Node | None) -> Read[ModelConfig]:
    """`model:`."""
    section = Section(node, ("model",), "write model: {embedding: …, rack: …, head: …}")
    ready: dict[str, Any] = _read_module(section)
    ready = ready or {part: section.ref(section.take(part), (part,)) for part in ("embedding", "rack", "head")}
    junctions = section.take_map("adapters", "write adapters: {embedding-rack: [{use: <provider>.<component>}]}")
    ready["adapters"] = {junction: section.refs(child, ("adapters", junction)) for junction, child in junctions.items()}
    ready["weight_adapters"] = _read_weight_adapters(section)
    start = section.take("start")
    if start is not None:
        inner = Section(start, ("model", "start"), "write start: {from: <run, directory or file>}")
        if "from" not in inner.children:
            inner.fault(("from",), "is missing: name a run directory, a directory of weights or a safetensors file", missing=True)
        else:
            form = inner.take("format")
            parts = {} if form is None else {"format": section.ref(form, ("start", "format"))}
            ready["start"] = inner.build(StartConfig, parts, {"from": ""})
        section.faults += inner.faults
    model = section.build(ModelConfig, ready)
    if model.module is not None:
        model = attrs.evolve(model, rack=attrs.evolve(model.module, blocks=model.blocks))
    elif model.blocks:
        section.fault(("blocks",), "belongs to model.module, a whole module; a rack names its blocks in `stacks`")
    return model, tuple(section.faults)


def _read_module(section: Section) -> dict[str, Any]:
    """A whole module, which stands in the place of the rack, with what hands it fields and names its outputs; empty without one."""
    node = section.take("module")
    if node is None:
        return {}
    module_node = node if node.kind == "object" else node.child("use") if node.kind == "map" else None
    module = section.ref(node, ("module",)) if module_node is not None and module_node.kind == "object" else Ref(path="model.module")
    if module.given is None:
        form = "model={'module': Net(...)} or {'module': Built(Net, depth=4)}; a YAML file names an embedding, a rack and a head"
        section.fault(("module",), f"a whole module is given in code, {form}")
    for role in (role for role in ("embedding", "rack", "head", "adapters") if section.take(role) is not None):
        section.fault((role,), "stands beside model.module, which is the whole model: keep one of the two")
    whole, path = "stackwise.planes.model.whole", "model.module"
    embedding, head = (Ref(given=Built(Deferred(f"{whole}:{part}")), path=path) for part in ("Fields", "Outputs"))
    return {"module": module, "embedding": embedding, "rack": module, "head": head}


def _read_weight_adapters(section: Section) -> dict[str, WeightAdapterConfig]:
    """`model.weight_adapters:`; `select` belongs to the core, all other keys to the component."""
    adapters = {}
    form = "write weight_adapters: {<name>: {use: <provider>.<component>, select: [<selector>]}}"
    for name, child in section.take_map("weight_adapters", form).items():
        part = section.ref(child, ("weight_adapters", name), owned=("select",))
        inner = Section(None, ("model", "weight_adapters", name), "")
        if child.kind == "map" and (select := child.child("select")) is not None:
            inner.children = {"select": select}
        else:
            inner.fault(("select",), "is missing: name the matrices, [<selector>]", missing=True)
        adapters[name] = inner.build(WeightAdapterConfig, {"part": part, **({} if inner.children else {"select": ()})}, {"select": ()})
        section.faults += inner.faults
    return adapters


def read_optimizer(node: Node | None) -> Read[OptimizerConfig]:
    """`optimizer:`; `OPTIMIZER_KEYS` belong to the core, all other keys to the component."""
    section = Section(None, ("optimizer",), "")
    part = section.ref(node, (), owned=OPTIMIZER_KEYS)
    if node is not None and node.kind == "map":
        section.children = {key: child for key, child in node.entries.items() if key in OPTIMIZER_KEYS and not child.is_null}
    reaction = section.take("reaction")
    groups = []
    for name, child in section.take_map("groups", "write groups: {<name>: {select: [<selector>], <option>: …}}").items():
        inner = Section(child, ("optimizer", "groups", name), "write {select: [<selector>], <option>: …}")
        if name == "default":
            inner.fault((), "the name 'default' is taken by the parameters that no group selects: choose another")
        select = inner.take("select")
        fields = {"name": name, "options": {key: inner.children.pop(key).plain() for key in list(inner.children)}}
        if select is not None:
            inner.children["select"] = select
        groups.append(inner.build(GroupConfig, fields, {"select": ()}))
        if not groups[-1].select and not inner.faults:
            inner.fault(("select",), "selects nothing: name at least one selector")
        section.faults += inner.faults
    ready: dict[str, Any] = {"part": part, "groups": tuple(groups), "reaction": None}
    if reaction is not None:
        ready["reaction"] = section.ref(reaction, ("reaction",))
    optimizer = section.build(OptimizerConfig, ready)
    return optimizer, tuple(section.faults)


def read_enter(node: Node | None) -> Read[EnterConfig]:
    """`enter:` of a phase; `moments` stands inside the growth node but belongs to the core."""
    section = Section(node, ("enter",), "write enter: {growth: {use: <provider>.<component>}}")
    growth = section.take("growth")
    if growth is None:
        return section.build(EnterConfig, {}), tuple(section.faults)
    inner = Section(None, ("enter", "growth"), "")
    ref = inner.ref(growth, (), owned=("moments",))
    if growth.kind == "map" and (moments := growth.child("moments")) is not None and not moments.is_null:
        if "moments" in section.children:
            inner.fault(("moments",), "stands beside enter.moments, which says the same: keep one of the two")
        inner.children = {"moments": moments}
    growth_keys = inner.build(EnterConfig, {})
    ready: dict[str, Any] = {"growth": ref, **({"moments": growth_keys.moments} if "moments" in inner.children else {})}
    enter = section.build(EnterConfig, ready)
    return enter, (*section.faults, *inner.faults)


def read_evaluations(node: Node | None) -> Read[tuple[EvaluateConfig, ...]]:
    """`evaluate:`, one entry a name."""
    outer = Section(None, (), "")
    outer.children = {"evaluate": node} if node is not None and not node.is_null else {}
    evaluations = []
    for name, child in outer.take_map("evaluate", f"write evaluate: {{<name>: {_EVALUATION}}}").items():
        section = Section(child, ("evaluate", name), f"write {_EVALUATION}")
        if name == "train":
            section.fault((), "the name 'train' is taken by the training data itself: choose another")
        ready: dict[str, Any] = {"name": name}
        if "sources" in section.children:
            nodes = section.take_map("sources", _SOURCES)
            ready["sources"] = {source: section.ref(entry, ("sources", source)) for source, entry in nodes.items()}
            if not nodes and not section.faults:
                section.fault(("sources",), "names no source: name one, or leave it out to read those of training")
        if (own := section.take("name")) is not None:
            section.fault(("name",), f"unknown key: the evaluation is named '{name}' by its own key (not {describe(own.plain())})")
        evaluations.append(section.build(EvaluateConfig, ready))
        outer.faults += section.faults
    return tuple(evaluations), tuple(outer.faults)


def read_observers(node: Node | None) -> Read[tuple[Ref, ...]]:
    """`observers:`, a list."""
    section = Section(None, (), "")
    observers = section.refs(None if node is None or node.is_null else node, ("observers",))
    return observers, tuple(section.faults)


def read_until(node: Node | None, path: KeyPath, *, last: bool) -> Read[tuple[Duration, UntilConfig | None]]:
    """`until:` of a phase, where it ends at the latest, and how it may end before; the last one may leave it out."""
    whole = Duration.parse("100%")
    if node is not None and node.kind == "map":
        section = Section(node, path, "write until: {stalls: <evaluation>.<metric>, at_most: 60%}")
        rule = section.build(UntilConfig, {}, {"stalls": "heldout.loss", "at_most": whole})
        if last and not section.faults:
            section.fault((), "is the end of the run: say by `run.stop` when it ends before its horizon")
        return (rule.ended or rule.at_most, None if rule.ended is not None else rule), tuple(section.faults)
    if node is None or node.is_null:
        message = "is missing: say where the phase ends, `until: 50%`; only the last may leave it out"
        return (whole, None), () if last else (Fault(path, message, missing=True),)
    try:
        return (convert(node.plain(), Duration), None), ()
    except MISTAKES as error:
        return (whole, None), tuple(faults_of(error, path))
