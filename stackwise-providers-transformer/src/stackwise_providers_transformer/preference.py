"""Learning from preferences between two responses.

Shapes: B pairs, T time, V vocab.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stackwise import BuildContext, Moment, TaskSpec
from stackwise_providers_transformer.continuation import ContinuesPrompts
from stackwise_providers_transformer.pair_options import PreferenceOptions
from stackwise_providers_transformer.preference_losses import dpo_margin, log_odds_ratio, preferred, simpo_margin
from stackwise_providers_transformer.token_nats import Logits, summed_by_row

_BETA = {"dpo": 0.1, "simpo": 2.0, "orpo": 0.0}


class Preference(ContinuesPrompts):
    """DPO (arXiv 2305.18290), SimPO (arXiv 2405.14734) or ORPO (arXiv 2403.07691), summed over pairs; the prompt counts for nothing."""

    def __init__(self, options: PreferenceOptions) -> None:
        self.options = options
        self.beta = _BETA[options.method] if options.beta is None else options.beta
        self.gamma = 0.5 if options.gamma is None else options.gamma
        self.odds_weight = 0.1 if options.odds_weight is None else options.odds_weight

    def get_spec(self) -> TaskSpec:
        """Two rows of responses after one prompt."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """chosen and rejected [B, T+1] → tokens and targets [2B, T], the chosen first, and `counted` [2B, T], True on the responses; with
        masks `routed` [2B, T], what experts count."""
        rows = torch.cat((batch["chosen"], batch["rejected"])).long()
        prefix_B = batch["prefix"].long()
        place = torch.arange(1, rows.shape[1], device=rows.device)
        counted = place >= torch.cat((prefix_B, prefix_B))[:, None]
        prepared = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "counted": counted}
        masks = [batch.get(f"{name}_mask") for name in ("chosen", "rejected")]
        if any(mask is not None for mask in masks):
            real = torch.cat([torch.ones_like(batch["chosen"], dtype=torch.bool) if mask is None else mask for mask in masks])
            prepared |= {"counted": counted & real[:, 1:], "routed": real[:, :-1]}
        return prepared

    def loss(
        self,
        outputs: Mapping[str, Logits],
        batch: Mapping[str, torch.Tensor],
        *,
        reference: Mapping[str, Logits] | None = None,
    ) -> tuple[torch.Tensor, float, dict[str, tuple[torch.Tensor, float]]]:
        """The sum over pairs in float32, their number, how often the chosen response is ahead and by how much, and how often
        the model gives it the higher likelihood, whatever the reference gives."""
        targets, counted = batch["targets"], batch["counted"]
        chosen_B, rejected_B = summed_by_row(outputs["logits"], targets, counted).chunk(2)
        if self.options.method == "dpo":
            assert reference is not None  # the spec asks for it
            known = summed_by_row(reference["logits"], targets, counted).chunk(2)
            margin_B = dpo_margin(chosen_B, rejected_B, *known, beta=self.beta)
            loss_B = preferred(margin_B)
        else:
            lengths_B, others_B = counted.sum(dim=1).clamp(min=1).chunk(2)
            mean_B, other_B = chosen_B / lengths_B, rejected_B / others_B
            if self.options.method == "simpo":
                margin_B = simpo_margin(mean_B, other_B, beta=self.beta)
                loss_B = preferred(margin_B - self.gamma)
            else:
                margin_B = log_odds_ratio(mean_B, other_B)
                loss_B = -mean_B + self.odds_weight * preferred(margin_B)
        pairs, margin_B = float(len(loss_B)), margin_B.detach()
        likelier = (chosen_B > rejected_B).sum()
        metrics = {"accuracy": (margin_B > 0).sum(), "reward_margin": margin_B.sum(), "likelihood_accuracy": likelier}
        return loss_B.sum(), pairs, {name: (value, pairs) for name, value in metrics.items()}


def build_preference(options: PreferenceOptions, context: BuildContext) -> Preference:
    """The factory of `preference`."""
    return Preference(options)
