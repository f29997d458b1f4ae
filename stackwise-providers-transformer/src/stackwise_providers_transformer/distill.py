"""Distillation: a model learns the probabilities of a teacher.

Shapes: B batch, T time, N targets that count, V vocab.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from stackwise import BuildContext, Moment, TaskSpec, UserError
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.continuation import ContinuesPrompts
from stackwise_providers_transformer.distill_options import DistillOptions


def divergence(student_NV: torch.Tensor, teacher_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """τ² · KL(teacher_τ ‖ student_τ) of every target [N], in nats.

    p_τ is the softmax of logits over τ. The factor τ² keeps gradients as large as those of the targets, whatever τ is (arXiv 1503.02531,
    section 2).

    Args:
        student_NV: logits.
        teacher_NV: logits.
        temperature: τ, above 0.
    """
    taught = (teacher_NV / temperature).log_softmax(-1)
    learnt = (student_NV / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(learnt, taught, reduction="none", log_target=True).sum(-1)


class Distill(ContinuesPrompts):
    """λ · τ² KL(teacher ‖ student) + (1 - λ) · -log p(target), summed over the targets that count (arXiv 1503.02531)."""

    def __init__(self, options: DistillOptions) -> None:
        self.options = options
        self._rows = CausalLM(options)
        self.temperature, self.soft = options.temperature, options.soft

    def get_spec(self) -> TaskSpec:
        """As for causal language modelling, with a frozen teacher."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the temperature and the weight in force."""
        self.temperature, self.soft = values["temperature"], values["soft"]

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """As `causal-lm` does."""
        return self._rows.prepare(batch, moment, generator)

    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor], *, reference: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, float, dict[str, tuple[torch.Tensor, float]]]:
        """The sum in nats in float32, the number of targets, and its two parts: divergence at τ, nats of the targets, and how often
        the likeliest id is the teacher's.

        Raises:
            UserError: the teacher has other token ids.
        """
        taught = reference["logits"]
        if taught.shape != outputs["logits"].shape:
            sizes = f"the teacher gives {taught.shape[-1]} logits a token and the model {outputs['logits'].shape[-1]}"
            raise UserError(f"task.reference: {sizes}: both are to have the same vocabulary")
        counted = batch.get("counted")
        keep = torch.ones_like(batch["targets"], dtype=torch.bool) if counted is None else counted
        student_NV, teacher_NV = outputs["logits"][keep].float(), taught[keep].float()
        apart, nats = (
            divergence(student_NV, teacher_NV, self.temperature).sum(),
            F.cross_entropy(student_NV, batch["targets"][keep], reduction="sum"),
        )
        count = float(len(student_NV))
        agree = (student_NV.detach().argmax(-1) == teacher_NV.argmax(-1)).sum()
        metrics = {"divergence": (apart.detach(), count), "target_nats": (nats.detach(), count), "agreement": (agree, count)}
        return self.soft * apart + (1 - self.soft) * nats, count, metrics


def build_distill(options: DistillOptions, context: BuildContext) -> Distill:
    """The factory of `distill`."""
    return Distill(options)
