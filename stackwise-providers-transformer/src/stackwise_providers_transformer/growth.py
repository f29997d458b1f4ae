"""Depth growth of named stacks: where each block of the new rack comes from."""

from __future__ import annotations

from collections.abc import Mapping

from stackwise import BlockOrigin, BuildContext, GrowthRequest
from stackwise_providers_transformer.options import GrowthOptions

BlockMap = Mapping[tuple[str, int], BlockOrigin]


class StackGrowth:
    """Block i of a deeper stack comes from block i mod L of the old one with L blocks (G_stack, arXiv 2405.15319).

    A depth that is no multiple of L ends in the middle of a repetition. Blocks that were there keep their index.
    """

    preserves_function = False

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """(stack, index) of every new block → the old block it copies.

        Raises:
            ValueError: a stack that is wholly new, so that there is nothing to copy.
        """
        blocks: dict[tuple[str, int], BlockOrigin] = {}
        for stack, count in request.new_stacks.items():
            old = request.old_stacks.get(stack)
            if not old:
                raise ValueError(
                    f"'stack' copies the blocks of a stack that is already there, and '{stack}' is new: "
                    f"deepen {_named(request.old_stacks)} instead, or let 'identity' begin the new stack"
                )
            blocks |= {(stack, i): BlockOrigin(source=(stack, i % old)) for i in range(count)}
        return blocks


class IdentityGrowth:
    """New blocks are fresh with residual outputs of zero, so that each adds nothing at first (arXiv 2203.06211).

    Blocks that were there keep their index; a new stack may stand anywhere among the others.
    """

    preserves_function = True

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """(stack, index) of every new block → the old block at its index, or a fresh identity."""
        return {
            (stack, i): BlockOrigin(source=(stack, i))
            if i < request.old_stacks.get(stack, 0)
            else BlockOrigin(source=None, zero_residual=True)
            for stack, count in request.new_stacks.items()
            for i in range(count)
        }


def _named(stacks: Mapping[str, int]) -> str:
    return " or ".join(f"'{name}'" for name in stacks)


def build_stack(options: GrowthOptions, context: BuildContext) -> StackGrowth:
    """The factory of `stack`."""
    return StackGrowth()


def build_identity(options: GrowthOptions, context: BuildContext) -> IdentityGrowth:
    """The factory of `identity`."""
    return IdentityGrowth()
