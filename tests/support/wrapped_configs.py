"""Whole configs of a model that transformers computes, and for each option of its rack and head a value that leads elsewhere."""

from __future__ import annotations

from typing import Any

from tiny_walks import VOCAB, base, memory

_FIELDS = {
    "model_type": "starcoder2",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "sliding_window": None,
}
_BERT = {"model_type": "roberta", **{name: _FIELDS[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}}
_BERT |= {"vocab_size": 258, "pad_token_id": 0, "max_position_embeddings": 330}


def _config(fields: dict[str, Any], blocks: str, source: dict[str, Any], seq_len: int = 6) -> dict[str, Any]:
    rack = {"use": "transformer.hf", "config": fields, "width": 8, "stacks": [{"base": 1}], "blocks": blocks}
    model = {
        "embedding": {"use": "transformer.token", "vocab": fields["vocab_size"]},
        "rack": rack,
        "head": {"use": "transformer.hf", "config": dict(fields)},
    }
    data = {"sources": {"a": source}, "batch_size": 2, "seq_len": seq_len}
    return base(run={"name": "wrapped", "seed": 3, "horizon": "4 steps", "device": "cpu"}, data=data, model=model)


def causal() -> dict[str, Any]:
    """A causal language model."""
    return _config(_FIELDS, "layers", memory(0))


def packed() -> dict[str, Any]:
    """A causal language model whose positions begin anew at each file of a row."""
    source = {"use": "data.text-files", "paths": ["*.txt"], "rows": "packed"}
    config = _config({**_FIELDS, "vocab_size": 257}, "layers", source, 200)
    config["data"]["drop"] = ["segments"]
    return config


def padded() -> dict[str, Any]:
    """A masked language model that sees whole rows, padding hidden from it."""
    config = _config(_BERT, "encoder.layer", {"use": "data.text-files", "paths": ["*.txt"], "rows": "padded"}, 300)
    config["task"] = {"use": "transformer.masked-lm", "rate": 0.3}
    config["model"]["rack"]["attention"] = "bidirectional"
    config["model"]["head"]["auto"] = "masked-lm"
    return config


def grown() -> dict[str, Any]:
    """A causal language model that is grown by blocks that change nothing at first, for which the ends of branches must be known."""
    config = causal()
    outputs = [f"{place}.{kind}" for place in ("self_attn.o_proj", "mlp.c_proj") for kind in ("weight", "bias")]
    config["model"]["rack"]["residual_outputs"] = outputs
    growth = {"growth": {"use": "transformer.identity"}}
    config["phases"] = {"one": {"until": "2 steps"}, "two": {"model": {"rack": {"stacks": [{"base": 2}]}}, "enter": growth}}
    return config


def classified() -> dict[str, Any]:
    """A classifier of rows."""
    arrays = {"tokens": [[i % 5, 3, i % 7, 2] for i in range(40)], "label": [i % 2 for i in range(40)]}
    config = _config(_FIELDS, "layers", {"use": "data.memory", "arrays": arrays}, 4)
    config["task"] = {"use": "transformer.classification", "attention": "causal"}
    config["model"]["head"] = {"use": "transformer.hf-classifier", "config": dict(_FIELDS), "classes": 2}
    return config


_RACK, _HEAD = "model/rack/", "model/head/"

ROWS: dict[str, list[tuple[Any, str, Any]]] = {
    "transformer.hf.config": [
        (causal, _RACK + "config/intermediate_size", 20),
        (causal, _RACK + "config/nonsense", 20),
        (causal, _HEAD + "config/nonsense", 20),
    ],
    "transformer.hf.width": [(causal, _RACK + "width", 12), (causal, _HEAD + "width", 12)],
    "transformer.hf.inputs": [(causal, _RACK + "inputs", 6)],
    "transformer.hf.stacks": [(causal, _RACK + "stacks", [{"base": 2}])],
    "transformer.hf.blocks": [(causal, _RACK + "blocks", "nothing")],
    "transformer.hf.residual_outputs": [(grown, _RACK + "residual_outputs", []), (causal, _RACK + "residual_outputs", ["nothing"])],
    "transformer.hf.attention": [(causal, _RACK + "attention", "bidirectional")],
    "transformer.hf.side": [(padded, _RACK + "side", ["positions"]), (packed, _RACK + "side", ["mask"])],
    "transformer.hf.balance": [(causal, _RACK + "balance", True)],
    "transformer.hf.vocab": [(causal, _HEAD + "vocab", 20)],
    "transformer.hf.auto": [(causal, _HEAD + "auto", "masked-lm")],
    "transformer.hf-classifier.config": [(classified, _HEAD + "config/nonsense", 20)],
    "transformer.hf-classifier.classes": [(classified, _HEAD + "classes", 3)],
    "transformer.hf-classifier.width": [(classified, _HEAD + "width", 12)],
    "transformer.hf-classifier.each": [(classified, _HEAD + "each", "token")],
    "transformer.hf.tied": [(causal, _HEAD + "tied", "lm_head.weight"), (causal, _HEAD + "tied", "nothing")],
}
"""`<provider>.<component>.<option>` → (base config, where, another value)."""
