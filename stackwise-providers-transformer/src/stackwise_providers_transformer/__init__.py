"""Transformer parts for StackWise: token embedding, decoder rack, language-model head, causal language modelling, growth in
depth, width and vocabulary, low-rank adapters.

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
    "LoRAOptions": "lora_options",
    "TokenEmbedding": "embedding",
    "Decoder": "decoder",
    "LMHead": "head",
    "CausalLM": "causal_lm",
    "LoRA": "lora",
    "CopyingGrowth": "depth_growth",
    "IdentityGrowth": "depth_growth",
    "GatedGrowth": "depth_growth",
    "FeedForwardGrowth": "ff_growth",
    "WidthGrowth": "width_growth",
    "VocabularyGrowth": "vocabulary_growth",
}

__all__ = list(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
