"""Keys and values of earlier positions, kept while a row grows token by token.

Shapes: B batch, T new positions, S positions so far, K key and value heads, H features a head.
"""

from __future__ import annotations

import torch


class KeyValueCache:
    """What one attention has seen of a row.

    Args:
        capacity: the most positions there will be.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None
        self.length = 0
        """S, the positions so far."""

    def extend(self, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in new positions.

        Returns:
            Keys and values of all positions so far, [B, K, S, H] each.

        Raises:
            ValueError: more positions than there is room for.
        """
        start, self.length = self.length, self.length + k_BKTH.shape[2]
        if self.length > self._capacity:
            raise ValueError(f"{self.length} positions do not fit into a cache of {self._capacity}")
        if self._kept is None:
            rows, heads, _, features = k_BKTH.shape
            room = (rows, heads, self._capacity, features)
            self._kept = k_BKTH.new_empty(room), v_BKTH.new_empty(room)
        for kept, fresh in zip(self._kept, (k_BKTH, v_BKTH), strict=True):
            kept[:, :, start : self.length] = fresh
        return self._kept[0][:, :, : self.length], self._kept[1][:, :, : self.length]
