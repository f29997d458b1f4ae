"""Optimizers for StackWise, and a learning-rate reaction.

Names resolve on first use, so that listing components never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FACE = {
    "AdamWOptions": "options",
    "SGDOptions": "options",
    "MuonOptions": "options",
    "AdafactorOptions": "options",
    "LionOptions": "options",
    "ScheduleFreeOptions": "options",
    "NamedOptions": "options",
    "PlateauOptions": "plateau",
    "Plateau": "plateau",
    "SGD": "sgd",
    "Muon": "muon",
    "Lion": "lion",
    "ScheduleFreeAdamW": "schedule_free",
    "build_adamw": "adamw",
    "build_sgd": "sgd",
    "build_muon": "muon",
    "build_adafactor": "adafactor",
    "build_lion": "lion",
    "build_schedule_free": "schedule_free",
    "build_torch": "from_torch",
    "build_pytorch_optimizer": "from_pytorch_optimizer",
    "build_plateau": "plateau",
}

__all__ = list(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
