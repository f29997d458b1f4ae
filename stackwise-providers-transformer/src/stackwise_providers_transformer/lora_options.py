"""The options of low-rank adaptation."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from stackwise import UserError, option, scheduled


@frozen(kw_only=True)
class LoRAOptions:
    """Trainable matrices of low rank beside frozen ones."""

    rank: int = option(8, doc="rank R of what is added to a matrix", minimum=1)
    alpha: float = option(16.0, doc="numerator of the scale of what is added", minimum=0)
    scaling: Literal["alpha/rank", "alpha/sqrt(rank)"] = option(
        "alpha/rank", doc="the scale of what is added; by the square root for high ranks", choices=("alpha/rank", "alpha/sqrt(rank)")
    )
    rows: tuple[int, int] | None = option(
        None,
        doc="first row of the matrix that something is added to, and the one after the last, as of queries, keys or values, which are one "
        "matrix here; all when left out",
    )
    dropout: float = scheduled(0.0, doc="share of the adapter's inputs that is zeroed in training", minimum=0, maximum=1)

    def __attrs_post_init__(self) -> None:
        if self.alpha == 0:
            raise UserError("alpha: at 0 nothing would be added, and nothing learnt: give it above zero")
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise UserError(f"rows: {list(self.rows)} are none: give the first row, and a later one that is the first after them: [0, 64]")

    @property
    def scale(self) -> float:
        """Factor on B·A."""
        return float(self.alpha / (self.rank if self.scaling == "alpha/rank" else self.rank**0.5))
