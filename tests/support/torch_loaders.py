"""Datasets, loaders and a tiny model as someone who trains with torch brings them; at the top of a module, for workers."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

VOCAB, WIDTH, ROWS, LENGTH = 16, 8, 30, 5

Sample = dict[str, torch.Tensor]


class Numbered(Dataset[Sample]):
    """Sample i holds i in every place of `id`, and tokens that follow from it."""

    def __init__(self, rows: int = ROWS) -> None:
        self.rows = rows
        self.read: list[int] = []
        """Which were read in this process."""

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return {"tokens": (torch.arange(LENGTH) + index) % VOCAB, "id": torch.tensor(index)}


class Augmented(Numbered):
    """Draws of three libraries beside each sample."""

    def __getitem__(self, index: int) -> Sample:
        drawn = torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])
        return {**super().__getitem__(index), "drawn": drawn}


class Dying(Numbered):
    """Ends its process, or waits without end, at one sample."""

    def __init__(self, at: int, waits: bool) -> None:
        super().__init__()
        self.at, self.waits = at, waits

    def __getitem__(self, index: int) -> Sample:
        if index == self.at and self.waits:
            time.sleep(300)
        elif index == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def loader_of() -> DataLoader[Sample]:
    """A loader to be built."""
    return DataLoader(Numbered(), batch_size=5)


class Stream(IterableDataset[Sample]):
    """Samples in a row, with a length."""

    def __iter__(self) -> Iterator[Sample]:
        for index in range(ROWS):
            yield {"tokens": (torch.arange(LENGTH) + index) % VOCAB, "id": torch.tensor(index)}

    def __len__(self) -> int:
        return ROWS


class Endless(IterableDataset[Sample]):
    """The same without a length."""

    def __iter__(self) -> Iterator[Sample]:
        yield from Stream()


class Walking(Sampler[int]):
    """A sampler of the user's own: epoch e begins at sample e, which it remembers itself; drawn from numpy, place by place."""

    def __init__(self, rows: int = ROWS) -> None:
        self.rows, self.epochs = rows, 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        self.epochs += 1
        left = [(i + self.epochs - 1) % self.rows for i in range(self.rows)]
        while left:
            yield left.pop(int(np.random.randint(min(2, len(left)))))


class Embed(nn.Module):
    """A table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens)  # type: ignore[no-any-return]


class Rack(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks = nn.ModuleDict({"base": nn.ModuleList([nn.Linear(WIDTH, WIDTH)])})

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.tanh(self.stacks["base"][0](hidden))  # type: ignore[index]


class Logits(nn.Module):
    """A linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, VOCAB)

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.linear(hidden)}


class NextToken:
    """Predict the next entry, of a batch whose fields are written down."""

    def __init__(self, noisy: bool = False) -> None:
        self.noisy = noisy
        self.seen: list[dict[str, Any]] = []

    def get_spec(self) -> Any:
        import stackwise

        tokens = stackwise.TensorSpec("batch time", "int64")
        return stackwise.TaskSpec(
            batch={"tokens": tokens},
            optional={"id": stackwise.TensorSpec("batch", "int64"), "drawn": stackwise.TensorSpec("batch")},
            inputs={"tokens": tokens},
            outputs={"logits": stackwise.TensorSpec("batch time vocab")},
        )

    def prepare(self, batch: Any, moment: Any, generator: torch.Generator) -> Any:
        self.seen.append({name: tensor.tolist() for name, tensor in batch.items() if name != "tokens"})
        tokens = batch["tokens"]
        if self.noisy:
            tokens = (tokens + int(np.random.randint(VOCAB)) + random.randrange(VOCAB)) % VOCAB
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}

    def loss(self, outputs: Any, batch: Any) -> Any:
        total = F.cross_entropy(outputs["logits"].flatten(0, 1), batch["targets"].flatten(), reduction="sum")
        return total, batch["targets"].numel(), {}
