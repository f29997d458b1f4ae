"""Growth as data: where each tensor and each block of a new model comes from, and the operators that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import Factory, frozen


@frozen(kw_only=True)
class CopyOf:
    """A tensor takes the values of an old one: new[i, j, …] = old[index[0][i], index[1][j], …] · factors[0][i] · factors[1][j] · …

    A dimension that `index` does not name is taken as it is. Moments follow the same index.
    """

    source: str
    """Canonical name in the old model."""
    index: Mapping[int, tuple[int, ...]] = Factory(dict)
    """Dimension → old position of every new one; −1: no source, the entry is `rest`."""
    factors: Mapping[int, tuple[float, ...]] = Factory(dict)
    """Dimension → factor of every new position."""
    gradient: Mapping[int, tuple[float, ...]] = Factory(dict)
    """Dimension → what the map does to the gradient at every new position, so that moments made of it follow (m·g, v·g²)."""
    rest: Literal["module", "zeros", "mean"] = "module"
    """Entries without a source: as the module initialises them, zero, or the mean over all old positions of the dimension."""

    @property
    def whole(self) -> bool:
        """Whether the tensor is taken as it is."""
        return not self.index and not self.factors


@frozen(kw_only=True)
class Fresh:
    """A grown tensor starts anew: as its module initialises it, or all zero."""

    init: Literal["module", "zeros"] = "module"


Origin = CopyOf | Fresh


@frozen(kw_only=True)
class GrowthRequest:
    """What an operator is asked: one rack before and after; all of it cold."""

    old_stacks: Mapping[str, int]
    new_stacks: Mapping[str, int]
    residual_outputs: tuple[str, ...] = ()
    """Parameters of a block that `RackSpec` names as its residual outputs."""
    old_options: Mapping[str, Mapping[str, Any]] = Factory(dict)
    """Role (`embedding`, `rack`, `head`) → options before, as filled; empty in a loop of the user's own."""
    new_options: Mapping[str, Mapping[str, Any]] = Factory(dict)


@frozen(kw_only=True)
class BlockOrigin:
    """Where a new block comes from: an old block by stack and index, or fresh (`source` None)."""

    source: tuple[str, int] | None
    zero_residual: bool = False
    """Start with residual outputs of zero: the block is the identity at first."""
    gated: bool = False
    """Multiply the outputs of the residual branches by the operator's option `gate`, which follows time and ends at 1."""


class GrowthOperator(Protocol):
    """How new blocks come into being: a pure map from new blocks to old ones."""

    @property
    def preserves_function(self) -> bool:
        """Whether the outputs stay as they were (to fp32 rounding)."""
        ...

    def map_blocks(self, request: GrowthRequest) -> Mapping[tuple[str, int], BlockOrigin]:
        """(stack, index) of every block of the new rack → its origin.

        Raises:
            ValueError: the change is none this operator can make; the sentence says which it can.
        """
        ...


@runtime_checkable
class ParameterGrowth(Protocol):
    """An operator that maps tensor by tensor (width growth)."""

    def map_parameters(
        self, old: Mapping[str, tuple[int, ...]], new: Mapping[str, tuple[int, ...]], request: GrowthRequest
    ) -> Mapping[str, Origin]:
        """Shapes by canonical name, before and after → origins of the new parameters it has something to say about.

        Blocks go by their new names; where a block comes from is `map_blocks`' to say. A tied parameter appears once in each,
        under its first name; adapters of junctions and of weights appear too.

        Raises:
            ValueError: the change is none this operator can make; the sentence says which it can.
        """
        ...
