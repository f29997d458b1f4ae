"""Types of options → JSON Schema, by the rules of `config.strict`: nothing is coerced, unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from stackwise.config.reader import read_yaml
from stackwise.contracts.options import config_key
from stackwise.timeline.duration import Duration
from stackwise.timeline.schedules import TAGS, Schedule

Schema = dict[str, Any]

SCHEDULE: Schema = {"$ref": "#/$defs/schedule"}
TAGGED: Schema = {"$ref": "#/$defs/tagged-schedule"}
DURATION: Schema = {"$ref": "#/$defs/duration"}
STACKS: Schema = {"$ref": "#/$defs/stacks"}

_SCALARS: Mapping[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
    Duration: DURATION,
    Schedule: SCHEDULE,
}


def schema_of(wanted: Any) -> Schema:
    """The schema of a type; if no YAML can hold the type, a schema that accepts everything."""
    if wanted in _SCALARS:
        return dict(_SCALARS[wanted])
    shape, arms = get_origin(wanted) or wanted, get_args(wanted)
    if shape is Literal:
        return {"enum": list(arms)}
    if shape is Annotated:
        return schema_of(arms[0])
    if shape in (Union, UnionType):
        return {
            "anyOf": [TAGGED if arm is Schedule else schema_of(arm) for arm in arms]
        }  # the union lists the plain number as an arm of its own
    if shape in (list, tuple, Sequence):
        return _sequence(shape, arms)
    if shape in (dict, Mapping):
        return _mapping(arms)
    return class_schema(shape) if attrs.has(shape) else {}


def _sequence(shape: Any, arms: tuple[Any, ...]) -> Schema:
    if shape is tuple and arms and arms[-1] is not Ellipsis:
        return {"type": "array", "prefixItems": [schema_of(arm) for arm in arms], "minItems": len(arms), "maxItems": len(arms)}
    return {"type": "array", "items": schema_of(arms[0]) if arms else {}}


def _mapping(arms: tuple[Any, ...]) -> Schema:
    key, entry = arms or (Any, Any)
    names = {"propertyNames": schema_of(key)} if get_origin(key) is Literal else {}
    return {"type": "object", "additionalProperties": nullable(schema_of(entry)), **names}


def class_schema(cls: type, *, whole: bool = True, left_out: Sequence[str] = ()) -> Schema:
    """The schema of an attrs class.

    Args:
        cls: the class, its fields made with `stackwise.contracts.options` or with the same metadata.
        whole: whether keys without a default are required; a delta may leave them to the config below it.
        left_out: attributes that are not keys.
    """
    types = get_type_hints(cls)
    fields = [a for a in attrs.fields(cls) if a.init and a.name not in left_out]
    required = [config_key(a) for a in fields if a.default is attrs.NOTHING] if whole else []
    schema: Schema = {
        "type": "object",
        "properties": {config_key(a): option_schema(a, types.get(a.name, Any)) for a in fields},
        "additionalProperties": False,
    }
    return schema | ({"required": required} if required else {})


def option_schema(attribute: attrs.Attribute[Any], wanted: Any) -> Schema:
    """The schema of one option: its type, its rules, its documentation. A null always stands for an option left out."""
    rules = attribute.metadata
    if rules.get("stacks"):
        schema = dict(STACKS)
    elif rules.get("scheduled"):
        schema = _scheduled(rules)
    else:
        schema = _bounded(schema_of(wanted), rules)
    return nullable(schema) | notes_of(attribute)


def notes_of(attribute: attrs.Attribute[Any]) -> Schema:
    """The schema entries of an option beside its type: description, default, examples."""
    rules, default = attribute.metadata, attribute.default
    left_out = f"; left out: {rules['absent']}" if rules.get("absent") else ""
    about: Schema = {"description": f"{rules['doc']}{left_out}"} if rules.get("doc") else {}
    if isinstance(default, bool | int | float | str):
        about["default"] = default
    elif isinstance(default, Duration):
        about["default"] = str(default)
    if rules.get("examples"):
        about["examples"] = [read_yaml(text, "example").plain() for text in rules["examples"]]
    return about


def nullable(schema: Schema) -> Schema:
    """The schema, or null: in a config null removes a key."""
    if not schema:
        return schema
    if isinstance(schema.get("type"), str):
        widened = {**schema, "type": [schema["type"], "null"]}
        return {**widened, "enum": [*schema["enum"], None]} if "enum" in schema else widened
    if set(schema) == {"enum"}:
        return {"enum": [*schema["enum"], None]}
    return {"anyOf": [*schema["anyOf"], {"type": "null"}]} if set(schema) == {"anyOf"} else {"anyOf": [schema, {"type": "null"}]}


def _bounded(schema: Schema, rules: Mapping[str, Any]) -> Schema:
    """Add bounds and choices to every arm that can have them."""
    if rules.get("choices"):
        return {"enum": list(rules["choices"])}
    names = {"minimum": "minimum", "maximum": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
    bounds = {name: rules[rule] for rule, name in names.items() if rules.get(rule) is not None}
    if not bounds:
        return schema
    if "anyOf" in schema:
        return {"anyOf": [_bounded(arm, rules) for arm in schema["anyOf"]]}
    return schema | bounds if schema.get("type") in ("integer", "number") else schema


def _scheduled(rules: Mapping[str, Any]) -> Schema:
    """A number within its bounds, or a schedule."""
    return {"anyOf": [_bounded({"type": "number"}, rules), {"$ref": "#/$defs/tagged-schedule"}]}


def time_definitions() -> dict[str, Schema]:
    """What durations, schedules and stacks look like."""
    tags = [_tag(name, class_schema(cls)) for name, cls in TAGS.items()]
    number = r"(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?"
    share = r"%(?:\s+(?:of\s+)?(?:steps?|tokens?|samples?|flops?|FLOPs?|seconds?|minutes?|hours?))?"
    unit = rf"{share}|steps?|tokens?|samples?|flops?|FLOPs?|seconds?|minutes?|hours?|epochs?(?:\s+of\s+[A-Za-z0-9_-]+)?"
    blocks: Schema = {"type": "integer", "minimum": 1}
    stack: Schema = {"type": "object", "additionalProperties": blocks, "minProperties": 1, "maxProperties": 1}
    return {
        "duration": {
            "type": "string",
            "pattern": rf"^\s*{number}\s*(?:{unit})\s*$",
            "description": "a length of time with its unit: 500 steps, 30%, 2e6 tokens, 1e13 flops, 3 epochs of web",
        },
        "schedule": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/tagged-schedule"}]},
        "tagged-schedule": {
            "oneOf": [*tags, {"$ref": "#/$defs/schedule-component"}],
            "description": "a number that follows time: a map with one tag, or a component",
        },
        "stacks": {
            "anyOf": [
                {"type": "array", "items": stack, "minItems": 1},
                {"type": "object", "additionalProperties": blocks, "minProperties": 1},
            ]
        },
    }


def _tag(name: str, inner: Schema) -> Schema:
    return {"type": "object", "properties": {name: inner}, "required": [name], "additionalProperties": False}
