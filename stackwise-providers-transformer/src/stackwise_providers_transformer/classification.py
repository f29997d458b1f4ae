"""Classification of rows.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from stackwise import BuildContext, DataError, Moment, TaskSpec, UserError
from stackwise_providers_transformer.classification_options import ClassificationOptions, RowInput, row_fields


def read_row(read: RowInput, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The fields of a row that the model reads: ids int64, numbers float32, and the mask of tokens."""
    fields = {name: batch[name].long() if name in ("tokens", "categories") else batch[name].float() for name in row_fields(read)}
    return fields | ({"mask": batch["mask"]} if read == "tokens" and "mask" in batch else {})


def whole_rows(read: RowInput, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Rows that are to be predicted, which have every field that is read.

    Raises:
        UserError: one is missing.
    """
    if missing := [name for name in row_fields(read) if name not in batch]:
        raise UserError(f"the rows have no '{missing[0]}', which the task reads: they have {', '.join(batch) or 'nothing'}")
    return batch


class Classification:
    """-log p(label | row), summed over rows.

    Args:
        classes: C, where the junctions say it; labels are checked against it.
    """

    def __init__(self, options: ClassificationOptions, *, classes: int | None = None) -> None:
        self.options, self._classes = options, classes

    def get_spec(self) -> TaskSpec:
        """A label for every row."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The row unchanged, with images and features in float32; label [B] int64.

        Raises:
            UserError: rows of several texts, which have one label.
            DataError: a label that is not a class.
        """
        if "segments" in batch:
            raise UserError("segments: a row has one label, but it holds several texts: deliver no `segments`")
        label_B = batch["label"].long()
        if self._classes is not None and not bool(((label_B >= 0) & (label_B < self._classes)).all()):
            found = sorted({*label_B.tolist()} - {*range(self._classes)})[0]
            known = f"the classes are 0 to {self._classes - 1}"
            raise DataError(f"a row has the label {found}; {known}: mend the data, or give the head more classes")
        return {**read_row(self.options.input, batch), "label": label_B}

    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, float, dict[str, tuple[torch.Tensor, float]]]:
        """logits [B, C] → the sum in nats in float32, the number of rows, and the share that is classified right."""
        logits_BC, label_B = outputs["logits"].float(), batch["label"]
        rows = float(len(label_B))
        right = (logits_BC.detach().argmax(-1) == label_B).sum()
        return F.cross_entropy(logits_BC, label_B, reduction="sum"), rows, {"accuracy": (right, rows)}

    def predict(
        self, model: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]], batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The likeliest class [B] of each row, and the probability [B, C] of every class.

        Raises:
            UserError: a field that the task reads is missing.
        """
        shares_BC = model(read_row(self.options.input, whole_rows(self.options.input, batch)))["logits"].float().softmax(-1)
        return {"label": shares_BC.argmax(-1), "probability": shares_BC}


def build_classification(options: ClassificationOptions, context: BuildContext) -> Classification:
    """The factory of `classification`."""
    spec = context.specs.get("task")
    classes = spec.outputs["logits"].dims[-1] if isinstance(spec, TaskSpec) else None
    return Classification(options, classes=classes if isinstance(classes, int) else None)
