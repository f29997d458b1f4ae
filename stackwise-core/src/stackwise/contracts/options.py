"""How a component declares its options: an attrs `frozen` class whose fields say what they are.

```python
@frozen(kw_only=True)
class ConvOptions:
    width: int = dimension("width", doc="features at each position")
    kernel: int = option(3, doc="positions each output sees", minimum=1)
    dropout: float = scheduled(0.0, doc="share of activations zeroed", minimum=0, maximum=1)
```

A `dimension` left out is filled by whatever the component is joined to. A `scheduled` option may be written as a schedule in a
config; the component receives the value in force, at build and then through `apply_values`. An option left as
`follows_task` is filled from the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from stackwise.errors import UserError

REQUIRED: Any = attrs.NOTHING
MAX_BLOCKS = 4096
"""Blocks of a rack; plans list them one by one."""


def option(
    default: Any = REQUIRED,
    *,
    doc: str,
    minimum: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: Sequence[object] | None = None,
    factory: Callable[[], Any] | None = None,
    key: str | None = None,
) -> Any:
    """A plain option; required when it has no default.

    Args:
        default: value when the config leaves the option out.
        doc: one sentence, with the unit.
        minimum: smallest value allowed.
        maximum: largest value allowed.
        below: every value allowed is smaller than this.
        choices: the only values allowed.
        factory: makes a fresh default (for mutable ones), instead of `default`.
        key: the name in the config when it is not a Python identifier (`from`).
    """
    extra = {"key": key} if key else {}
    return describe_field(default, doc=doc, minimum=minimum, maximum=maximum, below=below, choices=choices, factory=factory, extra=extra)


def scheduled(
    default: Any = REQUIRED, *, doc: str, minimum: float | None = None, maximum: float | None = None, below: float | None = None
) -> Any:
    """A number that may follow time: a number or a schedule in the config, the value in force in the factory."""
    return describe_field(default, doc=doc, minimum=minimum, maximum=maximum, below=below, extra={"scheduled": True})


def dimension(name: str, *, doc: str, default: int | None = None) -> Any:
    """The size of the spec dimension `name`; filled from the junctions when left out."""
    return describe_field(default, doc=doc, minimum=1, extra={"dimension": name})


def follows_task(need: str, *, doc: str, choices: Sequence[object] | None = None) -> Any:
    """An option that takes what the task needs (`attention`) unless the config says otherwise."""
    return describe_field(None, doc=doc, choices=choices, extra={"follows_task": need})


def describe_field(
    default: Any,
    *,
    doc: str,
    minimum: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: Sequence[object] | None = None,
    factory: Callable[[], Any] | None = None,
    extra: Mapping[str, object],
) -> Any:
    """The field behind every form of option: its rules, and in `extra` what else is said of it, are metadata of the attribute."""
    rules = {"minimum": minimum, "maximum": maximum, "below": below, "choices": tuple(choices) if choices else None}
    metadata = {"doc": doc, **rules, **extra}

    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if (broken := broken_rule(attribute, value)) is not None:
            raise UserError(f"{attribute.name}: {broken}")

    if factory is not None:
        return attrs.field(factory=factory, validator=check, metadata=metadata)
    return attrs.field(default=default, validator=check, metadata=metadata)


def broken_rule(attribute: attrs.Attribute[Any], value: Any) -> str | None:
    """The rule that `value` breaks, as a sentence, or None. Schedules and None are judged elsewhere."""
    rules = attribute.metadata
    if value is None or hasattr(value, "compile"):
        return None
    if isinstance(value, float) and value != value:
        return "nan is not a value"
    if (low := rules.get("minimum")) is not None and value < low:
        return f"{value!r} is below the minimum of {low}"
    if (high := rules.get("maximum")) is not None and value > high:
        return f"{value!r} is above the maximum of {high}"
    if (bound := rules.get("below")) is not None and value >= bound:
        return f"{value!r} is not below {bound}"
    if (choices := rules.get("choices")) is not None and value not in choices:
        return f"{value!r} is none of {', '.join(map(repr, choices))}"
    return None


def config_key(attribute: attrs.Attribute[Any]) -> str:
    """The name an option has in a config."""
    return str(attribute.metadata.get("key") or attribute.name)


def scheduled_fields(options: type) -> tuple[str, ...]:
    """Names of the options that may follow time."""
    return tuple(a.name for a in attrs.fields(options) if a.metadata.get("scheduled"))


def dimension_fields(options: type) -> dict[str, str]:
    """Option name → spec dimension it sizes."""
    return {a.name: a.metadata["dimension"] for a in attrs.fields(options) if a.metadata.get("dimension")}


@attrs.frozen
class Stack:
    """A named run of blocks in a rack."""

    name: str
    blocks: int


def read_stacks(value: Any) -> tuple[Stack, ...]:
    """Read `[{"base": 2}, {"top": 1}]`, or `{"base": 2}`, into stacks in forward order.

    Raises:
        UserError: not of that form, a repeated name, or a stack without a block.
    """
    if isinstance(value, tuple) and all(isinstance(entry, Stack) for entry in value):
        return value
    entries = [{name: blocks} for name, blocks in value.items()] if isinstance(value, dict) else value
    if not isinstance(entries, list | tuple) or not all(isinstance(e, dict) and len(e) == 1 for e in entries):
        raise UserError(f"{value!r} is not a list of stacks: write [{{base: 2}}, {{top: 1}}]")
    pairs = [next(iter(entry.items())) for entry in entries]
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"stack '{twice[0]}' is named twice: every stack has a name of its own")
    for name, blocks in pairs:
        if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"{name!r} is not a stack name: letters, digits, '_' and '-'")
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
            raise UserError(f"stack '{name}' has {blocks!r} blocks: a whole number of at least 1")
    if not pairs:
        raise UserError("a rack has at least one stack")
    if (total := sum(blocks for _, blocks in pairs)) > MAX_BLOCKS:
        raise UserError(f"the stacks have {total:,} blocks in all: a rack has at most {MAX_BLOCKS:,}")
    return tuple(Stack(name, blocks) for name, blocks in pairs)


def stacks(*, doc: str) -> Any:
    """The stacks of a rack: an ordered list of names with numbers of blocks; type it `tuple[Stack, ...]`."""
    return attrs.field(converter=read_stacks, metadata={"doc": doc, "stacks": True})
