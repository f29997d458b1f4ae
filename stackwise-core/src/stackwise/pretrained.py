"""Trained weights to begin from: a run's final ones, a directory that was exported, or any safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stackwise.checkpoints.weights import WEIGHTS
from stackwise.errors import UserError


def read_pretrained(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name.

    Args:
        path: a run directory (its `final` weights), a directory of weights, or a safetensors file.

    Raises:
        UserError: nothing there that can be read.
    """
    candidates = [path] if path.is_file() else [path / "final" / WEIGHTS, path / WEIGHTS]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        tried = " nor ".join(str(candidate) for candidate in candidates)
        raise UserError(f"model.start.from: there are no weights at {path}: neither {tried} is a file")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.start.from: {file} is no readable safetensors file: {error}") from None
