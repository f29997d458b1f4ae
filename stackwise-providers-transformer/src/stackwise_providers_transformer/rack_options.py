"""The options of the racks beside the decoder."""

from __future__ import annotations

from typing import Literal

from attrs import fields, frozen

from stackwise import RackSpec, Stack, TensorSpec, UserError, dimension, follows_task, option, scheduled, stacks
from stackwise_providers_transformer.block_options import BiasOptions
from stackwise_providers_transformer.options import DecoderOptions

_HIDDEN = TensorSpec("batch time width")
_INTEGERS = TensorSpec("batch time", "integer")
_MASK = TensorSpec("batch time", "bool")


@frozen(kw_only=True)
class ConvOptions:
    """Blocks of a depthwise convolution over time and an MLP."""

    width: int = dimension("width", doc="features at each position")
    stacks: tuple[Stack, ...] = stacks(doc="named stacks of blocks in forward order, as [{base: 4}, {top: 2}]")
    kernel: int = option(7, doc="positions that a block sees, its own included; odd where it looks to both sides", minimum=1)
    ff: int | None = option(None, doc="hidden features of the MLP; 4 times the width when left out", minimum=1)
    norm: Literal["rmsnorm", "layernorm"] = option("layernorm", doc="form of every norm", choices=("rmsnorm", "layernorm"))
    dropout: float = scheduled(0.0, doc="share of each residual branch's output that is zeroed in training", minimum=0, maximum=1)
    context: Literal["causal", "bidirectional"] | None = follows_task(
        "attention",
        doc="which side a block looks to: back, or both ways; both where the task does not say",
        choices=("causal", "bidirectional"),
    )
    init_std: float = option(0.02, doc="standard deviation of the normal draw a matrix starts from", minimum=0)

    def __attrs_post_init__(self) -> None:
        if not self.causal and self.context is not None and self.kernel % 2 == 0:
            raise UserError(f"kernel: {self.kernel} positions cannot stand evenly around their middle: choose an odd number")

    @property
    def causal(self) -> bool:
        """Whether a position sees only itself and those before it."""
        return self.context == "causal"

    def to_spec(self) -> RackSpec:
        """Hidden state in and out. Positions are taken because they come with segments; a convolution has no use for them."""
        return RackSpec(
            input=_HIDDEN,
            output=_HIDDEN,
            side={"segments": _INTEGERS, "positions": _INTEGERS, "mask": _MASK},
            attention=("causal", "bidirectional") if self.context is None else (self.context,),
            stacks={stack.name: stack.blocks for stack in self.stacks},
            residual_outputs=("mixing.output.weight", "mlp.down.weight"),
        )


@frozen(kw_only=True)
class EncoderDecoderOptions(DecoderOptions):
    """The decoder's options; some of its stacks read the source."""

    encoder: tuple[str, ...] = option(doc="names of the stacks that read the source; the others write the target")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        names = [stack.name for stack in self.stacks]
        if unknown := [name for name in self.encoder if name not in names]:
            raise UserError(f"encoder: there is no stack '{unknown[0]}'; the stacks are {', '.join(names)}")
        if not self.encoder or set(self.encoder) == set(names):
            raise UserError("encoder: name at least one stack that reads the source, and leave at least one that writes the target")
        if self.attention not in (None, "causal"):
            raise UserError(f"attention: the target of an encoder-decoder is written causally, not {self.attention}: leave it out")

        self._check_forms()

    def _check_forms(self) -> None:
        """Refuse what the blocks that read a memory do not know."""
        if self.norms.at != "pre" or self.norms.embedding or not self.norms.first:
            raise UserError("norm: the blocks of an encoder-decoder norm what a branch reads: leave out at, embedding and first")
        if isinstance(self.bias, BiasOptions):
            raise UserError("bias: an encoder-decoder has all biases or none: write true or false")
        for name in ("head_size", "scores", "window", "rotary", "experts"):
            if getattr(self, name) is not None:
                raise UserError(f"{name}: the blocks of an encoder-decoder do not know it: leave it out")
        if self.residual == "parallel":
            raise UserError("residual: a block that reads a memory has three branches one after the other: leave it out")

    def as_decoder(self, attention: Literal["causal", "bidirectional"]) -> DecoderOptions:
        """What the blocks of one side are made of."""
        shared = {a.name: getattr(self, a.name) for a in fields(DecoderOptions)}
        return DecoderOptions(**{**shared, "attention": attention})

    def to_spec(self) -> RackSpec:
        """Hidden state of the target in and out; that of the source comes as `memory`."""
        own = super().to_spec()
        crossed = [f"cross.output.{kind}" for kind in ("weight", "bias")[: 1 + self.biases.output]]
        return RackSpec(
            input=_HIDDEN,
            output=_HIDDEN,
            side={"memory": TensorSpec("batch source width"), "memory_mask": TensorSpec("batch source", "bool")},
            needs=("memory",),
            attention=("causal",),
            stacks=own.stacks,
            residual_outputs=(*own.residual_outputs, *crossed),
        )
