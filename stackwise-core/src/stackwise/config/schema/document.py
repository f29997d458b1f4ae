"""The whole document: sections, phases as deltas, and every component's options chosen by its `use`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

import attrs

from stackwise.config import DataConfig, EnterConfig, EvaluateConfig, GroupConfig, ModelConfig, OptimizerConfig, RunConfig, UntilConfig
from stackwise.config.keys import FORMAT, IN_PHASE, PLANES, SECTIONS
from stackwise.config.merging import REPLACE
from stackwise.config.planes import ReferenceConfig, StartConfig, TaskConfig, WeightAdapterConfig
from stackwise.config.schema.annotations import SCHEDULE, Schema, class_schema, notes_of, nullable, option_schema, time_definitions
from stackwise.contracts.components import Kind
from stackwise.contracts.options import config_key, scheduled_fields
from stackwise.errors import ProviderError
from stackwise.host.provider import KINDS, Registered
from stackwise.host.registry import Registry

_REFERENCES: Mapping[tuple[str, str], Kind] = {
    ("DataConfig", "sources"): "loader",
    ("DataConfig", "transforms"): "transform",
    ("ModelConfig", "embedding"): "embedding",
    ("ModelConfig", "rack"): "rack",
    ("ModelConfig", "head"): "head",
    ("ModelConfig", "adapters"): "adapter",
    ("ModelConfig", "weight_adapters"): "weight-adapter",
    ("OptimizerConfig", "part"): "optimizer",
    ("OptimizerConfig", "reaction"): "reaction",
    ("EnterConfig", "growth"): "growth",
    ("StartConfig", "format"): "format",
    ("EvaluateConfig", "sources"): "loader",
}
"""Class and attribute that hold components → their kind."""

_NAMES: Schema = {"pattern": "^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}$"}


def config_schema(registry: Registry) -> Schema:
    """The JSON Schema of configs in an environment with these components.

    Args:
        registry: the installed components; the options of one that does not load are not checked.
    """
    components = {(c.kind, c.id): c for c in registry}
    definitions = {**time_definitions(), **dict(_component_definitions(components))}
    for whole in (True, False):
        definitions |= {f"{name}{'' if whole else '-delta'}": _section(name, whole) for name in ("data", "model", "optimizer")}
    definitions |= {f"{kind}-component": _by_use(kind, components, whole=True) for kind in KINDS}
    definitions |= {f"{kind}-delta": _by_use(kind, components, whole=False) for kind in KINDS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "StackWise config",
        "type": "object",
        "properties": _top(),
        "additionalProperties": False,
        "if": {"anyOf": [{"required": ["extends"]}, {"required": ["phases"]}]},
        "else": {
            "required": ["run", *PLANES],
            "properties": {name: _plane(name, whole=True) for name in PLANES},
        },
        "$defs": definitions,
    }


def _top() -> dict[str, Schema]:
    phase: Schema = {
        "type": ["object", "null"],
        "properties": {
            "until": nullable({"anyOf": [{"$ref": "#/$defs/duration"}, _class(UntilConfig, whole=False)]})
            | {"description": IN_PHASE["until"].doc},
            **{name: nullable(_plane(name, whole=False)) for name in PLANES},
            "enter": nullable(_class(EnterConfig, whole=False)) | {"description": IN_PHASE["enter"].doc},
        },
        "additionalProperties": False,
    }
    texts: Schema = {"type": "array", "items": {"type": "string"}}
    sections: dict[str, Schema] = {
        "stackwise": {"const": FORMAT},
        "extends": {"anyOf": [{"type": "string"}, texts]},
        "run": nullable(class_schema(RunConfig, whole=False)),
        **{name: nullable(_plane(name, whole=False)) for name in PLANES},
        "evaluate": nullable(_named(_class(EvaluateConfig, whole=False, left_out=("name",)))),
        "phases": nullable(_named(phase)),
        "observers": nullable({"type": "array", "items": {"$ref": "#/$defs/observer-component"}}),
    }
    return {name: {**schema, "description": SECTIONS[name].doc} for name, schema in sections.items()}


def _plane(name: str, *, whole: bool) -> Schema:
    if name == "task":
        return {"$ref": f"#/$defs/task-{'component' if whole else 'delta'}"}
    return {"$ref": f"#/$defs/{name}{'' if whole else '-delta'}"}


def _section(name: str, whole: bool) -> Schema:
    if name == "optimizer":
        return {"$ref": f"#/$defs/optimizer-{'component' if whole else 'delta'}"}
    if name == "data":
        data = _class(DataConfig, whole=whole)
        data["properties"] |= {key: _replaceable(data["properties"][key]) for key in ("mix", "rename")}
        return data
    schema = _class(ModelConfig, whole=whole, left_out=("module",))
    schema["properties"]["module"] = {"type": "null"} | notes_of(attrs.fields_dict(ModelConfig)["module"])  # no file can hold one
    return schema


def _class(cls: type, *, whole: bool, left_out: tuple[str, ...] = ()) -> Schema:
    """A section: its plain keys by their types, its components by their kinds."""
    references = [a.name for a in attrs.fields(cls) if (cls.__name__, a.name) in _REFERENCES]
    schema = class_schema(cls, whole=whole, left_out=(*references, *left_out))
    for attribute in attrs.fields(cls):
        if attribute.name in references:
            schema["properties"][config_key(attribute)] = nullable(_reference(cls, attribute, whole)) | notes_of(attribute)
            if whole and attribute.default is attrs.NOTHING:
                schema.setdefault("required", []).append(config_key(attribute))
    if cls is ModelConfig:
        schema["properties"]["start"] = nullable(_class(StartConfig, whole=whole)) | notes_of(attrs.fields_dict(cls)["start"])
    return schema


def _reference(cls: type, attribute: attrs.Attribute[Any], whole: bool) -> Schema:
    """One component, a list of them, or a map from names to them."""
    kind = _REFERENCES[cls.__name__, attribute.name]
    one: Schema = {"$ref": f"#/$defs/{kind}-{'component' if whole else 'delta'}"}
    annotation = str(get_type_hints(cls)[attribute.name])
    if "Mapping" not in annotation:
        return {"type": "array", "items": {"$ref": f"#/$defs/{kind}-component"}} if "tuple" in annotation else one
    if kind == "adapter":
        junctions = {name: nullable({"type": "array", "items": {"$ref": "#/$defs/adapter-component"}}) for name in _JUNCTIONS}
        return {"type": "object", "properties": junctions, "additionalProperties": False}
    return _named(nullable(one))


_JUNCTIONS = ("embedding-rack", "rack-head")


def _named(entry: Schema) -> Schema:
    return _replaceable({"type": "object", "propertyNames": _NAMES, "additionalProperties": entry})


def _replaceable(names: Schema) -> Schema:
    """A map of chosen names, added to those that were there or, under `replace`, in their place."""
    notes: Schema = {key: value for key, value in names.items() if key in ("description", "examples", "default")}
    names = {key: value for key, value in names.items() if key not in notes}
    replace: Schema = {"type": "object", "properties": {REPLACE: names}, "required": [REPLACE], "additionalProperties": False}
    return {**notes, "anyOf": [names, replace]}


# -- components -------------------------------------------------------------------------------------------------------


def _component_definitions(components: Mapping[tuple[Kind, str], Registered]) -> Iterator[tuple[str, Schema]]:
    """`<kind>:<id>` → the component's node, and the same as a delta that leaves out what it does not change."""
    for component in components.values():
        for whole in (True, False):
            yield _definition(component, whole), _node(component, whole)


