"""`stackwise show`: one component explained, without building it."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs
import click
from click.shell_completion import CompletionItem

from stackwise.contracts.components import Kind
from stackwise.contracts.options import config_key
from stackwise.contracts.specs import OptimizerSpec, Spec
from stackwise.errors import UserError, did_you_mean
from stackwise.host.discovery import discover
from stackwise.host.provider import KINDS, Registered
from stackwise.host.registry import Registry

_PLACES: Mapping[Kind, str] = {
    "embedding": "model.embedding",
    "rack": "model.rack",
    "head": "model.head",
    "task": "task",
    "optimizer": "optimizer",
    "loader": "data.sources.<name>",
    "transform": "data.transforms",
    "adapter": "model.adapters.<junction>",
    "weight-adapter": "model.weight_adapters.<name>",
    "growth": "phases.<name>.enter.growth",
    "reaction": "optimizer.reaction",
    "schedule": "optimizer.lr",
    "observer": "observers",
    "format": "model.start.format",
}
"""Kind → where a config names such a component."""

_LISTED: frozenset[Kind] = frozenset({"transform", "adapter", "observer"})
"""Kinds whose place in a config holds a list."""


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    registry = discover()
    kind, colon, rest = incomplete.rpartition(":")
    return [
        CompletionItem(f"{kind}{colon}{entry.id}", help=entry.component.summary or entry.kind)
        for entry in registry
        if entry.id.startswith(rest) and (not kind or entry.kind == kind)
    ]


@click.command(
    epilog="""\b
Examples:
  stackwise show core.project
  stackwise show adapter:core.project

