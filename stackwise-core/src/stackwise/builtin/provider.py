"""The core's own provider: the adapters that a config may put at a junction of the model, and trackers."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from stackwise.contracts.components import Component
from stackwise.contracts.hookspecs import hookimpl
from stackwise.contracts.options import dimension, option
from stackwise.contracts.specs import AdapterSpec, TensorSpec

FLOATING_DTYPES = ("float32", "float64", "bfloat16", "float16")


@frozen(kw_only=True)
class ProjectOptions:
    """Options of `core.project`."""

    width_in: int = dimension("width_in", doc="features coming in; those of the part before when left out")
    width_out: int = dimension("width_out", doc="features going out; those of the part after when left out")
    bias: bool = option(False, doc="whether a learnt offset is added")

    def to_spec(self) -> AdapterSpec:
        """Hidden state of one width in, of another out."""
        return AdapterSpec(input=TensorSpec("batch time width_in"), output=TensorSpec("batch time width_out"))


@frozen(kw_only=True)
class PrecisionOptions:
    """Options of `core.precision`."""

    dtype: str = option(doc="dtype of the hidden state from here on", choices=FLOATING_DTYPES)

    def to_spec(self) -> AdapterSpec:
        """Hidden state of any floating dtype in, of one dtype out."""
        return AdapterSpec(input=TensorSpec("batch time width"), output=TensorSpec("batch time width", self.dtype))


@frozen(kw_only=True)
class TrackerOptions:
    """Options of `core.tensorboard`."""

    directory: str = option("", doc="folder in which the run gets one of its name; `tensorboard` in the run directory when left out")
    every: int = option(1, doc="steps of which one is written; evaluations and boundaries all are", minimum=1)


@hookimpl
def stackwise_adapters() -> Iterable[Component]:
    """Adapters without which two good parts of different width or precision could not meet."""
    return (
        Component(
            name="project",
            options="stackwise.builtin.provider:ProjectOptions",
            factory="stackwise.builtin.adapters:build_project",
            summary="learnt linear map between two widths",
            example={"width_in": 8, "width_out": 12},
        ),
        Component(
            name="precision",
            options="stackwise.builtin.provider:PrecisionOptions",
            factory="stackwise.builtin.adapters:build_precision",
            summary="hidden state in another floating dtype; narrowing loses precision, as asked",
            example={"dtype": "float32"},
        ),
    )


@hookimpl
def stackwise_observers() -> Iterable[Component]:
    """Trackers; the library of each is an extra of the core."""
    return (
        Component(
            name="tensorboard",
            options="stackwise.builtin.provider:TrackerOptions",
            factory="stackwise.builtin.tensorboard:build",
            summary="scalars, config and plan for TensorBoard",
            example={},
        ),
    )
