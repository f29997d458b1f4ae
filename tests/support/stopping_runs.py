"""A run that stops itself: tokens without a rule, few of them, so that the held-out loss soon rises."""

from __future__ import annotations

TOKENS = [(7 * i * i * i + 5 * i * i + i // 3) % 16 for i in range(90)]

STOPPING = """\
run:
  name: stopping
  horizon: 40 steps
  device: cpu
  checkpoint: {every: 3 steps, keep_last: 99}
  stop: {metric: e.loss, patience: 3}
task: {use: transformer.causal-lm}
data: {sources: {a: {use: data.memory, arrays: {tokens: TOKENS}, heldout: 0.4}}, batch_size: 2, seq_len: 4}
model:
  embedding: {use: transformer.token, vocab: 16}
  rack: {use: transformer.decoder, width: 8, heads: 2, stacks: [{base: 1}]}
  head: {use: transformer.lm}
optimizer: {use: optim.adamw, lr: 0.05}
evaluate: {e: {every: 2 steps, batches: 2}}
phases:
  one: {until: 5 steps}
  two: {model: {rack: {stacks: [{base: 2}]}}, enter: {growth: {use: transformer.stack}}}
""".replace("TOKENS", str(TOKENS))
