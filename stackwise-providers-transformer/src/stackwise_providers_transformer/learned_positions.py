"""Learned positions (arXiv 1705.03122, section 3.1).

Shapes: B batch, T time, D width, M positions of the table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import UserError


class LearnedPositions(nn.Module):
    """One learned vector for each of M positions, added to the hidden state.

    Args:
        count: M, the longest row there can be.
        width: D.
        std: deviation at which the vectors start.
    """

    def __init__(self, count: int, width: int, *, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(count, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every vector anew."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, hidden_BTD: torch.Tensor, positions_BT: torch.Tensor | None) -> torch.Tensor:
        """hidden [B, T, D] → [B, T, D]; positions [B, T] integer below T, 0..T-1 when None.

        Raises:
            UserError: rows longer than the table.
        """
        time, count = hidden_BTD.shape[1], self.weight.shape[0]
        if time > count:
            raise UserError(f"max_positions: a row has {time} positions, the table {count}: raise max_positions or shorten data.seq_len")
        return hidden_BTD + (self.weight[:time] if positions_BT is None else F.embedding(positions_BT, self.weight))
