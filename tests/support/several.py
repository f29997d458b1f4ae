"""Runs in several processes: a curriculum that they can share out, and what is compared with one process."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from curriculum_of_everything import CONFIG
from whole_runs import lines

KEEP_A_STATE = ("  transforms: [{use: remembering.shift, vocab: 8}]\n", "    task: {use: remembering.backwards}\n")
EVERYTHING = CONFIG.replace(KEEP_A_STATE[0], "").replace(KEEP_A_STATE[1], "")
"""The curriculum of everything without the transform and the task that keep a state of the rows they saw."""

_TOKENS = [(7 * i * i + 3 * i) % 8 for i in range(120)]

SHORT = f"""\
run: {{name: short, horizon: 12 steps, seed: 3, device: cpu, checkpoint: {{every: 3 steps, keep_last: 9}}, probe: false}}
task: {{use: transformer.causal-lm}}
data:
  sources: {{a: {{use: data.memory, arrays: {{tokens: {_TOKENS}}}, heldout: 0.3}}}}
  batch_size: 2
  accumulate: 4
  seq_len: 3
model:
  embedding: {{use: transformer.token, vocab: 8}}
  rack: {{use: transformer.decoder, width: 8, heads: 2, dropout: 0.2, stacks: [{{base: 1}}]}}
  head: {{use: transformer.lm}}
  freeze: [embedding]
evaluate: {{e: {{every: 4 steps, batches: 5, batch_size: 1}}}}
optimizer: {{use: optim.adamw, lr: 1e-2, clip: 0.5}}
phases:
  one: {{until: 50%}}
  two: {{model: {{freeze: [], rack: {{stacks: [{{base: 2}}]}}}}, enter: {{growth: {{use: transformer.stack}}}}}}
"""


def steps_of(run: Any) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    return [(line["loss"], line["grad_norm"]) for line in lines(run / "metrics.jsonl") if "evaluation" not in line]


def evaluations_of(run: Any) -> list[float]:
    """The loss of every evaluation."""
    return [line["loss"] for line in lines(run / "metrics.jsonl") if "evaluation" in line]


def apart(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two saved states differ by more than the order of sums explains; anything but a float is equal."""
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [f"{path}: {left.keys() ^ right.keys()}"]
        return [fault for key in left if key not in ("seconds", "cpu_seconds") for fault in apart(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, list | tuple):
        return [fault for i, pair in enumerate(zip(left, right, strict=True)) for fault in apart(*pair, f"{path}/{i}")]
    if isinstance(left, torch.Tensor) and left.is_floating_point():
        return [] if torch.allclose(left, right, rtol=1e-4, atol=2e-5) else [f"{path}: {float((left - right).abs().max()):.2g}"]
    if isinstance(left, torch.Tensor):
        return [] if torch.equal(left, right) else [path]
    if isinstance(left, float):
        return [] if abs(left - right) <= 1e-5 * max(1.0, abs(left)) else [f"{path}: {left} {right}"]
    return [] if left == right else [f"{path}: {left} {right}"]


class Place(NamedTuple):
    """A function that a process calls, by module, class and name."""

    module: str
    owner: str
    method: str


SAVE = Place("stackwise.storage.checkpoints.store", "CheckpointStore", "save")
ENTER = Place("stackwise.planes.model.plane", "ModelPlane", "enter")
MOMENTS = Place("stackwise.planes.optimizer.plane", "OptimizerPlane", "enter")
STEP = Place("stackwise.machine.step", "Step", "run")
_DIES = """\
if os.environ.get('RANK') == '{rank}':
    from {module} import {owner}
    act, calls = {owner}.{method}, []
    def act_or_die(*given, **named):
        calls.append(1)
        if len(calls) == {call}:
            os.kill(os.getpid(), 9)
        return act(*given, **named)
    {owner}.{method} = act_or_die
"""


def dies(rank: int, where: Place, call: int) -> str:
    """A patch that kills a process as it calls a function for the n-th time."""
    return _DIES.format(rank=rank, call=call, **where._asdict())
