"""Files that globs find, also behind a URL (`s3://…`, `hf://…`, `memory://…`), which fsspec reads; what is not on this disk is copied once.

A copy lies in the cache under a digest of its address and of what the store says of it (size, time, tag), so that what changed there
is copied anew. Nothing is fetched unless a path is a URL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from stackwise import DataError, UserError
from stackwise_providers_data.cache import obtain
from stackwise_providers_data.files import globbed, is_url

_LOCAL = ("file", "local")


def located(paths: Sequence[str]) -> dict[str, Path]:
    """The files that globs and URLs with globs find, by the path as it is spelt; those from elsewhere lie in the cache.

    Raises:
        DataError: a glob without a match, or a store that does not answer.
        UserError: fsspec, or the library of a protocol, is missing.
    """
    local = [path for path in paths if not is_url(path)]
    files = globbed(local) if local else {}
    for url in (path for path in paths if is_url(path)):
        files |= _fetched(url)
    return files


def located_files(paths: Sequence[str]) -> list[Path]:
    """The files of `located`, in the order of their paths.

    Raises:
        DataError, UserError: as `located`.
    """
    files = located(paths)
    return [files[path] for path in sorted(files)]


def _fetched(url: str) -> dict[str, Path]:
    from stackwise_providers_data.extras import require

    fsspec = require("fsspec", "remote", url)
    protocol = url.partition("://")[0]
    try:
        store, _, matches = fsspec.get_fs_token_paths(url)
        found = sorted(path for path in matches if store.isfile(path))
    except (ImportError, ValueError) as fault:
        raise UserError(f"paths: {url!r} cannot be opened: {fault}: install the library of {protocol}://, or mend the URL") from fault
    except Exception as fault:  # whatever the library of a protocol raises
        raise _no_answer(url, fault) from fault
    if not found:
        raise DataError(f"paths: no file matches {url!r}: mend the URL")
    if protocol in _LOCAL:
        return {path: Path(path) for path in found}
    urls = {path: f"{protocol}://{path.removeprefix('/')}" for path in found}
    return {address: _copy(store, path, address) for path, address in urls.items()}


def _copy(store: Any, path: str, url: str) -> Path:
    """The file of a store in the cache."""
    name = PurePosixPath(path).name
    try:
        state = json.dumps([url, store.ukey(path), store.info(path)], sort_keys=True, default=str)
    except Exception as fault:  # whatever the library of a protocol raises
        raise _no_answer(url, fault) from fault

    def fetch(folder: Path) -> dict[str, Any]:
        try:
            store.get_file(path, str(folder / name))
        except Exception as fault:  # whatever the library of a protocol raises
            raise _no_answer(url, fault) from fault
        return {"of": url}

    entry, _ = obtain(f"remote-{hashlib.sha256(state.encode()).hexdigest()[:32]}", fetch)
    return entry / name


def _no_answer(url: str, fault: Exception) -> DataError:
    return DataError(f"paths: {url!r} cannot be read: {type(fault).__name__}: {fault}: mend the URL, or see to the access that it needs")
