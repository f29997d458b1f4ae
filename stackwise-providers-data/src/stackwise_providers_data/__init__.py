"""Loaders for StackWise: the Python standard library as bytes, text files as bytes, arrays in memory.

Names resolve on first use, so that listing what is installed never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FACE = {
    "StdlibOptions": "options",
    "TextFilesOptions": "options",
    "MemoryOptions": "options",
    "Permutation": "permutation",
    "TokenStream": "token_stream",
    "RowStream": "row_stream",
}

__all__ = list(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
