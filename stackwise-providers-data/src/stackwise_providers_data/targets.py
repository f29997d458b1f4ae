"""Say how many rows hold nothing that a task could predict from what stands before it."""

from __future__ import annotations

import sys

LOSS_MASK = "loss_mask"
"""Which tokens are learnt, where a corpus says so."""
NOT_LEARNT = "no token of the assistant's that is learnt"
TOO_SHORT = "no second token"


def say_without_targets(name: str, count: int, total: int, noun: str, why: str, length: int) -> None:
    """A line on standard error if some have none.

    Args:
        name: the corpus.
        count: how many of them have none.
        total: how many there are.
        noun: what they are, in the plural.
        why: what they do not have.
        length: entries of a row.
    """
    if count:
        left = f"{count} of {total} {noun} have {why} in rows of {length}"
        print(f"data: {name}: {left}: no target, where each token is predicted from those before it", file=sys.stderr)
