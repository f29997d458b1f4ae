"""Weights on disk: safetensors beside a JSON description, keyed by name, written so that a half-written one is never taken for whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from stackwise.contracts.tokenizers import Tokenizers
from stackwise.errors import UserError, disk_errors
from stackwise.storage import codec, disk
from stackwise.storage.publish import WRITING, publish, recover, write_tokenizers
from stackwise.storage.regular import digest_regular, read_regular, stamp_of
from stackwise.storage.tensor_file import read_tensors, write_tensors

WEIGHTS, DESCRIPTION = "weights.safetensors", "weights.json"
_FIELDS = {"sha256": str, "step": int, "data": Mapping[str, dict[str, Any]], "unheld": tuple[str, ...], "tensors": Mapping[str, Any]}
"""What is read before a model is built from the rest."""


def save_weights(
    tensors: Mapping[str, torch.Tensor], directory: Path, about: Mapping[str, Any], tokenizers: Tokenizers | None = None
) -> Path:
    """Write weights into a new directory, all or nothing.

    The directory is made beside its final place, every file is forced to disk, and only then it is renamed; an existing one
    of that name is replaced after the new one is whole.

    Args:
        tensors: by name; tied ones are written once, under their first name.
        directory: where to; its parent exists.
        about: what else the description says (specs, step, providers).
        tokenizers: those of the run, kept in the directory as well.

    Raises:
        DiskError: the disk refuses; nothing is left behind.
    """
    with disk_errors(directory, "nothing of it is left: free space or mend the disk"):
        _save(tensors, directory, about, tokenizers if tokenizers is not None else Tokenizers())
    return directory


def _save(tensors: Mapping[str, torch.Tensor], directory: Path, about: Mapping[str, Any], tokenizers: Tokenizers) -> None:
    def fill(fresh: Path) -> None:
        record = write_tensors(fresh / WEIGHTS, tensors)
        description = {
            "format": 1,
            **about,
            "sha256": record.sha256,
            "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in tensors.items()},
        }
        write_tokenizers(fresh, tokenizers)
        disk.write_file(fresh / DESCRIPTION, (json.dumps(description, indent=1, default=str) + "\n").encode())

    fresh = directory.with_name(f".{directory.name}.{os.getpid()}{WRITING}")  # its own in each process that exports to one place
    disk.remove_tree(fresh)
    recover(directory, Path.is_dir)
    try:
        publish(fresh, fill, [directory], replace=True)
    finally:
        with suppress(OSError):  # the next one removes what is left
            recover(directory, Path.is_dir)


def read_weights(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a directory by name, their digest verified, and the description.

    Raises:
        UserError: no weights there, or bytes that are not those described.
    """
    description, path = read_description(directory), directory / WEIGHTS
    try:
        digest, stamp = digest_regular(path)
        if digest != description.get("sha256"):
            raise UserError(f"{path} is damaged: its sha256 is not the one {DESCRIPTION} states")
        tensors = read_tensors(path)
        if stamp_of(path) != stamp:
            raise UserError(f"{path} changed while it was read")
    except OSError as error:
        raise UserError(f"{directory} holds no readable weights: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is no file of weights: {error}") from None
    return tensors, description


def read_description(directory: Path) -> dict[str, Any]:
    """What a directory says of its weights.

    Raises:
        UserError: nothing that can be read.
    """
    try:
        description = codec.read_object(read_regular(directory / DESCRIPTION))
        for name in _FIELDS.keys() & description.keys():
            codec.typed(description[name], _FIELDS[name], name)
    except OSError as error:
        raise UserError(f"{directory} holds no readable weights: {error}") from None
    except ValueError as error:
        raise UserError(f"{directory / DESCRIPTION} is damaged: {error}") from None
    return description
