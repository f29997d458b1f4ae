"""The width of the model times g, by duplicating coordinates, the function kept and every moment exact.

With hidden state h of the small model, the large one computes (h, h, …, h), g times. What that asks of each kind of axis:

| axis | copy j of g gets | its gradient is |
|---|---|---|
| where the hidden state is made: embedding, positions, rows of residual outputs | the value itself | 1/g of the old one |
| gain and bias of a norm | u_j times the value | 1/(g·u_j) |
| where a normed state is read: columns of query, key, value, gate, up, an untied head | 1/(g·u_j) | u_j |
| heads and hidden features where they are made | the value itself | s_j |
| where they are read: columns of residual outputs | s_j | 1 |
| gain and bias of the norm before a tied head | 1/g | 1 |

RMSNorm and LayerNorm of (h, …, h) are those of h, g times. What the copies of one coordinate add to a reader is 1/g of the whole
each, as u_j · 1/(g·u_j), so that the gradient which flows back through the norm is the old one over g at every copy: with unequal
parts it would be a mixture that no factor gives. The u_j of one norm and the shares s_j of one head or feature differ, so that
copies learn differently from the first steps on (the symmetry that Net2Net breaks, arXiv 1511.05641, section 2.2). A tied head reads
with the matrix that makes the hidden state, whose copies are equal: the final norm takes the 1/g.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from stackwise import BuildContext, CopyOf, GrowthRequest
from stackwise_providers_transformer.axes import Axis, Shapes, map_axes, repeated, uneven_shares
from stackwise_providers_transformer.depth_growth import BlockMap, kept_blocks
from stackwise_providers_transformer.ff_growth import split_features
from stackwise_providers_transformer.growth_options import WidenOptions

_FINAL_GAIN = "rack.norm.weight"
_PROJECTIONS = ("attention.qkv", "attention.output", "mlp.gate", "mlp.up", "mlp.down")


@frozen
class _Hidden:
    """The axes along the hidden state."""

    made: Axis
    gain: Axis
    read: Axis
    tied_gain: Axis

    @classmethod
    def of(cls, width: int, times: int) -> _Hidden:
        """The axes of a width D that becomes g·D."""
        index = repeated(width, times * width)
        uneven = tuple(times * share for share in uneven_shares(index))
        inverse = tuple(1 / (times * factor) for factor in uneven)
        even = (1 / times,) * len(index)
        return cls(
            made=Axis(index, gradient=even),
            gain=Axis(index, factors=uneven, gradient=inverse),
            read=Axis(index, factors=inverse, gradient=uneven),
            tied_gain=Axis(index, factors=even),
        )


class WidthGrowth:
    """A `transformer.decoder`, its `transformer.token` embedding and `transformer.lm` head become g times as wide, with g times the heads.

    The features of a head stay as many as they were, and key and value heads multiply with the heads. Hidden features of the MLPs may
    grow to any number.
    """

    preserves_function = True

    def map_blocks(self, request: GrowthRequest) -> BlockMap:
        """Every block from its own place.

        Raises:
            ValueError: a block is new.
        """
        return kept_blocks("widen", request)

    def map_parameters(self, old: Shapes, new: Shapes, request: GrowthRequest) -> Mapping[str, CopyOf]:
        """The maps of all parameters along the width.

        Raises:
            ValueError: the width is not multiplied by a whole number, heads or their features do not fit, or something else changes.
        """
        width, times = _width(old, new)
        _check_heads(request, times)
        _check_form(request)
        hidden = _Hidden.of(width, times)
        tied = "head.weight" not in new

        def axes_of(name: str) -> Mapping[int, Axis]:
            if name.startswith("rack.stacks."):
                block, inside = _split_block(name)
                return _axes_inside(block, inside, hidden, old, new)
            if name in ("embedding.weight", "rack.positions.weight"):
                return {1: hidden.made}
            if name == "head.weight":
                return {1: hidden.read}
            if name in (_FINAL_GAIN, "rack.norm.bias"):
                return {0: hidden.tied_gain if tied else hidden.gain}
            return {}

        return map_axes("widen", "multiply the width of a transformer.decoder, its embedding and its head", old, new, axes_of)


def _check_heads(request: GrowthRequest, times: int) -> None:
    """Where the racks' options are known: heads multiply with the width, so that each keeps its features."""
    before, after = (options.get("rack", {}).get("heads") for options in (request.old_options, request.new_options))
    if before and after and after != times * before:
        raise ValueError(f"'widen' copies whole heads: with {times} times the width set 'heads' to {times * before}, not {after}")


