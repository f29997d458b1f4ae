"""The loaders of byte corpora: which files, and which of them a split sees.

A file is held out by a hash of its path alone, so that training and evaluations never share one, whatever the seed, and adding files moves
no other across.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stackwise import BuildContext, DataError
from stackwise_providers_data.options import StdlibOptions, TextFilesOptions
from stackwise_providers_data.token_stream import TokenStream

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_BETWEEN_DOCUMENTS = b"\0"


def build_python_stdlib(options: StdlibOptions, context: BuildContext) -> TokenStream:
    """The factory of `python-stdlib`: every `.py` file of the running Python's library, its tests left out, sorted by path.

    Raises:
        DataError: no sources where the library says they are, or a split without files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    return _build(_stdlib_files(root), options, context, name="python-stdlib")


def build_text_files(options: TextFilesOptions, context: BuildContext) -> TokenStream:
    """The factory of `text-files`.

    Raises:
        DataError: a glob without a match, a file that cannot be read, a split without files, fewer bytes than one row.
    """
    files: dict[str, Path] = {}
    for pattern in options.paths:
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = [path for path in matches if Path(path).is_file()]
        if not found:
            raise DataError(
                f"paths: no file matches {pattern!r} in the working directory {str(Path.cwd())!r}: mend the glob or change there"
            )
        files |= {Path(path).as_posix(): Path(path) for path in found}
    return _build(files, options, context, name="text-files")


def is_heldout(path: str, share: float) -> bool:
    """Whether a file belongs to the evaluations: the first 64 bits of its path's SHA-256, as a fraction, lie below `share`."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") < share * 2**64


def _stdlib_files(root: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        files |= {(path := Path(folder, name)).relative_to(root).as_posix(): path for name in names if name.endswith(".py")}
    if not files:
        raise DataError(f"python-stdlib: no sources lie in {str(root)!r}: install the library's sources, or use text-files")
    return files


def _build(files: Mapping[str, Path], options: StdlibOptions | TextFilesOptions, context: BuildContext, *, name: str) -> TokenStream:
    held = context.split != "train"
    chosen = [files[path] for path in sorted(files) if is_heldout(path, options.heldout) == held]
    if not chosen:
        fix = "raise" if held else "lower"
        what = f"the evaluation '{context.split}'" if held else "training"
        raise DataError(
            f"{name}: a heldout of {options.heldout:g} leaves none of {len(files)} files for {what}: {fix} heldout or give more files"
        )
    corpus = _BETWEEN_DOCUMENTS.join(_read(path) for path in chosen)
    return TokenStream(
        np.frombuffer(corpus, dtype=np.uint8),
        options.to_spec(),
        seed=context.seed,
        page_tokens=context.max_length,
        shuffle=options.shuffle,
        fingerprint={"files": len(chosen), "bytes": len(corpus), "sha256": hashlib.sha256(corpus).hexdigest()},
        name=name,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise DataError(f"{str(path)!r} cannot be read: {fault.strerror}: mend its permissions or leave it out") from fault
