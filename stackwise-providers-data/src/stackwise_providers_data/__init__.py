"""Loaders and transforms for StackWise: text, records and arrays from files, arrays in memory, noise and truncation.

Names resolve on first use, so that listing what is installed never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FACE = {
    "StdlibOptions": "options",
    "TextFilesOptions": "options",
    "MemoryOptions": "memory_options",
    "JsonlOptions": "record_options",
    "HfDatasetOptions": "record_options",
    "ArrayFilesOptions": "array_options",
    "TokenizerOptions": "tokenizer_options",
    "BpeTraining": "tokenizer_options",
    "TokenNoiseOptions": "transform_options",
    "TruncateOptions": "transform_options",
    "FeatureNoiseOptions": "transform_options",
    "Permutation": "permutation",
    "TokenStream": "token_stream",
    "PaddedRows": "padded_rows",
    "Examples": "examples",
    "RowStream": "row_stream",
}

__all__ = list(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
