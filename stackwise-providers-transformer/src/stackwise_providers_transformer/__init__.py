"""Transformer parts for StackWise: token embedding, decoder rack, language-model head, causal language modelling, depth growth.

Names resolve on first use, so that listing what is installed never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FACE = {
    "TokenOptions": "options",
    "DecoderOptions": "options",
    "LMOptions": "options",
    "CausalLMOptions": "options",
    "GrowthOptions": "options",
    "TokenEmbedding": "embedding",
    "Decoder": "decoder",
    "LMHead": "head",
    "CausalLM": "causal_lm",
    "StackGrowth": "growth",
    "IdentityGrowth": "growth",
}

__all__ = list(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
