"""The options of every optimizer, and the specs they declare."""

from __future__ import annotations

from math import prod
from typing import Literal

from attrs import frozen

from stackwise import OptimizerSpec, UserError, option, scheduled


def _two_moments_and_a_step(shape: tuple[int, ...]) -> int:
    return 2 * prod(shape) + 1


@frozen(kw_only=True)
class AdamWOptions:
    """Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2)."""

    lr: float = scheduled(1e-3, doc="learning rate", minimum=0)
    weight_decay: float = scheduled(0.1, doc="share of a weight taken away at each step, times the learning rate", minimum=0)
    betas: tuple[float, float] = option((0.9, 0.95), doc="decay of the first and the second moment, a step")
    eps: float = option(1e-8, doc="added to the root of the second moment", minimum=0)
    decay: Literal["matrices", "all"] = option(
        "matrices", doc="what decays: matrices (not the embedding, not norms and biases), or all", choices=("matrices", "all")
    )

    def __attrs_post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas: {list(self.betas)} are not two numbers of at least 0 and below 1: write [0.9, 0.95]")

    def to_spec(self) -> OptimizerSpec:
        """Two moments and a step counter a parameter."""
        return OptimizerSpec(state_elements=_two_moments_and_a_step)
