"""StackWise trains neural networks along a timeline: at every instant an experiment declares a complete training state.

The face: every name that users and provider authors need. Names resolve on first use, so that importing `stackwise` costs
nothing and never imports torch by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

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
    "option": "stackwise.options",
    "scheduled": "stackwise.options",
    "dimension": "stackwise.options",
    "follows_task": "stackwise.options",
    "stacks": "stackwise.options",
    "Stack": "stackwise.options",
    "TensorSpec": "stackwise.specs",
    "BatchSpec": "stackwise.specs",
    "EmbeddingSpec": "stackwise.specs",
    "RackSpec": "stackwise.specs",
    "HeadSpec": "stackwise.specs",
    "TaskSpec": "stackwise.specs",
    "OptimizerSpec": "stackwise.specs",
    "AdapterSpec": "stackwise.specs",
    "Moment": "stackwise.time",
    # for users in code
    "Built": "stackwise.contracts",
    "Duration": "stackwise.time",
    "Phase": "stackwise.config",
    "PhaseSchedule": "stackwise.phases",
    "Model": "stackwise.planes.model",
    "TrainingMachine": "stackwise.machine",
    "load": "stackwise.config",
    "experiment": "stackwise.config",
    "make_plan": "stackwise.plan",
    "discover": "stackwise.discovery",
    "assemble": "stackwise.assembly",
    # errors
    "StackwiseError": "stackwise.errors",
    "UserError": "stackwise.errors",
    "ConfigError": "stackwise.errors",
    "DataError": "stackwise.errors",
    "ProviderError": "stackwise.errors",
    "TrainingHalted": "stackwise.errors",
}

__all__ = ["__version__", *_FACE]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'stackwise' has no attribute {name!r}")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