def _check_form(request: GrowthRequest) -> None:
    """Where the rack's options are known: forms whose function the axes above do not keep."""
    rack = request.old_options.get("rack", {})
    norm, form = rack.get("norm"), "the width of such racks cannot be multiplied: grow their depth or their MLPs"
    if norm is not None and not isinstance(norm, str) and (norm.at != "pre" or norm.gain != "plain" or norm.embedding):
        raise ValueError(f"'widen' knows norms before each branch, of a plain gain, and here norm.at, gain or embedding differ: {form}")
    if rack.get("head_size") is not None or rack.get("qk_norm") == "whole":
        raise ValueError(f"'widen' copies whole heads that divide the width, and here head_size or qk_norm say otherwise: {form}")


def _axes_inside(block: str, inside: str, hidden: _Hidden, old: Shapes, new: Shapes) -> Mapping[int, Axis]:
    """The axes of one parameter of a block."""
    module, _, kind = inside.rpartition(".")
    if module in ("attention_norm", "mlp_norm"):
        return {0: hidden.gain}
    if module in ("attention.query_norm", "attention.key_norm"):
        _check_head_features(old[block + inside], new[block + inside])
        return {}
    if module in ("attention.output", "mlp.down") and kind == "bias":
        return {0: hidden.made}
    place = block + ("attention.qkv.weight" if module in ("attention.qkv", "attention.output") else "mlp.down.weight")
    if module not in _PROJECTIONS or place not in old or place not in new:
        return {}
    if module.startswith("attention."):
        made, read = _heads(old[place], new[place])
    else:
        made, read = split_features(old[place][1], new[place][1])
    if module in ("attention.output", "mlp.down"):
        return {0: hidden.made, 1: read}
    return {0: made} if kind == "bias" else {0: made, 1: hidden.read}


def _heads(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Axis, Axis]:
    """Heads where they are made (rows of query, key and value, one below the other), and where they are read.

    All queries are copied g times, one whole after the other, and so are keys and values: copy j of a query meets copy j of its key.

    Args:
        old: shape of the matrix of queries, keys and values before.
        new: the same afterwards.

    Raises:
        ValueError: key and value heads do not multiply with the width.
    """
    (rows, width), (rows_after, width_after) = old, new
    keys, keys_after = (rows - width) // 2, (rows_after - width_after) // 2
    if keys_after * width != keys * width_after:
        raise ValueError(
            f"'widen' copies whole heads: with {width_after // width} times the width set 'heads', and 'kv_heads' where it is given, to "
            f"{width_after // width} times what they were"
        )
    queries, pairs = repeated(width, width_after), repeated(keys, keys_after)
    made = (*queries, *(width + i for i in pairs), *(width + keys + i for i in pairs))
    shares = uneven_shares(queries)
    gradient = (*shares, *uneven_shares(pairs), *uneven_shares(pairs))
    return Axis(made, gradient=gradient), Axis(queries, factors=shares)


def _check_head_features(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    if old != new:
        raise ValueError(
            f"'widen' copies whole heads, and their features would go from {old[0]} to {new[0]}: multiply 'heads' with the width"
        )


def _width(old: Shapes, new: Shapes) -> tuple[int, int]:
    """The old width, and how many times it the new one is."""
    if _FINAL_GAIN not in old or _FINAL_GAIN not in new:
        raise ValueError("'widen' knows the parameters of transformer.decoder, and the rack is none")
    (before,), (after,) = old[_FINAL_GAIN], new[_FINAL_GAIN]
    times, left = divmod(after, before)
    if before == after:
        raise ValueError(f"'widen' multiplies the width, and it stays {before}: take 'widen-ff' for MLPs alone, or leave the operator out")
    if left or times < 2:
        raise ValueError(f"'widen' multiplies the width by a whole number, and {after} is not a multiple of {before}: take {2 * before}")
    return before, times


def _split_block(name: str) -> tuple[str, str]:
    """`rack.stacks.base.0.mlp.up.weight` → `rack.stacks.base.0.`, `mlp.up.weight`."""
    parts = name.split(".")
    return ".".join(parts[:4]) + ".", ".".join(parts[4:])


def build_widen(options: WidenOptions, context: BuildContext) -> WidthGrowth:
    """The factory of `widen`."""
    return WidthGrowth()
