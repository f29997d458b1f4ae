"""From one MLP to a mixture of experts, and from some experts to more.

`upcycle`: every expert of a block begins as the block's MLP, and the router anew (sparse upcycling, arXiv 2212.05055, section 2). Where
the gates of the chosen experts add up to 1, the function is kept whatever the router says.

`add-experts`: new experts stand after the old ones, which keep their places; each is fresh, or a copy of an old one. The router's
rows of old experts stay, those of new ones begin anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stackwise import BuildContext, CopyOf, GrowthRequest
from stackwise_providers_transformer.axes import Axis, Shapes, copy_axes
from stackwise_providers_transformer.depth_growth import BlockMap, kept_blocks
from stackwise_providers_transformer.growth_options import AddExpertsOptions, UpcycleOptions

_EXPERT = re.compile(r"(?P<block>.*)\.mlp\.experts\.(?P<number>\d+)\.(?P<rest>.*)")


class Upcycling:
    """Every expert a copy of the MLP that stood in its place."""

    preserves_function = True

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """Every block from its own place.

        Raises:
            ValueError: a block is new.
        """
        return kept_blocks("upcycle", request)

    def map_parameters(self, old: Shapes, new: Shapes, request: GrowthRequest) -> Mapping[str, CopyOf]:
        """The MLP of a block → each of its experts.

        A position sends a share of its gradient to each expert, 1/count of it where all are used alike, so moments are shared out too.

        Raises:
            ValueError: there are no MLPs that become experts, or the gates do not add up to 1.
        """
        _check_gates(request)
        origins = {}
        for name, shape in new.items():
            if (match := _EXPERT.fullmatch(name)) is None or name in old:
                continue
            source = f"{match['block']}.mlp.{match['rest']}"
            if old.get(source) != shape:
                there = f"is {list(old[source])}" if source in old else "is not there"
                raise ValueError(f"{name} is {list(shape)} and {source} {there}: 'upcycle' makes experts of MLPs of the same form and size")
            count = sum(other.startswith(f"{match['block']}.mlp.experts.") and other.endswith(f".{match['rest']}") for other in new)
            even = (1.0 / count,) * shape[0]
            origins[name] = copy_axes(source, {0: Axis(tuple(range(shape[0])), gradient=even)})
        if not origins:
            raise ValueError("'upcycle' has nothing to do: give the rack `experts` where it had none, or leave the operator out")
        return origins


def _check_gates(request: GrowthRequest) -> None:
    experts: Any = request.new_options.get("rack", {}).get("experts")
    if experts is not None and experts.gates == "all" and experts.active < experts.count:
        raise ValueError(
            f"'upcycle' keeps the function where gates add up to 1, and those of {experts.active} of {experts.count} experts do not with "
            "`gates: all`: set gates to chosen, or active to count"
        )


class MoreExperts:
    """New experts after the old ones.

    Args:
        start: `fresh`, or `copy`: new expert e begins as old expert e mod their number.
    """

    preserves_function = False

    def __init__(self, start: str) -> None:
        self._copies = start == "copy"

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """Every block from its own place.

        Raises:
            ValueError: a block is new.
        """
        return kept_blocks("add-experts", request)

    def map_parameters(self, old: Shapes, new: Shapes, request: GrowthRequest) -> Mapping[str, CopyOf]:
        """Rows of routers, and copies of experts; old experts stay as they are.

        Raises:
            ValueError: no experts are added, or something else changes.
        """
        origins = {}
        for name in (name for name in new if name in old and new[name] != old[name]):
            before, after = old[name], new[name]
            if not name.endswith(".mlp.router.weight") or before[1:] != after[1:] or after[0] < before[0]:
                raise ValueError(
                    f"{name} goes from {list(before)} to {list(after)}, and 'add-experts' can only add experts: "
                    "make other changes in a phase of their own"
                )
            block = name.removesuffix(".mlp.router.weight")
            origins[name] = copy_axes(name, {0: Axis((*range(before[0]), *(-1 for _ in range(after[0] - before[0]))))})
            if self._copies:
                origins |= _copied_experts(block, before[0], new)
        if not origins:
            raise ValueError("'add-experts' has nothing to do: raise `experts.count` of the rack, or leave the operator out")
        return origins


def _copied_experts(block: str, count: int, new: Shapes) -> dict[str, CopyOf]:
    copies = {}
    for name in new:
        match = _EXPERT.fullmatch(name)
        if match is not None and match["block"] == block and (number := int(match["number"])) >= count:
            copies[name] = CopyOf(source=f"{block}.mlp.experts.{number % count}.{match['rest']}")
    return copies


def build_upcycle(options: UpcycleOptions, context: BuildContext) -> Upcycling:
    """The factory of `upcycle`."""
    return Upcycling()


def build_add_experts(options: AddExpertsOptions, context: BuildContext) -> MoreExperts:
    """The factory of `add-experts`."""
    return MoreExperts(options.start)
