"""The rules with more than one field: head size, rotary positions, windows, blocks without rotation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from stackwise import UserError
from stackwise_providers_transformer.block_options import RotaryScaling
from stackwise_providers_transformer.hugging_face.architecture import Architecture
from stackwise_providers_transformer.hugging_face.settings import Config

FULL, SLIDING = "full_attention", "sliding_attention"

_SCALING_NAMES: Mapping[str, str] = {
    "factor": "factor",
    "original_max_position_embeddings": "original",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "beta_fast": "fast",
    "beta_slow": "slow",
    "attention_factor": "temperature",
    "truncate": "truncate",
}
"""Their name of an option of rotary scaling → ours."""


@frozen
class HeadSize:
    """Features of a head: a field of its own, or the width over the heads.

    Args:
        stated: whether the family has the field.
        default: features where it is left out; the width over the heads when None.
    """

    stated: bool = True
    default: int | None = None

    def read(self, config: Config, into: Architecture) -> None:
        """Take it from the field, or compute it."""
        usual = self.default or into["rack.width"] // into["rack.heads"]
        into["rack.head_size"] = config.get("head_dim", usual) if self.stated else usual

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write the field."""
        if self.stated:
            into["head_dim"] = architecture["rack.head_size"]


@frozen
class KeyValueHeads:
    """Heads of keys and values; null means as many as queries have.

    Args:
        default: how many where the field is left out; as many as queries when None.
    """

    default: int | None = None

    def read(self, config: Config, into: Architecture) -> None:
        """Take them."""
        value = config.get("num_key_value_heads", self.default, null=True)
        into["rack.kv_heads"] = config.size("num_key_value_heads", into["rack.heads"] if value is None else value)

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write them."""
        into["num_key_value_heads"] = architecture["rack.kv_heads"]


@frozen
class QueryScalar:
    """Gemma's factor on scores, 1 / sqrt(query_pre_attn_scalar).

    Args:
        default: the scalar where it is left out.
    """

    default: int

    def read(self, config: Config, into: Architecture) -> None:
        """Take it; that of the head's features is what holds anyway."""
        scalar = config.get("query_pre_attn_scalar", self.default)
        into["rack.scores.scale"] = None if scalar == into["rack.head_size"] else scalar**-0.5

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write it, as a whole number where it is one."""
        scale = architecture["rack.scores.scale"]
        scalar = architecture["rack.head_size"] if scale is None else scale**-2
        into["query_pre_attn_scalar"] = round(scalar) if scale is None or round(scalar) ** -0.5 == scale else scalar


@frozen
class Rotary:
    """Base, share and scaling of rotary positions: `rope_parameters`, or the single fields of older folders.

    Args:
        base: base where none is given.
        share: share of features that turn where none is given; None: all do, and another share is refused.
        old_base: older name of the base.
        old_share: older name of the share.
    """

    base: float = 10000.0
    share: float | None = None
    old_base: str = "rope_theta"
    old_share: str = ""

    def read(self, config: Config, into: Architecture) -> None:
        """Take what either form says."""
        given: dict[str, Any] = dict(config.get("rope_parameters", None) or {})
        given = {**dict(config.get("rope_scaling", None) or {}), **given}
        base, share = config.get(self.old_base, self.base), self.share
        if self.old_share:
            share = config.get(self.old_share, self.share)
        into["rack.rotary.base"] = float(given.pop("rope_theta", base))
        share = given.pop("partial_rotary_factor", 1.0 if share is None else share)
        if self.share is None and share != 1:
            raise config.refuse("rope_parameters", f"partial_rotary_factor: {share}: models of this family turn all features of a head")
        into["rack.rotary.share"] = share
        into["rack.rotary.scaling"] = read_scaling(config, given)

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write `rope_parameters`."""
        share = {} if self.share is None else {"partial_rotary_factor": architecture["rack.rotary.share"]}
        into["rope_parameters"] = {
            **write_scaling(architecture["rack.rotary.scaling"], into),
            "rope_theta": architecture["rack.rotary.base"],
            **share,
        }


