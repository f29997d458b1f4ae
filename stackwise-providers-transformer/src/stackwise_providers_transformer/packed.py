"""Attention inside the documents of packed rows, document by document: no score is computed that a mask would hide.

Shapes: B batch, T time, X = B · T entries of all rows, G documents of one length, L their length, N heads, H features a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import frozen

from stackwise_providers_transformer.documents import attention_mask

_LONG = 128
"""Rows up to this length have one mask: the scores of a whole row cost less than many small calls."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Queries, keys, values [G, N, L, H] and what is added to the scores → [G, N, L, H]."""


@frozen(eq=False)
class Documents:
    """Where the documents of a batch lie. Those of one length are attended to together."""

    order_X: torch.Tensor
    """The entries of all rows, sorted by the length of their document."""
    places_X: torch.Tensor
    """Where each entry stands in that order."""
    groups: tuple[tuple[int, int, torch.Tensor | None], ...]
    """G, L, and what is added to the scores [1, 1, L, L] of documents longer than the window."""

    def attend(self, attend: Attend, q_BNTH: torch.Tensor, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor) -> torch.Tensor:
        """Every entry mixes the values of its own document; [B, N, T, H]."""
        batch, _, time, _ = q_BNTH.shape
        sizes = [count * length for count, length, _ in self.groups]
        ordered = [x.transpose(1, 2).flatten(0, 1).index_select(0, self.order_X) for x in (q_BNTH, k_BKTH, v_BKTH)]
        pieces = zip(*(x.split_with_sizes(sizes) for x in ordered), strict=True)
        mixed = []
        for (count, length, mask), parts in zip(self.groups, pieces, strict=True):
            q_GNLH, k_GKLH, v_GKLH = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in parts)
            mixed.append(attend(q_GNLH, k_GKLH, v_GKLH, mask).transpose(1, 2).flatten(0, 1))
        mixed_XNH = torch.cat(mixed).index_select(0, self.places_X)
        return mixed_XNH.view(batch, time, *mixed_XNH.shape[1:]).transpose(1, 2)


def find_documents(
    hidden_BTD: torch.Tensor, parts_BT: Sequence[torch.Tensor], *, causal: bool, windows: Sequence[int | None]
) -> list[Documents] | None:
    """The documents of a batch, once for each window; None where the rows are short, or a document is not in one piece.

    Args:
        hidden_BTD: says device and precision.
        parts_BT: integers or bools; entries of a row that agree in all of them are of one document.
        causal: whether an entry sees only itself and those before it.
        windows: how near an entry has to be to be seen; any when None.
    """
    batch, time, _ = hidden_BTD.shape
    if time <= _LONG or hidden_BTD.is_meta or not parts_BT:
        return None
    starts, lengths = pieces(parts_BT)
    if not in_one_piece(starts, parts_BT):
        return None
    sorted_lengths, by_length = lengths.sort(stable=True)
    ends = sorted_lengths.cumsum(0)
    entry_X = torch.arange(batch * time, device=hidden_BTD.device)
    order_X = entry_X + torch.repeat_interleave(starts[by_length] - ends + sorted_lengths, sorted_lengths)
    places_X = torch.empty_like(order_X)
    places_X[order_X] = entry_X
    sizes, counts = torch.unique_consecutive(sorted_lengths, return_counts=True)
    groups = list(zip(sizes.tolist(), counts.tolist(), strict=True))

    def mask(length: int, window: int | None) -> torch.Tensor | None:
        narrow = window is not None and window < length
        return attention_mask(hidden_BTD[:1, :length], None, causal=causal, window=window) if narrow else None

    return [Documents(order_X, places_X, tuple((count, length, mask(length, window)) for length, count in groups)) for window in windows]


def pieces(parts_BT: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the documents of all rows begin, counted over the entries of all rows, and how long each is."""
    begins_BT = torch.zeros_like(parts_BT[0], dtype=torch.bool)
    begins_BT[:, 0] = True
    for part_BT in parts_BT:
        begins_BT[:, 1:] |= part_BT[:, 1:] != part_BT[:, :-1]
    starts = begins_BT.flatten().nonzero()[:, 0]
    return starts, torch.diff(starts, append=starts.new_tensor([begins_BT.numel()]))


def in_one_piece(starts: torch.Tensor, parts_BT: Sequence[torch.Tensor]) -> bool:
    """Whether no two documents of a row have the same numbers."""
    marks = torch.stack([starts // parts_BT[0].shape[1], *(part_BT.flatten()[starts].long() for part_BT in parts_BT)], dim=1)
    different: torch.Tensor = torch.unique(marks, dim=0)
    return len(different) == len(marks)
