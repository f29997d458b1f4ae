"""The learning rate falls when a metric no longer improves."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from math import inf
from typing import Any, Literal

from attrs import frozen

from stackwise import BuildContext, UserError, option


@frozen(kw_only=True)
class PlateauOptions:
    """As torch's ReduceLROnPlateau, with a factor in place of learning rates."""

    metric: str = option(doc="what is watched: <evaluation>.<metric>, or train.loss after every step")
    mode: Literal["min", "max"] = option("min", doc="whether less or more of it is better", choices=("min", "max"))
    factor: float = option(0.1, doc="what the learning rate is multiplied by", minimum=0, below=1)
    patience: int = option(10, doc="values in a row without an improvement that change nothing; one more lowers the rate", minimum=0)
    threshold: float = option(1e-4, doc="least improvement that counts, as a share of the best value so far", minimum=0)
    cooldown: int = option(0, doc="values after a fall that are not counted", minimum=0)
    lowest: float = option(0.01, doc="lower bound of the factor, however often it falls", minimum=0, maximum=1)

    def __attrs_post_init__(self) -> None:
        evaluation, _, metric = self.metric.partition(".")
        if not evaluation or not metric:
            raise UserError(f"metric: {self.metric!r} is not a metric: write <evaluation>.<metric>, such as heldout.loss, or train.loss")

    def watches(self) -> tuple[str, ...]:
        """The one metric."""
        return (self.metric,)

    def envelope(self) -> tuple[float, float]:
        """Between the least factor and 1."""
        return self.lowest, 1.0


class Plateau:
    """A factor that falls when the watched metric has not improved for more than `patience` values.

    Args:
        options: metric, direction, factor and its bounds.
    """

    def __init__(self, options: PlateauOptions) -> None:
        self._options = options
        self.factor = 1.0
        self._best: float | None = None
        self._stall = 0
        self._pause = 0

    def watch(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Look at the watched metric, if it is among `metrics`.

        Returns:
            Why the factor fell; None when it did not.

        Raises:
            UserError: the evaluation does not have the metric.
        """
        if (value := self._read(metrics)) is None:
            return None
        if self._improves(value):
            self._best, self._stall = value, 0
        else:
            self._stall += 1
        if self._pause:
            self._pause, self._stall = self._pause - 1, 0
        if self._stall <= self._options.patience:
            return None
        return self._fall()

    def state_dict(self) -> dict[str, Any]:
        """Everything that later answers depend on."""
        return {"factor": self.factor, "best": self._best, "waited": self._stall, "resting": self._pause}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.factor, self._best, self._stall, self._pause = (state[key] for key in ("factor", "best", "waited", "resting"))

    def _read(self, metrics: Mapping[str, float]) -> float | None:
        name = self._options.metric
        if name in metrics:
            return metrics[name]
        siblings = sorted(key for key in metrics if key.partition(".")[0] == name.partition(".")[0])
        if siblings:
            near = get_close_matches(name, siblings) or siblings
            raise UserError(f"plateau: there is no metric '{name}': write one of {', '.join(near)}")
        return None

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return value < inf if self._options.mode == "min" else value > -inf
        margin = self._options.threshold * abs(self._best)
        return value < self._best - margin if self._options.mode == "min" else value > self._best + margin

    def _fall(self) -> str | None:
        options, waited, before = self._options, self._stall, self.factor
        self._stall, self._pause = 0, options.cooldown
        self.factor = max(before * options.factor, options.lowest)
        if self.factor == before:
            return None
        best = "no value yet" if self._best is None else f"{self._best:.6g}"
        return f"{options.metric} has not improved on {best} for {waited} values: learning rate × {self.factor:.3g}"


def build_plateau(options: PlateauOptions, context: BuildContext) -> Plateau:
    """The factory of `plateau`."""
    return Plateau(options)
