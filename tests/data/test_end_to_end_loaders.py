"""Loaders inside whole runs: a config that names them trains, and goes on exactly where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stackwise

SOURCES: dict[str, dict[str, Any]] = {
    "curriculum": {
        "use": "data.text-files",
        "paths": ["*.txt"],
        "difficulty": "rarity",
        "exposed": {"linear": {"from": 0.2, "to": 0.9}},
        "heldout": 0.3,
    },
    "packed": {"use": "data.text-files", "paths": ["*.txt"], "rows": "packed", "heldout": 0.3},
    "padded": {"use": "data.jsonl", "paths": ["*.jsonl"], "text": "text", "rows": "padded", "heldout": 0.3},
    "learnt": {"use": "data.jsonl", "paths": ["*.jsonl"], "text": "text", "tokenizer": {"bpe": {"vocab": 270}}, "heldout": 0.3},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    for i in range(20):
        Path(f"{i}.txt").write_text(f"number {i} and {'again ' * i}", encoding="utf-8")
    lines = [json.dumps({"text": f"line {i} of {'many ' * (i % 5)}"}) for i in range(40)]
    Path("lines.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _machine(source: dict[str, Any]) -> Any:
    config = {
        "stackwise": 1,
        "run": {"name": "loaders", "seed": 5, "horizon": "6 steps"},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"text": source},
            "transforms": [{"use": "data.token-noise", "rate": {"linear": {"from": 0.2, "to": 0.0}}}],
            "batch_size": 2,
            "seq_len": 12,
        },
        "model": {
            "embedding": {"use": "transformer.token"},
            "rack": {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-2},
        "evaluate": {"heldout": {"every": "50%", "batches": 2}},
    }
    return stackwise.assemble(stackwise.experiment(config))


@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
def test_a_run_with_it_learns_and_goes_on_the_same(source: dict[str, Any]) -> None:
    if "tokenizer" in source:
        pytest.importorskip("tokenizers")
    whole, first, second = (_machine(source) for _ in range(3))
    losses = [event.loss for event in whole.train() if isinstance(event, stackwise.StepDone)]
    assert len(losses) == 6
    steps = (event for event in first.train() if isinstance(event, stackwise.StepDone))
    begun = [next(steps).loss for _ in range(3)]
    second.load_state_dict(first.state_dict())
    rest = [event.loss for event in second.train() if isinstance(event, stackwise.StepDone)]
    assert begun + rest == losses
    assert all(torch.isfinite(torch.tensor(loss)) for loss in losses)
