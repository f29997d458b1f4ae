"""Growth in depth. Nothing here imports torch: the map is part of the plan."""

from __future__ import annotations

from attrs import frozen

from stackwise import BlockOrigin, BuildContext, GrowthRequest
from waves_for_stackwise.options import RepeatOptions


@frozen
class Repeat:
    """Block i of a stack g times as deep is a copy of block i // g (G_stack's interleaving, arXiv 2405.15319, section 3)."""

    preserves_function = False

    def map_blocks(self, request: GrowthRequest) -> dict[tuple[str, int], BlockOrigin]:
        """Raises ValueError: a stack that is new, or no whole number of times as deep."""
        origins = {}
        for stack, blocks in request.new_stacks.items():
            old = request.old_stacks.get(stack)
            if old is None:
                raise ValueError(f"stack '{stack}' is new, and there is nothing to repeat: name a stack that was there before")
            if blocks % old:
                raise ValueError(f"stack '{stack}' goes from {old} blocks to {blocks}, which is no whole number of times as deep")
            for i in range(blocks):
                origins[stack, i] = BlockOrigin(source=(stack, i // (blocks // old)))
        return origins


def build_repeat(options: RepeatOptions, context: BuildContext) -> Repeat:
    """The factory of growth operator `waves.repeat`."""
    return Repeat()
