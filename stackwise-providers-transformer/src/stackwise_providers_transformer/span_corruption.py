"""Spans cut out of rows, as T5 does it (arXiv 1910.10683, section 3.1.4).

Shapes: B batch, T tokens, S tokens of the source, Y of the target.
"""

from __future__ import annotations

import torch
from attrs import frozen

from stackwise import UserError


@frozen
class SpanSizes:
    """How a row of T tokens is cut: `hidden` of them in `spans` spans."""

    tokens: int
    hidden: int
    spans: int

    @classmethod
    def of(cls, tokens: int, *, density: float, mean_span: float) -> SpanSizes:
        """The sizes for rows of a length; at least one token is hidden and one is shown.

        Raises:
            UserError: rows too short to be cut.
        """
        if tokens < 2:
            raise UserError(f"a row of {tokens} tokens cannot be cut into a source and a target: make data.seq_len 2 or more")
        hidden = min(max(round(tokens * density), 1), tokens - 1)
        return cls(tokens, hidden, min(max(round(hidden / mean_span), 1), hidden, tokens - hidden))

    @property
    def source(self) -> int:
        """Tokens of the source: what is shown, a sentinel for every span, an end."""
        return self.tokens - self.hidden + self.spans + 1

    @property
    def target(self) -> int:
        """Tokens of the target: what is hidden, a sentinel before every span, an end."""
        return self.hidden + self.spans + 1


def hidden_spans(rows: int, sizes: SpanSizes, generator: torch.Generator) -> torch.Tensor:
    """Which tokens are hidden; bool [B, T]. Every row begins with what is shown; all cuts of the given sizes are equally likely."""
    shown = _parts(rows, sizes.tokens - sizes.hidden, sizes.spans, generator)
    hidden = _parts(rows, sizes.hidden, sizes.spans, generator)
    ends = torch.stack((shown, hidden), dim=2).flatten(1).cumsum(dim=1)
    place = torch.arange(sizes.tokens)
    return (place[None, :, None] >= ends[:, None, :]).sum(dim=2) % 2 == 1


def cut(
    tokens_BT: torch.Tensor, hidden_BT: torch.Tensor, sizes: SpanSizes, *, sentinel: int, end: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Source [B, S] and target [B, Y]: span k is `sentinel + k` in the source, and stands after it in the target.

    Args:
        tokens_BT: int64.
        hidden_BT: as `hidden_spans` draws it.
        sizes: those it was drawn for.
        sentinel: id of the first sentinel.
        end: id that ends both.
    """
    rows = len(tokens_BT)
    begins_BT = hidden_BT.clone()
    begins_BT[:, 1:] &= ~hidden_BT[:, :-1]
    marks_BT = sentinel + begins_BT.cumsum(dim=1) - 1
    ends_B1 = torch.full((rows, 1), end, dtype=tokens_BT.dtype, device=tokens_BT.device)
    source = torch.where(begins_BT, marks_BT, tokens_BT)[~hidden_BT | begins_BT].view(rows, -1)
    pairs_BT2 = torch.stack((marks_BT, tokens_BT), dim=2)
    target = pairs_BT2[torch.stack((begins_BT, hidden_BT), dim=2)].view(rows, -1)
    return torch.cat((source, ends_B1), dim=1), torch.cat((target, ends_B1), dim=1)


def _parts(rows: int, total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`total` things in `count` parts of at least one, uniformly among all ways; int64 [rows, count]."""
    cuts = torch.rand(rows, total - 1, generator=generator).argsort(dim=1)[:, : count - 1].sort(dim=1).values + 1
    first, last = torch.zeros(rows, 1, dtype=torch.int64), torch.full((rows, 1), total)
    return torch.cat((first, cuts, last), dim=1).diff(dim=1)
