"""Write a model as a folder of another tool's format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stackwise.assembly.start import format_named, recognising
from stackwise.config import load
from stackwise.contracts.answers import calling
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.errors import UserError, disk_errors
from stackwise.host.discovery import discover
from stackwise.host.registry import Registry, blaming
from stackwise.planes.model.module import Model
from stackwise.storage import disk
from stackwise.storage.publish import WRITING, publish
from stackwise.storage.run_directory import CONFIG


def write_folder(model: Model, about: Mapping[str, Any], directory: Path, name: str, run: Path, tokenizers: Tokenizers) -> None:
    """Write a model into a new folder, all or nothing.

    Args:
        model: on the CPU.
        about: what it was built from, as `describe_model` says it.
        directory: where to; its parent exists.
        name: of the format, `hf` or `transformer.hf`.
        run: the run directory of the model; the folder that the run began from may hold further files that the format keeps.
        tokenizers: those of the run; where they are of one vocabulary, its files stand beside the weights, as other tools look for them.

    Raises:
        UserError: no such format, or it cannot express the model.
        ProviderError: the format fails.
        DiskError: the disk refuses; nothing is left behind.
    """
    registry = discover()
    known, form = format_named(name, registry)
    _check_plain(about, bool(getattr(form, "holds_weight_adapters", False)))
    origin = _origin(run, known.id, registry)
    files = _files(tokenizers)

    def fill(fresh: Path) -> None:
        with calling(known.id, "write"):
            form.write(model, fresh, origin, files)
        for file, content in files.items():
            if not (fresh / file).exists():
                (fresh / file).write_bytes(content)
        for path in sorted(path for path in fresh.rglob("*") if path.is_file()):
            disk.sync_file(path)

    fresh = directory.with_name(f".{directory.name}.{os.getpid()}{WRITING}")
    disk.remove_tree(fresh)
    with disk_errors(directory, "nothing of it is left: free space or mend the disk"), blaming(registry.providers):
        publish(fresh, fill, [directory])


def _files(tokenizers: Tokenizers) -> Mapping[str, bytes]:
    files = {entry.tokenizer.vocabulary: entry.tokenizer.files for entry in tokenizers.entries}
    return next(iter(files.values())) if len(files) == 1 else {}


def _check_plain(about: Mapping[str, Any], weight_adapters: bool) -> None:
    """Refuse what stands beside embedding, rack and head, for which other tools have no place.

    Args:
        about: what the model was built from.
        weight_adapters: whether the format has a place for those.

    Raises:
        UserError: adapters at junctions, weight adapters, or gates that are not at 1.
    """
    beside = {
        "adapters at the model's junctions": any(about.get("adapters", {}).values()),
        "weight adapters (a last phase without them, with `enter: {weight_adapters: merge}`, merges them)": (
            about.get("weight_adapters") and not weight_adapters
        ),
        "gates that are not at 1 (export a later step)": about.get("gates"),
    }
    if besides := [what for what, there in beside.items() if there]:
        raise UserError(f"a folder of another tool holds embedding, rack and head only, and this model has {'; '.join(besides)}")


def _origin(run: Path, id: str, registry: Registry) -> Path | None:
    """The folder that a run began from, if it is still there and of the same format."""
    start = load(run / CONFIG).phases[0].model.start
    if start is None or not (folder := Path(start.from_)).is_dir():
        return None
    try:
        return folder if recognising(folder, registry).id == id else None
    except UserError:
        return None
