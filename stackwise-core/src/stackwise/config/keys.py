"""The documentation of the core's keys: how a field of a section carries it, and that of keys outside the sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from stackwise.contracts.options import REQUIRED, describe_field

FORMAT = 1
"""The version of the config format, written as `stackwise: 1`."""

PLANES = ("task", "data", "model", "optimizer")


def key(
    default: Any = REQUIRED,
    *,
    doc: str,
    example: str | tuple[str, ...] = (),
    absent: str = "",
    form: str = "",
    named: str = "",
    rule: Callable[[Any], str | None] | None = None,
    factory: Callable[[], Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
) -> Any:
    """A key of the core. The schema and the tables of docs/reference/config.md come from these arguments.

    Args:
        default: value when the config leaves the key out; required when there is none.
        doc: what it is, with its unit.
        example: values as a config writes them.
        absent: what holds if the key is left out and the default does not say it.
        form: what may be written, if the type does not say it.
        named: its name, if that is not a Python identifier.
        rule: value → the rule that it breaks, as a sentence, or None.
        factory: makes a fresh default.
        minimum: smallest value allowed.
        maximum: largest value allowed.
        above: every value allowed is larger than this, as the rule says.
    """
    about = {"examples": (example,) if isinstance(example, str) else example, "absent": absent, "form": form, "key": named, "rule": rule}
    metadata = {name: value for name, value in {**about, "above": above}.items() if value not in (None, "", ())}
    return describe_field(default, doc=doc, minimum=minimum, maximum=maximum, factory=factory, extra=metadata)


@frozen(kw_only=True)
class Key:
    """The documentation of a key."""

    form: str
    """What may be written."""
    absent: str = "none"
    """What holds if the key is left out; `required` if it must be there."""
    doc: str
    example: str = ""


SECTIONS: Mapping[str, Key] = {
    "stackwise": Key(form="1", absent="1", doc="version of the config format", example=f"stackwise: {FORMAT}"),
    "extends": Key(
        form="file name or list of them",
        doc="configs that this one is merged onto; paths are relative to this file",
        example="extends: base.yaml",
    ),
    "run": Key(form="map", absent="required", doc="the run as a whole"),
    "task": Key(
        form="component",
        absent="required",
        doc="what is learnt: how a batch is prepared, and the loss",
        example="{use: transformer.causal-lm}",
    ),
    "data": Key(form="map", absent="required", doc="what the model sees"),
    "model": Key(form="map", absent="required", doc="what the model is"),
    "optimizer": Key(form="component", absent="required", doc="how the model learns", example="{use: optim.adamw, lr: 2e-3}"),
    "evaluate": Key(form="name → map", doc="named evaluations", example="{heldout: {every: 5%, batches: 16}}"),
    "phases": Key(
        form="name → map", absent="one phase, `train`", doc="the timeline, in order", example="{shallow: {until: 50%}, deep: {}}"
    ),
    "observers": Key(
        form="list of components", doc="components that get every event of the run", example="[{use: waves.csv, path: losses.csv}]"
    ),
}
"""Top-level key → what it is, in the order of the documentation."""

IN_PHASE: Mapping[str, Key] = {
    "until": Key(
        form="duration or map",
        absent="required; the last may leave it out",
        doc="where the phase ends, counted from the start of the run; or a map, for a phase that ends when a metric stops improving",
        example="50%",
    ),
    "enter": Key(
        form="map", doc="how the boundary into this phase is crossed; never inherited", example="{growth: {use: transformer.stack}}"
    ),
}
"""Key of a phase beside its planes → what it is."""
