"""What a step of the training machine costs over a hand-written loop: same model, data, task and fused optimizer.

One thread, the two loops interleaved round by round. Of the wall time of single steps the median, and the 5 % quantile, which other load
does not reach: a step of the small model is shorter than any time slice. With schedules our loop stands beside the loop without any, and
beside one that has them written into it. Run: python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import nn

import stackwise
from stackwise import Built, StepDone, TaskSpec, TensorSpec

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


def timed(steps: Iterator[object]) -> list[float]:
    """Seconds of each step, but for the first ones."""
    seconds = []
    start = perf_counter()
    for _ in steps:
        now = perf_counter()
        seconds.append(now - start)
        start = now
    return seconds[5:]


def hand_written(kind: str, task: Regression, data: list[Batch], steps: int) -> list[float]:
    """The loop to beat."""
    return timed(_by_hand(kind, task, data, steps))


def _by_hand(kind: str, task: Regression, data: list[Batch], steps: int) -> Iterator[None]:
    torch.manual_seed(0)
    first, middle, last = First(kind), Middle(kind), Last(kind)
    model = nn.ModuleList([first, middle, last])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for step in range(steps):
        batch = data[step % len(data)]
        total, count, _ = task.loss(last(middle(first(batch["x"]))), batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def following_by_hand(kind: str, task: Regression, data: list[Batch], steps: int) -> list[float]:
    """The loop to beat where every plane is on a schedule: the same five lines, written into it."""
    return timed(_following_by_hand(kind, Following(0.0), data, steps))


def _following_by_hand(kind: str, task: Following, data: list[Batch], steps: int) -> Iterator[None]:
    torch.manual_seed(0)
    first, middle, last, transform = First(kind), FollowingMiddle(kind, 0.0), Last(kind), FollowingTransform(0.0)
    model = nn.ModuleList([first, middle, last])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    group, generator = optimizer.param_groups[0], torch.Generator()
    for step in range(steps):
        t = step / steps
        values = {"rate": t}
        task.apply_values(values)
        transform.apply_values(values)
        middle.apply_values(values)
        group["lr"], group["weight_decay"] = 1e-3 + (1e-4 - 1e-3) * t, 1e-2 * (1 - t)
        batch = transform(data[step % len(data)], t, generator)
        total, count, _ = task.loss(last(middle(first(batch["x"]))), batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def machine(kind: str, task: Regression, data: list[Batch], steps: int) -> list[float]:
    """The same through the training machine, every event consumed."""
    experiment = stackwise.experiment(
        run={"name": "overhead", "horizon": f"{steps} steps", "device": "cpu"},
        task=task,
        data=data,
        model={"embedding": Built(First, kind=kind), "rack": Built(Middle, kind=kind), "head": Built(Last, kind=kind)},
        optimizer=Built(torch.optim.AdamW, lr=1e-3, fused=True),
    )
    events = stackwise.assemble(experiment).train()
    next(events), next(events)
    return timed(event for event in events if isinstance(event, StepDone))


def following(kind: str, task: Regression, data: list[Batch], steps: int) -> list[float]:
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
    return timed(event for event in events if isinstance(event, StepDone))


Row = tuple[str, list[float], list[float]]
Loop = Callable[[str, Regression, list[Batch], int], list[float]]


def compare(
    name: str,
    kind: str,
    task: Regression,
    data: list[Batch],
    steps: int,
    rounds: int,
    loops: tuple[Loop, Loop] = (hand_written, machine),
) -> Row:
    """Interleaved rounds; the seconds of every step by hand and of ours."""
    seconds: dict[Loop, list[float]] = {loop: [] for loop in loops}
    for loop in loops:
        loop(kind, task, data, min(steps, 50))
    for i in range(rounds):
        for loop in loops if i % 2 == 0 else reversed(loops):
            seconds[loop].extend(loop(kind, task, data, steps))
    by_hand, ours = loops
    return name, seconds[by_hand], seconds[ours]


def microseconds(seconds: list[float]) -> tuple[float, float]:
    """The median and the 5 % quantile."""
    return statistics.median(seconds) * 1e6, statistics.quantiles(seconds, n=20)[0] * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = [{"x": torch.randn(8, 64), "y": torch.randn(8, 64)} for _ in range(64)]
    text = [{"x": tokens[:, :-1], "y": tokens[:, 1:]} for tokens in torch.randint(256, (16, 12, 65))]
    rows = [
        compare("MLP, 2 layers, width 64, batch 8", "mlp", Regression(), features, 500, rounds),
        compare("every plane on a schedule, by hand without one", "mlp", Regression(), features, 500, rounds, (hand_written, following)),
        compare("every plane on a schedule, by hand too", "mlp", Regression(), features, 500, rounds, (following_by_hand, following)),
        compare("transformer, 4 blocks, width 128, batch 12 × 64", "transformer", NextByte(), text, 20, rounds),
    ]
    print(f"torch {torch.__version__}, 1 thread, {rounds} interleaved rounds, wall time of single steps in µs: median, 5 % quantile")
    print(f"{'model':50} {'hand-written':>20} {'machine adds':>20}")
    for name, by_hand, by_machine in rows:
        (middle, low), (middle_ours, low_ours) = microseconds(by_hand), microseconds(by_machine)
        print(f"{name:50} {middle:10.1f} {low:9.1f} {middle_ours - middle:10.1f} {low_ours - low:9.1f}")


if __name__ == "__main__":
    main()
