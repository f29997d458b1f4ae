"""Tiny models of every family that folders hold, a folder's model of ours, and rows to compare them on."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
import transformers as hf

from stackwise import BuildContext, Model, StoredModel
from stackwise.config import structure_options
from stackwise.host.discovery import discover
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.hugging_face.format import HuggingFaceFormat

VOCAB, BLOCKS, LENGTHS, WINDOW = 53, 3, (1, 7, 23), 6
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 16}
GEMMA = {**WIDE, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **options}}


ORIGINAL = {"original_max_position_embeddings": 8}
CONFIGS: dict[str, hf.PreTrainedConfig] = {
    "gpt2": hf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=BLOCKS, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    "pythia": hf.GPTNeoXConfig(**{**SIZES, "rotary_pct": 0.25}),
    "neox-sequential": hf.GPTNeoXConfig(**{**SIZES, "rotary_pct": 1.0}, use_parallel_residual=False, attention_bias=False),
    "llama2": hf.LlamaConfig(**SIZES, rms_norm_eps=1e-5),
    "llama3": hf.LlamaConfig(
        **GROUPED, tie_word_embeddings=True, **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **ORIGINAL)
    ),
    "llama-biases": hf.LlamaConfig(**WIDE, attention_bias=True, mlp_bias=True),
    "smollm2": hf.LlamaConfig(**GROUPED, tie_word_embeddings=True, **rope("default")),
    "mistral": hf.MistralConfig(**WIDE, sliding_window=WINDOW),
    "qwen2": hf.Qwen2Config(**GROUPED),
    "qwen2-windows": hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": hf.Qwen3Config(**WIDE, tie_word_embeddings=True),
    "gemma2": hf.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3": hf.Gemma3TextConfig(**{**GEMMA, "sliding_window_pattern": 2}),
    "smollm3": hf.SmolLM3Config(**GROUPED, no_rope_layer_interval=2),
    "olmo2": hf.Olmo2Config(**GROUPED),
    "bert": hf.BertConfig(**SIZES),
    "modernbert": hf.ModernBertConfig(**SIZES, local_attention=6, cls_token_id=1, sep_token_id=2),
}
VARIANTS = {"llama2", "smollm2", "qwen2"}
"""Second models of a family that add no rule, name of a tensor or piece of the block: a head of its own, as many keys as queries, plain
rotary positions and biases of queries, keys and values are tried by others here. `make test-all` tries their combinations."""
MODELS = [pytest.param(name, marks=pytest.mark.rare) if name in VARIANTS else name for name in CONFIGS]
FORMAT, REGISTRY = HuggingFaceFormat(HuggingFaceOptions()), discover()


def drawn(config: hf.PreTrainedConfig) -> hf.PreTrainedModel:
    """A model of transformers in which no parameter is without effect, norms and biases included."""
    auto = hf.AutoModelForMaskedLM if "bert" in config.model_type else hf.AutoModelForCausalLM
    torch.manual_seed(0)
    model: hf.PreTrainedModel = auto.from_config(config).eval()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        parameter.data.add_(torch.randn(parameter.shape) * (0.4 if ".0." in name else 0.15))
    return model


def built(stored: StoredModel) -> Model:
    """Our model of a folder, filled."""
    parts = {}
    sizes = {"width": stored.model["rack"]["width"], "vocab": stored.model["embedding"]["vocab"]}
    for role, node in stored.model.items():
        component = REGISTRY.get(role, node["use"])  # type: ignore[arg-type]  # the roles are kinds
        options, _, problems = structure_options(component.load_options(), {k: v for k, v in node.items() if k != "use"}, role)
        assert not problems, problems
        options = options if role == "rack" else attrs.evolve(options, **sizes)
        parts[role] = component.build(options, BuildContext(seed=0))
    model = Model(**parts)
    model.wire()
    assert {name for name, _ in model.named_parameters()} == set(stored.tensors)
    for name, parameter in model.named_parameters():
        assert stored.tensors.shapes[name] == parameter.shape  # type: ignore[attr-defined]  # an attribute of the format's own mapping
        parameter.data.copy_(stored.tensors[name])
    return model.eval()


def rows(length: int, count: int = 2) -> torch.Tensor:
    return torch.randint(3, VOCAB, (count, length), generator=torch.Generator().manual_seed(length))
