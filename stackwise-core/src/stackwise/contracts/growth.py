"""Growth as data: where each tensor and each block of a new model comes from, and the operators that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import Factory, evolve, field, frozen


@frozen(kw_only=True)
class CopyOf:
    """A tensor takes the values of an old one: new[i, j, …] = old[index[0][i], index[1][j], …] · factors[0][i] · factors[1][j] · …

    A dimension that `index` does not name is taken as it is. Moments follow the same index. Where `project` names a dimension, its new
    positions are sums over the old ones instead: new[i, …] = Σ project[0][i][k] · old[k, …].
    """

    source: str
    """Canonical name in the old model."""
    index: Mapping[int, tuple[int, ...]] = Factory(dict)
    """Dimension → old position of every new one; −1: no source, the entry is `rest`."""
    factors: Mapping[int, tuple[float, ...]] = Factory(dict)
    """Dimension → factor of every new position."""
    gradient: Mapping[int, tuple[float, ...]] = Factory(dict)
    """Dimension → what the map does to the gradient at every new position, so that moments made of it follow (m·g, v·g²)."""
    project: Mapping[int, tuple[tuple[float, ...], ...]] = Factory(dict)
    """Dimension, none that `index` names → for every new position the factor of each old one: for instance a learnt matrix."""
    rest: Literal["module", "zeros", "mean"] = "module"
    """Entries without a source: as the module initialises them, zero, or the mean over all old positions of the dimension."""

    @property
    def whole(self) -> bool:
        """Whether the tensor is taken as it is."""
        return not self.index and not self.factors and not self.project

    @property
    def sources(self) -> tuple[str, ...]:
        """Every old tensor that it reads."""
        return (self.source,)

    @property
    def keeps_rest(self) -> bool:
        """Whether some entries stay as the module initialised them."""
        return self.rest == "module" and any(-1 in index for index in self.index.values())

    def renamed(self, names: Mapping[str, str]) -> CopyOf:
        """The same map from sources of other names."""
        return evolve(self, source=names[self.source])


def _terms(terms: Iterable[tuple[CopyOf, float]]) -> tuple[tuple[CopyOf, float], ...]:
    return tuple((origin, float(factor)) for origin, factor in terms)


@frozen
class Combine:
    """A tensor is a linear combination of old ones, each taken by a map of its own: new = Σ factor · (what its `CopyOf` gives).

    Moments follow by the same combination: first moments linearly; second moments by (Σ |factor| · √v)², the largest that the second
    moment of such a sum of gradients can be, so that no step is larger than the gradients allow. Counters are those of the first term.
    With `moments="reset"`, or where a source has no state yet, they start anew. A term adds nothing to an entry for which it has no
    source, unless its `rest` is `mean`.
    """

    terms: tuple[tuple[CopyOf, float], ...] = field(converter=_terms)
    moments: Literal["map", "reset"] = field(default="map", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a combination has at least one term")

    @property
    def source(self) -> str:
        """The old tensor of the first term, whose counters go on."""
        return self.terms[0][0].source

    @property
    def sources(self) -> tuple[str, ...]:
        """Every old tensor that it reads, each once."""
        return tuple(dict.fromkeys(origin.source for origin, _ in self.terms))

    @property
    def whole(self) -> bool:
        """It is never one tensor as it is."""
        return False

    @property
    def keeps_rest(self) -> bool:
        """No entry stays as the module initialised it."""
        return False

    def renamed(self, names: Mapping[str, str]) -> Combine:
        """The same combination of sources of other names."""
        return evolve(self, terms=tuple((origin.renamed(names), factor) for origin, factor in self.terms))


@frozen(kw_only=True)
class Fresh:
    """A grown tensor starts anew: as its module initialises it, or all zero."""

    init: Literal["module", "zeros"] = "module"


Mapped = CopyOf | Combine
"""Takes values from old tensors."""

Origin = CopyOf | Combine | Fresh


@frozen(kw_only=True)
class GrowthRequest:
    """What an operator is asked: one rack before and after. It needs no torch."""

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
    """Set the residual outputs to zero, so that the block begins as the identity."""
    gated: bool = False
    """Multiply the outputs of the residual branches by the operator's option `gate`, a schedule that ends at 1."""


class GrowthOperator(Protocol):
    """How new blocks are made: a pure map from new blocks to old ones.

    The planner builds it once, before the run, with `BuildContext(seed=0)`, asks `map_blocks`, and the plan carries it to the boundary, so
    its module does not import torch.
    """

    @property
    def preserves_function(self) -> bool:
        """Whether the outputs stay as they were (to fp32 rounding)."""
        ...

    def map_blocks(self, request: GrowthRequest) -> Mapping[tuple[str, int], BlockOrigin]:
        """(stack, index) of every block of the new rack → its origin.

        Raises:
            ValueError: the operator cannot make this change; the message says which changes it can make.
        """
        ...


@runtime_checkable
class ParameterGrowth(Protocol):
    """An operator that maps tensor by tensor (width growth), asked at the boundary."""

    def map_parameters(
        self, old: Mapping[str, tuple[int, ...]], new: Mapping[str, tuple[int, ...]], request: GrowthRequest
    ) -> Mapping[str, Origin]:
        """The origins of the new parameters that this operator maps, by canonical name.

        Blocks are mapped already: if a block has an origin, the tensors of that origin are in `old` under the block's new name, so a
        source is found by the name of what it becomes. A tied parameter appears once in each map, under its first name; adapters of
        junctions and of weights are included. Parameters that the answer leaves out are taken as they are; if the shape of one of them
        changes, the run is refused.

        Args:
            old: canonical name → shape before.
            new: canonical name → shape afterwards.
            request: stacks and options before and afterwards.

        Raises:
            ValueError: the operator cannot make this change; the message says which changes it can make.
        """
        ...
