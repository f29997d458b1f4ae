"""Optimizers for StackWise: AdamW.

Names resolve on first use, so that listing what is installed never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FACE = {"AdamWOptions": "options", "build_adamw": "adamw"}

__all__ = list(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
