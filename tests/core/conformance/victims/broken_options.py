"""Options that break one promise each. Nothing here imports torch."""

from __future__ import annotations

from typing import Any, Literal

from attrs import define, evolve, frozen

from stackwise import EmbeddingSpec, OptimizerSpec, RackSpec, TaskSpec, TensorSpec, Tokenizer, dimension, option, scheduled
from victims.sound_options import LEVELS, AdapterOptions, EmbeddingOptions, LoaderOptions, OptimizerOptions, RackOptions, TaskOptions


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
class Linear(TaskOptions):
    def to_spec(self) -> TaskSpec:
        return evolve(super().to_spec(), linear_outputs=("levels",))


@frozen(kw_only=True)
class Nameless(LoaderOptions):
    """Has a tokenizer whose vocabulary the loader does not name."""

    def tokenizer_settings(self) -> dict[str, Any]:
        return {"words": 2}

    def make_tokenizer(self, sources: Any) -> Tokenizer:
        return Tokenizer(vocabulary="two words", files={"words.txt": b"yes no"})

    def with_tokenizer(self, tokenizer: Tokenizer) -> Nameless:
        return self

    @staticmethod
    def codec_of(tokenizer: Tokenizer) -> Words:
        return Words()


class Words:
    def encode(self, text: str) -> list[int]:
        return [int(word == "yes") for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(["no", "yes"][i] for i in ids)


@frozen(kw_only=True)
class Boastful(OptimizerOptions):
    def to_spec(self) -> OptimizerSpec:
        return OptimizerSpec(state_elements=lambda shape: 0)


@frozen(kw_only=True)
class Effortless(OptimizerOptions):
    def to_spec(self) -> OptimizerSpec:
        return evolve(super().to_spec(), step_flops=lambda name, shape: 1)


@frozen(kw_only=True)
class SideBySide(RackOptions):
    def to_spec(self) -> RackSpec:
        spec = super().to_spec()
        return RackSpec(stacks=spec.stacks, residual_outputs=spec.residual_outputs, side={"shift": LEVELS, "offset": LEVELS})


@frozen(kw_only=True)
class Reporting(RackOptions):
    def to_spec(self) -> RackSpec:
        return evolve(super().to_spec(), losses=("size",))


@frozen(kw_only=True)
class Causal(RackOptions):
    def to_spec(self) -> RackSpec:
        return evolve(super().to_spec(), attention=("causal",))


@frozen(kw_only=True)
class Segmented(RackOptions):
    def to_spec(self) -> RackSpec:
        return evolve(super().to_spec(), side={"segments": TensorSpec("batch time", "integer")})


@frozen(kw_only=True)
class Misnamed(EmbeddingOptions):
    width: int = dimension("witdh", doc="features at each position")

    def to_spec(self) -> EmbeddingSpec:
        return evolve(super().to_spec(), output=TensorSpec(("batch", "time", 4)))


@frozen(kw_only=True)
class Padded(TaskOptions):
    def to_spec(self) -> TaskSpec:
        return evolve(super().to_spec(), optional={"mask": TensorSpec("batch time", "bool")})


@frozen(kw_only=True)
class Tokens:
    def to_spec(self) -> TaskSpec:
        tokens = {"tokens": TensorSpec("batch time", "integer", bounds=(0, 32))}
        return TaskSpec(batch=tokens, inputs=tokens, outputs={"logits": TensorSpec(("batch", "time", 32))}, lookahead=1)


@frozen(kw_only=True)
class Nesterov:
    """Says nothing of the memory."""

    lr: float = scheduled(doc="size of a step", minimum=0)
    momentum: float = option(0.9, doc="share of the momentum kept at each step", minimum=0, maximum=1)
    nesterov: bool = option(False, doc="look ahead")


@frozen(kw_only=True)
class Shuffled:
    """Leaves its fields to the loader that is built."""

    scale: float = scheduled(1.0, doc="factor on every level", minimum=0)
    shuffled: bool = option(False, doc="in another order")

    def to_spec(self) -> None:
        return None


@frozen(kw_only=True)
class TwoSided(AdapterOptions):
    side: Literal["before", "after"] = option("before", doc="where the linear map stands", choices=("before", "after"))


@frozen(kw_only=True)
class Labels:
    def to_spec(self) -> TaskSpec:
        label = TensorSpec("batch", "integer", bounds=(0, 2))
        return TaskSpec(batch={"levels": LEVELS, "label": label}, inputs={"levels": LEVELS}, outputs={"kind": TensorSpec("batch")})


@frozen(kw_only=True)
class Restoring(Labels):
    def to_spec(self) -> TaskSpec:
        return evolve(super().to_spec(), reconstructs=True)
