"""Options that break one promise each. Nothing here imports torch."""

from __future__ import annotations

from attrs import define, frozen

from stackwise import OptimizerSpec, RackSpec, TaskSpec, TensorSpec, option
from victims.sound_options import LEVELS, LoaderOptions, OptimizerOptions, RackOptions


@frozen(kw_only=True)
class Undocumented:
    gain: float = option(1.0, doc="")


@define(kw_only=True)
class Thawed:
    gain: float = option(1.0, doc="factor on every level")


@frozen(kw_only=True)
class Nested:
    values: tuple[float, ...] = option((1.0, 2.0), doc="factors")
    pair: object = option(None, doc="two numbers, as a set")


@frozen(kw_only=True)
class Crashing:
    mode: str = option("sum", doc="what to do")

    def __attrs_post_init__(self) -> None:
        _ = {"sum": 1, "mean": 2}[self.mode]


@frozen(kw_only=True)
class Hasty(RackOptions):
    def to_spec(self) -> RackSpec:
        twice = 2 * self.width // 2
        return RackSpec(input=TensorSpec(("batch", "time", twice)), stacks={s.name: s.blocks for s in self.stacks})


@frozen(kw_only=True)
class Boastful(OptimizerOptions):
    def to_spec(self) -> OptimizerSpec:
        return OptimizerSpec(state_elements=lambda shape: 0)


@frozen(kw_only=True)
class SideBySide(RackOptions):
    def to_spec(self) -> RackSpec:
        spec = super().to_spec()
        return RackSpec(stacks=spec.stacks, residual_outputs=spec.residual_outputs, side={"shift": LEVELS, "segments": LEVELS})


@frozen(kw_only=True)
class Unfitting(LoaderOptions):
    pass


@frozen(kw_only=True)
class FourWide:
    """A task that offers a field with a time axis it does not cut."""

    def to_spec(self) -> TaskSpec:
        return TaskSpec(batch={"levels": LEVELS}, inputs={"levels": LEVELS}, outputs={"levels": LEVELS}, lookahead=1)
