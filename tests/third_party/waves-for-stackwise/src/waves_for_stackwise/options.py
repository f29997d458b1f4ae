"""The options of every component, and the spec that each declares. Nothing here imports torch."""

from __future__ import annotations

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
    UserError,
    dimension,
    option,
    scheduled,
    stacks,
)

LEVELS = TensorSpec("batch time", "float32")


@frozen(kw_only=True)
class LevelInOptions:
    """Options of the embedding."""

    width: int = dimension("width", doc="features at each position")

    def to_spec(self) -> EmbeddingSpec:
        """Levels in; the hidden state has the usual form."""
        return EmbeddingSpec(inputs={"levels": LEVELS})


@frozen(kw_only=True)
class ConvOptions:
    """Options of the rack."""

    width: int = dimension("width", doc="features at each position")
    stacks: tuple[Stack, ...] = stacks(doc="blocks in forward order")
    kernel: int = option(3, doc="positions that a block sees, its own included", minimum=1)
    dropout: float = scheduled(0.0, doc="share of each block's output zeroed in training", minimum=0, maximum=1)

    def to_spec(self) -> RackSpec:
        """A causal rack without side inputs; a block whose `out` is zero is the identity."""
        stacks = {stack.name: stack.blocks for stack in self.stacks}
        return RackSpec(attention=("causal",), stacks=stacks, residual_outputs=("out.weight",))


@frozen(kw_only=True)
class CalmOptions(ConvOptions):
    """Options of the rack that keeps what its blocks add small."""

    def to_spec(self) -> RackSpec:
        """That of `conv`, with a loss that every config of it weighs and a metric beside it."""
        return evolve(super().to_spec(), losses=("size",), metrics=("still",))


@frozen(kw_only=True)
class EchoOptions(ConvOptions):
    """Options of the rack whose rows remember the rows of the batches before."""

    keep: float = option(0.5, doc="share of what is remembered that stays at each step", minimum=0, below=1)


@frozen(kw_only=True)
class LevelOutOptions:
    """Options of the head."""

    width: int = dimension("width", doc="features at each position")

    def to_spec(self) -> HeadSpec:
        """One level for every position."""
        return HeadSpec(outputs={"levels": LEVELS})


@frozen(kw_only=True)
class SquashOptions:
    """Options of the adapter."""

    limit: float = option(doc="largest size of a feature", minimum=0)

    def __attrs_post_init__(self) -> None:
        if self.limit == 0:
            raise UserError("limit: a limit of 0 leaves nothing of the hidden state: give it above zero")

    def to_spec(self) -> AdapterSpec:
        """One name for the width on both sides, so that it is one size."""
        return AdapterSpec(input=TensorSpec("batch time width"), output=TensorSpec("batch time width"))


@frozen(kw_only=True)
class ForecastOptions:
    """Options of the task: none."""

    def to_spec(self) -> TaskSpec:
        """Each row needs one level more than the model sees, the last target."""
        return TaskSpec(batch={"levels": LEVELS}, inputs={"levels": LEVELS}, outputs={"levels": LEVELS}, lookahead=1)


@frozen(kw_only=True)
class SignumOptions:
    """Options of the optimizer."""

    lr: float = scheduled(doc="size of a step", minimum=0)
    momentum: float = option(0.9, doc="share of the momentum kept at each step", minimum=0, maximum=1)

    def to_spec(self) -> OptimizerSpec:
        """One momentum for every entry of a parameter."""
        return OptimizerSpec(state_elements=_one_for_every_entry)


