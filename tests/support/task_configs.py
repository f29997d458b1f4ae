"""Whole configs of every task, and for each option of tasks and of the parts they need a value that leads elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from tiny_walks import VOCAB, base, memory

DECODER = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]}
CONV = {"use": "transformer.conv", "width": 8, "stacks": [{"base": 1}], "kernel": 3}
MEMORY = {
    "use": "transformer.encoder-decoder",
    "width": 8,
    "heads": 2,
    "stacks": [{"one": 1}, {"two": 1}, {"three": 1}],
    "encoder": ["one"],
}
TOKEN, LM, CLASSIFIER = {"use": "transformer.token"}, {"use": "transformer.lm"}, {"use": "transformer.classifier", "classes": 3}


def _drawn(*shape: int, below: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def _config(
    task: dict[str, Any],
    source: dict[str, Any],
    embedding: dict[str, Any] = TOKEN,
    rack: dict[str, Any] = DECODER,
    head: dict[str, Any] = LM,
) -> dict[str, Any]:
    length = {} if embedding["use"] == "transformer.patch" else {"seq_len": 12}
    return base(
        run={"name": "task", "seed": 3, "horizon": "4 steps", "device": "cpu"},
        task={"use": f"transformer.{task.pop('name')}", **task},
        data={"sources": {"a": source}, "batch_size": 4, **length},
        model={"embedding": embedding, "rack": rack, "head": head},
        evaluate={"e": {"batches": 2}},
    )


def _rows(**arrays: torch.Tensor) -> dict[str, Any]:
    return {"use": "data.memory", "arrays": arrays, "heldout": 0.25}


STREAM = memory(vocab=VOCAB, heldout=0.25)
LABELLED = _rows(tokens=_drawn(80, 12), label=_drawn(80, below=3, seed=1))
IMAGES = _rows(image=_drawn(80, 4, 4, 2).float(), label=_drawn(80, below=3, seed=1))
PAIRS = _rows(prompt=_drawn(80, 12), response=_drawn(80, 12, seed=1))
RESPONSES = _rows(chosen=_drawn(80, 13), rejected=_drawn(80, 13, seed=1), prefix=torch.full((80,), 3))


def masked(**options: Any) -> dict[str, Any]:
    """A masked language model."""
    return _config({"name": "masked-lm", "rate": 0.3, **options}, STREAM)


def supervised() -> dict[str, Any]:
    """A language model that is fine-tuned on responses."""
    return _config({"name": "causal-lm"}, _rows(tokens=_drawn(80, 13), prefix=torch.full((80,), 3)), {**TOKEN, "vocab": VOCAB})


def masked_bytes() -> dict[str, Any]:
    """A masked language model of bytes."""
    return _config({"name": "masked-lm", "rate": 0.3}, {"use": "data.text-files", "paths": ["*.txt"], "heldout": 0.5})


def diffusion() -> dict[str, Any]:
    """A diffusion language model."""
    return _config({"name": "mask-diffusion"}, STREAM)


def classified(rack: dict[str, Any] = DECODER) -> dict[str, Any]:
    """A classifier of sequences."""
    return _config({"name": "classification"}, LABELLED, {**TOKEN, "vocab": VOCAB}, rack, CLASSIFIER)


def convolved() -> dict[str, Any]:
    """The same without attention."""
    return classified(CONV)


def seen() -> dict[str, Any]:
    """A classifier of images."""
    return _config({"name": "classification", "input": "image"}, IMAGES, {"use": "transformer.patch", "patch": 2}, DECODER, CLASSIFIER)


def cut() -> dict[str, Any]:
    """Spans cut out, as a prefix."""
    return _config({"name": "seq2seq", "pairs": "spans"}, STREAM)


def remembered() -> dict[str, Any]:
    """Given pairs, from a memory."""
    return _config({"name": "seq2seq", "form": "encoder-decoder"}, PAIRS, {**TOKEN, "vocab": VOCAB + 1}, MEMORY)


def preferred(method: str) -> Any:
    """A maker of an alignment."""
    return lambda: _config({"name": "preference", "method": method}, RESPONSES, {**TOKEN, "vocab": VOCAB})


def viewed() -> dict[str, Any]:
    """Two views of the same tokens."""
    source = _rows(tokens=_drawn(80, 12), other_tokens=_drawn(80, 12, seed=1))
    return _config({"name": "contrastive"}, source, {**TOKEN, "vocab": VOCAB}, DECODER, {"use": "transformer.vector", "vector": 4})


def taught() -> dict[str, Any]:
    """A model that learns from what it was at entry, which it leaves as half of the loss is of the targets."""
    return _config({"name": "distill", "reference": "phase entry", "soft": 0.5}, STREAM)


_TASK, _RACK, _EMBEDDING, _HEAD = "task/", "model/rack/", "model/embedding/", "model/head/"

ROWS: dict[str, list[tuple[Any, str, Any]]] = {
    "transformer.masked-lm.symbols": [(masked, _TASK + "symbols", 20)],
    "transformer.masked-lm.mask_token": [(masked, _TASK + "mask_token", 3)],
    "transformer.masked-lm.rate": [(masked, _TASK + "rate", 0.6), (masked, _TASK + "rate", {"linear": {"from": 0.3, "to": 0.9}})],
    "transformer.masked-lm.masked": [(masked, _TASK + "masked", 0.3)],
    "transformer.masked-lm.random": [(masked, _TASK + "random", 0.2), (masked, _TASK + "random", 0.3)],
    "transformer.causal-lm.targets": [(supervised, _TASK + "targets", "all")],
    "transformer.masked-lm.whole_words": [(masked_bytes, _TASK + "whole_words", True), (masked, _TASK + "whole_words", True)],
    "transformer.masked-lm.special": [(masked, _TASK + "special", [0, 1, 2])],
    "transformer.mask-diffusion.noise": [(diffusion, _TASK + "noise", "cosine")],
    "transformer.classification.input": [(classified, _TASK + "input", "image")],
    "transformer.classification.attention": [(classified, _TASK + "attention", "causal")],
    "transformer.patch.patch": [(seen, _EMBEDDING + "patch", 4)],
    "transformer.patch.rows": [(seen, _EMBEDDING + "rows", 8)],
    "transformer.patch.columns": [(seen, _EMBEDDING + "columns", 8)],
    "transformer.patch.channels": [(seen, _EMBEDDING + "channels", 1)],
    "transformer.patch.width": [(seen, _EMBEDDING + "width", 12)],
    "transformer.patch.positions": [(seen, _EMBEDDING + "positions", "none")],
    "transformer.patch.init_std": [(seen, _EMBEDDING + "init_std", 0.2)],
    "transformer.classifier.classes": [(classified, _HEAD + "classes", 4)],
    "transformer.classifier.width": [(classified, _HEAD + "width", 12)],
    "transformer.classifier.pool": [(classified, _HEAD + "pool", "first"), (classified, _HEAD + "pool", "last")],
    "transformer.classifier.init_std": [(classified, _HEAD + "init_std", 0)],
    "transformer.distill.temperature": [(taught, _TASK + "temperature", 3.0)],
    "transformer.distill.soft": [(taught, _TASK + "soft", 0.1)],
    "transformer.contrastive.input": [(viewed, _TASK + "input", "image")],
    "transformer.contrastive.views": [(viewed, _TASK + "views", "same")],
    "transformer.contrastive.temperature": [(viewed, _TASK + "temperature", {"linear": {"from": 0.07, "to": 0.5}})],
    "transformer.contrastive.attention": [(viewed, _TASK + "attention", "causal")],
    "transformer.vector.vector": [(viewed, _HEAD + "vector", 5)],
    "transformer.vector.width": [(viewed, _HEAD + "width", 12)],
    "transformer.vector.pool": [(viewed, _HEAD + "pool", "first"), (viewed, _HEAD + "pool", "last")],
    "transformer.vector.init_std": [(viewed, _HEAD + "init_std", 0.2)],
    "transformer.conv.width": [(convolved, _RACK + "width", 12)],
    "transformer.conv.stacks": [(convolved, _RACK + "stacks", [{"base": 2}])],
    "transformer.conv.kernel": [(convolved, _RACK + "kernel", 5), (convolved, _RACK + "kernel", 4)],
    "transformer.conv.ff": [(convolved, _RACK + "ff", 5)],
    "transformer.conv.norm": [(convolved, _RACK + "norm", "rmsnorm")],
    "transformer.conv.dropout": [(convolved, _RACK + "dropout", 0.5), (convolved, _RACK + "dropout", {"linear": {"from": 0.5, "to": 0}})],
    "transformer.conv.context": [(convolved, _RACK + "context", "causal")],
    "transformer.conv.init_std": [(convolved, _RACK + "init_std", 0.2)],
    "transformer.encoder-decoder.encoder": [(remembered, _RACK + "encoder", ["one", "two"]), (remembered, _RACK + "encoder", ["none"])],
    "transformer.seq2seq.form": [(cut, _TASK + "form", "encoder-decoder")],
    "transformer.seq2seq.pairs": [(cut, _TASK + "pairs", "given")],
    "transformer.seq2seq.symbols": [(cut, _TASK + "symbols", 20)],
    "transformer.seq2seq.density": [(cut, _TASK + "density", 0.5)],
    "transformer.seq2seq.mean_span": [(cut, _TASK + "mean_span", 1)],
    "transformer.seq2seq.sentinels": [(cut, _TASK + "sentinels", 9), (remembered, _TASK + "sentinels", 9)],
    "transformer.preference.method": [(preferred("dpo"), _TASK + "method", method) for method in ("simpo", "orpo")],
    "transformer.preference.beta": [(preferred("dpo"), _TASK + "beta", 0.5), (preferred("orpo"), _TASK + "beta", 0.5)],
    "transformer.preference.gamma": [(preferred("simpo"), _TASK + "gamma", 1.5)],
    "transformer.preference.odds_weight": [(preferred("orpo"), _TASK + "odds_weight", 1.0)],
}
"""`<provider>.<component>.<option>` → (base config, where, another value)."""
