"""The options of the growth operators."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from stackwise import option, scheduled


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
class VocabularyOptions:
    """More token ids."""

    rows: Literal["fresh", "zeros"] = option(
        "fresh", doc="vectors of the new token ids: as their module draws them, or zero", choices=("fresh", "zeros")
    )
