"""Configs: YAML or Python → an `Experiment`, every value with its place, every mistake at once."""

from stackwise.config.component_options import parse_option, parse_schedule, structure_options
from stackwise.config.documents import read_file
from stackwise.config.experiment import EnterConfig, EvaluateConfig, Experiment, PhaseConfig, UntilConfig
from stackwise.config.loading import experiment, load, overridden
from stackwise.config.objects import Phase, sample
from stackwise.config.planes import DataConfig, GroupConfig, ModelConfig, OptimizerConfig, Ref
from stackwise.config.recalled import names_its_parts, recalled, refuse_described
from stackwise.config.run import CheckpointConfig, ParallelConfig, RunConfig, StopConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "EnterConfig",
    "EvaluateConfig",
    "Experiment",
    "GroupConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "Phase",
    "PhaseConfig",
    "Ref",
    "RunConfig",
    "StopConfig",
    "UntilConfig",
    "experiment",
    "load",
    "names_its_parts",
    "overridden",
    "parse_option",
    "parse_schedule",
    "read_file",
    "recalled",
    "refuse_described",
    "sample",
    "structure_options",
]
