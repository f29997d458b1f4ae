"""StackWise trains neural networks along a timeline: at every instant an experiment declares a complete training state.

The face: every name that users and provider authors need. Names resolve on first use, so that importing `stackwise` costs
nothing and never imports torch by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_FACE = {
    # for provider authors
    "hookimpl": "stackwise.contracts.hookspecs",
    "Component": "stackwise.contracts.components",
    "Starter": "stackwise.contracts.components",
    "BuildContext": "stackwise.contracts.components",
    "ParameterGroup": "stackwise.contracts.protocols",
    "GrowthRequest": "stackwise.contracts.growth",
    "BlockOrigin": "stackwise.contracts.growth",
    "Combine": "stackwise.contracts.growth",
    "CopyOf": "stackwise.contracts.growth",
    "Fresh": "stackwise.contracts.growth",
    "StoredModel": "stackwise.contracts.formats",
    "TranslatedConfig": "stackwise.contracts.formats",
    "GenerationSettings": "stackwise.contracts.generation",
    "LinearOutput": "stackwise.contracts.outputs",
    "TextCodec": "stackwise.contracts.generation",
    "Tokenizer": "stackwise.contracts.tokenizers",
    "RunTokenizer": "stackwise.contracts.tokenizers",
    "read_tokenizers": "stackwise.storage.tokenizers",
    "option": "stackwise.contracts.options",
    "scheduled": "stackwise.contracts.options",
    "dimension": "stackwise.contracts.options",
    "follows_task": "stackwise.contracts.options",
    "stacks": "stackwise.contracts.options",
    "Stack": "stackwise.contracts.options",
    "TensorSpec": "stackwise.contracts.specs",
    "TransformSpec": "stackwise.contracts.specs",
    "BatchSpec": "stackwise.contracts.specs",
    "Beyond": "stackwise.contracts.specs",
    "EpochSize": "stackwise.contracts.specs",
    "EmbeddingSpec": "stackwise.contracts.specs",
    "RackSpec": "stackwise.contracts.specs",
    "Reading": "stackwise.contracts.specs",
    "HeadSpec": "stackwise.contracts.specs",
    "TaskSpec": "stackwise.contracts.specs",
    "UnitMetric": "stackwise.contracts.specs",
    "OptimizerSpec": "stackwise.contracts.specs",
    "AdapterSpec": "stackwise.contracts.specs",
    "select": "stackwise.contracts.selectors",
    "matches": "stackwise.contracts.selectors",
    "Moment": "stackwise.timeline.duration",
    # for type checkers: the shapes of components, and what they may offer beside; nobody inherits from them
    "Adapter": "stackwise.contracts.protocols",
    "AskingTask": "stackwise.contracts.protocols",
    "Batch": "stackwise.contracts.protocols",
    "Embedding": "stackwise.contracts.protocols",
    "Fingerprinted": "stackwise.contracts.protocols",
    "Head": "stackwise.contracts.protocols",
    "LinearHead": "stackwise.contracts.protocols",
    "Loader": "stackwise.contracts.protocols",
    "Observer": "stackwise.contracts.protocols",
    "MeetsRun": "stackwise.contracts.protocols",
    "LeavesRun": "stackwise.contracts.protocols",
    "PreparesEvaluations": "stackwise.contracts.protocols",
    "PartwiseRack": "stackwise.contracts.protocols",
    "Rack": "stackwise.contracts.protocols",
    "Reaction": "stackwise.contracts.protocols",
    "ReferencedTask": "stackwise.contracts.protocols",
    "Scheduled": "stackwise.contracts.protocols",
    "StepSchedule": "stackwise.contracts.protocols",
    "StopsRun": "stackwise.contracts.protocols",
    "ScheduleWindow": "stackwise.timeline.provided",
    "Skippable": "stackwise.contracts.protocols",
    "Stateful": "stackwise.contracts.protocols",
    "Task": "stackwise.contracts.protocols",
    "TrainsElsewhere": "stackwise.contracts.protocols",
    "Transform": "stackwise.contracts.protocols",
    "WeightAdapter": "stackwise.contracts.protocols",
    "WeightFormat": "stackwise.contracts.formats",
    "NotesFolders": "stackwise.contracts.formats",
    "TranslatesConfigs": "stackwise.contracts.formats",
    "GrowthOperator": "stackwise.contracts.growth",
    "ParameterGrowth": "stackwise.contracts.growth",
    "Generates": "stackwise.contracts.generation",
    "Scores": "stackwise.contracts.generation",
    "GeneratesRows": "stackwise.contracts.generation",
    "GeneratesFields": "stackwise.contracts.generation",
    "HasTextCodec": "stackwise.contracts.generation",
    "Predicts": "stackwise.contracts.prediction",
    "ReadsRows": "stackwise.contracts.prediction",
    "HasTokenizer": "stackwise.contracts.tokenizers",
    # for users in code
    "Built": "stackwise.contracts.components",
    "Loss": "stackwise.builtin.loss",
    "Duration": "stackwise.timeline.duration",
    "Phase": "stackwise.config",
    "sample": "stackwise.config",
    "PhaseSchedule": "stackwise.curriculum.schedule",
    "Model": "stackwise.planes.model.module",
    "TrainingMachine": "stackwise.machine.machine",
    "Settings": "stackwise.machine.settings",
    "carry": "stackwise.planes.carry",
    "Experiment": "stackwise.config",
    "load": "stackwise.config",
    "experiment": "stackwise.config",
    "make_plan": "stackwise.assembly.planning",
    "discover": "stackwise.host.discovery",
    "assemble": "stackwise.assembly.machine",
    "run": "stackwise.runs.run",
    "load_exported": "stackwise.assembly.described",
    "generate": "stackwise.saved.generate",
    "generate_all": "stackwise.saved.generate",
    "Plan": "stackwise.plan",
    "StepDone": "stackwise.contracts.events",
    "RunFacts": "stackwise.contracts.events",
    "RunStarted": "stackwise.contracts.events",
    "PhaseEntered": "stackwise.contracts.events",
    "Evaluated": "stackwise.contracts.events",
    "Reacted": "stackwise.contracts.events",
    "Stopped": "stackwise.contracts.events",
    "Stalled": "stackwise.contracts.events",
    "CheckpointSaved": "stackwise.contracts.events",
    "CheckpointRefused": "stackwise.contracts.events",
    "ConfigChanged": "stackwise.contracts.events",
    "Rewound": "stackwise.contracts.events",
    "RunFinished": "stackwise.contracts.events",
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
    from stackwise.builtin.loss import Loss as Loss
    from stackwise.contracts.components import BuildContext as BuildContext
    from stackwise.contracts.components import Built as Built
    from stackwise.contracts.components import Component as Component
    from stackwise.contracts.components import Starter as Starter
    from stackwise.contracts.events import RunFacts as RunFacts
    from stackwise.contracts.formats import NotesFolders as NotesFolders
    from stackwise.contracts.formats import StoredModel as StoredModel
    from stackwise.contracts.formats import TranslatedConfig as TranslatedConfig
    from stackwise.contracts.formats import TranslatesConfigs as TranslatesConfigs
    from stackwise.contracts.formats import WeightFormat as WeightFormat
    from stackwise.contracts.generation import Generates as Generates
    from stackwise.contracts.generation import GeneratesFields as GeneratesFields
    from stackwise.contracts.generation import GeneratesRows as GeneratesRows
    from stackwise.contracts.generation import GenerationSettings as GenerationSettings
    from stackwise.contracts.generation import HasTextCodec as HasTextCodec
    from stackwise.contracts.generation import Scores as Scores
    from stackwise.contracts.generation import TextCodec as TextCodec
    from stackwise.contracts.growth import BlockOrigin as BlockOrigin
    from stackwise.contracts.growth import Combine as Combine
    from stackwise.contracts.growth import CopyOf as CopyOf
    from stackwise.contracts.growth import Fresh as Fresh
    from stackwise.contracts.growth import GrowthOperator as GrowthOperator
    from stackwise.contracts.growth import GrowthRequest as GrowthRequest
    from stackwise.contracts.growth import ParameterGrowth as ParameterGrowth
    from stackwise.contracts.hookspecs import hookimpl as hookimpl
    from stackwise.contracts.options import Stack as Stack
    from stackwise.contracts.options import dimension as dimension
    from stackwise.contracts.options import follows_task as follows_task
    from stackwise.contracts.options import option as option
    from stackwise.contracts.options import scheduled as scheduled
    from stackwise.contracts.options import stacks as stacks
    from stackwise.contracts.outputs import LinearOutput as LinearOutput
    from stackwise.contracts.prediction import Predicts as Predicts
    from stackwise.contracts.prediction import ReadsRows as ReadsRows
    from stackwise.contracts.protocols import Adapter as Adapter
    from stackwise.contracts.protocols import AskingTask as AskingTask
    from stackwise.contracts.protocols import Batch as Batch
    from stackwise.contracts.protocols import Embedding as Embedding
    from stackwise.contracts.protocols import Fingerprinted as Fingerprinted
    from stackwise.contracts.protocols import Head as Head
    from stackwise.contracts.protocols import LeavesRun as LeavesRun
    from stackwise.contracts.protocols import LinearHead as LinearHead
    from stackwise.contracts.protocols import Loader as Loader
    from stackwise.contracts.protocols import MeetsRun as MeetsRun
    from stackwise.contracts.protocols import Observer as Observer
    from stackwise.contracts.protocols import ParameterGroup as ParameterGroup
    from stackwise.contracts.protocols import PartwiseRack as PartwiseRack
    from stackwise.contracts.protocols import PreparesEvaluations as PreparesEvaluations
    from stackwise.contracts.protocols import Rack as Rack
    from stackwise.contracts.protocols import Reaction as Reaction
    from stackwise.contracts.protocols import ReferencedTask as ReferencedTask
    from stackwise.contracts.protocols import Scheduled as Scheduled
    from stackwise.contracts.protocols import Skippable as Skippable
    from stackwise.contracts.protocols import Stateful as Stateful
    from stackwise.contracts.protocols import StepSchedule as StepSchedule
    from stackwise.contracts.protocols import StopsRun as StopsRun
    from stackwise.contracts.protocols import Task as Task
    from stackwise.contracts.protocols import TrainsElsewhere as TrainsElsewhere
    from stackwise.contracts.protocols import Transform as Transform
    from stackwise.contracts.protocols import WeightAdapter as WeightAdapter
    from stackwise.contracts.selectors import matches as matches
    from stackwise.contracts.selectors import select as select
    from stackwise.contracts.specs import AdapterSpec as AdapterSpec
    from stackwise.contracts.specs import BatchSpec as BatchSpec
    from stackwise.contracts.specs import Beyond as Beyond
    from stackwise.contracts.specs import EmbeddingSpec as EmbeddingSpec
    from stackwise.contracts.specs import EpochSize as EpochSize
    from stackwise.contracts.specs import HeadSpec as HeadSpec
    from stackwise.contracts.specs import OptimizerSpec as OptimizerSpec
    from stackwise.contracts.specs import RackSpec as RackSpec
    from stackwise.contracts.specs import Reading as Reading
    from stackwise.contracts.specs import TaskSpec as TaskSpec
    from stackwise.contracts.specs import TensorSpec as TensorSpec
    from stackwise.contracts.specs import TransformSpec as TransformSpec
    from stackwise.contracts.specs import UnitMetric as UnitMetric
    from stackwise.contracts.tokenizers import HasTokenizer as HasTokenizer
    from stackwise.contracts.tokenizers import RunTokenizer as RunTokenizer
    from stackwise.contracts.tokenizers import Tokenizer as Tokenizer
    from stackwise.curriculum.schedule import PhaseSchedule as PhaseSchedule
    from stackwise.errors import ConfigError as ConfigError
    from stackwise.errors import DataError as DataError
    from stackwise.errors import DiskError as DiskError
    from stackwise.errors import ProviderError as ProviderError
    from stackwise.errors import StackwiseError as StackwiseError
    from stackwise.errors import TrainingHalted as TrainingHalted
    from stackwise.errors import UserError as UserError
    from stackwise.storage.tokenizers import read_tokenizers as read_tokenizers
    from stackwise.timeline.duration import Duration as Duration
    from stackwise.timeline.duration import Moment as Moment
    from stackwise.timeline.provided import ScheduleWindow as ScheduleWindow


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'stackwise' has no attribute {name!r}")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
