"""Tasks: the batch they prepare, the sums they return, and that their inputs do not give the answer away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from stackwise.conformance import bench, partners
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.specs import TaskSpec

FLOOR_STEPS = 60
FLOOR_SHARE = 0.7
"""Share of the first loss below which a pointwise model on noise cannot come without having seen the targets."""


def check_prepared_batch(subject: Subject) -> None:
    """The prepared batch holds every field that the spec offers to the model, with its shape and dtype.

    Usual cause: a field under another name; inputs that keep the lookahead.
    """
    task, spec = bench.task_of(subject), _spec(subject)
    own = task.get_spec()
    must(bench.sized(own, subject.sizes()) == spec, f"the task's own spec is another than that of its options: {own}")
    for length in (LENGTH, 3):
        batch = bench.prepared(subject, task, length=length)
        for name, field in spec.inputs.items():
            if name in spec.optional and name not in batch:
                continue
            must(name in batch, f"the spec offers '{name}' to the model, but the prepared batch has {', '.join(batch)}")
            wanted = partners.shape_of(field, ROWS, length)
            must(tuple(batch[name].shape) == wanted, f"'{name}' has shape {tuple(batch[name].shape)}: {field} is {wanted} here")


def check_totals(subject: Subject) -> None:
    """`loss` returns sums and their denominators: those of a batch are those of its halves together, metrics included.

    Usual cause: a mean where a sum is due; a denominator that counts rows where targets are summed.
    """
    task = bench.task_of(subject)
    batch = bench.prepared(subject, task)
    outputs = _outputs(subject)
    whole = _totals(task, outputs, batch)
    halves = [_totals(task, _half(outputs, part), _half(batch, part)) for part in (slice(None, ROWS // 2), slice(ROWS // 2, None))]
    for name, (value, weight) in whole.items():
        must(weight > 0, f"the denominator of {name} is {weight:g} on an ordinary batch")
        added = [sum(half.get(name, (0.0, 0.0))[i] for half in halves) for i in (0, 1)]
        must(abs(added[1] - weight) <= 1e-4 * abs(weight), f"the denominator of {name} is {weight:g}, and {added[1]:g} over its halves")
        close = abs(added[0] - value) <= 1e-3 * max(abs(value), 1e-3)
        must(close, f"{name} sums to {value:.6g}, and to {added[0]:.6g} over its halves: return a sum, not a mean")
    must("loss" not in _metrics(task, outputs, batch), "a metric is named 'loss', which is the name of total / weight")


def check_noise_floor(subject: Subject) -> None:
    """On noise, a model that looks at one position at a time cannot predict what lies ahead.

    Usual cause: targets that are not shifted against the inputs, so that the model is shown the answer.
    """
    if _spec(subject).lookahead < 1:
        raise NotApplicable("it asks for no lookahead, so it may rightly learn something about noise")
    task = bench.task_of(subject)
    model = bench.model_around(subject, zero_head=True).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(FLOOR_STEPS):
        batch = bench.prepared(subject, task, seed=SEED + step)
        with bench.seeded(step):
            total, weight, _ = task.loss(model(batch), batch)
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
        losses.append(float(total.detach()) / float(weight))
    last = sum(losses[-10:]) / 10
    told = f"on noise the loss falls from {losses[0]:.4g} to {last:.4g}: the inputs hold what is to be predicted"
    must(last > FLOOR_SHARE * losses[0], told)


def _spec(subject: Subject) -> TaskSpec:
    return bench.boundaries(subject).task


def _outputs(subject: Subject) -> dict[str, Tensor]:
    generator = Generator().manual_seed(SEED)
    return {name: partners.draw(spec, ROWS, LENGTH, generator).requires_grad_() for name, spec in _spec(subject).outputs.items()}


def _half(batch: Mapping[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: tensor[part] if tensor.dim() and tensor.shape[0] == ROWS else tensor for name, tensor in batch.items()}


def _metrics(task: Any, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Mapping[str, Any]:
    metrics: Mapping[str, Any] = task.loss(outputs, batch)[2]
    return metrics


def _totals(task: Any, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    result = task.loss(outputs, batch)
    must(isinstance(result, tuple) and len(result) == 3, "loss returns (sum, denominator, metrics)")
    total, weight, metrics = result
    must(isinstance(total, Tensor) and total.dim() == 0, "the loss is one number, a sum over targets")
    must(total.requires_grad, "no gradient flows back from the loss")
    return {"the loss": (float(total.detach()), float(weight)), **{f"metric '{k}'": (float(v), float(w)) for k, (v, w) in metrics.items()}}
