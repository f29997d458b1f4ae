"""The options of the growth operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from stackwise import UserError, option, scheduled


@frozen(kw_only=True)
class StackOptions:
    """Whole repetitions of a stack, one after the other."""

    source: str | None = option(None, doc="the stack whose blocks a wholly new stack copies; without it no stack may be new")


@frozen(kw_only=True)
class InterleaveOptions:
    """Every block followed by its copies."""

    source: str | None = option(None, doc="the stack whose blocks a wholly new stack copies; without it no stack may be new")


@frozen(kw_only=True)
class MiddleOptions:
    """The middle blocks once more, right after themselves; nothing to choose."""


@frozen(kw_only=True)
class IdentityOptions:
    """New blocks that add nothing at first."""

    at: Literal["end", "start"] = option(
        "end", doc="where the new blocks of a deepened stack stand: after its old blocks, or before them", choices=("end", "start")
    )


@frozen(kw_only=True)
class BlocksOptions:
    """Where every block comes from, block by block."""

    map: Mapping[str, tuple[int | str, ...]] = option(
        doc="stack → what its blocks are: numbers of old blocks of that stack, ranges ('0-23'), and `identity`, a copy of the block "
        "before it that adds nothing at first; stacks left out stay as they are"
    )

    def __attrs_post_init__(self) -> None:
        for stack, entries in self.map.items():
            read_entries(stack, entries)


def read_entries(stack: str, entries: tuple[int | str, ...]) -> list[tuple[int, bool]]:
    """Old block of every new one, and whether it adds nothing at first.

    Raises:
        UserError: an entry that is none, or an identity without a block before it.
    """
    blocks: list[tuple[int, bool]] = []
    for entry in entries:
        if entry == "identity":
            if not blocks:
                raise UserError(f"map.{stack}: an identity is a copy of the block before it, and none is before the first entry")
            blocks.append((blocks[-1][0], True))
            continue
        first, dash, last = str(entry).partition("-")
        if not first.isdecimal() or (dash and (not last.isdecimal() or int(last) < int(first))):
            raise UserError(f"map.{stack}: {entry!r} is not a block: write a number, a range such as '0-3', or identity")
        blocks += [(i, False) for i in range(int(first), int(last or first) + 1)]
    return blocks


@frozen(kw_only=True)
class GatedOptions:
    """New blocks that are let in little by little."""

    base: Literal["fresh", "copy"] = option(
        "fresh", doc="what a new block is behind its gate: fresh, or a copy of the block at its index modulo the old depth",
        choices=("fresh", "copy"),
    )  # fmt: skip
    gate: float = scheduled(
        doc="factor on what new blocks add; a schedule from 0 to 1, such as {linear: {from: 0, to: 1, over: phase}}", minimum=0, maximum=1
    )


@frozen(kw_only=True)
class WidenOptions:
    """The width times a whole number; nothing to choose."""


@frozen(kw_only=True)
class WidenFFOptions:
    """More hidden features in every MLP."""

    how: Literal["zero-out", "split"] = option(
        "zero-out",
        doc="new features: fresh ones that nothing reads at first, or copies of old ones that share what is read of them",
        choices=("zero-out", "split"),
    )


@frozen(kw_only=True)
class UpcycleOptions:
    """Experts that begin as the MLP in whose place they stand; nothing to choose."""


@frozen(kw_only=True)
class AddExpertsOptions:
    """More experts in every block that has some."""

    start: Literal["fresh", "copy"] = option(
        "copy", doc="what new experts begin as: copies of the old ones in turn, or fresh", choices=("fresh", "copy")
    )


@frozen(kw_only=True)
class VocabularyOptions:
    """More token ids."""

    rows: Literal["fresh", "zeros", "mean"] = option(
        "fresh",
        doc="vectors of the new token ids: as their module draws them, zero, or the mean of all old ones",
        choices=("fresh", "zeros", "mean"),
    )
