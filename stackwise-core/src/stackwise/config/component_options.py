"""The options of one component: plain values → an instance of its options class, and schedules apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from stackwise.config.faults import Fault, faults_of
from stackwise.config.strict import MISTAKES, convert
from stackwise.contracts.options import broken_rule, config_key
from stackwise.errors import Problem, ProviderError, ScheduleError
from stackwise.timeline.provided import ProvidedSchedule
from stackwise.timeline.schedules import Constant, Schedule


def parse_schedule(value: object) -> Schedule:
    """Read a number, a map with one schedule tag, or a schedule object.

    Raises:
        ScheduleError: it is none of these, or the tag does not take its keys or values; the message names all mistakes.
    """
    try:
        schedule: Schedule = convert(value, Schedule)
    except MISTAKES as error:
        messages = [f"{'.'.join(fault.path)}: {fault.message}" if fault.path else fault.message for fault in faults_of(error)]
        raise ScheduleError("\n".join(messages)) from None
    return schedule


def parse_option(options_class: type, name: str, value: object) -> Schedule:
    """Read a single option that may follow time; parameter groups set such options.

    Args:
        options_class: of the component.
        name: of its field.
        value: as `parse_schedule` takes it.

    Raises:
        ScheduleError: it is not a schedule, or the option does not allow a number in it.
    """
    schedule = parse_schedule(value)
    try:
        return _bounded(schedule, getattr(attrs.fields(options_class), name))
    except ValueError as error:
        raise ScheduleError(str(error)) from None


def structure_options(options_class: type, raw: Mapping[str, Any], path: str) -> tuple[Any, dict[str, Schedule], tuple[Problem, ...]]:
    """Make the options of a component from plain values.

    Args:
        options_class: attrs class whose fields are made with `stackwise.contracts.options`.
        raw: plain values by config key, without `use` and the keys of the core.
        path: dotted key of the component, for messages.

    Returns:
        The instance, or None when there are problems; a schedule for every option that may follow time and has a value,
        written or by default (the instance itself holds the default there, so that instances compare by structure); and
        the problems, each with its dotted path.

    Raises:
        ProviderError: the options class itself is at fault.
    """
    fields = {config_key(a): a for a in attrs.fields(options_class) if a.init and a.metadata.get("scheduled")}
    schedules: dict[str, Schedule] = {}
    faults: list[Fault] = []
    fixed = {key: value for key, value in raw.items() if key not in fields}
    for key, attribute in fields.items():
        default = attribute.default if attribute.default is not attrs.NOTHING else None
        if key in raw and (raw[key] is not None or default is not None):
            try:
                schedules[attribute.name] = _bounded(convert(raw[key], Schedule), attribute)
            except MISTAKES as error:
                faults += faults_of(error, (key,))
        elif default is not None:
            schedules[attribute.name] = Constant(value=float(default))
        elif attribute.default is attrs.NOTHING:
            faults.append(Fault((key,), f"is missing: {attribute.metadata.get('doc', 'give it a value')}", missing=True))
        if attribute.default is attrs.NOTHING:
            fixed[key] = _placeholder(attribute)
    instance = None
    try:
        instance = convert(fixed, options_class)
    except MISTAKES as error:
        faults += _explained(faults_of(error), options_class)
    except (NameError, TypeError, AttributeError) as error:
        raise ProviderError(f"{path}: the options class {options_class.__qualname__} cannot be read: {error}") from error
    problems = tuple(Problem(fault.message, ".".join((path, *fault.path) if path else fault.path)) for fault in faults)
    return (None if problems else instance), schedules, problems


def _bounded(schedule: Schedule, attribute: attrs.Attribute[Any]) -> Schedule:
    """The schedule, after every number in it was checked by the rules of the option."""
    if isinstance(schedule, ProvidedSchedule):
        return attrs.evolve(schedule, rule=partial(broken_rule, attribute))
    numbers: list[float] = []
    for name in ("value", "from_", "to", "peak"):
        if (number := getattr(schedule, name, None)) is not None:
            numbers.append(number)
    numbers += getattr(schedule, "values", {}).values()
    for number in numbers:
        if (broken := broken_rule(attribute, number)) is not None:
            raise ValueError(broken)
    return schedule


def _placeholder(attribute: attrs.Attribute[Any]) -> float:
    """What an instance holds for a scheduled option without a default: 0, or the allowed value next to it."""
    low, high = attribute.metadata.get("minimum"), attribute.metadata.get("maximum")
    value = 0.0 if low is None else max(0.0, float(low))
    return value if high is None else min(value, float(high))


def _explained(faults: list[Fault], options_class: type) -> list[Fault]:
    """Add to each missing option what it is for."""
    docs = {config_key(a): a.metadata.get("doc") for a in attrs.fields(options_class)}
    missing = [fault.path[0] if fault.missing and len(fault.path) == 1 else "" for fault in faults]
    return [
        attrs.evolve(fault, message=f"is missing: {docs[key]}") if docs.get(key) else fault
        for fault, key in zip(faults, missing, strict=True)
    ]
