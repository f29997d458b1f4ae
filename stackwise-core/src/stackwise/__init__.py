"""StackWise trains neural networks along a timeline: at every instant an experiment declares a complete training state.

The face: every name that users and provider authors need. Names resolve on first use, so that importing `stackwise` costs
nothing and never imports torch by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_FACE = {
    # for provider authors
    "hookimpl": "stackwise.hookspecs",
    "Component": "stackwise.contracts",
    "BuildContext": "stackwise.contracts",
    "ParameterGroup": "stackwise.contracts",
    "GrowthRequest": "stackwise.contracts",
    "BlockOrigin": "stackwise.contracts",
    "CopyOf": "stackwise.contracts",
    "Fresh": "stackwise.contracts",
    "GenerationSettings": "stackwise.contracts",
    "TextCodec": "stackwise.contracts",
    "option": "stackwise.options",
    "scheduled": "stackwise.options",
    "dimension": "stackwise.options",
    "follows_task": "stackwise.options",
    "stacks": "stackwise.options",
    "Stack": "stackwise.options",
    "TensorSpec": "stackwise.specs",
    "TransformSpec": "stackwise.specs",
    "BatchSpec": "stackwise.specs",
    "Beyond": "stackwise.specs",
    "EpochSize": "stackwise.specs",
    "EmbeddingSpec": "stackwise.specs",
    "RackSpec": "stackwise.specs",
    "HeadSpec": "stackwise.specs",
    "TaskSpec": "stackwise.specs",
    "OptimizerSpec": "stackwise.specs",
    "AdapterSpec": "stackwise.specs",
    "select": "stackwise.selectors",
    "matches": "stackwise.selectors",
    "Moment": "stackwise.time",
    # for users in code
    "Built": "stackwise.contracts",
    "Duration": "stackwise.time",
    "Phase": "stackwise.config",
    "sample": "stackwise.config",
    "PhaseSchedule": "stackwise.phases",
    "Model": "stackwise.model",
    "TrainingMachine": "stackwise.machine",
    "carry": "stackwise.carrying",
    "Experiment": "stackwise.config",
    "load": "stackwise.config",
    "experiment": "stackwise.config",
    "make_plan": "stackwise.plan",
    "discover": "stackwise.discovery",
    "assemble": "stackwise.assembly",
    "load_exported": "stackwise.exports",
    "generate": "stackwise.generation",
    "Plan": "stackwise.plan",
    "StepDone": "stackwise.events",
    "RunStarted": "stackwise.events",
    "PhaseEntered": "stackwise.events",
    "Evaluated": "stackwise.events",
    "Reacted": "stackwise.events",
    "RunFinished": "stackwise.events",
    # errors
    "StackwiseError": "stackwise.errors",
    "UserError": "stackwise.errors",
    "ConfigError": "stackwise.errors",
    "DataError": "stackwise.errors",
    "DiskError": "stackwise.errors",
    "ProviderError": "stackwise.errors",
    "TrainingHalted": "stackwise.errors",
}

__all__ = ["__version__", *_FACE]

if TYPE_CHECKING:  # the types that provider authors and users check against; the table above stays the one place that resolves them
    from stackwise.contracts import BlockOrigin as BlockOrigin
    from stackwise.contracts import BuildContext as BuildContext
    from stackwise.contracts import Built as Built
    from stackwise.contracts import Component as Component
    from stackwise.contracts import CopyOf as CopyOf
    from stackwise.contracts import Fresh as Fresh
    from stackwise.contracts import GenerationSettings as GenerationSettings
    from stackwise.contracts import GrowthRequest as GrowthRequest
    from stackwise.contracts import ParameterGroup as ParameterGroup
    from stackwise.contracts import TextCodec as TextCodec
    from stackwise.errors import ConfigError as ConfigError
    from stackwise.errors import DataError as DataError
    from stackwise.errors import DiskError as DiskError
    from stackwise.errors import ProviderError as ProviderError
    from stackwise.errors import StackwiseError as StackwiseError
    from stackwise.errors import TrainingHalted as TrainingHalted
    from stackwise.errors import UserError as UserError
    from stackwise.hookspecs import hookimpl as hookimpl
    from stackwise.options import Stack as Stack
    from stackwise.options import dimension as dimension
    from stackwise.options import follows_task as follows_task
    from stackwise.options import option as option
    from stackwise.options import scheduled as scheduled
    from stackwise.options import stacks as stacks
    from stackwise.phases import PhaseSchedule as PhaseSchedule
    from stackwise.selectors import matches as matches
    from stackwise.selectors import select as select
    from stackwise.specs import AdapterSpec as AdapterSpec
    from stackwise.specs import BatchSpec as BatchSpec
    from stackwise.specs import Beyond as Beyond
    from stackwise.specs import EmbeddingSpec as EmbeddingSpec
    from stackwise.specs import EpochSize as EpochSize
    from stackwise.specs import HeadSpec as HeadSpec
    from stackwise.specs import OptimizerSpec as OptimizerSpec
    from stackwise.specs import RackSpec as RackSpec
    from stackwise.specs import TaskSpec as TaskSpec
    from stackwise.specs import TensorSpec as TensorSpec
    from stackwise.specs import TransformSpec as TransformSpec
    from stackwise.time import Duration as Duration
    from stackwise.time import Moment as Moment


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'stackwise' has no attribute {name!r}")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
