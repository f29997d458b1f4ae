"""The data set as a loader. Shapes: B batch, T letters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from names_for_stackwise.names import LONGEST, encode, examples
from names_for_stackwise.options import NamesOptions
from stackwise import BatchSpec, BuildContext, DataError, EpochSize


@cache
def rows_of_split(training: bool) -> tuple[tuple[str, int], ...]:
    """Every tenth name is held out."""
    return tuple(row for i, row in enumerate(examples()) if (i % 10 == 0) != training)


class Names:
    """Row n is a function of (seed, n), so that the cursor is one number: a run that stopped goes on with the next row."""

    def __init__(self, options: NamesOptions, seed: int, training: bool) -> None:
        self.options, self._seed = options, seed
        self._rows, self._shuffles = rows_of_split(training), training and options.shuffle
        self._next, self._order = 0, (-1, torch.empty(0))

    def get_batch_spec(self) -> BatchSpec:
        """As the options say."""
        return self.options.to_spec()

    def take(self, rows: int | None, length: int | None) -> dict[str, Tensor]:
        """The next names, cut or filled up to so many letters."""
        if rows is None:
            raise DataError("names.unicode delivers as many rows as it is asked for: set data.batch_size")
        chosen = [self._row(n) for n in range(self._next, self._next + rows)]
        self._next += rows
        letters = [encode(name, LONGEST if length is None else length) for name, _ in chosen]
        return {"letters": torch.tensor(letters), "kind": torch.tensor([kind for _, kind in chosen])}

    def state_dict(self) -> dict[str, Any]:
        """The next row."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the next row of the saved stream."""
        self._next = state["next"]

    def epoch_size(self) -> EpochSize:
        """Every name once."""
        return EpochSize(rows=len(self._rows))

    def _row(self, n: int) -> tuple[str, int]:
        epoch, place = divmod(n, len(self._rows))
        if not self._shuffles:
            return self._rows[place]
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self._seed + epoch) % 2**63)
            self._order = epoch, torch.randperm(len(self._rows), generator=generator)
        return self._rows[int(self._order[1][place])]


def build_names(options: NamesOptions, context: BuildContext) -> Names:
    """The factory of loader `names.unicode`."""
    return Names(options, context.seed, context.split == "train")