def _one_for_every_entry(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@frozen(kw_only=True)
class SinesOptions:
    """Options of the loader."""

    shortest: float = option(4.0, doc="shortest period, in positions", minimum=2)
    longest: float = option(32.0, doc="longest period, in positions", minimum=2)

    def __attrs_post_init__(self) -> None:
        if self.longest < self.shortest:
            raise UserError(f"longest: a longest period of {self.longest:g} is below the shortest of {self.shortest:g}: exchange them")

    def to_spec(self) -> BatchSpec:
        """Levels from -1 to 1."""
        return BatchSpec(fields={"levels": LEVELS})


@frozen(kw_only=True)
class JitterOptions:
    """Options of the transform."""

    amount: float = scheduled(doc="standard deviation of the noise", minimum=0)

    def to_spec(self) -> TransformSpec:
        """What it works on; it changes values only."""
        return TransformSpec(inputs={"levels": LEVELS})


@frozen(kw_only=True)
class LowRankOptions:
    """Options of the weight adapter."""

    rank: int = option(2, doc="rank of what is added to the matrix", minimum=1)


@frozen(kw_only=True)
class BrakeOptions:
    """Options of the reaction."""

    above: float = option(doc="loss from which the learning rate is halved for good")

    def envelope(self) -> tuple[float, float]:
        """Half or whole."""
        return 0.5, 1.0


@frozen(kw_only=True)
class SwellOptions:
    """Options of the schedule."""

    level: float = option(doc="value about which it swells")
    depth: float = option(0.5, doc="how far it swells, as a share of the level", minimum=0, maximum=1)
    waves: int = option(2, doc="waves in the window", minimum=1)


@frozen(kw_only=True)
class RepeatOptions:
    """Options of the growth operator: none."""


@frozen(kw_only=True)
class CsvOptions:
    """Options of the observer."""

    path: str = option(doc="the file, which is written anew")


@frozen(kw_only=True)
class GoalOptions:
    """Options of the reaction that ends the run."""

    below: float = option(doc="training loss at which the run ends", minimum=0)

    def envelope(self) -> tuple[float, float]:
        """It leaves the learning rate alone."""
        return 1.0, 1.0


PICTURE = TensorSpec("batch height width channels", "float32")
INSTANT = TensorSpec("batch", "float32")


@frozen(kw_only=True)
class FlowOptions:
    """Options of the task that makes pictures of noise."""

    height: int = dimension("height", doc="pixels from top to bottom; the loader's when left out")
    width: int = dimension("width", doc="pixels from left to right; the loader's when left out")
    channels: int = dimension("channels", doc="numbers a pixel; the loader's when left out")
    steps: int = option(32, doc="steps from noise to a picture when pictures are generated", minimum=1)

    def to_spec(self) -> TaskSpec:
        """What is to be found is partly in the input by design."""
        return TaskSpec(
            batch={"image": PICTURE},
            inputs={"image": PICTURE, "instant": INSTANT},
            outputs={"velocity": PICTURE},
            metrics=(),
            reconstructs=True,
        )


@frozen(kw_only=True)
class PictureInOptions:
    """Options of the embedding of pictures."""

    height: int = dimension("height", doc="pixels from top to bottom; the task's when left out")
    width: int = dimension("width", doc="pixels from left to right; the task's when left out")
    channels: int = dimension("channels", doc="numbers a pixel; the task's when left out")
    features: int = dimension("features", doc="features of the hidden state; the rack's when left out")

    def to_spec(self) -> EmbeddingSpec:
        """A picture and its instant in, one position out."""
        return EmbeddingSpec(inputs={"image": PICTURE, "instant": INSTANT}, output=TensorSpec("batch time features"))


@frozen(kw_only=True)
class PictureOutOptions:
    """Options of the head of pictures."""

    height: int = dimension("height", doc="pixels from top to bottom; the task's when left out")
    width: int = dimension("width", doc="pixels from left to right; the task's when left out")
    channels: int = dimension("channels", doc="numbers a pixel; the task's when left out")
    features: int = dimension("features", doc="features of the hidden state; the rack's when left out")

    def to_spec(self) -> HeadSpec:
        """A velocity for every pixel."""
        return HeadSpec(input=TensorSpec("batch time features"), outputs={"velocity": PICTURE})
