"""The tokenizers of a run as files: `tokenizers/<vocabulary>/` in a run directory, in its final weights and in exports.

A folder holds the files of one tokenizer as its provider made them, and `stackwise.json` with the loaders and settings that use it and
the digest of every file. This module does not import torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from stackwise.contracts.tokenizers import RunTokenizer, Tokenizer, Tokenizers
from stackwise.errors import UserError
from stackwise.storage.regular import read_regular

TOKENIZERS, ABOUT = "tokenizers", "stackwise.json"
_LARGEST_FILE = 1 << 30
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def tokenizer_documents(tokenizers: Tokenizers) -> dict[str, dict[str, bytes]]:
    """Folder → file name → content, for all tokenizers."""
    documents: dict[str, dict[str, bytes]] = {}
    for vocabulary in dict.fromkeys(entry.tokenizer.vocabulary for entry in tokenizers.entries):
        entries = [entry for entry in tokenizers.entries if entry.tokenizer.vocabulary == vocabulary]
        files = {name: content for entry in reversed(entries) for name, content in entry.tokenizer.files.items()}
        about = {
            "vocabulary": vocabulary,
            "loaders": [{"use": entry.use, "settings": entry.settings} for entry in entries],
            "sha256": {name: sha256(content).hexdigest() for name, content in sorted(files.items())},
        }
        described = (json.dumps(about, indent=1) + "\n").encode()
        documents[_folder_name(vocabulary)] = {**{_file_name(name): content for name, content in files.items()}, ABOUT: described}
    return documents


def read_tokenizers(directory: Path | str) -> Tokenizers:
    """The tokenizers of a run directory, of final weights or of an export; empty if there are none.

    Raises:
        UserError: a folder cannot be read, or a file is not as it was written.
    """
    folder = Path(directory) / TOKENIZERS
    try:
        places = sorted(place for place in folder.iterdir() if not place.name.startswith("."))
    except FileNotFoundError:
        return Tokenizers()
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}: mend its permissions") from None
    return Tokenizers(tuple(entry for place in places for entry in _read(place)))


def _read(place: Path) -> Iterator[RunTokenizer]:
    try:
        about: Any = json.loads(read_regular(place / ABOUT))
        files = {str(name): read_regular(place / _file_name(str(name)), _LARGEST_FILE) for name in about["sha256"]}
        damaged = [name for name, content in files.items() if sha256(content).hexdigest() != about["sha256"][name]]
        tokenizer = Tokenizer(vocabulary=str(about["vocabulary"]), files=files)
        entries = [
            RunTokenizer(use=str(each["use"]), settings=_mapping(each["settings"]), tokenizer=tokenizer) for each in about["loaders"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the tokenizer in {place} cannot be read: {reason}: put the folder back, as it is in `final` or in an export"
        ) from None
    if damaged:
        sentence = f"{place / damaged[0]} is damaged: its sha256 is not the one that {ABOUT} states"
        raise UserError(f"{sentence}: put the file back, as it is in `final` or in an export of the run")
    yield from entries


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a map of settings")
    return value


def _folder_name(vocabulary: str) -> str:
    """The vocabulary itself if it can name a folder, else its digest."""
    return vocabulary if _SAFE.fullmatch(vocabulary) else sha256(vocabulary.encode()).hexdigest()[:16]


def _file_name(name: str) -> str:
    """The name, checked to hold no folder.

    Raises:
        ValueError: it is not a plain file name.
    """
    if name != PurePath(name).name or name in ("", ".", "..", ABOUT) or "\\" in name:
        raise ValueError(f"{name!r} is not a name of a file of a tokenizer")
    return name
