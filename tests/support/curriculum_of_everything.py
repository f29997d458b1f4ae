"""Forty steps in which everything changes that can: depth, gates, weight adapters, frozen parts, sources and their mixture, task,
optimizer, accumulation; with an average of the weights and a reaction to the loss.
"""

from __future__ import annotations

import torch

STEPS = 40


def _tokens(count: int, seed: int) -> list[int]:
    return torch.randint(8, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


CONFIG = f"""\
run: {{name: everything, horizon: {STEPS} steps, seed: 3, device: cpu, checkpoint: {{every: 1 steps, keep_last: 2}}}}
task: {{use: transformer.causal-lm}}
data:
  sources: {{a: {{use: data.memory, arrays: {{tokens: {_tokens(150, 0)}}}, heldout: 0.2}}}}
  batch_size: 3
  accumulate: 2
  seq_len: 4
  transforms: [{{use: remembering.shift, vocab: 8}}]
model:
  embedding: {{use: transformer.token, vocab: 8}}
  rack: {{use: transformer.decoder, width: 8, heads: 2, dropout: {{linear: {{from: 0.3, to: 0.1}}}}, stacks: [{{base: 1}}]}}
  head: {{use: transformer.lm}}
optimizer: {{use: optim.adamw, lr: {{cosine: {{from: 1e-2, warmup: 20%}}}}, clip: 0.5, groups: {{norms: {{select: ["*norm*"], lr: 2e-2}}}},
  ema: {{decay: 0.9}}, reaction: {{use: optim.plateau, metric: train.loss, patience: 1, factor: 0.8, lowest: 0.1}}}}
evaluate: {{e: {{every: 5 steps, batches: 1}}}}
observers: [{{use: remembering.tally, path: tally.txt}}]
phases:
  one: {{until: 20%}}
  grown:
    until: 40%
    model: {{rack: {{stacks: [{{base: 2}}]}}, freeze: [embedding, rack.stacks.base.0]}}
    enter: {{growth: {{use: transformer.stack}}}}
    data:
      sources: {{b: {{use: data.memory, arrays: {{tokens: {_tokens(90, 1)}}}, heldout: 0.2}}}}
      mix: {{a: 1, b: {{linear: {{from: 0.1, to: 3}}}}}}
  thawed:
    until: 60%
    task: {{use: remembering.backwards}}
    model: {{freeze: [], rack: {{stacks: [{{base: 3}}]}}}}
    enter: {{growth: {{use: transformer.gated, gate: {{linear: {{from: 0, to: 1, over: phase}}}}}}}}
    data: {{accumulate: 1, seq_len: 6}}
  slowing:
    until: 80%
    data: {{sources: {{a: null}}, mix: {{a: null, b: 1}}}}
    model: {{freeze: ["rack.*"], weight_adapters: {{style: {{use: transformer.lora, select: ["*.attention.*"], rank: 2, dropout: 0.1}}}}}}
    optimizer: {{use: remembering.slowing, lr: 0.05, ema: {{decay: 0.9}}}}
  taller:
    model: {{freeze: [], weight_adapters: null, rack: {{stacks: [{{base: 3}}, {{top: 1}}]}}}}
    enter: {{growth: {{use: transformer.identity}}}}
    optimizer: {{use: optim.sgd, lr: 0.02, ema: {{decay: 0.9}}}}
    data: {{sources: {{a: {{use: data.memory, arrays: {{tokens: {_tokens(150, 0)}}}, heldout: 0.2}}}}, mix: {{a: 1, b: 2}}}}
"""
