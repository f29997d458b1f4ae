"""Which part of the data a loader reads: what training sees, what is held out for evaluations, or all of it.

A document is held out by a hash that depends on nothing else, so that training and evaluations never share one, whatever the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from typing import Literal

from stackwise import BuildContext, DataError, Reading

Part = Literal["training", "heldout", "whole"]
"""What training sees; what only evaluations see; both."""

HASHES = 2**64
"""Number of hashes."""


def part_of(context: BuildContext, heldout: float | None) -> Part:
    """The part that a loader is built for: a source of an evaluation alone is read whole, unless its options hold a share of it out."""
    return part_for(context.split, context.whole, heldout)


def part_for(split: str, whole: bool, heldout: float | None) -> Part:
    """The same, by what a context says."""
    if split == "train":
        return "training"
    return "whole" if whole and not heldout else "heldout"


def readings(data: Iterable[str], part: Part, share: float, order: Hashable, key: Hashable = None) -> list[Reading]:
    """What is read of some data of which a share is held out, the first one in an order."""
    begin, end = {"training": (share, 1.0), "heldout": (0.0, share), "whole": (0.0, 1.0)}[part]
    return [Reading(name, begin, end, order, key) for name in data]


def part_of_split(split: str) -> Part:
    """The part that a source of training delivers for a split."""
    return "training" if split == "train" else "heldout"


def split_hash(content: str | bytes) -> int:
    """The first 64 bits of the SHA-256 of what decides where something belongs."""
    raw = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big")


def is_heldout(content: str | bytes, share: float) -> bool:
    """Whether something is held out: its hash, as a fraction, lies below `share`."""
    return split_hash(content) < share * HASHES


def is_in(part: Part, *, heldout: bool) -> bool:
    """Whether a document belongs to a part."""
    return part == "whole" or heldout == (part == "heldout")


def no_documents(name: str, share: float, total: int, noun: str, part: Part) -> DataError:
    """The error of a part without documents.

    Args:
        name: the data, for messages.
        share: that is held out.
        total: number of documents of all parts.
        noun: what they are, in the plural.
        part: the one that is empty.
    """
    if not total:
        return DataError(f"{name}: there are no {noun}, the data are empty: give some")
    if part == "heldout" and not share:
        return DataError(f"{name}: a heldout of 0 leaves none of {total} {noun} for the evaluations: write heldout: 0.05")
    if part == "training" and share == 1:
        return DataError(f"{name}: a heldout of 1 leaves none of {total} {noun} for training: write heldout: 0.05")
    alike = f"its {total} {noun} are all alike, and equal ones are in one part" if total > 1 else f"one of its {noun} is all there is"
    return DataError(
        f"{name}: nothing is left for {'training' if part == 'training' else 'the evaluations'}, as {alike}: give more {noun}, or give the "
        "evaluation `sources` of its own and write heldout: 0 here"
    )


def rows_of(part: Part, total: int, heldout: float | None) -> slice:
    """The rows of a part where the share held out stands at the end; nothing is held out when it is left open."""
    first_heldout = total - round((heldout or 0.0) * total)
    return {"training": slice(0, first_heldout), "heldout": slice(first_heldout, total), "whole": slice(0, total)}[part]


def no_rows(name: str, heldout: float | None, total: int, noun: str, split: str) -> DataError:
    """The error of arrays that leave nothing for a split."""
    if split == "train":
        return DataError(f"{name}: a heldout of {heldout:g} leaves none of {total} {noun} for training: lower heldout")
    way = "raise heldout" if total > 1 else f"give more {noun}"
    left = f"{name}: a heldout of {heldout or 0:g} leaves none of {total} {noun} for the evaluation '{split}'"
    return DataError(f"{left}: {way}, or give the evaluation `sources` of its own")
