"""The mistakes of a failed conversion: one fault each, with the keys that lead to it."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import field, frozen
from cattrs.errors import AttributeValidationNote, BaseValidationError, ForbiddenExtraKeysError, IterableValidationNote

from stackwise.config.hints import unknown_key
from stackwise.config.nodes import KeyPath
from stackwise.contracts.options import config_key
from stackwise.errors import ProviderError, UserError


@frozen
class Fault:
    """A mistake at a key of a tree, before its position in a file is known."""

    path: KeyPath
    message: str
    missing: bool = field(default=False, kw_only=True)
    formless: bool = field(default=False, kw_only=True)
    """Whether the value has another form than the key takes."""


class NotAMap(ValueError):
    """A value where a map belongs."""


def faults_of(error: Exception, path: KeyPath = ()) -> list[Fault]:
    """The mistakes in an error of a strict conversion, each with the keys that lead to it.

    Raises:
        ProviderError: the class itself failed.
    """
    here = (*path, *_noted(error))
    if isinstance(error, BaseValidationError):
        keys = {a.name: config_key(a) for a in attrs.fields(error.cl)} if attrs.has(error.cl) else {}
        faults = [fault for inner in error.exceptions for fault in faults_of(inner, here)]
        return [_explained(attrs.evolve(fault, path=_renamed(fault.path, len(here), keys)), len(here), error.cl) for fault in faults]
    if isinstance(error, ForbiddenExtraKeysError):
        known = [config_key(a) for a in attrs.fields(error.cl) if a.init]
        return [Fault((*here, key), unknown_key(key, known, elsewhere=False)) for key in sorted(map(str, error.extra_fields))]
    if isinstance(error, KeyError) and len(here) > len(path):  # without a note of its place, the class itself raised it
        return [Fault(here, "is missing: give it a value", missing=True)]
    if isinstance(error, ValueError | UserError):
        return [Fault(here, str(error), formless=isinstance(error, NotAMap))]
    raise ProviderError(f"{'.'.join(here) or 'options'}: {type(error).__name__}: {error}") from error


def _explained(fault: Fault, depth: int, cls: type) -> Fault:
    """Add to a missing key of the core, or one with a value of another form, what it means and how to write it."""
    if not (fault.missing or fault.formless) or len(fault.path) != depth + 1 or not attrs.has(cls):
        return fault
    about = {config_key(a): a.metadata for a in attrs.fields(cls)}.get(fault.path[depth], {})
    if not about.get("doc") or not about.get("examples"):
        return fault
    example = str(about["examples"][0])
    form = example if f"{fault.path[depth]}:" in example else f"{fault.path[depth]}: {example}"  # of a schedule's key the whole schedule
    message = f"is missing: {about['doc']}; write `{form}`" if fault.missing else f"{fault.message}: write `{form}`"
    return attrs.evolve(fault, message=message)


def _noted(error: Exception) -> KeyPath:
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, AttributeValidationNote | IterableValidationNote)]
    return tuple(note.name if isinstance(note, AttributeValidationNote) else str(note.index) for note in reversed(notes))


def _renamed(path: KeyPath, depth: int, keys: Mapping[str, str]) -> KeyPath:
    """Attribute names are not always the keys people write (`from_` for `from`)."""
    return tuple(keys.get(key, key) if i == depth else key for i, key in enumerate(path))
