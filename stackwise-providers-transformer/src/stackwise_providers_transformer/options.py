"""The options of every transformer component, and the specs they declare."""

from __future__ import annotations

from math import ceil
from typing import Literal

from attrs import frozen

from stackwise import (
    EmbeddingSpec,
    HeadSpec,
    RackSpec,
    Stack,
    TaskSpec,
    TensorSpec,
    UserError,
    dimension,
    follows_task,
    option,
    scheduled,
    stacks,
)

_HIDDEN = TensorSpec("batch time width")
_TOKENS = TensorSpec("batch time", "int64", bounds=(0, "vocab"))
_LOGITS = TensorSpec("batch time vocab")


def check_sizes(**sizes: int | None) -> None:
    """Refuse to build before every size is known.

    Raises:
        UserError: a size that was neither given nor filled from a junction.
    """
    for name, size in sizes.items():
        if size is None:
            raise UserError(f"{name}: it has no size yet: give it, or join the component to one that has it")


@frozen(kw_only=True)
class TokenOptions:
    """A learned vector for every token id."""

    vocab: int = dimension("vocab", doc="number of token ids; the loader's bound when left out")
    width: int = dimension("width", doc="features of a vector; the rack's when left out")
    init_std: float = option(0.02, doc="standard deviation of the normal draw a vector starts from", minimum=0)

    def to_spec(self) -> EmbeddingSpec:
        """Token ids in, hidden state out."""
        return EmbeddingSpec(inputs={"tokens": _TOKENS}, output=_HIDDEN)


@frozen(kw_only=True)
class DecoderOptions:
    """Pre-norm transformer blocks in named stacks."""

    width: int = dimension("width", doc="features at each position")
    heads: int = option(doc="attention heads; they divide the width into parts of even size", minimum=1)
    stacks: tuple[Stack, ...] = stacks(doc="named stacks of blocks in forward order, as [{base: 4}, {top: 2}]")
    mlp: Literal["swiglu", "gelu"] = option("swiglu", doc="form of the block's MLP", choices=("swiglu", "gelu"))
    ff: int | None = option(
        None,
        doc="hidden features of the MLP; when left out 8/3 of the width rounded up to a multiple of 8 (swiglu), 4 times the width (gelu)",
        minimum=1,
    )
    dropout: float = scheduled(0.0, doc="share of each residual branch's output that is zeroed in training", minimum=0, maximum=1)
    attention: Literal["causal", "bidirectional"] | None = follows_task(
        "attention",
        doc="what a position sees: itself and those before it, or all; causal where the task does not say",
        choices=("causal", "bidirectional"),
    )
    rope_base: float = option(10000.0, doc="base of the rotary wavelengths, in positions", minimum=1)
    init_std: float = option(0.02, doc="standard deviation of the normal draw a matrix starts from", minimum=0)
    depth_for_init: int | str = option(
        "none",
        doc="depth L that shrinks the start of residual outputs by 1/sqrt(2L): none, current (all blocks of the rack), or a number",
    )

    def __attrs_post_init__(self) -> None:
        depth = self.depth_for_init
        if depth not in ("none", "current") and (isinstance(depth, bool | str) or depth < 1):
            raise UserError(f"depth_for_init: {depth!r} is neither 'none' nor 'current' nor a number of blocks of at least 1")
        if self.width and self.width % self.heads:
            raise UserError(f"heads: {self.heads} heads do not divide a width of {self.width}: choose a divisor of the width")
        if self.width and self.width // self.heads % 2:
            raise UserError(
                f"heads: {self.heads} heads leave {self.width // self.heads} features each of a width of {self.width}; "
                "rotary positions turn them in pairs: "
                "choose an even number of features a head"
            )

    @property
    def blocks(self) -> int:
        """Blocks of all stacks."""
        return sum(stack.blocks for stack in self.stacks)

    @property
    def ff_features(self) -> int:
        """Hidden features of the MLP, the default filled in."""
        if self.ff is not None:
            return self.ff
        return 4 * self.width if self.mlp == "gelu" else 8 * ceil(self.width / 3)

    @property
    def residual_std(self) -> float:
        """Standard deviation at which residual outputs start (GPT-2, section 2.3: 1/sqrt(N) with N = 2L residual layers)."""
        if self.depth_for_init == "none":
            return self.init_std
        depth = self.blocks if self.depth_for_init == "current" else int(self.depth_for_init)
        return float(self.init_std / (2 * depth) ** 0.5)

    def to_spec(self) -> RackSpec:
        """Hidden state in and out; positions may be given."""
        return RackSpec(
            input=_HIDDEN,
            output=_HIDDEN,
            side={"positions": TensorSpec("batch time", "integer")},
            attention=("causal", "bidirectional"),
            stacks={stack.name: stack.blocks for stack in self.stacks},
            residual_outputs=("attention.output.weight", "mlp.down.weight"),
        )


@frozen(kw_only=True)
class LMOptions:
    """Logits over the vocabulary."""

    vocab: int = dimension("vocab", doc="number of token ids; the embedding's when left out")
    width: int = dimension("width", doc="features of the hidden state; the rack's when left out")
    tied: bool = option(True, doc="whether the output matrix is the embedding's")
    init_std: float | None = option(
        None, doc="standard deviation an untied matrix starts from, 0.02 when left out; at 0 all tokens start equally likely", minimum=0
    )

    def __attrs_post_init__(self) -> None:
        if self.tied and self.init_std is not None:
            raise UserError(
                f"init_std: {self.init_std} has no effect on a tied head, whose matrix is the embedding's: leave it out or set tied: false"
            )

    def to_spec(self) -> HeadSpec:
        """Hidden state in, logits out."""
        return HeadSpec(
            input=_HIDDEN,
            outputs={"logits": _LOGITS},
            ties={"weight": "embedding.weight"} if self.tied else {},
        )


@frozen(kw_only=True)
class CausalLMOptions:
    """Next-token prediction; nothing to choose."""

    def to_spec(self) -> TaskSpec:
        """One entry beyond seq_len, causal attention."""
        return TaskSpec(
            batch={"tokens": _TOKENS},
            inputs={"tokens": _TOKENS},
            outputs={"logits": _LOGITS},
            attention="causal",
            lookahead=1,
        )


@frozen(kw_only=True)
class GrowthOptions:
    """Depth growth; nothing to choose."""