@frozen
class RotaryByType:
    """One base for blocks that see all positions, another for those with a window.

    Args:
        base: base of the former where none is given.
        near_base: base of the latter.
        old_names: older names of both.
    """

    base: float
    near_base: float
    old_names: tuple[str, str]

    def read(self, config: Config, into: Architecture) -> None:
        """Take what either form says; blocks with a window have no scaling."""
        given: Mapping[str, Any] = config.get("rope_parameters", None) or {}
        old, old_near = (config.get(name, usual) for name, usual in zip(self.old_names, (self.base, self.near_base), strict=True))
        scaling = config.get("rope_scaling", None) or {}
        far, near = {**scaling, **(given.get(FULL) or {})}, dict(given.get(SLIDING) or {})
        if unknown := set(given) - {FULL, SLIDING}:
            raise config.refuse("rope_parameters", f"'{min(unknown)}' is not a kind of block that is known here")
        into["rack.rotary.base"] = float(far.pop("rope_theta", old))
        into["rack.rotary.scaling"] = read_scaling(config, far)
        near_base = float(near.pop("rope_theta", old_near))
        if read_scaling(config, near) is not None:
            raise config.refuse("rope_parameters", "rotary scaling in blocks with a window is not known here")
        if into["rack.window.size"] is not None:
            into["rack.window.base"] = near_base

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write `rope_parameters` of both kinds."""
        base, near_base = architecture["rack.rotary.base"], architecture["rack.window.base"]
        near = base if architecture["rack.window.size"] is not None and near_base is None else near_base
        into["rope_parameters"] = {
            FULL: {**write_scaling(architecture["rack.rotary.scaling"], into), "rope_theta": base},
            SLIDING: {"rope_type": "default", "rope_theta": self.near_base if near is None else near},
        }


def read_scaling(config: Config, given: dict[str, Any]) -> RotaryScaling | None:
    """Rotary scaling from its fields.

    Raises:
        UserError: a type or a field that is not known here.
    """
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if kind == "default":
        if given:
            raise config.refuse("rope_parameters", f"'{min(given)}' has no meaning without a rope_type")
        return None
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise config.refuse("rope_parameters", f"rope_type '{kind}' is not known here: default, linear, dynamic, llama3, yarn are")
    if kind == "dynamic" or (kind == "yarn" and "original_max_position_embeddings" not in given):
        given["original_max_position_embeddings"] = config.get("max_position_embeddings")
    if "mscale" in given or "mscale_all_dim" in given:
        one, other, factor = given.pop("mscale", 0), given.pop("mscale_all_dim", 0), given["factor"]
        if one and other and given.get("attention_factor") is None:
            given["attention_factor"] = (0.1 * one * math.log(factor) + 1) / (0.1 * other * math.log(factor) + 1)
    if unknown := sorted(set(given) - set(_SCALING_NAMES)):
        raise config.refuse("rope_parameters", f"'{unknown[0]}' is not known here")
    if kind == "linear":
        given.pop("original_max_position_embeddings", None)
    try:
        return RotaryScaling(kind=kind, **{_SCALING_NAMES[name]: value for name, value in given.items()})
    except (TypeError, UserError) as error:
        raise config.refuse("rope_parameters", str(error)) from None


def write_scaling(scaling: RotaryScaling | None, into: dict[str, Any]) -> dict[str, Any]:
    """The fields of rotary scaling; `ntk` has no words, for reading back to find."""
    if scaling is None or scaling.kind == "ntk":
        return {"rope_type": "default"}
    given = {theirs: value for theirs, ours in _SCALING_NAMES.items() if (value := getattr(scaling, ours)) is not None}
    if scaling.kind == "dynamic":
        into["max_position_embeddings"] = given.pop("original_max_position_embeddings")
    elif scaling.original is not None:
        into["max_position_embeddings"] = max(into.get("max_position_embeddings") or 0, int(scaling.original * scaling.factor))
    return {"rope_type": scaling.kind, **given}


@frozen
class Windows:
    """Blocks with a window: their size, and which they are.

    Args:
        size: the field of the size.
        default: block, fields → whether it has the window, where no field says which have.
        switch: a field that must be true, where the family has one.
        listed: whether `layer_types` lists the blocks.
        to_ours: their size → ours.
        to_theirs: the other way.
    """

    size: str
    default: Callable[[int, Config], bool]
    switch: str = ""
    listed: bool = True
    to_ours: Callable[[int], int] = int
    to_theirs: Callable[[int], int] = int
    usual: int | None = None
    """Size where the field is left out; null means no window."""

    def read(self, config: Config, into: Architecture) -> None:
        """Take size and blocks; a size that no block has is without effect."""
        blocks, size = into["rack.blocks"], config.get(self.size, self.usual, null=True)
        types = config.get("layer_types", None) if self.listed else None
        if self.switch and not config.get(self.switch, False):
            size = None
        near = [self.default(i, config) for i in range(blocks)] if types is None else _read_types(config, types, blocks)
        if size is None or not any(near):
            return
        into["rack.window.size"] = self.to_ours(size)
        into["rack.window.blocks"] = None if all(near) else tuple(near)

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write size and blocks."""
        size, near = architecture["rack.window.size"], architecture["rack.window.blocks"]
        near = [size is not None] * architecture["rack.blocks"] if near is None else near
        if size is not None or self.usual is None or not self.listed:
            into[self.size] = None if size is None else self.to_theirs(size)
        if self.switch:
            into[self.switch] = size is not None
        if self.listed:
            into["layer_types"] = [SLIDING if windowed else FULL for windowed in near]