def _definition(component: Registered, whole: bool) -> str:
    return f"{component.kind}:{component.id}{'' if whole else '-delta'}"


def _node(component: Registered, whole: bool) -> Schema:
    try:
        options = component.load_options()
    except ProviderError as error:
        return {"type": "object", "description": str(error)}
    schema = class_schema(options, whole=whole)
    schema["properties"] = {
        "use": {"const": component.id, "description": component.component.summary},
        **schema["properties"],
        **_owned(component.kind, options),
    }
    return schema


def _owned(kind: Kind, options: type) -> dict[str, Schema]:
    """Keys that stand beside a component's own options and that the core reads."""
    if kind == "growth":
        return {"moments": _key_of(EnterConfig, "moments")}
    if kind == "weight-adapter":
        return {"select": _key_of(WeightAdapterConfig, "select")}
    if kind == "task":
        return {"auxiliary": _auxiliary(), "reference": _compared()}
    if kind == "schedule":
        return {"over": {"enum": ["run", "phase"], "default": "run", "description": "the window that it spans"}}
    if kind != "optimizer":
        return {}
    own = _class(OptimizerConfig, whole=False, left_out=("groups",))["properties"]
    types = get_type_hints(options)
    values = {config_key(a): option_schema(a, types[a.name]) for a in attrs.fields(options) if a.name in scheduled_fields(options)}
    select = _key_of(GroupConfig, "select")
    group: Schema = {"type": "object", "properties": {"select": select, **values}, "additionalProperties": False}
    groups = nullable(_named(nullable(group))) | notes_of(attrs.fields_dict(OptimizerConfig)["groups"])
    return {key: value for key, value in own.items() if key != "part"} | {"groups": groups}


def _compared() -> Schema:
    """The reference of a task, a map or its `from` alone."""
    entry: Schema = {"anyOf": [{"type": "string"}, _class(ReferenceConfig, whole=False)]}
    return nullable(entry) | notes_of(attrs.fields_dict(TaskConfig)["reference"])


def _auxiliary() -> Schema:
    """Weights of losses, `rack.balance: 0.01` or `rack: {balance: 0.01}`."""
    weight = nullable(dict(SCHEDULE))
    entry: Schema = {"anyOf": [weight, {"type": "object", "additionalProperties": weight}]}
    return nullable(_replaceable({"type": "object", "additionalProperties": entry})) | notes_of(attrs.fields_dict(TaskConfig)["auxiliary"])


def _key_of(cls: type, name: str) -> Schema:
    """One key of a class that stands beside a component's options."""
    return option_schema(attrs.fields_dict(cls)[name], get_type_hints(cls)[name])


def _by_use(kind: Kind, components: Mapping[tuple[Kind, str], Registered], *, whole: bool) -> Schema:
    """A component of a kind: `use` names it and decides its keys. A delta without `use` may fit any of them."""
    of_kind = [c for c in components.values() if c.kind == kind]
    branches = [
        {
            "if": {"properties": {"use": {"const": c.id}}, "required": ["use"]},
            "then": {"$ref": f"#/$defs/{_definition(c, whole)}"},
        }
        for c in of_kind
    ]
    schema: Schema = {"type": "object", "properties": {"use": {"enum": [c.id for c in of_kind]}}}
    if branches:
        schema["allOf"] = branches
    else:
        schema["properties"] = {"use": False}  # nothing of this kind is installed
    if whole:
        return schema | {"required": ["use"]}
    any_of: Schema = {"anyOf": [{"$ref": f"#/$defs/{_definition(c, False)}"} for c in of_kind]} if of_kind else {"maxProperties": 0}
    return schema | {"if": {"not": {"required": ["use"]}}, "then": any_of}
