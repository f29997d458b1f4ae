"""Cross-entropy over token ids, from logits or from what they are a product of.

Shapes: N tokens, B batch, T time, D width, V vocab, C the tokens of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from stackwise import LinearOutput
from stackwise_providers_transformer.linear_nats import linear_nats

IGNORED = -100
"""Marks a position without a target."""

LARGE = 2**24
"""Logits with more entries than this (64 MB in float32) are not computed at once but summed in chunks."""

Logits = torch.Tensor | LinearOutput
"""[..., V], as a tensor or as a product that is not computed yet."""


class TokenNats(NamedTuple):
    """The loss of every token."""

    nats: torch.Tensor
    """-log p of the target in float32, [...]; 0 where there is none."""
    right: torch.Tensor
    """Whether the target is the likeliest id, [...] bool; False where there is none, or where it is not asked for."""


def token_nats(logits: Logits, targets: torch.Tensor, *, without: int | None = None, guesses: bool = True) -> TokenNats:
    """-log softmax(logits) of every target, in float32 whatever the precision of the logits.

    Args:
        logits: [..., V]; a product with more than `LARGE` entries is never made as a whole, and only for tokens with a target.
        targets: int64 [...], below V, or -100 for none.
        without: an id whose logit is -inf.
        guesses: whether `right` is wanted.
    """
    if isinstance(logits, LinearOutput) and _is_large(logits):
        return _in_chunks(logits, targets, without, guesses=guesses)
    rows_NV = as_tensor(logits).flatten(0, -2).float()
    if without is not None:
        rows_NV = rows_NV.masked_fill(torch.arange(rows_NV.shape[-1], device=rows_NV.device) == without, -torch.inf)
    flat_N = targets.flatten()
    nats = F.cross_entropy(rows_NV, flat_N, reduction="none", ignore_index=IGNORED)
    right = rows_NV.detach().argmax(-1) == flat_N if guesses else torch.zeros_like(flat_N, dtype=torch.bool)
    return TokenNats(nats.view_as(targets), right.view_as(targets))


def summed_nats(
    logits: Logits, targets_BT: torch.Tensor, counted_BT: torch.Tensor | None, *, guesses: bool = False
) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor]:
    """The sum in nats, in float32 whatever the precision of the logits, the number of targets, and how many are the likeliest id.

    Args:
        logits: [B, T, V] of any floating dtype.
        targets_BT: int64 below V.
        counted_BT: which targets count; all when None.
        guesses: whether the last one is wanted.
    """
    count = float(targets_BT.numel()) if counted_BT is None else counted_BT.sum()
    if counted_BT is not None:
        targets_BT = targets_BT.masked_fill(~counted_BT, IGNORED)
    if isinstance(logits, LinearOutput) and _is_large(logits):
        each = _in_chunks(logits, targets_BT, None, guesses=guesses)
        return each.nats.sum(), count, each.right.sum()
    rows_NV, flat_N = as_tensor(logits).flatten(0, -2).float(), targets_BT.flatten()
    right = (rows_NV.detach().argmax(-1) == flat_N).sum() if guesses else flat_N.new_zeros(())
    return F.cross_entropy(rows_NV, flat_N, reduction="sum", ignore_index=IGNORED), count, right


def summed_by_row(logits: Logits, targets_BT: torch.Tensor, counted_BT: torch.Tensor) -> torch.Tensor:
    """log p of the targets that count, summed within each row, in float32; [B]."""
    nats_BT = token_nats(logits, targets_BT.masked_fill(~counted_BT, IGNORED), guesses=False).nats
    return -nats_BT.sum(dim=1)


def as_tensor(logits: Logits) -> torch.Tensor:
    """Logits as a tensor."""
    return logits.tensor() if isinstance(logits, LinearOutput) else logits


def _is_large(logits: LinearOutput) -> bool:
    return logits.hidden.numel() // logits.hidden.shape[-1] * logits.weight.shape[0] > LARGE


def _in_chunks(logits: LinearOutput, targets: torch.Tensor, without: int | None, *, guesses: bool) -> TokenNats:
    """The same, a few tokens at a time; tokens without a target are left out."""
    flat_N = targets.flatten()
    hidden_ND = logits.hidden.flatten(0, -2)
    places_C = (flat_N != IGNORED).nonzero()[:, 0]
    every = len(places_C) == len(flat_N)
    if not every:
        hidden_ND, flat_N = hidden_ND[places_C], flat_N[places_C]
    nats_N, best_N = linear_nats(hidden_ND, logits.weight, logits.bias, flat_N, cap=logits.cap, without=without, best=guesses)
    right_N = best_N == flat_N
    if not every:
        nats_N = nats_N.new_zeros(targets.numel()).index_put((places_C,), nats_N)
        right_N = right_N.new_zeros(targets.numel()).index_put((places_C,), right_N)
    return TokenNats(nats_N.view_as(targets), right_N.view_as(targets))
