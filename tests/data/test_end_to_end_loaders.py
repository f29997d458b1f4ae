"""Loaders inside whole runs."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

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


def _losses(source: dict[str, Any]) -> list[float]:
    losses = [event.loss for event in _machine(source).train() if isinstance(event, stackwise.StepDone)]
    assert len(losses) == 6
    assert all(isfinite(loss) for loss in losses)
    return losses


@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
def test_a_run_with_it_learns_and_repeats_itself(source: dict[str, Any]) -> None:
    if "tokenizer" in source:
        pytest.importorskip("tokenizers")
    assert _losses(source) == _losses(source)


def test_exposure_reaches_the_loader() -> None:
    source = SOURCES["curriculum"]
    assert _losses(source) != _losses({**source, "exposed": 0.2})


def test_exposure_without_a_difficulty_is_refused() -> None:
    with pytest.raises(stackwise.UserError, match="nothing ranks the data: name a difficulty"):
        _losses({**SOURCES["packed"], "exposed": {"linear": {"from": 0.5, "to": 1.0}}})


def test_one_epoch_that_is_too_short_for_the_run() -> None:
    told = r"data.sources.text: one epoch of \d+ rows is all that it gives, as it does not repeat, and the run reads 12 rows"
    with pytest.raises(stackwise.ConfigError, match=told):
        _losses({**SOURCES["padded"], "heldout": 0.9, "repeat": False})
