"""What a model computes, as one flat map: option paths of embedding, rack and head → values, every default written out.

It stands between the config of a folder and the options of our parts, so that two models are the same architecture where their maps are
equal, however their configs were written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from stackwise import UserError
from stackwise_providers_transformer.block_options import (
    BiasOptions,
    NormOptions,
    RotaryOptions,
    ScoreOptions,
    WindowOptions,
    repeated_pattern,
)
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.options import DecoderOptions

Architecture = dict[str, Any]

FREE = ("embedding.init_std", "rack.init_std", "rack.depth_for_init", "head.init_std")
"""Options that say how a model begins, and change nothing of one that is read."""

PLAIN: Mapping[str, Any] = {
    "embedding.scale": 1.0,
    "embedding.types": None,
    "rack.mlp": "swiglu",
    **{f"rack.norm.{a.name}": a.default for a in attrs.fields(NormOptions)},
    **{f"rack.bias.{a.name}": False for a in attrs.fields(BiasOptions)},
    "rack.qk_norm": False,
    "rack.residual": "sequential",
    "rack.attention": "causal",
    "rack.scores.scale": None,
    "rack.scores.cap": None,
    "rack.window.size": None,
    "rack.window.blocks": None,
    "rack.window.base": None,
    "rack.positions": "rope",
    "rack.max_positions": None,
    "rack.rotary.base": 10000.0,
    "rack.rotary.share": 1.0,
    "rack.rotary.pairs": "halves",
    "rack.rotary.blocks": None,
    "rack.rotary.scaling": None,
    "head.tied": True,
    "head.bias": False,
    "head.cap": None,
    "head.transform": None,
}
"""What holds where nothing is said; sizes have no such values."""

STACK = "base"
"""Name of the one stack that the blocks of a folder make."""


def architecture_of(model: Any) -> Architecture:
    """The architecture of a model.

    Raises:
        UserError: parts that no folder of transformers has.
    """
    wanted = {"embedding": TokenEmbedding, "rack": Decoder, "head": LMHead}
    for role, kind in wanted.items():
        if not isinstance(part := getattr(model, role), kind):
            raise UserError(
                f"model.{role} is a {type(part).__name__}: such folders hold transformer.token, transformer.decoder, transformer.lm"
            )
    if model.rack.options.experts is not None:
        raise UserError("model.rack has experts, which no folder of transformers holds that is known here: export it in the canonical form")
    embedding, rack, head = model.embedding.options, model.rack.options, model.head.options
    found = {"embedding.vocab": embedding.vocab, "embedding.scale": embedding.scale, "embedding.types": embedding.types}
    found |= {f"head.{name}": getattr(head, name) for name in ("tied", "bias", "cap", "transform")}
    return {**PLAIN, **found, **_rack(rack)}


def _rack(options: DecoderOptions) -> Architecture:
    """The rack's part of the map; what has no effect is left at its default, so that it makes no difference."""
    norms, biases, scores, window = options.norms, options.biases, options.scores, options.window
    rack: Architecture = {
        "width": options.width,
        "heads": options.heads,
        "head_size": options.head_features,
        "kv_heads": options.kv_heads or options.heads,
        "blocks": options.blocks,
        "mlp": options.mlp,
        "ff": options.ff_features,
        "qk_norm": "heads" if options.qk_norm is True else options.qk_norm,
        "residual": options.residual,
        "attention": options.attention or "causal",
        "positions": options.positions,
        "max_positions": options.max_positions,
        **{f"norm.{a.name}": getattr(norms, a.name) for a in attrs.fields(NormOptions)},
        **{f"bias.{a.name}": getattr(biases, a.name) for a in attrs.fields(BiasOptions)},
    }
    if norms.kind == "rmsnorm":
        rack["bias.norm"] = False
    if scores is not None:
        usual = scores.scale is None or scores.scale == options.head_features**-0.5
        rack |= {"scores.scale": None if usual else scores.scale, "scores.cap": scores.cap}
    if window is not None:
        blocks = repeated_pattern(window.blocks, options.blocks)
        rack |= {"window.size": window.size, "window.blocks": None if all(blocks) else blocks, "window.base": window.base}
    if options.positions == "rope":
        rotary = options.rotary or RotaryOptions()
        turned = repeated_pattern(rotary.blocks, options.blocks)
        rack |= {"rotary.base": options.rotary_base, "rotary.share": rotary.share, "rotary.pairs": rotary.pairs}
        rack |= {"rotary.blocks": None if all(turned) else turned, "rotary.scaling": rotary.scaling}
    return {f"rack.{name}": value for name, value in rack.items()}


def nodes_of(architecture: Architecture) -> dict[str, dict[str, Any]]:
    """`embedding`, `rack` and `head` as a config writes them: every size, and of the rest what is not the default."""
    own = {name: value for name, value in architecture.items() if value != PLAIN.get(name, None)}
    rack: dict[str, Any] = {"use": "transformer.decoder"}
    sizes = {name: architecture[f"rack.{name}"] for name in ("width", "heads", "head_size", "kv_heads", "ff")}
    if sizes["head_size"] * sizes["heads"] == sizes["width"]:
        del sizes["head_size"]
    if sizes["kv_heads"] == sizes["heads"]:
        del sizes["kv_heads"]
    rack |= {**sizes, "stacks": [{STACK: architecture["rack.blocks"]}]}
    rack |= {name: architecture[f"rack.{name}"] for name in ("mlp", "positions") if f"rack.{name}" in own or name == "mlp"}
    rack["norm"] = _group(own, "rack.norm") if set(_group(own, "rack.norm")) - {"kind"} else architecture["rack.norm.kind"]
    biases = _group(own, "rack.bias")
    full = len(biases) == len(attrs.fields(BiasOptions)) - (architecture["rack.norm.kind"] == "rmsnorm")
    rack["bias"] = full if full or not biases else biases
    rack |= {name: own[f"rack.{name}"] for name in ("qk_norm", "residual", "attention", "max_positions") if f"rack.{name}" in own}
    if rack.get("qk_norm") == "heads":
        rack["qk_norm"] = True
    rack |= {
        name: group for name, of in (("scores", ScoreOptions), ("window", WindowOptions)) if (group := _group(own, f"rack.{name}", of))
    }
    rotary = _group(own, "rack.rotary", RotaryOptions)
    if architecture["rack.positions"] == "rope":
        rack |= {"rope_base": rotary["base"]} if set(rotary) == {"base"} else {"rotary": rotary} if rotary else {}
    embedding = {"use": "transformer.token", "vocab": architecture["embedding.vocab"], **_group(own, "embedding", drop=("vocab",))}
    head = {"use": "transformer.lm", "tied": architecture["head.tied"], **_group(own, "head", drop=("tied",))}
    return {"embedding": embedding, "rack": rack, "head": head}


def _group(own: Architecture, prefix: str, of: type | None = None, *, drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options below a path, as plain values."""
    group = {name.removeprefix(f"{prefix}."): value for name, value in own.items() if name.startswith(f"{prefix}.")}
    return {name: _plain(value) for name, value in group.items() if "." not in name and name not in drop}


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return {a.name: inner for a in attrs.fields(type(value)) if (inner := getattr(value, a.name)) is not None}
    return list(value) if isinstance(value, tuple) else value
