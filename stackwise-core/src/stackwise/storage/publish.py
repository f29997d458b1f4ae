"""Publish files and directories whole or not at all: write beside the final place, force to disk, rename.

When the process ends or the power fails, the name holds the old version or the new one. For a moment the old one stands aside.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from stackwise.contracts.tokenizers import Tokenizers
from stackwise.storage import disk
from stackwise.storage.tokenizers import TOKENIZERS, tokenizer_documents

WRITING, REPLACED = ".writing", ".replaced"
"""Suffixes: of a version that is still being written, and of an old one that stands aside. Both names begin with a dot."""


def writing_beside(place: Path) -> Path:
    """Where the new version of `place` is written."""
    return place.with_name(f".{place.name}{WRITING}")


def aside_of(place: Path) -> Path:
    """Where the old version of `place` stands until the new one is durable."""
    return place.with_name(f".{place.name}{REPLACED}")


def replace_file(path: Path, text: str) -> None:
    """Write a small file, whole or not at all.

    Raises:
        OSError: the disk refuses; the old file is untouched.
    """
    fresh = writing_beside(path)
    disk.remove_tree(fresh)
    try:
        disk.write_file(fresh, text.encode())
        disk.rename(fresh, path)
    except OSError:
        with suppress(OSError):
            disk.remove_tree(fresh)
        raise
    disk.sync_directory(path.parent)


def publish(fresh: Path, fill: Callable[[Path], object], places: Iterable[Path], *, replace: bool = False) -> Path:
    """Make a directory and give it the first name that is free.

    Args:
        fresh: a path beside the final place, where the directory is filled.
        fill: writes the files into the directory at the path it is called with, and forces each to disk.
        places: the names, best first.
        replace: take the first name even from an older directory. That one stands at `aside_of` afterwards, for the caller to remove; it
            goes back if anything fails.

    Returns:
        The final path.

    Raises:
        FileExistsError: every name is taken.
        OSError: the disk refuses; nothing of the new directory is left.
    """
    try:
        disk.make_directory(fresh)
        fill(fresh)
        disk.sync_directory(fresh)
        place = _take_from_older(fresh, next(iter(places))) if replace else _take_first_free(fresh, places)
        disk.sync_directory(place.parent)
    except BaseException:
        with suppress(OSError):
            disk.remove_tree(fresh)
        raise
    return place


def write_tokenizers(directory: Path, tokenizers: Tokenizers) -> None:
    """Write the tokenizers of a run into a directory; those that it has already stay as they are.

    Raises:
        OSError: the disk refuses; no folder is half written.
    """
    documents = tokenizer_documents(tokenizers)
    if not documents:
        return
    if not (directory / TOKENIZERS).is_dir():
        disk.make_directory(directory / TOKENIZERS)
    for folder, files in documents.items():
        place = directory / TOKENIZERS / folder

        def fill(fresh: Path, files: Mapping[str, bytes] = files) -> None:
            for name, content in files.items():
                disk.write_file(fresh / name, content)

        if not place.exists():
            disk.remove_tree(writing_beside(place))
            publish(writing_beside(place), fill, [place])
    disk.sync_directory(directory / TOKENIZERS)


def recover(place: Path, is_whole: Callable[[Path], bool]) -> None:
    """Remove the old version of `place` that stands aside, or put it back if the new one is not whole."""
    aside = aside_of(place)
    if not os.path.lexists(aside):
        return
    if not is_whole(place):
        disk.remove_tree(place)
        disk.rename(aside, place)
        disk.sync_directory(place.parent)
    disk.remove_tree(aside)


def _take_from_older(fresh: Path, place: Path) -> Path:
    older = place.exists()
    if older:
        disk.rename(place, aside_of(place))
    try:
        disk.rename(fresh, place)
    except BaseException:
        if older:
            disk.rename(aside_of(place), place)
        raise
    return place


def _take_first_free(fresh: Path, places: Iterable[Path]) -> Path:
    """Rename to the first free name. If another process has just taken it, the rename fails, unless that is an empty directory."""
    place = fresh
    for place in places:
        try:
            disk.rename(fresh, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return place
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
