"""Regression of rows.

Shapes: B batch, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from stackwise import BuildContext, DataError, Moment, TaskSpec, UserError
from stackwise_providers_transformer.classification import read_row, whole_rows
from stackwise_providers_transformer.table_options import RegressionOptions


class Regression:
    """(prediction - target)², its mean over the targets, summed over rows."""

    def __init__(self, options: RegressionOptions) -> None:
        self.options = options

    def get_spec(self) -> TaskSpec:
        """Numbers for every row."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The row as it is; target [B, K] float32, and its deviations where they come.

        Raises:
            UserError: rows of several texts, which have one target.
            DataError: a target that is not finite.
        """
        if "segments" in batch:
            raise UserError("segments: a row has one target, but it holds several texts: deliver no `segments`")
        target_BK = batch["target"].float()
        if not bool(target_BK.isfinite().all()):
            raise DataError("target: a row has NaN or infinity to predict: drop or fill it")
        std = {"target_std": batch["target_std"].float()} if "target_std" in batch else {}
        return {**read_row(self.options.input, batch), "target": target_BK, **std}

    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, float, dict[str, tuple[torch.Tensor, float]]]:
        """prediction [B, K] → the sum over rows in float32, their number, and squared and absolute error in the units of the data."""
        error_BK = outputs["prediction"].float() - batch["target"]
        rows = float(len(error_BK))
        own_BK = error_BK.detach() * batch["target_std"] if "target_std" in batch else error_BK.detach()
        errors = {"squared_error": own_BK.square(), "absolute_error": own_BK.abs()}
        return error_BK.square().mean(dim=1).sum(), rows, {name: (each.mean(dim=1).sum(), rows) for name, each in errors.items()}

    def predict(
        self, model: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]], batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The numbers [B, K] of each row.

        Raises:
            UserError: a field that the task reads is missing.
        """
        return {"prediction": model(read_row(self.options.input, whole_rows(self.options.input, batch)))["prediction"].float()}


def build_regression(options: RegressionOptions, context: BuildContext) -> Regression:
    """The factory of the task `regression`."""
    return Regression(options)
