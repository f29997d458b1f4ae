"""Contrastive learning of two views.

Shapes: B rows, F numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from stackwise import BuildContext, Moment, TaskSpec, UserError
from stackwise_providers_transformer.classification import read_row
from stackwise_providers_transformer.contrastive_options import OTHER, ContrastiveOptions


def info_nce(first_BF: torch.Tensor, second_BF: torch.Tensor, temperature: float) -> torch.Tensor:
    """-log softmax of the similarity of two views of one row among those of all rows, both ways, summed over rows.

    InfoNCE (arXiv 1807.03748, equation 4) of cosine similarities over a temperature, from the first views to the second and back, each
    counted half (arXiv 2103.00020, figure 3). log B where all vectors are equal.

    Args:
        first_BF: vectors of one view.
        second_BF: those of the other, in the same order.
        temperature: above 0.
    """
    similar_BB = F.normalize(first_BF, dim=-1) @ F.normalize(second_BF, dim=-1).T / temperature
    own_B = torch.arange(len(first_BF), device=first_BF.device)
    return (F.cross_entropy(similar_BB, own_B, reduction="sum") + F.cross_entropy(similar_BB.T, own_B, reduction="sum")) / 2


class Contrastive:
    """InfoNCE over the rows of a batch. Rows are each other's wrong answers, so a batch that is cut in two is another task."""

    def __init__(self, options: ContrastiveOptions) -> None:
        self.options = options
        self.temperature = options.temperature

    def get_spec(self) -> TaskSpec:
        """Two views of each row."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the temperature in force."""
        self.temperature = values["temperature"]

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The rows [B, …] of the first view, then those of the second: [2B, …].

        Raises:
            UserError: rows of several texts, or a batch of one row, in which there is nothing to tell apart; a mask for one view alone.
        """
        if "segments" in batch:
            raise UserError("segments: a row becomes one vector, but it holds several texts: deliver no `segments`")
        views = [batch, batch]
        if self.options.views == "pair":
            views[1] = {name.removeprefix(OTHER): field for name, field in batch.items() if name.startswith(OTHER)}
        first, second = (read_row(self.options.input, view) for view in views)
        if first.keys() != second.keys():
            raise UserError(f"mask: one view has a mask and the other none: deliver `mask` and `{OTHER}mask`, or neither")
        if len(next(iter(first.values()))) < 2:
            raise UserError("data.batch_size: a batch of one row has no other rows to compare with: take two or more")
        return {name: torch.cat((first[name], second[name])) for name in first}

    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, float, dict[str, tuple[torch.Tensor, float]]]:
        """vector [2B, F] → the sum in nats in float32, B, and the share of first views whose own second view is the most similar one."""
        first_BF, second_BF = outputs["vector"].float().chunk(2)
        rows = float(len(first_BF))
        with torch.no_grad():
            nearest_B = (F.normalize(first_BF, dim=-1) @ F.normalize(second_BF, dim=-1).T).argmax(-1)
            right = (nearest_B == torch.arange(len(first_BF), device=first_BF.device)).sum()
        return info_nce(first_BF, second_BF, self.temperature), rows, {"accuracy": (right, rows)}


def build_contrastive(options: ContrastiveOptions, context: BuildContext) -> Contrastive:
    """The factory of `contrastive`."""
    return Contrastive(options)
