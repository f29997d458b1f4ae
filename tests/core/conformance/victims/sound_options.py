"""Options of the sound components. Nothing here imports torch."""

from __future__ import annotations

from math import prod

from attrs import evolve, frozen

from stackwise import (
    AdapterSpec,
    BatchSpec,
    EmbeddingSpec,
    HeadSpec,
    OptimizerSpec,
    RackSpec,
    Stack,
    TaskSpec,
    TensorSpec,
    TransformSpec,
    dimension,
    option,
    scheduled,
    stacks,
)

LEVELS = TensorSpec("batch time", "float32")


@frozen(kw_only=True)
class EmbeddingOptions:
    width: int = dimension("width", doc="features at each position")

    def to_spec(self) -> EmbeddingSpec:
        return EmbeddingSpec(inputs={"levels": LEVELS})


@frozen(kw_only=True)
class RackOptions:
    width: int = dimension("width", doc="features at each position")
    stacks: tuple[Stack, ...] = stacks(doc="blocks in forward order")
    dropout: float = scheduled(0.0, doc="share of each block's output zeroed in training", minimum=0, maximum=1)

    def to_spec(self) -> RackSpec:
        return RackSpec(
            stacks={stack.name: stack.blocks for stack in self.stacks}, residual_outputs=("out.weight",), side={"shift": LEVELS}
        )


@frozen(kw_only=True)
class HeadOptions:
    width: int = dimension("width", doc="features at each position")

    def to_spec(self) -> HeadSpec:
        return HeadSpec(outputs={"levels": LEVELS})


@frozen(kw_only=True)
class AdapterOptions:
    narrow: int = dimension("narrow", doc="features before")
    wide: int = dimension("wide", doc="features after")

    def to_spec(self) -> AdapterSpec:
        return AdapterSpec(input=TensorSpec("batch time narrow"), output=TensorSpec("batch time wide"))


@frozen(kw_only=True)
class WeightAdapterOptions:
    rank: int = option(2, doc="rank of what is added to the matrix", minimum=1)


@frozen(kw_only=True)
class TaskOptions:
    noise: float = scheduled(0.1, doc="standard deviation of what is added to the inputs", minimum=0)

    def to_spec(self) -> TaskSpec:
        return TaskSpec(batch={"levels": LEVELS}, inputs={"levels": LEVELS}, outputs={"levels": LEVELS}, lookahead=1)


@frozen(kw_only=True)
class OptimizerOptions:
    lr: float = scheduled(doc="size of a step", minimum=0)
    momentum: float = option(0.9, doc="share of the momentum kept at each step", minimum=0, maximum=1)

    def to_spec(self) -> OptimizerSpec:
        return OptimizerSpec(state_elements=prod, step_flops=lambda name, shape: 4 * prod(shape))


@frozen(kw_only=True)
class LoaderOptions:
    scale: float = scheduled(1.0, doc="factor on every level", minimum=0)

    def to_spec(self) -> BatchSpec:
        return BatchSpec(fields={"levels": LEVELS})


@frozen(kw_only=True)
class TransformOptions:
    amount: float = scheduled(doc="standard deviation of the noise", minimum=0)

    def to_spec(self) -> TransformSpec:
        return TransformSpec(inputs={"levels": LEVELS}, outputs={"noisy": TensorSpec("batch", "bool")})


@frozen(kw_only=True)
class GrowthOptions:
    pass


@frozen(kw_only=True)
class ReactionOptions:
    patience: int = option(25, doc="steps without a lower loss after which the learning rate is halved", minimum=1)
    floor: float = option(0.25, doc="lowest factor", minimum=0.01, maximum=1)

    def envelope(self) -> tuple[float, float]:
        return self.floor, 1.0


@frozen(kw_only=True)
class ScheduleOptions:
    peak: float = option(0.1, doc="value in the middle")


@frozen(kw_only=True)
class ObserverOptions:
    path: str = option("events.txt", doc="file that gets a line an event")


@frozen(kw_only=True)
class FormatOptions:
    indent: int = option(0, doc="spaces before an entry of the file")


# -- right, though few do it so ---------------------------------------------------------------------------------------


@frozen(kw_only=True)
class MaskedOptions(RackOptions):
    width: int = dimension("width", doc="features at each position, an even number")

    def to_spec(self) -> RackSpec:
        return evolve(super().to_spec(), side={"mask": TensorSpec("batch time", "bool")}, residual_outputs=())


@frozen(kw_only=True)
class RowMaskedOptions(RackOptions):
    def to_spec(self) -> RackSpec:
        return evolve(super().to_spec(), side={"mask": TensorSpec("batch", "bool")})


@frozen(kw_only=True)
class BalancedOptions(HeadOptions):
    def to_spec(self) -> HeadSpec:
        return HeadSpec(outputs={"levels": LEVELS, "balance": TensorSpec("")})


@frozen(kw_only=True)
class PairMaskedOptions(TaskOptions):
    def to_spec(self) -> TaskSpec:
        return evolve(super().to_spec(), optional={"mask": TensorSpec("batch time time", "bool")})


@frozen(kw_only=True)
class DensityOptions(TaskOptions):
    def to_spec(self) -> TaskSpec:
        return evolve(super().to_spec(), outputs={"mean": LEVELS, "log_variance": LEVELS})


@frozen(kw_only=True)
class AccumulatingOptions:
    lr: float = scheduled(doc="size of a step", minimum=0)
