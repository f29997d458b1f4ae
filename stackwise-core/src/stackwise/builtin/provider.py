"""The core's own provider: the adapters that a config may put at a junction of the model, and trackers."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from stackwise.contracts.components import Component
from stackwise.contracts.hookspecs import hookimpl
from stackwise.contracts.options import dimension, option
from stackwise.contracts.specs import AdapterSpec, TensorSpec

ARTIFACTS = ("none", "report", "weights", "checkpoints")
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
    every: int = option(1, doc="write one of so many steps; every evaluation and boundary is written", minimum=1)


_ARTIFACTS = "files kept there: none, report (config, plan, page), weights (the final ones too), checkpoints (these too)"


@frozen(kw_only=True)
class WandbOptions:
    """Options of `core.wandb`."""

    project: str = option("stackwise", doc="project there")
    entity: str = option("", doc="user or team; your default one when left out")
    mode: str = option("", doc="`online` or `offline`; what WANDB_MODE says, or online, when left out", choices=("", "online", "offline"))
    every: int = option(1, doc="write one of so many steps; every evaluation and boundary is written", minimum=1)
    artifacts: str = option("report", doc=_ARTIFACTS, choices=ARTIFACTS)


@frozen(kw_only=True)
class MlflowOptions:
    """Options of `core.mlflow`."""

    uri: str = option("", doc="address of the server, or `file:…`; what MLFLOW_TRACKING_URI says when left out")
    experiment: str = option("stackwise", doc="experiment there")
    every: int = option(1, doc="write one of so many steps; every evaluation and boundary is written", minimum=1)
    artifacts: str = option("report", doc=_ARTIFACTS, choices=ARTIFACTS)


@frozen(kw_only=True)
class TrackioOptions:
    """Options of `core.trackio`."""

    project: str = option("stackwise", doc="project there")
    space: str = option("", doc="a Space of Hugging Face; this machine when left out")
    every: int = option(1, doc="write one of so many steps; every evaluation and boundary is written", minimum=1)
    artifacts: str = option("report", doc=_ARTIFACTS, choices=ARTIFACTS)


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
    summaries = {
        "tensorboard": ("Tracker", "scalars, config and plan for TensorBoard"),
        "wandb": ("Wandb", "scalars, config, plan, page and weights for Weights & Biases, online or offline"),
        "mlflow": ("Mlflow", "scalars, config, plan, page and weights for MLflow"),
        "trackio": ("Trackio", "scalars, config, plan, page and weights for trackio"),
    }
    return [
        Component(
            name=name,
            options=f"stackwise.builtin.provider:{options}Options",
            factory=f"stackwise.builtin.{name}:build",
            summary=summary,
            example={"mode": "offline"} if name == "wandb" else {},
        )
        for name, (options, summary) in summaries.items()
    ]
