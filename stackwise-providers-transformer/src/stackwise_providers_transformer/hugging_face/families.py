"""The families of models that a folder may hold: what their fields mean, and what their tensors are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from stackwise_providers_transformer.hugging_face.names import ByHead, Entry, Halves, Names, Stacked, Turned, one
from stackwise_providers_transformer.hugging_face.rules import (
    Fixed,
    HeadSize,
    Inside,
    KeyValueHeads,
    QueryScalar,
    Rotary,
    RotaryByType,
    Unturned,
    Windows,
)
from stackwise_providers_transformer.hugging_face.settings import Always, Must, Rule, Same, Words
from stackwise_providers_transformer.options import TransformOptions


@frozen(kw_only=True)
class Family:
    """One `model_type`."""

    model_type: str
    architecture: str
    """The class of transformers that has the head."""
    rules: tuple[Rule, ...]
    """In reading order: a rule may use what those before it have read."""
    names: Names
    ids: tuple[str, ...] = ("bos_token_id", "eos_token_id", "pad_token_id")
    """Fields of special tokens; written as null where none are known, for the family's own defaults would be another vocabulary's."""


GATES = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu-tanh", "gelu_new": "geglu-tanh", "relu": "reglu"}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "relu": "relu",
    "silu": "silu",
}
LAYER_NORM = Always({"rack.norm.kind": "layernorm", "rack.bias.norm": True})
SIZES = (
    Same.of("vocab_size", "embedding.vocab"),
    Same.of("hidden_size", "rack.width"),
    Same.of("num_hidden_layers", "rack.blocks"),
    Same.of("num_attention_heads", "rack.heads"),
    Same.of("intermediate_size", "rack.ff"),
)
ALIKE = Fixed("rack.kv_heads", lambda read: read["rack.heads"])
"""As many keys and values as queries."""
ATTENTION_BIAS = Same.of("attention_bias", "rack.bias.qkv", "rack.bias.output", default=False)


def _llama(
    *rules: Rule,
    tied: bool,
    eps: float,
    act: tuple[str, str] = ("hidden_act", "silu"),
    base: float = 10000.0,
    head: HeadSize | None = None,
    kv_heads: int | None = None,
) -> tuple[Rule, ...]:
    """The rules that Llama's descendants share, and a family's own."""
    shared = (
        *SIZES,
        KeyValueHeads(kv_heads),
        head or HeadSize(),
        Same.of("rms_norm_eps", "rack.norm.eps", default=eps),
        Words(act[0], "rack.mlp", GATES, act[1]),
        Same.of("tie_word_embeddings", "head.tied", default=tied),
    )
    return (*shared, *rules) if any(isinstance(rule, RotaryByType) for rule in rules) else (*shared, Rotary(base), *rules)


def _llama_names(*inside: Entry, norms: tuple[Entry, ...] = ()) -> Names:
    """The tensors that Llama's descendants share, and a family's own."""
    usual = (one("attention_norm", "input_layernorm"), one("mlp_norm", "post_attention_layernorm"))
    return Names(
        prefix="model.",
        block="model.layers.{i}.",
        whole={"embedding.weight": "model.embed_tokens.weight", "rack.norm": "model.norm", "head.weight": "lm_head.weight"},
        inside=(
            (("attention.qkv",), Stacked(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))),
            one("attention.output", "self_attn.o_proj"),
            one("mlp.gate", "mlp.gate_proj"),
            one("mlp.up", "mlp.up_proj"),
            one("mlp.down", "mlp.down_proj"),
            *(norms or usual),
            *inside,
        ),
        repeated={"lm_head.weight": "model.embed_tokens.weight"},
    )


QUERY_KEY_NORMS = (one("attention.query_norm", "self_attn.q_norm"), one("attention.key_norm", "self_attn.k_norm"))
SANDWICH = (
    one("attention_norm", "input_layernorm"),
    one("attention_output_norm", "post_attention_layernorm"),
    one("mlp_norm", "pre_feedforward_layernorm"),
    one("mlp_output_norm", "post_feedforward_layernorm"),
)
QWEN_WINDOWS = Windows(
    "sliding_window", lambda i, config: i >= config.get("max_window_layers", 28), switch="use_sliding_window", usual=4096
)
GEMMA = (
    Always({"rack.norm.gain": "offset", "rack.norm.at": "sandwich"}),
    Fixed("embedding.scale", lambda read: read["rack.width"] ** 0.5),
    QueryScalar(256),
    Must("use_bidirectional_attention", False, also=(None,)),
    ATTENTION_BIAS,
)

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    rules=_llama(ATTENTION_BIAS, Same.of("mlp_bias", "rack.bias.mlp", default=False), Must("pretraining_tp", 1), tied=False, eps=1e-6),
    names=_llama_names(),
)
MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    rules=_llama(Windows("sliding_window", lambda i, config: True, listed=False, usual=4096), tied=False, eps=1e-6, kv_heads=8),
    names=_llama_names(),
)
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    rules=_llama(Always({"rack.bias.qkv": True}), QWEN_WINDOWS, tied=False, eps=1e-6, kv_heads=32, head=HeadSize(stated=False)),
    names=_llama_names(),
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    rules=_llama(
        Always({"rack.qk_norm": "heads"}), ATTENTION_BIAS, QWEN_WINDOWS, tied=False, eps=1e-6, kv_heads=32, head=HeadSize(default=128)
    ),
    names=_llama_names(*QUERY_KEY_NORMS),
)
SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    rules=_llama(
        ATTENTION_BIAS,
        Same.of("mlp_bias", "rack.bias.mlp", default=False),
        Unturned(),
        Windows("sliding_window", lambda i, config: False, switch="use_sliding_window"),
        tied=True,
        eps=1e-6,
        base=2000000.0,
        kv_heads=4,
        head=HeadSize(stated=False),
    ),
    names=_llama_names(),
)
OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    rules=_llama(
        Always({"rack.qk_norm": "whole", "rack.norm.at": "output"}), ATTENTION_BIAS, tied=False, eps=1e-5, head=HeadSize(stated=False)
    ),
    names=_llama_names(
        *QUERY_KEY_NORMS, norms=(one("attention_norm", "post_attention_layernorm"), one("mlp_norm", "post_feedforward_layernorm"))
    ),
)
GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    rules=_llama(
        *GEMMA,
        Same.of("final_logit_softcapping", "head.cap", default=30.0, null=True),
        Same.of("attn_logit_softcapping", "rack.scores.cap", default=50.0, null=True),
        Windows("sliding_window", lambda i, config: i % 2 == 0, usual=4096),
        tied=True,
        eps=1e-6,
        act=("hidden_activation", "gelu_pytorch_tanh"),
        kv_heads=4,
        head=HeadSize(default=256),
    ),
    names=_llama_names(norms=SANDWICH),
)
GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    rules=_llama(
        *GEMMA,
        Same.of("final_logit_softcapping", "head.cap", default=None),
        Must("attn_logit_softcapping", None),  # transformers reads the field of these models, and caps nothing
        Always({"rack.qk_norm": "heads"}),
        Windows("sliding_window", lambda i, config: (i + 1) % config.get("sliding_window_pattern", 6) != 0, usual=4096),
        RotaryByType(1000000.0, 10000.0, ("rope_theta", "rope_local_base_freq")),
        tied=True,
        eps=1e-6,
        act=("hidden_activation", "gelu_pytorch_tanh"),
        kv_heads=4,
        head=HeadSize(default=256),
    ),
    names=_llama_names(*QUERY_KEY_NORMS, norms=SANDWICH),
)
GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    rules=(
        Always({"rack.positions": "learned", "rack.rotary.base": 10000.0}),
        LAYER_NORM,
        Same.of("vocab_size", "embedding.vocab"),
        Same.of("n_embd", "rack.width"),
        Same.of("n_layer", "rack.blocks"),
        Same.of("n_head", "rack.heads"),
        Same.of("n_positions", "rack.max_positions"),
        Fixed("rack.ff", lambda read: 4 * read["rack.width"]),
        Same.of("n_inner", "rack.ff", like="rack.ff"),
        ALIKE,
        HeadSize(stated=False),
        Words("activation_function", "rack.mlp", ACTIVATIONS, "gelu_new"),
        Same.of("layer_norm_epsilon", "rack.norm.eps", default=1e-5),
        Always({"rack.bias.qkv": True, "rack.bias.output": True, "rack.bias.mlp": True}),
        Must("scale_attn_weights", True),
        Must("scale_attn_by_inverse_layer_idx", False),
        Must("add_cross_attention", False),
        Same.of("tie_word_embeddings", "head.tied", default=True),
    ),
    names=Names(
        prefix="transformer.",
        block="transformer.h.{i}.",
        whole={
            "embedding.weight": "transformer.wte.weight",
            "rack.positions.weight": "transformer.wpe.weight",
            "rack.norm": "transformer.ln_f",
            "head.weight": "lm_head.weight",
        },
        inside=(
            one("attention_norm", "ln_1"),
            (("attention.qkv",), Turned(("attn.c_attn",))),
            (("attention.output",), Turned(("attn.c_proj",))),
            one("mlp_norm", "ln_2"),
            (("mlp.up",), Turned(("mlp.c_fc",))),
            (("mlp.down",), Turned(("mlp.c_proj",))),
        ),
        repeated={"lm_head.weight": "transformer.wte.weight"},
    ),
)
GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    rules=(
        LAYER_NORM,
        *SIZES,
        ALIKE,
        HeadSize(stated=False),
        Words("hidden_act", "rack.mlp", ACTIVATIONS, "gelu"),
        Same.of("layer_norm_eps", "rack.norm.eps", default=1e-5),
        Always({"rack.bias.mlp": True}),
        Same.of("attention_bias", "rack.bias.qkv", "rack.bias.output", default=True),
        Words("use_parallel_residual", "rack.residual", {True: "parallel", False: "sequential"}, True),
        Rotary(10000.0, share=0.25, old_base="rotary_emb_base", old_share="rotary_pct"),
        Must("is_decoder", False, also=(True,)),
        Same.of("tie_word_embeddings", "head.tied", default=False),
    ),
    names=Names(
        prefix="gpt_neox.",
        block="gpt_neox.layers.{i}.",
        whole={"embedding.weight": "gpt_neox.embed_in.weight", "rack.norm": "gpt_neox.final_layer_norm", "head.weight": "embed_out.weight"},
        inside=(
            one("attention_norm", "input_layernorm"),
            (("attention.qkv",), ByHead(("attention.query_key_value",))),
            one("attention.output", "attention.dense"),
            one("mlp_norm", "post_attention_layernorm"),
            one("mlp.up", "mlp.dense_h_to_4h"),
            one("mlp.down", "mlp.dense_4h_to_h"),
        ),
        repeated={"embed_out.weight": "gpt_neox.embed_in.weight"},
        passing=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"),
    ),
)
_BIDIRECTIONAL: Mapping[str, Any] = {"rack.attention": "bidirectional"}
BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    rules=(
        Always({**_BIDIRECTIONAL, "rack.positions": "learned", "rack.norm.at": "post", "rack.norm.embedding": True}),
        LAYER_NORM,
        *SIZES,
        ALIKE,
        HeadSize(stated=False),
        Words("hidden_act", "rack.mlp", ACTIVATIONS, "gelu"),
        Same.of("layer_norm_eps", "rack.norm.eps", default=1e-12),
        Always({"rack.bias.qkv": True, "rack.bias.output": True, "rack.bias.mlp": True, "head.bias": True}),
        Same.of("max_position_embeddings", "rack.max_positions"),
        Same.of("type_vocab_size", "embedding.types", default=2),
        Must("position_embedding_type", "absolute"),
        Must("is_decoder", False),
        Must("add_cross_attention", False),
        Inside(
            "head.transform",
            TransformOptions,
            {"hidden_act": ("activation", ACTIVATIONS, "gelu"), "layer_norm_eps": ("eps", None, 1e-12)},
        ),
        Same.of("tie_word_embeddings", "head.tied", default=True),
    ),
    names=Names(
        prefix="bert.",
        block="bert.encoder.layer.{i}.",
        whole={
            "embedding.weight": "bert.embeddings.word_embeddings.weight",
            "embedding.types": "bert.embeddings.token_type_embeddings.weight",
            "rack.positions.weight": "bert.embeddings.position_embeddings.weight",
            "rack.embedding_norm": "bert.embeddings.LayerNorm",
            "head.transform.dense": "cls.predictions.transform.dense",
            "head.transform.norm": "cls.predictions.transform.LayerNorm",
            "head.bias": "cls.predictions.bias",
            "head.weight": "cls.predictions.decoder.weight",
        },
        inside=(
            (("attention.qkv",), Stacked(("attention.self.query", "attention.self.key", "attention.self.value"))),
            one("attention.output", "attention.output.dense"),
            one("attention_norm", "attention.output.LayerNorm"),
            one("mlp.up", "intermediate.dense"),
            one("mlp.down", "output.dense"),
            one("mlp_norm", "output.LayerNorm"),
        ),
        repeated={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        passing=(".embeddings.position_ids",),
    ),
)
MODERNBERT = Family(
    model_type="modernbert",
    architecture="ModernBertForMaskedLM",
    ids=("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"),
    rules=(
        Always({**_BIDIRECTIONAL, "rack.norm.kind": "layernorm", "rack.norm.embedding": True, "rack.norm.first": False}),
        *SIZES,
        ALIKE,
        HeadSize(stated=False),
        Words("hidden_activation", "rack.mlp", GATES, "gelu"),
        Same.of("norm_eps", "rack.norm.eps", default=1e-5),
        Same.of("norm_bias", "rack.bias.norm", default=False),
        ATTENTION_BIAS,
        Same.of("mlp_bias", "rack.bias.mlp", default=False),
        Same.of("decoder_bias", "head.bias", default=True),
        Windows(
            "local_attention",
            lambda i, config: i % config.get("global_attn_every_n_layers", 3) != 0,
            to_ours=lambda size: size // 2 + 1,
            to_theirs=lambda size: 2 * (size - 1),
            usual=128,
        ),
        RotaryByType(160000.0, 10000.0, ("global_rope_theta", "local_rope_theta")),
        Inside(
            "head.transform",
            TransformOptions,
            {
                "classifier_activation": ("activation", ACTIVATIONS, "gelu"),
                "classifier_bias": ("bias", None, False),
                "norm_bias": ("norm_bias", None, False),
                "norm_eps": ("eps", None, 1e-5),
            },
        ),
        Same.of("tie_word_embeddings", "head.tied", default=True),
    ),
    names=Names(
        prefix="model.",
        block="model.layers.{i}.",
        whole={
            "embedding.weight": "model.embeddings.tok_embeddings.weight",
            "rack.embedding_norm": "model.embeddings.norm",
            "rack.norm": "model.final_norm",
            "head.transform.dense": "head.dense",
            "head.transform.norm": "head.norm",
            "head.bias": "decoder.bias",
            "head.weight": "decoder.weight",
        },
        inside=(
            one("attention_norm", "attn_norm"),
            one("attention.qkv", "attn.Wqkv"),
            one("attention.output", "attn.Wo"),
            one("mlp_norm", "mlp_norm"),
            (("mlp.gate", "mlp.up"), Halves(("mlp.Wi",))),
            one("mlp.down", "mlp.Wo"),
        ),
        repeated={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    ),
)

FAMILIES: Mapping[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, OLMO2, GEMMA2, GEMMA3, GPT2, GPT_NEOX, MODERNBERT, BERT)
}
"""Those that are known; an export without a folder to follow takes the first that has words for the model."""
