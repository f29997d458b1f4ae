"""A curriculum in Python: the user's own rack, task and list of batches, no YAML and no provider for those parts.

python examples/code_first.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import stackwise
from stackwise import Built, Phase, StepDone, TaskSpec, TensorSpec


class Embed(nn.Module):
    """Token ids to vectors; the names of its arguments are the batch fields it takes."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[batch, time] → [batch, time, width]."""
        hidden: torch.Tensor = self.table(tokens)
        return hidden


class CausalConv(nn.Module):
    """One residual block: every position sees itself and the three before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, 2 * width, kernel_size=4)
        self.out = nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] → the same."""
        padded = F.pad(self.norm(hidden).transpose(1, 2), (3, 0))
        added: torch.Tensor = self.out(F.gelu(self.conv(padded)).transpose(1, 2))
        return hidden + added


class ConvRack(nn.Module):
    """Any nn.Module that is built from its `stacks` and names its blocks `stacks.<stack>.<i>` can grow."""

    def __init__(self, width: int, stacks: dict[str, int]) -> None:
        super().__init__()
        self.stacks = nn.ModuleDict({name: nn.ModuleList(CausalConv(width) for _ in range(blocks)) for name, blocks in stacks.items()})

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] → the same."""
        for stack in self.stacks.values():
            for block in stack.children():
                hidden = block(hidden)
        return hidden


class Logits(nn.Module):
    """Hidden state to named outputs."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vocab)

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """[batch, time, width] → logits [batch, time, vocab]."""
        return {"logits": self.linear(hidden)}


class NextToken:
    """Predict every token from those before it."""

    def get_spec(self) -> TaskSpec:
        """Tokens in, logits out."""
        tokens, logits = TensorSpec("batch time", "int64"), TensorSpec("batch time vocab")
        return TaskSpec(batch={"tokens": tokens}, inputs={"tokens": tokens}, outputs={"logits": logits})

    def prepare(self, batch: dict[str, torch.Tensor], moment: object, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Inputs are all tokens but the last, targets all but the first."""
        return {"tokens": batch["tokens"][:, :-1], "targets": batch["tokens"][:, 1:]}

    def loss(
        self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, int, dict[str, tuple[torch.Tensor, int]]]:
        """Sum of the cross entropy in nats, and how many targets it sums over."""
        return F.cross_entropy(outputs["logits"].flatten(0, 1), batch["targets"].flatten(), reduction="sum"), batch["targets"].numel(), {}


def make_batches(count: int = 64, vocab: int = 32) -> list[dict[str, torch.Tensor]]:
    """Sequences that count up by a step of 1, 2 or 3 from a random start: learnable, and never twice the same."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(vocab, (count, 16, 1), generator=generator)
    step = torch.randint(1, 4, (count, 16, 1), generator=generator)
    return [{"tokens": tokens} for tokens in (start + step * torch.arange(33)) % vocab]


def make_experiment() -> stackwise.Experiment:
    """Two blocks, then four (the new ones copies), then an annealed learning rate."""
    return stackwise.experiment(
        run={"name": "code-first", "seed": 1, "horizon": "300 steps"},
        task=NextToken(),
        data=make_batches(),
        model={
            "embedding": Built(Embed, vocab=32, width=48),
            "rack": Built(ConvRack, width=48, stacks=[{"base": 2}]),
            "head": Built(Logits, width=48, vocab=32),
        },
        optimizer=Built(torch.optim.AdamW, lr=3e-3, fused=True),
        phases=[
            Phase("shallow", until="50%"),
            Phase("grown", until="80%", model={"rack": {"stacks": [{"base": 4}]}}, enter={"growth": {"use": "transformer.stack"}}),
            Phase("annealed", optimizer={"lr": {"linear": {"to": 0, "over": "phase"}}}),
        ],
    )


def main() -> None:
    """Train and print what happens."""
    machine = stackwise.assemble(make_experiment())
    for event in machine.train():
        if not isinstance(event, StepDone):
            print(event)
        elif event.step % 30 == 0:
            print(f"{event.phase} {event.step}: loss {event.loss:.3f}")


if __name__ == "__main__":
    main()
