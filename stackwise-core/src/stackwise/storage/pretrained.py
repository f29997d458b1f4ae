"""Weights to start from: the final ones of a run, an exported directory, or any safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stackwise.errors import UserError
from stackwise.storage.run_directory import CONFIG, final_weights
from stackwise.storage.weights import DESCRIPTION, WEIGHTS, read_description


def read_pretrained(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name.

    Args:
        path: a run directory that has finished (its `final` weights), a directory of weights, or a safetensors file.

    Raises:
        UserError: there is nothing to read, or the run has not finished.
    """
    file = path if path.is_file() else _directory_of_weights(path) / WEIGHTS
    if not file.is_file():
        raise UserError(
            f"model.start.from: there are no weights at {path}: {file} is not a file; give a run directory, a directory of weights or a "
            f"safetensors file{'' if path.exists() else ' on this machine: nothing is downloaded'}"
        )
    try:
        return load_file(file, backend="pread")  # not mapped: a file that shrinks under a map ends the process
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.start.from: {file} is not a readable safetensors file: {error}") from None


def is_ours(directory: Path) -> bool:
    """Whether a directory is a run, or holds weights that a run or an export wrote."""
    return (directory / CONFIG).is_file() or (directory / WEIGHTS).is_file()


def states_left_out(path: Path) -> tuple[str, ...]:
    """Names of the states that the weights at a path leave out, if the description beside them says so.

    Raises:
        UserError: the run has not finished, or the description is damaged.
    """
    if path.is_file() or not (directory := _directory_of_weights(path)).joinpath(DESCRIPTION).is_file():
        return ()
    names = read_description(directory).get("unheld")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _directory_of_weights(path: Path) -> Path:
    if not (path / CONFIG).is_file():
        return path
    if (final := final_weights(path)) is None:
        raise UserError(
            f"model.start.from: {path} has no final weights, as it has not finished: finish it by `stackwise resume {path}`, or export a "
            f"checkpoint of it by `stackwise export {path} DIRECTORY --step STEP` and start from that"
        )
    return final
