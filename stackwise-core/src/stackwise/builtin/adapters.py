"""The adapters of `core`: they hold parameters or lose precision, so they stand only where a config asks for them.

What differs without loss is crossed unasked, see `planes/model/bridges.py`. Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from torch import nn

from stackwise.builtin.provider import PrecisionOptions, ProjectOptions
from stackwise.contracts.components import BuildContext
from stackwise.contracts.specs import AdapterSpec, TensorSpec
from stackwise.planes.model.bridges import Precision


class Project(nn.Linear):
    """A learnt linear map between two widths: `[B, T, width_in]` → `[B, T, width_out]`, initialised as `nn.Linear` is."""

    def get_spec(self) -> AdapterSpec:
        """The two widths."""
        return AdapterSpec(input=TensorSpec(("batch", "time", self.in_features)), output=TensorSpec(("batch", "time", self.out_features)))


def build_project(options: ProjectOptions, context: BuildContext) -> Project:
    """Build `core.project`."""
    return Project(options.width_in, options.width_out, bias=options.bias)


def build_precision(options: PrecisionOptions, context: BuildContext) -> Precision:
    """Build `core.precision`."""
    return Precision(options.dtype)