def _read_types(config: Config, types: Sequence[str], blocks: int) -> list[bool]:
    if unknown := sorted(set(types) - {FULL, SLIDING}):
        raise config.refuse("layer_types", f"'{unknown[0]}' is not a kind of block that is known here")
    if len(types) != blocks:
        raise config.refuse("layer_types", f"it has {len(types)} entries, and the model {blocks} blocks")
    return [each == SLIDING for each in types]


@frozen
class Unturned:
    """Blocks without rotary positions (NoPE), as SmolLM3 has them."""

    def read(self, config: Config, into: Architecture) -> None:
        """Take which blocks turn."""
        blocks, interval = into["rack.blocks"], config.get("no_rope_layer_interval", 4)
        turned = config.get("no_rope_layers", None)
        turned = [(i + 1) % interval != 0 for i in range(blocks)] if turned is None else [bool(each) for each in turned]
        if len(turned) != blocks:
            raise config.refuse("no_rope_layers", f"it has {len(turned)} entries, and the model {blocks} blocks")
        if not any(turned):
            raise config.refuse("no_rope_layers", "a model that turns nowhere is not known here")
        into["rack.rotary.blocks"] = None if all(turned) else tuple(turned)

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write the list."""
        turned = architecture["rack.rotary.blocks"] or (True,) * architecture["rack.blocks"]
        into["no_rope_layers"] = [int(each) for each in turned]


@frozen
class Fixed:
    """An option made of others, which no field says: the factor on embeddings, say."""

    ours: str
    value: Callable[[Architecture], Any]

    def read(self, config: Config, into: Architecture) -> None:
        """Compute it."""
        into[self.ours] = self.value(into)

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """There is nothing to write."""


@frozen
class Inside:
    """Fields that say the options of one group."""

    ours: str
    group: type
    fields: Mapping[str, tuple[str, Mapping[Any, Any] | None, Any]]
    """Their field → our option of the group, words for the values where they differ, the value where the field is left out."""

    def read(self, config: Config, into: Architecture) -> None:
        """Make the group."""
        values = {}
        for theirs, (ours, words, default) in self.fields.items():
            value = config.get(theirs, default)
            if words is not None and value not in words:
                raise config.refuse(theirs, f"known are {', '.join(map(str, words))}")
            values[ours] = value if words is None else words[value]
        into[self.ours] = self.group(**values)

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write its options; no group is written as if it were the default, for reading back to find."""
        group = architecture[self.ours]
        for theirs, (ours, words, _) in self.fields.items():
            if group is not None and theirs not in into:
                value = attrs.asdict(group)[ours]
                into[theirs] = value if words is None else next((t for t, o in words.items() if o == value), value)
