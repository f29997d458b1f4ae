"""Options of the subtle components. Nothing here imports torch."""

from __future__ import annotations

from attrs import evolve, frozen

from stackwise import BatchSpec, TaskSpec, TensorSpec
from victims.sound_options import LoaderOptions, ReactionOptions, TaskOptions


@frozen(kw_only=True)
class TableOptions(LoaderOptions):
    def to_spec(self) -> BatchSpec:
        return BatchSpec(fields={"numbers": TensorSpec("batch 3"), "target": TensorSpec("batch")})


@frozen(kw_only=True)
class MaskedTaskOptions(TaskOptions):
    def to_spec(self) -> TaskSpec:
        return evolve(super().to_spec(), optional={"mask": TensorSpec("batch time", "bool")})


@frozen(kw_only=True)
class HeldoutOptions(ReactionOptions):
    def watches(self) -> tuple[str, ...]:
        return ("heldout.loss",)
