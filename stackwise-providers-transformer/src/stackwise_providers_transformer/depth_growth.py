"""Depth growth of named stacks: where each block of the new rack comes from.

L is the depth of an old stack, n of a new one. Blocks of a stack that does not deepen keep their index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stackwise import BlockOrigin, BuildContext, GrowthRequest
from stackwise_providers_transformer.block_options import repeated_pattern
from stackwise_providers_transformer.growth_options import (
    BlocksOptions,
    GatedOptions,
    IdentityOptions,
    InterleaveOptions,
    MiddleOptions,
    StackOptions,
    read_entries,
)

BlockMap = Mapping[tuple[str, int], BlockOrigin]

Rule = Callable[[int, int], list[int]]
"""(L, n) → the old index that each of the n blocks copies."""

_IDENTITY = BlockOrigin(source=None, zero_residual=True)


def cycle(old: int, new: int) -> list[int]:
    """Block i copies block i mod L (G_stack, arXiv 2405.15319; StackBERT, ICML 2019)."""
    return [i % old for i in range(new)]


def spread(old: int, new: int) -> list[int]:
    """Block i copies block floor(i·L/n), which is floor(i/g) at n = gL: each block is followed by its copies (arXiv 2405.15319).

    At other depths the numbers of copies differ by at most one.
    """
    return [i * old // new for i in range(new)]


def middle(old: int, new: int) -> list[int]:
    """The b = n - L > 0 middle blocks are repeated right after themselves (MIDAS, arXiv 2409.19044).

    Where b divides L they are the piece ⌈k/2⌉ of k = L/b pieces, counted from 1; elsewhere they begin at block floor((L - b)/2).

    Raises:
        ValueError: more new blocks than there are old ones.
    """
    added = new - old
    if added > old:
        raise ValueError(f"'middle' repeats blocks once, so {old} blocks become at most {2 * old}: grow to {new} in several phases")
    pieces, left = divmod(old, added)
    start = (old - added) // 2 if left else (pieces - 1) // 2 * added
    return [*range(start + added), *range(start, old)]


class CopyingGrowth:
    """New blocks are copies of old ones by one rule; the function changes.

    Args:
        name: of the component, for messages.
        rule: which block of L each of n copies.
        source: the stack that wholly new stacks copy; None: there may be none.
    """

    preserves_function = False

    def __init__(self, name: str, rule: Rule, source: str | None = None) -> None:
        self._name, self._rule, self._source = name, rule, source

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """(stack, index) of every new block → the old block it copies.

        Raises:
            ValueError: a new stack without a source, or a source that is not there or not needed.
        """
        old, new = request.old_stacks, request.new_stacks
        self._check(old, new)
        blocks: dict[tuple[str, int], BlockOrigin] = {}
        for stack, count in new.items():
            there = stack if stack in old else str(self._source)
            deeper = stack not in old or count > old[stack]
            indices = self._rule(old[there], count) if deeper else range(count)
            blocks |= {(stack, i): BlockOrigin(source=(there, index)) for i, index in enumerate(indices)}
        return check_kinds(request, blocks)

    def _check(self, old: Mapping[str, int], new: Mapping[str, int]) -> None:
        begun = [stack for stack in new if stack not in old]
        if begun and self._source is None:
            raise ValueError(
                f"'{self._name}' copies the blocks of a stack that is already there, and '{begun[0]}' is new: deepen {_one_of(old)} "
                "instead, name what it copies with the option 'source' of 'stack' or 'interleave', or let 'identity' begin it"
            )
        if self._source is not None and self._source not in old:
            raise ValueError(f"source: there is no stack '{self._source}' to copy: name {_one_of(old)}")
        if self._source is not None and not begun:
            raise ValueError(f"source: '{self._source}' has no effect, because no stack is new: leave it out")


class IdentityGrowth:
    """New blocks are fresh with residual outputs of zero, so that each adds nothing at first (arXiv 2203.06211).

    A new stack may stand anywhere among the others.

    Args:
        at: whether the new blocks of a deepened stack stand at its `end` or at its `start`.
    """

    preserves_function = True

    def __init__(self, at: str = "end") -> None:
        self._at = at

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """(stack, index) of every new block → the old block that stands there now, or a fresh identity."""
        blocks: dict[tuple[str, int], BlockOrigin] = {}
        for stack, count in request.new_stacks.items():
            old = request.old_stacks.get(stack, 0)
            first = max(count - old, 0) if self._at == "start" else 0
            for i in range(count):
                blocks[stack, i] = BlockOrigin(source=(stack, i - first)) if first <= i < first + old else _IDENTITY
        return check_kinds(request, blocks)


class BlocksGrowth:
    """Blocks by a map that is written out: SOLAR (arXiv 2312.15166) is `{base: ["0-23", "8-31"]}`, LLaMA-Pro (arXiv 2401.02415)
    `{base: ["0-3", identity, "4-7", identity]}`.

    Args:
        entries: stack → old block of every new one, and whether it adds nothing at first.
    """

    def __init__(self, entries: Mapping[str, list[tuple[int, bool]]]) -> None:
        self._entries = entries

    @property
    def preserves_function(self) -> bool:
        """Where all that is new are identities, and the old blocks stand in their order."""
        kept = [[block for block, added in blocks if not added] for blocks in self._entries.values()]
        return all(blocks == list(range(len(blocks))) for blocks in kept)

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """(stack, index) of every new block → the old block it copies.

        Raises:
            ValueError: the map is not of these stacks and depths, or leaves out old blocks at the end.
        """
        if unknown := [stack for stack in self._entries if stack not in request.new_stacks or stack not in request.old_stacks]:
            raise ValueError(f"map: there is no stack '{unknown[0]}' before and after: {_one_of(request.old_stacks)} may be named")
        blocks: dict[tuple[str, int], BlockOrigin] = {}
        for stack, count in request.new_stacks.items():
            old = request.old_stacks.get(stack, 0)
            entries = self._entries.get(stack, [(i, False) for i in range(old)])
            if len(entries) != count:
                raise ValueError(f"map.{stack}: it says {len(entries)} blocks, and the rack has {count}: make both the same")
            if far := [block for block, _ in entries if block >= old]:
                raise ValueError(f"map.{stack}: there is no old block {far[0]}: those are 0 to {old - 1}")
            self._check_kept(stack, entries, old)
            blocks |= {(stack, i): BlockOrigin(source=(stack, block), zero_residual=added) for i, (block, added) in enumerate(entries)}
        return check_kinds(request, blocks)

    def _check_kept(self, stack: str, entries: list[tuple[int, bool]], old: int) -> None:
        """Refuse a map that would claim to keep the function and leaves out the last blocks, or zeroes a block where it stood."""
        if self.preserves_function and max(block for block, _ in entries) < old - 1:
            raise ValueError(
                f"map.{stack}: the old blocks from {max(block for block, _ in entries) + 1} on are left out: name each at least once"
            )
        for i, (block, added) in enumerate(entries):
            if added and i == block:
                raise ValueError(
                    f"map.{stack}: entry {i} is an identity copied from block {block}, whose own place it takes: name it before"
                )


class GatedGrowth:
    """New blocks stand at the end, and what they add is multiplied by a gate that follows time from 0 to 1 (MSG, arXiv 2305.02869).

    Args:
        base: `fresh`, or `copy`: block i mod L of the same stack.
        gate: what the gate starts from.
    """

    preserves_function = True

    def __init__(self, base: str, gate: float) -> None:
        self._copies, self._gate = base == "copy", gate

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """(stack, index) of every new block → the old block at its index, or a gated one.

        Raises:
            ValueError: the gate does not start at 0, or a wholly new stack is to be a copy.
        """
        if self._gate:
            raise ValueError(
                f"gate: it starts at {self._gate:g}, so that the function would jump: let it follow time from 0 to 1, "
                "as in {linear: {from: 0, to: 1, over: phase}}"
            )
        blocks = {
            (stack, i): BlockOrigin(source=(stack, i)) if i < request.old_stacks.get(stack, 0) else self._new(stack, i, request.old_stacks)
            for stack, count in request.new_stacks.items()
            for i in range(count)
        }
        return check_kinds(request, blocks)

    def _new(self, stack: str, index: int, old: Mapping[str, int]) -> BlockOrigin:
        if not self._copies:
            return BlockOrigin(source=None, gated=True)
        if stack not in old:
            raise ValueError(f"base: stack '{stack}' is new, so there is nothing to copy: deepen {_one_of(old)}, or set 'base: fresh'")
        return BlockOrigin(source=(stack, index % old[stack]), gated=True)


def check_kinds(request: GrowthRequest, blocks: BlockMap) -> BlockMap:
    """The map, where every old block stays of its kind: with or without a window, turned or not.

    Raises:
        ValueError: lists in the options of the rack, which count blocks from the first, would give an old block another kind.
    """
    before = _kinds(request.old_options.get("rack", {}), request.old_stacks)
    after = _kinds(request.new_options.get("rack", {}), request.new_stacks)
    for (stack, i), origin in blocks.items():
        if origin.source is not None and before[origin.source] != after[stack, i]:
            raise ValueError(
                f"block {i} of '{stack}' comes from block {origin.source[1]}, and would be of another kind: `window.blocks` and "
                "`rotary.blocks` of the rack count its blocks anew, so write them out for the deeper rack"
            )
    return blocks


def _kinds(rack: Mapping[str, Any], stacks: Mapping[str, int]) -> dict[tuple[str, int], tuple[bool, bool]]:
    """(stack, index) → whether it has a window, and whether it turns."""
    places = [(stack, i) for stack, count in stacks.items() for i in range(count)]
    window, rotary = rack.get("window"), rack.get("rotary")
    near = repeated_pattern(window.blocks, len(places)) if window is not None else (False,) * len(places)
    turned = repeated_pattern(rotary.blocks, len(places)) if rotary is not None else (True,) * len(places)
    return dict(zip(places, zip(near, turned, strict=True), strict=True))


def kept_blocks(name: str, request: GrowthRequest) -> BlockMap:
    """Every block from its own place, for operators that do not add any.

    Raises:
        ValueError: a block is new.
    """
    for stack, count in request.new_stacks.items():
        if count > request.old_stacks.get(stack, 0):
            raise ValueError(
                f"'{name}' adds no blocks, and stack '{stack}' has new ones: grow its depth in a phase of its own, "
                "with 'stack', 'interleave', 'middle', 'identity' or 'gated'"
            )
    return {(stack, i): BlockOrigin(source=(stack, i)) for stack, count in request.new_stacks.items() for i in range(count)}


def _one_of(stacks: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in stacks)


def build_stack(options: StackOptions, context: BuildContext) -> CopyingGrowth:
    """The factory of `stack`."""
    return CopyingGrowth("stack", cycle, options.source)


def build_interleave(options: InterleaveOptions, context: BuildContext) -> CopyingGrowth:
    """The factory of `interleave`."""
    return CopyingGrowth("interleave", spread, options.source)


def build_middle(options: MiddleOptions, context: BuildContext) -> CopyingGrowth:
    """The factory of `middle`."""
    return CopyingGrowth("middle", middle)


def build_blocks(options: BlocksOptions, context: BuildContext) -> BlocksGrowth:
    """The factory of `blocks`."""
    return BlocksGrowth({stack: read_entries(stack, entries) for stack, entries in options.map.items()})


def build_identity(options: IdentityOptions, context: BuildContext) -> IdentityGrowth:
    """The factory of `identity`."""
    return IdentityGrowth(options.at)


def build_gated(options: GatedOptions, context: BuildContext) -> GatedGrowth:
    """The factory of `gated`."""
    return GatedGrowth(options.base, options.gate)
