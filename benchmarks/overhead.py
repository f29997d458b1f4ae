"""What a step of the training machine costs over a hand-written loop: same model, data, task and fused optimizer.

CPU time a step, one thread, the two loops interleaved round by round; medians. Run: python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import process_time

import torch
import torch.nn.functional as F
from torch import nn

import stackwise
from stackwise import Built, TaskSpec, TensorSpec

Batch = dict[str, torch.Tensor]


class Regression:
    """Mean squared error; the same few operations in both loops."""

    def get_spec(self) -> TaskSpec:
        """Features in, features out."""
        x = TensorSpec("batch width", "float32")
        return TaskSpec(batch={"x": x, "y": x}, inputs={"x": x}, outputs={"out": x})

    def prepare(self, batch: Batch, moment: object, generator: torch.Generator) -> Batch:
        """Nothing to prepare."""
        return batch

    def loss(self, outputs: Batch, batch: Batch) -> tuple[torch.Tensor, int, dict[str, tuple[torch.Tensor, int]]]:
        """Sum of squares and its count."""
        return F.mse_loss(outputs["out"], batch["y"], reduction="sum"), batch["y"].numel(), {}


class NextByte(Regression):
    """Cross entropy of the next byte."""

    def get_spec(self) -> TaskSpec:
        """Bytes in, logits out."""
        x = TensorSpec("batch time", "int64")
        return TaskSpec(batch={"x": x, "y": x}, inputs={"x": x}, outputs={"out": TensorSpec("batch time vocab")})

    def loss(self, outputs: Batch, batch: Batch) -> tuple[torch.Tensor, int, dict[str, tuple[torch.Tensor, int]]]:
        """Sum of nats and the number of targets."""
        return F.cross_entropy(outputs["out"].flatten(0, 1), batch["y"].flatten(), reduction="sum"), batch["y"].numel(), {}


class First(nn.Module):
    """Linear and ReLU, or an embedding."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 64), nn.ReLU()) if kind == "mlp" else nn.Embedding(256, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 64] → the same, or [batch, time] → [batch, time, 128]."""
        hidden: torch.Tensor = self.inner(x)
        return hidden


class Middle(nn.Module):
    """Nothing, or four transformer blocks."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.inner = nn.Identity() if kind == "mlp" else nn.TransformerEncoder(block, 4, enable_nested_tensor=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden state to hidden state."""
        after: torch.Tensor = self.inner(hidden)
        return after


class Last(nn.Module):
    """Linear."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64) if kind == "mlp" else nn.Linear(128, 256)

    def forward(self, hidden: torch.Tensor) -> Batch:
        """Named outputs."""
        return {"out": self.inner(hidden)}


class Following(Regression):
    """The same with a value that follows time, read by nothing: what is measured is that it arrives."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def apply_values(self, values: dict[str, float]) -> None:
        """Take the rate in force."""
        self.rate = values["rate"]


class FollowingMiddle(Middle):
    """A rack with a value that follows time."""

    def __init__(self, kind: str, rate: float) -> None:
        super().__init__(kind)
        self.rate = rate

    def apply_values(self, values: dict[str, float]) -> None:
        """Take the rate in force."""
        self.rate = values["rate"]


class FollowingTransform:
    """A transform that changes nothing, with a value that follows time."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def apply_values(self, values: dict[str, float]) -> None:
        """Take the rate in force."""
        self.rate = values["rate"]

    def __call__(self, batch: Batch, moment: object, generator: torch.Generator) -> Batch:
        """The batch as it is."""
        return batch


def hand_written(kind: str, task: Regression, data: list[Batch], steps: int) -> float:
    """The loop to beat; seconds of CPU a step."""
    torch.manual_seed(0)
    first, middle, last = First(kind), Middle(kind), Last(kind)
    model = nn.ModuleList([first, middle, last])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    start = process_time()
    for step in range(steps):
        batch = data[step % len(data)]
        total, count, _ = task.loss(last(middle(first(batch["x"]))), batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (process_time() - start) / steps


def machine(kind: str, task: Regression, data: list[Batch], steps: int) -> float:
    """The same through the training machine, every event consumed; seconds of CPU a step."""
    experiment = stackwise.experiment(
        run={"name": "overhead", "horizon": f"{steps} steps", "device": "cpu"},
        task=task,
        data=data,
        model={"embedding": Built(First, kind=kind), "rack": Built(Middle, kind=kind), "head": Built(Last, kind=kind)},
        optimizer=Built(torch.optim.AdamW, lr=1e-3, fused=True),
    )
    events = stackwise.assemble(experiment).train()
    next(events), next(events)
    start = process_time()
    for _ in events:
        pass
    return (process_time() - start) / steps


def following(kind: str, task: Regression, data: list[Batch], steps: int) -> float:
    """The machine with a schedule on every plane: task, transform, rack, learning rate and weight decay."""
    rate = {"linear": {"from": 0.0, "to": 1.0}}
    experiment = stackwise.experiment(
        run={"name": "overhead", "horizon": f"{steps} steps", "device": "cpu"},
        task=Built(Following, spec=task.get_spec(), rate=rate),
        data={"sources": {"data": data}, "transforms": [Built(FollowingTransform, rate=rate)]},
        model={
            "embedding": Built(First, kind=kind),
            "rack": Built(FollowingMiddle, kind=kind, rate=rate),
            "head": Built(Last, kind=kind),
        },
        optimizer=Built(
            torch.optim.AdamW, lr={"linear": {"from": 1e-3, "to": 1e-4}}, weight_decay={"linear": {"from": 1e-2, "to": 0.0}}, fused=True
        ),
    )
    events = stackwise.assemble(experiment).train()
    next(events), next(events)
    start = process_time()
    for _ in events:
        pass
    return (process_time() - start) / steps


def compare(
    name: str, kind: str, task: Regression, data: list[Batch], steps: int, rounds: int, ours: Callable[..., float] = machine
) -> tuple[str, float, float]:
    """Interleaved rounds; medians of each and of their difference round by round, in microseconds."""
    hand_written(kind, task, data, min(steps, 50))
    ours(kind, task, data, min(steps, 50))
    pairs: list[tuple[float, float]] = []
    loops: tuple[Callable[..., float], Callable[..., float]] = (hand_written, ours)
    for i in range(rounds):
        order = loops if i % 2 == 0 else loops[::-1]
        timed = {loop: loop(kind, task, data, steps) for loop in order}
        pairs.append((timed[hand_written], timed[ours]))
    base = statistics.median(a for a, _ in pairs) * 1e6
    extra = statistics.median(b - a for a, b in pairs) * 1e6
    return name, base, extra


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = [{"x": torch.randn(8, 64), "y": torch.randn(8, 64)} for _ in range(64)]
    text = [{"x": tokens[:, :-1], "y": tokens[:, 1:]} for tokens in torch.randint(256, (16, 12, 65))]
    rows = [
        compare("MLP, 2 layers, width 64, batch 8", "mlp", Regression(), features, 1000, rounds),
        compare("the same MLP, every plane on a schedule", "mlp", Regression(), features, 1000, rounds, following),
        compare("transformer, 4 blocks, width 128, batch 12 × 64", "transformer", NextByte(), text, 20, rounds),
    ]
    print(f"torch {torch.__version__}, 1 thread, {rounds} interleaved rounds, CPU time a step")
    print(f"{'model':50} {'hand-written µs':>16} {'machine adds µs':>16} {'adds':>8}")
    for name, base, extra in rows:
        print(f"{name:50} {base:16.1f} {extra:16.1f} {extra / base:8.2%}")


if __name__ == "__main__":
    main()
