"""Whole configs over records, arrays in files and transforms, and for each of their options a value that leads elsewhere.

A maker writes what its config reads into the working directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_walks import VOCAB, base
from torch import Tensor, nn

from stackwise import Built, EmbeddingSpec, Moment, TaskSpec, TensorSpec

WIDTH = 3
"""Numbers in a list of features."""


class Lift(nn.Module):
    """Features → one position of hidden state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, WIDTH))

    def get_spec(self) -> EmbeddingSpec:
        return LIFT

    def forward(self, features: Tensor) -> Tensor:
        return (features @ self.weight.T).unsqueeze(1)


class Classify:
    """Cross-entropy of the first position's logits against the label."""

    def get_spec(self) -> TaskSpec:
        return CLASSIFY

    def prepare(self, batch: Mapping[str, Tensor], moment: Moment, generator: torch.Generator) -> Mapping[str, Tensor]:
        return batch

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, int, dict[str, Any]]:
        total = nn.functional.cross_entropy(outputs["logits"][:, 0], batch["label"], reduction="sum")
        return total, len(batch["label"]), {}


FEATURES = {"features": TensorSpec(("batch", WIDTH), "float32")}
LIFT = EmbeddingSpec(inputs=FEATURES)
CLASSIFY = TaskSpec(
    batch={**FEATURES, "label": TensorSpec("batch", "int64")}, inputs=FEATURES, outputs={"logits": TensorSpec("batch time vocab")}
)


