"""Weights on disk: a safetensors file beside a JSON description, keyed by name. A half-written one is never taken for a whole one."""

from __future__ import annotations

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
from stackwise.storage.shared_file import Held, Others, write_shared
from stackwise.storage.tensor_file import read_tensors, write_tensors

WEIGHTS, DESCRIPTION = "weights.safetensors", "weights.json"
_ANY = Mapping[str, Any]
_FIELDS = {"sha256": str, "step": int, "data": Mapping[str, dict[str, Any]], "unheld": tuple[str, ...], "tensors": _ANY, "specs": _ANY}
"""Fields of the description that are checked as soon as it is read."""


def save_weights(
    tensors: Mapping[str, torch.Tensor],
    directory: Path,
    about: Mapping[str, Any],
    tokenizers: Tokenizers | None = None,
    others: Others | None = None,
) -> Path:
    """Write weights into a new directory, all or nothing.

    The directory is filled beside its final place, every file is forced to disk, and only then the directory is renamed. An older directory
    of that name is replaced once the new one is whole.

    Args:
        tensors: by name; tied ones are written once, under their first name.
        directory: the place to write; its parent exists.
        about: further entries of the description (specs, step, providers).
        tokenizers: those of the run, written beside the weights.
        others: processes that hold parts of the tensors and write them by `write_shared`; None where this one holds all of them.

    Raises:
        DiskError: the disk refuses; nothing is left behind.
    """
    with disk_errors(directory, "nothing of it is left: free space or mend the disk"):
        _save(tensors, directory, about, tokenizers if tokenizers is not None else Tokenizers(), others)
    return directory


def _save(
    tensors: Mapping[str, torch.Tensor], directory: Path, about: Mapping[str, Any], tokenizers: Tokenizers, others: Others | None
) -> None:
    def fill(fresh: Path) -> None:
        path = fresh / WEIGHTS
        record = write_tensors(path, tensors) if others is None else write_shared(path, Held.of(tensors, others), others)
        description = {
            "format": 1,
            **about,
            "sha256": record.sha256,
            "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in tensors.items()},
        }
        write_tokenizers(fresh, tokenizers)
        disk.write_file(fresh / DESCRIPTION, codec.to_text(description).encode())

    fresh = directory.with_name(f".{directory.name}.{os.getpid()}{WRITING}")  # each process that exports to this place has its own
    disk.remove_tree(fresh)
    recover(directory, Path.is_dir)
    try:
        publish(fresh, fill, [directory], replace=True)
    finally:
        with suppress(OSError):  # the next save removes the rest
            recover(directory, Path.is_dir)


def read_weights(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a directory by name, after their digest was verified, and the description.

    Raises:
        UserError: there are no weights, or their bytes are not those that the description states.
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
        raise UserError(f"{path} is not a file of weights: {error}") from None
    return tensors, description


def read_description(directory: Path) -> dict[str, Any]:
    """The description of the weights in a directory.

    Raises:
        UserError: there is no description, or it is damaged.
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
