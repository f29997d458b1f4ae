"""The named stacks of a rack, for every rack of this provider."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from stackwise import Stack, UserError


def named_stacks(stacks: Sequence[Stack], make_blocks: Callable[[Stack], Iterable[nn.Module]]) -> nn.ModuleDict:
    """The blocks of each stack under its name, in forward order.

    Raises:
        UserError: a stack has a name that torch keeps for itself, such as `values`.
    """
    named = nn.ModuleDict()
    for stack in stacks:
        if hasattr(named, stack.name):
            raise UserError(f"stacks: torch keeps the name '{stack.name}' for its modules: call the stack otherwise")
        named[stack.name] = nn.ModuleList(make_blocks(stack))
    return named
