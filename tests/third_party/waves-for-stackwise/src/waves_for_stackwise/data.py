"""Waves, and noise on them. Shapes: B batch, T time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from stackwise import BatchSpec, BuildContext, DataError, Moment
from waves_for_stackwise.options import JitterOptions, SinesOptions


class Sines:
    """An endless stream of waves. Row i of a split is a pure function of (seed, split, i), so the cursor is one number."""

    def __init__(self, options: SinesOptions, seed: int, training: bool) -> None:
        self.options, self._seed, self._parity = options, seed, 0 if training else 1
        self._row = 0

    def get_batch_spec(self) -> BatchSpec:
        """As the options say."""
        return self.options.to_spec()

    def take(self, rows: int | None, length: int | None) -> dict[str, Tensor]:
        """The next waves."""
        if rows is None or length is None:
            raise DataError("waves.sines has no end and no length of its own: set data.batch_size and data.seq_len")
        levels = torch.stack([self._wave(self._row + i, length) for i in range(rows)])
        self._row += rows
        return {"levels": levels}

    def skip(self, rows: int | None, length: int | None) -> None:
        """Pass over waves without making them."""
        self._row += rows or 0

    def fingerprint(self) -> dict[str, Any]:
        """Waves are computed, so that their periods are all there is to say."""
        return {"shortest": self.options.shortest, "longest": self.options.longest}

    def state_dict(self) -> dict[str, Any]:
        """The next row."""
        return {"row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the next row of the saved stream."""
        self._row = state["row"]

    def _wave(self, row: int, length: int) -> Tensor:
        """Training has the even waves, evaluations the odd ones: no wave is in both."""
        generator = Generator().manual_seed((self._seed + 2 * row + self._parity) % 2**63)
        draw = torch.rand(2, generator=generator)
        period = self.options.shortest + (self.options.longest - self.options.shortest) * draw[0]
        return torch.sin(2 * torch.pi * (torch.arange(length) / period + draw[1]))


class Jitter:
    """Normal noise on every level."""

    def __init__(self, amount: float) -> None:
        self._amount = amount

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the amount in force."""
        self._amount = values["amount"]

    def __call__(self, batch: Mapping[str, Tensor], moment: Moment, generator: Generator) -> dict[str, Tensor]:
        """The batch with other levels; the one that came is left as it is."""
        levels = batch["levels"]
        return {**batch, "levels": levels + self._amount * torch.randn(levels.shape, generator=generator)}


def build_sines(options: SinesOptions, context: BuildContext) -> Sines:
    """The factory of loader `waves.sines`."""
    return Sines(options, context.seed, context.split == "train")


def build_jitter(options: JitterOptions, context: BuildContext) -> Jitter:
    """The factory of transform `waves.jitter`."""
    return Jitter(options.amount)
