"""More hidden features in every MLP, the function kept.

`zero-out`: new features have fresh weights and nothing reads them: their columns of `down` are zero, and learn first.
`split`: new features are copies of old ones, and the columns of `down` that read one feature are shared out unevenly among its
copies (Net2WiderNet, arXiv 1511.05641, section 2.2), so that the copies learn differently from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping

from stackwise import BuildContext, CopyOf, GrowthRequest
from stackwise_providers_transformer.axes import Axis, Shapes, map_axes, repeated, uneven_shares
from stackwise_providers_transformer.depth_growth import BlockMap, kept_blocks
from stackwise_providers_transformer.growth_options import WidenFFOptions


def split_features(old: int, new: int) -> tuple[Axis, Axis]:
    """Copied features where they are made (rows of `gate` and `up`), and where they are read (columns of `down`).

    A share s of what is read of a feature gives its copy s times the gradient.

    Raises:
        ValueError: fewer features than before.
    """
    _check_more(old, new)
    index = repeated(old, new)
    shares = uneven_shares(index)
    return Axis(index, gradient=shares), Axis(index, factors=shares)


def unread_features(old: int, new: int) -> tuple[Axis, Axis]:
    """Fresh features where they are made, and zeros where they are read.

    Raises:
        ValueError: fewer features than before.
    """
    _check_more(old, new)
    index = (*range(old), *(-1 for _ in range(new - old)))
    return Axis(index), Axis(index, rest="zeros")


def _check_more(old: int, new: int) -> None:
    if new < old:
        raise ValueError(f"the MLPs have {old} hidden features and would have {new}: growth takes none away, so set 'ff' to {old} or more")


class FeedForwardGrowth:
    """New features in the MLPs of a `transformer.decoder`.

    Args:
        how: `zero-out` or `split`.
    """

    preserves_function = True

    def __init__(self, how: str) -> None:
        self._features = split_features if how == "split" else unread_features

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """Every block from its own place.

        Raises:
            ValueError: a block is new.
        """
        return kept_blocks("widen-ff", request)

    def map_parameters(self, old: Shapes, new: Shapes, request: GrowthRequest) -> Mapping[str, CopyOf]:
        """The maps of all MLPs.

        Raises:
            ValueError: no MLP grows, or something else does too.
        """
        _check_heads(request)

        def axes_of(name: str) -> dict[int, Axis]:
            path, _, kind = name.rpartition(".")
            block, _, matrix = path.rpartition(".mlp.")
            place = f"{block}.mlp.down.weight"
            if not block or matrix not in ("gate", "up", "down") or place not in old or place not in new:
                return {}
            before, after = old[place][1], new[place][1]
            if before == after or (matrix == "down" and kind == "bias"):
                return {}
            made, read = self._features(before, after)
            return {1: read} if matrix == "down" else {0: made}

        origins = map_axes("widen-ff", "add hidden features to MLPs", old, new, axes_of)
        if not origins:
            raise ValueError("'widen-ff' has nothing to do: set 'ff' of the rack above what it was, or leave the operator out")
        return origins


def _check_heads(request: GrowthRequest) -> None:
    """Where the racks' options are known: other heads show in no shape, and change the function."""
    before, after = (options.get("rack", {}).get("heads") for options in (request.old_options, request.new_options))
    if before != after:
        raise ValueError(
            f"'widen-ff' can only add hidden features to MLPs, and 'heads' would go from {before} to {after}, which changes what "
            "attention computes: make other changes in a phase of their own"
        )


def build_widen_ff(options: WidenFFOptions, context: BuildContext) -> FeedForwardGrowth:
    """The factory of `widen-ff`."""
    return FeedForwardGrowth(options.how)
