"""The loss as a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from attrs import frozen
from torch import Generator, Tensor

from names_for_stackwise.options import KindOptions
from stackwise import BuildContext, Moment, TaskSpec


@frozen
class Kind:
    """Which kind a character is of."""

    options: KindOptions

    def get_spec(self) -> TaskSpec:
        """As the options say."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, Tensor], moment: Moment, generator: Generator) -> dict[str, Tensor]:
        """Nothing is to be prepared."""
        return dict(batch)

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, int, dict[str, tuple[Tensor, int]]]:
        """The sum over the rows, and their number; how many are right, of as many."""
        logits, kinds = outputs["logits"].float(), batch["kind"]
        nats = F.cross_entropy(logits, kinds, label_smoothing=self.options.smoothing, reduction="sum")
        return nats, len(kinds), {"accuracy": ((logits.argmax(-1) == kinds).sum(), len(kinds))}

    def predict(self, model: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The likeliest kind of each row, and its probability."""
        shares = model({"letters": batch["letters"]})["logits"].float().softmax(-1)
        return {"kind": shares.argmax(-1), "probability": shares.amax(-1)}


def build_kind(options: KindOptions, context: BuildContext) -> Kind:
    """The factory of task `names.kind`."""
    return Kind(options)
