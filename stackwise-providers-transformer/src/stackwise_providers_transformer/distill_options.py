"""The options of distillation."""

from __future__ import annotations

from attrs import evolve, frozen

from stackwise import TaskSpec, scheduled
from stackwise_providers_transformer.options import CausalLMOptions


@frozen(kw_only=True)
class DistillOptions(CausalLMOptions):
    """Next-token prediction from a teacher's probabilities."""

    temperature: float = scheduled(1.0, doc="logits of both are divided by it before the softmax", minimum=1e-3)
    soft: float = scheduled(1.0, doc="weight of the teacher's probabilities; the targets have 1 minus it", minimum=0, maximum=1)

    def to_spec(self) -> TaskSpec:
        """As `causal-lm`, beside a frozen teacher that the config names."""
        return evolve(super().to_spec(), reference="given", linear_outputs=(), metrics=("divergence", "target_nats", "agreement"))
