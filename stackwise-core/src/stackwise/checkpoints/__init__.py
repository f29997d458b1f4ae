"""Checkpoints and final weights on disk: safetensors and JSON, all or nothing, valid only when the digests match. Knows nothing of runs."""

from stackwise.checkpoints.store import Checkpoint, CheckpointStore, Skipped, name_of, step_of, verify
from stackwise.checkpoints.weights import DESCRIPTION, WEIGHTS, load_weights, read_description, read_weights, save_weights
from stackwise.model import named_tensors

__all__ = [
    "DESCRIPTION",
    "WEIGHTS",
    "Checkpoint",
    "CheckpointStore",
    "Skipped",
    "load_weights",
    "name_of",
    "named_tensors",
    "read_description",
    "read_weights",
    "save_weights",
    "step_of",
    "verify",
]
