"""Which tokens belong to one word.

Shapes: B batch, T time.
"""

from __future__ import annotations

import torch


def byte_words(bytes_BT: torch.Tensor) -> torch.Tensor:
    """Word of every byte, counted from 0 in each row: runs of ASCII letters, digits and `_` and of bytes from 128 on are words, every
    other byte is one by itself; int64 [B, T].

    Bytes from 128 on are parts of UTF-8 letters, so that no character is split.
    """
    inside_BT = _within(bytes_BT, "09") | _within(bytes_BT, "AZ") | _within(bytes_BT, "az") | (bytes_BT == ord("_")) | (bytes_BT >= 128)
    begins_BT = torch.ones_like(inside_BT)
    begins_BT[:, 1:] = ~(inside_BT[:, 1:] & inside_BT[:, :-1])
    return begins_BT.cumsum(dim=1) - 1


def _within(bytes_BT: torch.Tensor, ends: str) -> torch.Tensor:
    return (bytes_BT >= ord(ends[0])) & (bytes_BT <= ord(ends[1]))


def runs(words_BT: torch.Tensor) -> torch.Tensor:
    """Words numbered from 0 in each row, where a loader's numbers change; int64 [B, T]."""
    begins_BT = torch.ones_like(words_BT, dtype=torch.bool)
    begins_BT[:, 1:] = words_BT[:, 1:] != words_BT[:, :-1]
    return begins_BT.cumsum(dim=1) - 1