Exit codes: 0 done, 2 there is no such component, 3 its provider is broken.
"""
)
@click.argument("component", shell_complete=_complete)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects instead of text.")
def show(component: str, as_json: bool) -> None:
    """Explain one COMPONENT: where it comes from, its options, its spec and an example.

    COMPONENT is an id as `list-providers` prints it; where two kinds share an id, put the kind before it.

    The JSON objects have the keys id, kind, summary, provider, distribution, version, editable, sha256 (of the distribution's
    Python files), options_at (file and line), factory, options (key, type, required, default, doc, may_follow_time, and the
    rules minimum, maximum, below, choices), spec, example and stands_at.
    """
    registry = discover()
    entries = _find(registry, component)
    if as_json:
        import json

        click.echo(json.dumps([_as_object(registry, entry) for entry in entries], indent=1, default=str))
    else:
        click.echo("\n\n".join(_describe(registry, entry) for entry in entries))


def _find(registry: Registry, text: str) -> tuple[Registered, ...]:
    """The components meant by `id` or `kind:id`; imports only their provider while the name is right."""
    kind, colon, id = text.rpartition(":")
    if colon and kind not in KINDS:
        raise UserError(f"'{kind}' in '{text}' is not a kind of component{did_you_mean(kind, KINDS)}")
    return _matching(registry, kind, id) or _refuse(registry, kind, id)


def _matching(registry: Registry, kind: str, id: str) -> tuple[Registered, ...]:
    return tuple(entry for entry in registry.named(id) if not kind or entry.kind == kind)


def _refuse(registry: Registry, kind: str, id: str) -> tuple[Registered, ...]:
    """The error for a name that nothing has: every provider is loaded, for near names."""
    for known in KINDS:
        if kind == known:
            return (registry.get(known, id),)
    registry.check_provider(id)
    raise registry.unknown(None, id)


def _describe(registry: Registry, entry: Registered) -> str:
    options, provider = entry.load_options(), registry.provider(entry.provider)
    editable = " (editable)" if provider is not None and provider.editable else ""
    parts = [
        f"{entry.id}  ({entry.kind})",
        _indent(entry.component.summary) if entry.component.summary else "",
        _indent(f"from {entry.distribution} {entry.version}{editable}, provider '{entry.provider}'"),
        _indent(f"options at {_place(options)}, factory {entry.component.factory}"),
        "",
        _options(options),
        "",
        _spec(options, entry.component.example),
        "",
        _example(entry),
    ]
    return "\n".join(part for i, part in enumerate(parts) if part or i != 1)


def _as_object(registry: Registry, entry: Registered) -> dict[str, Any]:
    """Everything about a component, for scripts."""
    options, provider = entry.load_options(), registry.provider(entry.provider)
    assert provider is not None  # the one that the component came from
    fields = _fields(options)
    return {
        "id": entry.id,
        "kind": entry.kind,
        "summary": entry.component.summary,
        "provider": entry.provider,
        "distribution": entry.distribution,
        "version": entry.version,
        "editable": provider.editable,
        "sha256": provider.file_digest,
        "options_at": _place(options),
        "factory": entry.component.factory,
        "options": [_option_as_object(attribute) for attribute in fields],
        "spec": _spec(options, entry.component.example),
        "example": {"use": entry.id, **entry.component.example},
        "stands_at": _PLACES[entry.kind],
    }


def _fields(options: type[attrs.AttrsInstance]) -> tuple[attrs.Attribute[Any], ...]:
    """The attributes with their types, annotations given as text resolved to types."""
    with suppress(NameError):  # of a provider that imports it for type checkers alone: shown as it is written
        attrs.resolve_types(options)
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(options)
    return fields


def _option_as_object(attribute: attrs.Attribute[Any]) -> dict[str, Any]:
    rules = {
        name: attribute.metadata[name] for name in ("minimum", "maximum", "below", "choices") if attribute.metadata.get(name) is not None
    }
    default: Any = attribute.default
    plain = default is None or isinstance(default, bool | int | float | str | list | tuple)
    return {
        "key": config_key(attribute),
        "type": _type(attribute.type),
        "required": default is attrs.NOTHING,
        "default": default if plain else None,
        "doc": str(attribute.metadata.get("doc") or ""),
        "may_follow_time": bool(attribute.metadata.get("scheduled")),
        **rules,
    }


def _place(options: type) -> str:
    """File and line of a class, as far as Python knows them."""
    try:
        return f"{inspect.getsourcefile(options)}:{inspect.getsourcelines(options)[1]}"
    except (OSError, TypeError):
        return f"{options.__module__}.{options.__qualname__}"


def _options(options: type) -> str:
    fields = _fields(options)
    if not fields:
        return "options: none"
    lines = ["options:"]
    for attribute in fields:
        lines.append(f"  {config_key(attribute)}: {_type(attribute.type)}{_default(attribute)}")
        about = [str(attribute.metadata.get("doc") or ""), *_rules(attribute.metadata)]
        lines += textwrap.wrap("; ".join(filter(None, about)), 116, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _type(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    short = re.sub(r"(?:\b[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)
    short = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", short)
    return re.sub(r"Literal\[([^]]*)\]", _ordered, short)


def _ordered(literal: re.Match[str]) -> str:
    """Choices sorted by name: typing caches sets of equal choices, so their order depends on which was seen first."""
    return f"Literal[{', '.join(sorted(literal[1].split(', ')))}]"


def _default(attribute: attrs.Attribute[Any]) -> str:
    if attribute.default is attrs.NOTHING:
        return "  (required)"
    default: Any = attribute.default
    if (factory := getattr(default, "factory", None)) is not None:
        return " = made for each use" if default.takes_self else f" = {factory()!r}"
    if attribute.default is None and (attribute.metadata.get("dimension") or attribute.metadata.get("follows_task")):
        return ""
    return f" = {attribute.default!r}"


def _rules(metadata: Mapping[str, Any]) -> list[str]:
    rules = []
    if metadata.get("minimum") is not None:
        rules.append(f"at least {metadata['minimum']}")
    if metadata.get("maximum") is not None:
        rules.append(f"at most {metadata['maximum']}")
    if metadata.get("below") is not None:
        rules.append(f"below {metadata['below']}")
    if metadata.get("choices"):
        rules.append("one of " + ", ".join(map(str, metadata["choices"])))
    if metadata.get("scheduled"):
        rules.append("may follow time: a number or a schedule")
    if metadata.get("dimension"):
        rules.append(f"left out, the dimension '{metadata['dimension']}' is filled from what the component is joined to")
    if metadata.get("follows_task"):
        rules.append(f"left out, it is the {metadata['follows_task']} that the task needs")
    return rules


def _spec(options: type, example: Mapping[str, Any]) -> str:
    """The spec of the example, for what a component is joined to depends on its options."""
    if not hasattr(options, "to_spec"):
        return "spec: none declared"
    names = {config_key(a): a.alias for a in attrs.fields(options)}
    try:
        spec: Spec = options(**{names[key]: value for key, value in example.items()}).to_spec()
        return "spec of the example:\n" + "\n".join(_spec_lines(spec))
    except Exception as error:  # a provider's code on a partial set of options: not knowing is an answer
        return f"spec: known once the options are complete ({type(error).__name__}: {error})"


def _spec_lines(spec: Spec) -> list[str]:
    if isinstance(spec, OptimizerSpec):
        return [f"  state: {spec.state_elements((8, 4))} entries for a parameter of shape 8 × 4"]
    lines = []
    for attribute in attrs.fields(type(spec)):
        value = getattr(spec, attribute.name)
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        elif isinstance(value, tuple):
            value = ", ".join(map(str, value))
        if value not in (None, "", 0):
            lines.append(f"  {attribute.name}: {value}")
    return lines


def _example(entry: Registered) -> str:
    import yaml

    node = _plain({"use": entry.id, **entry.component.example})
    text = yaml.safe_dump([node] if entry.kind in _LISTED else node, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return f"example, as the config's {_PLACES[entry.kind]}:\n{_indent(text.rstrip())}"


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _indent(text: str) -> str:
    return textwrap.indent(text, "  ")
