"""Predict the next level."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import frozen
from torch import Generator, Tensor

from stackwise import BuildContext, Moment, TaskSpec
from waves_for_stackwise.options import ForecastOptions

Model = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@frozen
class Forecast:
    """Squared error of the next level."""

    options: ForecastOptions

    def get_spec(self) -> TaskSpec:
        """As the options say."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, Tensor], moment: Moment, generator: Generator) -> dict[str, Tensor]:
        """All levels but the last are seen, all but the first are predicted."""
        levels = batch["levels"]
        return {"levels": levels[:, :-1], "targets": levels[:, 1:]}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, int, dict[str, tuple[Tensor, int]]]:
        """The sum of the squared errors and their number; the absolute errors likewise."""
        error = outputs["levels"].float() - batch["targets"]
        return error.square().sum(), error.numel(), {"absolute_error": (error.detach().abs().sum(), error.numel())}

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The level [B] that follows each row."""
        return {"next": model({"levels": batch["levels"]})["levels"][:, -1].float()}


def build_forecast(options: ForecastOptions, context: BuildContext) -> Forecast:
    """The factory of task `waves.forecast`."""
    return Forecast(options)
