"""A component with other options than its example has."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from stackwise.conformance.building import use_once
from stackwise.conformance.catalogue import CATALOGUE, PREREQUISITES
from stackwise.conformance.subject import Broken, NotApplicable, Subject, reported
from stackwise.contracts.options import config_key
from stackwise.errors import UserError


def check_every_choice(subject: Subject) -> None:
    """Where an option has only a few values (true and false, a list of choices), each of them works in the example, or is refused with
    a sentence.

    Usual cause: a choice that is documented and not implemented, or gives another shape than the spec says.
    """
    attempts = 0
    for key, value in _choices(subject):
        other = _with(subject, key, value)
        if other.problems(other.example):
            continue  # the options' own rules refuse it beside the others
        try:
            with reported(other):
                attempts += _works(other)
        except Broken as error:
            if not isinstance(error.__cause__, UserError):
                raise Broken(f"with {key}: {value!r} in the example, {error}") from error
            attempts += 1  # refused in a sentence
    if not attempts:
        raise NotApplicable("its example leaves no choice that can be built here")


def _works(subject: Subject) -> bool:
    """Run the prerequisite checks, and use it once; False if an optional library is not installed.

    Raises:
        Broken: a promise is not kept. Any other exception is the component's own.
    """
    for name in PREREQUISITES[1:]:
        if subject.kind in CATALOGUE[name].kinds:
            try:
                CATALOGUE[name].load()(subject)
            except NotApplicable:
                if name == "check_builds":
                    return False
    if subject.kind != "loader":  # check_batch_spec has used it; building one may mean to read a corpus
        use_once(subject)
    return True


def _choices(subject: Subject) -> Iterator[tuple[str, Any]]:
    """Key and value, for every option with few values, except the values of the example."""
    options = subject.registered.load_options()
    types, current = get_type_hints(options), subject.draft().options
    for attribute in attrs.fields(options):
        key = config_key(attribute)
        for value in attribute.metadata.get("choices") or _values_of(types.get(attribute.name)):
            if value != getattr(current, attribute.name):
                yield key, value


def _values_of(annotation: Any) -> tuple[Any, ...]:
    """The values of a type that has a few."""
    shape = get_origin(annotation)
    if shape is Literal:
        return get_args(annotation)
    if shape in (Union, UnionType):
        return tuple(value for arm in get_args(annotation) if arm is not NoneType for value in _values_of(arm))
    return (False, True) if annotation is bool else ()


def _with(subject: Subject, key: str, value: Any) -> Subject:
    component = attrs.evolve(subject.registered.component, example={**subject.example, key: value})
    return attrs.evolve(subject, registered=attrs.evolve(subject.registered, component=component))
