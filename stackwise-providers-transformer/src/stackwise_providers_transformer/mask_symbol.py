"""Which id the mask symbol has, and which ids are ordinary ones."""

from __future__ import annotations

from attrs import frozen

from stackwise import BuildContext, TaskSpec, UserError


@frozen
class MaskSymbol:
    """The mask symbol among the ids.

    Args:
        id: its own.
        symbols: number of the loader's ids, which are 0, 1, 2, …; the mask symbol may be one of them.
    """

    id: int
    symbols: int


def mask_symbol(context: BuildContext, declared: int | None) -> MaskSymbol:
    """The mask symbol of a task that is joined to its loader.

    Raises:
        UserError: nothing says how many ids the loader has.
    """
    spec = context.specs.get("task")
    bounds = spec.batch["tokens"].bounds if isinstance(spec, TaskSpec) else None
    if bounds is None or not isinstance(bounds[1], int):
        raise UserError("mask_token: nothing says how many token ids there are: give vocab to the loader or to the embedding")
    return MaskSymbol(bounds[1] if declared is None else declared, bounds[1])