def _record(i: int) -> dict[str, Any]:
    generator = np.random.default_rng(i)
    return {
        "text": f"record {i} tells of {i * i} things",
        "title": f"the {i}th title, of some length",
        "label": i % 2,
        "kind": ("odd", "even")[i % 2],
        "sort": (i // 2) % 2,
        "numbers": generator.normal(size=WIDTH).tolist(),
        "others": generator.normal(size=WIDTH).tolist(),
        "question": f"what is {i}?",
        "query": f"which is {i}?",
        "talk": [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": f"it is {i}"}],
        "chat": [{"role": "user", "content": f"which is {i}?"}, {"role": "assistant", "content": f"that is {i}"}],
        "answer": f"it is {i + 1}",
        "reply": f"it was {i + 2}",
    }


def _lines() -> list[str]:
    for name, shift in (("one", 0), ("two", 100)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(_record(i + shift)) + "\n" for i in range(40)), encoding="utf-8")
    return ["one.jsonl"]


def _config(source: dict[str, Any], **data: Any) -> dict[str, Any]:
    model = {
        "embedding": {"use": "transformer.token"},
        "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]},
        "head": {"use": "transformer.lm"},
    }
    return base(data={"sources": {"a": source}, "batch_size": 2, "seq_len": 12, **data}, model=model)


def records(rename: Mapping[str, str] | None = None, drop: Sequence[str] = (), **fields: Any) -> Callable[[], dict[str, Any]]:
    """A maker of a language model over JSON lines."""

    def make() -> dict[str, Any]:
        source = {"use": "data.jsonl", "paths": _lines(), "heldout": 0.3, **fields}
        return _config(source, **({"rename": rename} if rename else {}), drop=drop)

    return make


def conversations() -> dict[str, Any]:
    """A language model over conversations, in rows that hold a whole one."""
    config = records(messages="talk", template="chatml")()
    config["data"]["seq_len"] = 96
    return config


def numbers() -> dict[str, Any]:
    """A classifier of lists of numbers."""
    config = _config({"use": "data.jsonl", "paths": _lines(), "features": "numbers", "label": "label"}, seq_len=None)
    config["task"] = Built(Classify, spec=CLASSIFY)
    config["model"] |= {"embedding": Built(Lift, spec=LIFT, width=8), "head": {"use": "transformer.lm", "tied": False, "vocab": 2}}
    return config


def named_numbers() -> dict[str, Any]:
    """The same with classes by name."""
    config = numbers()
    config["data"]["sources"]["a"] |= {"label": "kind", "classes": ["odd", "even"]}
    return config


def noisy_numbers() -> dict[str, Any]:
    """The same with noise."""
    config = numbers()
    config["data"]["transforms"] = [{"use": "data.feature-noise", "std": 0.1}]
    return config


def dataset() -> dict[str, Any]:
    """A language model over a dataset on disk."""
    import datasets

    for name, shift in (("one", 0), ("two", 100)):
        parts = {part: datasets.Dataset.from_list([_record(i + first) for i in range(30)]) for part, first in _first_records(shift)}
        datasets.DatasetDict(parts).save_to_disk(name)
    return _config({"use": "data.hf-dataset", "path": "one", "text": "text", "heldout": 0.3})


def _first_records(shift: int) -> list[tuple[str, int]]:
    return [("train", shift), ("other", shift + 30)]


def arrays() -> dict[str, Any]:
    """A language model over a stream of ids with documents in it."""
    generator = np.random.default_rng(0)
    for name in ("stream", "second"):
        np.save(f"{name}.npy", generator.integers(VOCAB, size=900))
    np.save("starts.npy", np.arange(0, 900, 30))
    np.save("later.npy", np.arange(0, 900, 45))
    config = _config({"use": "data.array-files", "files": {"tokens": "stream.npy"}, "documents": "starts.npy", "rows": "packed"})
    config["model"]["embedding"]["vocab"] = VOCAB
    config["data"]["sources"]["a"]["heldout"] = 0.2
    return config


def array_rows() -> dict[str, Any]:
    """A language model over rows of ids."""
    generator = np.random.default_rng(1)
    np.savez("rows.npz", tokens=generator.integers(VOCAB, size=(80, 16)), other=generator.integers(VOCAB, size=(80, 16)))
    config = _config(
        {"use": "data.array-files", "files": {"tokens": "rows.npz:tokens", "other": "rows.npz:other"}, "heldout": 0.2}, drop=["other"]
    )
    config["model"]["embedding"]["vocab"] = VOCAB
    return config


def noised() -> dict[str, Any]:
    """Rows of two fields, one of them noised."""
    config = array_rows()
    config["data"]["transforms"] = [{"use": "data.token-noise", "rate": 0.3, "vocab": VOCAB}]
    return config


def shortened() -> dict[str, Any]:
    """Rows that lose their ends."""
    config = array_rows()
    config["data"]["transforms"] = [{"use": "data.truncate", "keep": 0.5}]
    return config


_RISING = {"linear": {"from": 0.0, "to": 0.9}}
_SOURCE, _TRANSFORM = "data/sources/a/", "data/transforms"
_text = records(text="text")
_labelled = records(text="text", label="label", drop=["label"])
_TURNS = "{% for m in messages %}{{ m.role + ':' + m.content + '.' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
_reply = records(prompt="question", response="answer")
_preference = records(
    rename={"tokens": "chosen", "mask": "chosen_mask"}, drop=["rejected", "rejected_mask"], chosen="answer", rejected="reply"
)


def _transform(name: str, **options: Any) -> list[dict[str, Any]]:
    return [{"use": f"data.{name}", **options}]


ROWS: dict[str, list[tuple[Any, str, Any]]] = {
    "data.jsonl.paths": [(_text, _SOURCE + "paths", ["two.jsonl"])],
    "data.jsonl.text": [(_text, _SOURCE + "text", "title")],
    "data.jsonl.label": [(_labelled, _SOURCE + "label", "sort"), (_text, _SOURCE + "label", "label")],
    "data.jsonl.classes": [(named_numbers, _SOURCE + "classes", ["even", "odd"]), (_text, _SOURCE + "classes", ["odd", "even"])],
    "data.jsonl.features": [(numbers, _SOURCE + "features", "others")],
    "data.jsonl.width": [(numbers, _SOURCE + "width", WIDTH + 1)],
    "data.jsonl.prompt": [(_reply, _SOURCE + "prompt", "query"), (_preference, _SOURCE + "prompt", "question")],
    "data.jsonl.response": [(_reply, _SOURCE + "response", "reply")],
    "data.jsonl.chosen": [(_preference, _SOURCE + "chosen", "title")],
    "data.jsonl.rejected": [(_preference, _SOURCE + "rejected", "title")],
    "data.jsonl.messages": [(conversations, _SOURCE + "messages", "chat")],
    "data.jsonl.template": [(conversations, _SOURCE + "template", {"text": _TURNS}), (_text, _SOURCE + "template", "chatml")],
    "data.jsonl.layout": [(_reply, _SOURCE + "layout", "separate"), (_text, _SOURCE + "layout", "joined")],
    "data.jsonl.tokenizer": [(_text, _SOURCE + "tokenizer", {"bpe": {"vocab": 280}})],
    "data.jsonl.heldout": [(_text, _SOURCE + "heldout", 0.6)],
    "data.hf-dataset.path": [(dataset, _SOURCE + "path", "two")],
    "data.hf-dataset.part": [(dataset, _SOURCE + "part", "other")],
    "data.array-files.files": [(arrays, _SOURCE + "files", {"tokens": "second.npy"})],
    "data.array-files.documents": [(arrays, _SOURCE + "documents", "later.npy")],
    "data.array-files.vocab": [(arrays, _SOURCE + "vocab", VOCAB + 1)],
    "data.array-files.time": [(array_rows, _SOURCE + "time", ["other"]), (arrays, _SOURCE + "time", ["tokens"])],
    "data.array-files.heldout": [(array_rows, _SOURCE + "heldout", 0.5)],
    "data.token-noise.rate": [(noised, _TRANSFORM, _transform("token-noise", rate=rate, vocab=VOCAB)) for rate in (0.5, _RISING)],
    "data.token-noise.field": [(noised, _TRANSFORM, _transform("token-noise", rate=0.3, vocab=VOCAB, field="other"))],
    "data.token-noise.vocab": [(noised, _TRANSFORM, _transform("token-noise", rate=0.3, vocab=2))],
    "data.truncate.keep": [(shortened, _TRANSFORM, _transform("truncate", keep=keep)) for keep in (0.7, _RISING)],
    "data.truncate.field": [(shortened, _TRANSFORM, _transform("truncate", keep=0.5, field="nothing"))],
    "data.truncate.mask": [(shortened, _TRANSFORM, _transform("truncate", keep=0.5, mask="shown"))],
    "data.feature-noise.std": [(noisy_numbers, _TRANSFORM, _transform("feature-noise", std=std)) for std in (0.5, _RISING)],
    "data.feature-noise.field": [(noisy_numbers, _TRANSFORM, _transform("feature-noise", std=0.1, field="nothing"))],
}
"""`<provider>.<component>.<option>` → (base config, where, another value)."""
