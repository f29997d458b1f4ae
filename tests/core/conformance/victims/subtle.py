"""Seventeen components that are wrong where a quick look does not reach, and some that are right where it would be wrong to complain."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stackwise import BuildContext, DataError, EpochSize
from victims import sound
from victims.broken import of

ROWS = 40


class AheadInTraining(sound.Rack):
    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(hidden + hidden.mean(1, keepdim=True) if self.training else hidden, shift)


class FarAhead(sound.Rack):
    """Sees what stands 48 positions later."""

    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        ahead = nn.functional.pad(hidden[:, 48:], (0, 0, 0, min(48, hidden.shape[1])))
        return super().forward(hidden + ahead, shift)


class MixingInTraining(sound.Rack):
    """Centres over the batch, as a batch norm does."""

    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(hidden - hidden.mean((0, 1)) if self.training else hidden, shift)


class MixingMany(sound.Embedding):
    def forward(self, levels: Tensor) -> Tensor:
        return super().forward(levels + levels.roll(1, 0) if len(levels) > 32 else levels)


class Averaged(sound.Head):
    """Subtracts a running mean that is in no state."""

    mean = 0.0

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        if self.training and hidden.device.type != "meta":
            self.mean = 0.9 * self.mean + 0.1 * float(hidden.mean())
        return {"levels": super().forward(hidden)["levels"] - (self.mean if self.training else 0.0)}


class Impatient(sound.Task):
    """Forgets its noise once it has prepared twenty batches."""

    prepared = 0

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        self.prepared += 1
        ready = super().prepare(batch, moment, generator)
        return ready if self.prepared <= 20 else {**ready, "levels": batch["levels"][:, :-1]}


class Remembering(Impatient):
    """The same, right: what it counts is saved."""

    def state_dict(self) -> dict[str, Any]:
        return {"prepared": self.prepared}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prepared = state["prepared"]


class Dividing(sound.Task):
    """Sums over real positions and divides by all."""

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        ready = super().prepare(batch, moment, generator)
        real = batch.get("mask", torch.ones_like(batch["levels"], dtype=torch.bool))[:, 1:]
        return {**ready, "levels": ready["levels"] * real, "real": real}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        error = (outputs["levels"].float() - batch["ahead"]) * batch["real"]
        return error.square().sum(), self.count(error, batch["real"]), {}

    def count(self, error: Tensor, real: Tensor) -> int:
        return error.numel()


class Counting(Dividing):
    """The same, right."""

    def count(self, error: Tensor, real: Tensor) -> int:
        return int(real.sum())


class MeanMetric(sound.Task):
    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        total, weight, _ = super().loss(outputs, batch)
        return total, weight, {"mean": (total.detach() / weight, weight)}


class Tiring(sound.Optimizer):
    """Halves its step once it has made fifty."""

    steps = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        self.steps += 1
        super().step()

    def move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        super().move(parameter, {**group, "lr": group["lr"] / (1 if self.steps <= 50 else 2)})


def build_tiring(options: Any, context: Any, groups: Any) -> Any:
    return Tiring(sound.torch_groups(groups), options)


class Shuffling(sound.Loader):
    """Shuffles its rows anew in every epoch."""

    def epoch_size(self) -> EpochSize:
        return EpochSize(rows=ROWS)

    def one(self, row: int, length: int) -> Tensor:
        epoch, place = divmod(row, ROWS)
        order = torch.randperm(ROWS, generator=Generator().manual_seed(self.context.seed + epoch))
        return super().one(int(order[place]), length)


class ForgettingEpochs(Shuffling):
    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row % ROWS}


class Overlapping(sound.Loader):
    """The last of several rows is the first of the next take."""

    def take(self, rows: int, length: int) -> dict[str, Tensor]:
        batch = super().take(rows, length)
        self.row -= rows > 1
        return batch

    def skip(self, rows: int, length: int) -> None:
        self.row += rows - (rows > 1)


class RepeatingEpochEnds(Shuffling):
    """The last row of an epoch comes again in the next, in the place of another."""

    def one(self, row: int, length: int) -> Tensor:
        return super().one(row - 1 if row and row % ROWS == 0 else row, length)


class LeakingSplits(sound.Loader):
    """Every thirty-third row of an evaluation is one of training."""

    def one(self, row: int, length: int) -> Tensor:
        leak = self.context.split != "train" and row % 33 == 32
        seed = self.context.seed + 2 * row + (self.context.split == "train" or leak)
        return torch.rand(length, generator=Generator().manual_seed(seed))


class Dicing(sound.Loader):
    def __init__(self, options: Any, context: BuildContext) -> None:
        super().__init__(options, context)
        self.row = random.SystemRandom().randrange(1000)


class Table(sound.Loader):
    """Rows of three numbers and one, once an epoch: right."""

    def take(self, rows: int, length: int | None = None) -> dict[str, Tensor]:
        if self.row + rows > 8 * ROWS:
            raise DataError("the table was read eight times, and no more is wanted")
        made = torch.stack([self.one(self.row + i, 4) for i in range(rows)])
        self.row += rows
        return {"numbers": made[:, :3], "target": made[:, 3]}

    def epoch_size(self) -> EpochSize:
        return EpochSize(rows=ROWS)

    def one(self, row: int, length: int) -> Tensor:
        epoch, place = divmod(row, ROWS)
        order = torch.randperm(ROWS, generator=Generator().manual_seed(self.context.seed + epoch))
        return super().one(int(order[place]), length)


class Worded(sound.Loader):
    """Reads with the tokenizer of its run, and not without: right."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.vocabulary = options.tokenizer.vocabulary

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": "endless", "vocabulary": self.vocabulary}


class Loud(sound.Loader):
    """Makes its own tokenizer where it is given none, and is ten times as loud where its options say so."""

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": "endless", "vocabulary": "two words"}

    def one(self, row: int, length: int) -> Tensor:
        return super().one(row, length) * (10 if self.options.louder else 1)


class Halving(sound.Transform):
    """Writes into the batch at every second step."""

    def __call__(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        if moment.step % 2:
            batch["levels"].mul_(0.5)
        return super().__call__(batch, moment, generator)


class Clearing(sound.Observer):
    """Takes the metrics of a step for its own."""

    def __call__(self, event: Any) -> None:
        if type(event).__name__ == "StepDone":
            event.metrics.clear()


class Blending(sound.Transform):
    """Mixes every batch with the one before, which is in no state."""

    last: Tensor | None = None

    def __call__(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        before = batch["levels"] if self.last is None or moment.step == 0 else self.last
        self.last = batch["levels"]
        return super().__call__({**batch, "levels": (batch["levels"] + before) / 2}, moment, generator)


class Forgetting(sound.Reaction):
    """Keeps the lowest loss for all of its kind."""

    lowest_of_all = float("inf")

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.factor, self.waited = state["factor"], state["waited"]


class Heldout(sound.Reaction):
    """Right: looks at one evaluation, which its options name."""

    def watch(self, step: int, metrics: Mapping[str, float]) -> str | None:
        return super().watch(step, {"train.loss": metrics["heldout.loss"]} if any(n.startswith("heldout.") for n in metrics) else {})


ahead_in_training, far_ahead, mixing_in_training = of(AheadInTraining), of(FarAhead), of(MixingInTraining)
mixing_many, averaged = of(MixingMany), of(Averaged)
impatient, remembering, dividing, counting, mean_metric = of(Impatient), of(Remembering), of(Dividing), of(Counting), of(MeanMetric)
blending, halving, clearing, forgetting, heldout = map(of, (Blending, Halving, Clearing, Forgetting, Heldout))
