"""The config of a run that takes seconds, as text for a file."""

from __future__ import annotations

from pathlib import Path

import torch

PARTS = """\
task: {use: transformer.causal-lm}
data:
  sources: {a: {use: data.memory, arrays: {tokens: TOKENS}, heldout: 0.2}}
  batch_size: 2
  seq_len: 4
model:
  embedding: {use: transformer.token, vocab: 8}
  rack: {use: transformer.decoder, width: 8, heads: 2, dropout: 0.1, stacks: [{base: 1}]}
  head: {use: transformer.lm}
"""
"""Task, data and model."""

GROWING = """\
phases:
  one: {until: 50%}
  two: {model: {rack: {stacks: [{base: 2}]}}, enter: {growth: {use: transformer.stack}}}
"""


def write_config(folder: Path, config: str, tokens: int = 200) -> None:
    """Write `exp.yaml`, its stream of so many random tokens filled in."""
    stream = torch.randint(8, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    (folder / "exp.yaml").write_text(config.replace("TOKENS", str(stream)))
