"""A part of the model as its forward calls it: what it reports is taken out, and its output is checked against its spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stackwise.contracts.answers import calling, expect, mark
from stackwise.contracts.specs import EmbeddingSpec, HeadSpec, RackSpec
from stackwise.planes.model.reported import Reporter


class Called:
    """Embedding, rack or head. What stays from call to call is found out once.

    Args:
        role: of the part.
        module: the part.
        spec: of the part; None where it has none.
        component: id of the registered component; None for a part that came in code, whose answers are its user's.
    """

    def __init__(self, role: str, module: nn.Module, spec: Any, component: str | None) -> None:
        self._module, self._component = module, component or ""
        reporter = Reporter(role, spec, component)
        self.reporter = reporter if reporter else None
        """Takes out the losses and metrics that the part declares; None where it declares none."""
        self._dims = len(spec.output.dims) if isinstance(spec, EmbeddingSpec | RackSpec) else None
        self._outputs = tuple(spec.outputs) if isinstance(spec, HeadSpec) and not reporter else ()
        self._look = None if component is None else self._look_at_outputs if role == "head" else self._look_at_hidden

    def __call__(self, reported: dict[str, Tensor], *hidden: Tensor, **fields: Tensor) -> Any:
        """What the part makes.

        Args:
            reported: takes in what the part reports, as `<role>.<name>`.
            hidden: state that enters a rack or a head.
            fields: of the batch.

        Raises:
            WrongAnswer: a component made something else than its spec promises.
        """
        try:
            made = self._module(*hidden, **fields)
        except BaseException as error:
            mark(error, self._component, "forward")
            raise
        if self.reporter is not None:
            made = self.reporter.take(made, reported)
        if self._look is not None:
            self._look(made)
        return made

    def linear(self, hidden: Tensor, **side: Tensor) -> Any:
        """What a head makes whose last step may be left to the task; errors as above."""
        head: Any = self._module
        with calling(self._component, "forward_linear"):
            made = head.forward_linear(hidden, **side)
            if self._look is not None:
                self._look(made, "forward_linear")
        return made

    def _look_at_hidden(self, hidden: Any, callback: str = "forward") -> None:
        if not isinstance(hidden, Tensor) or (self._dims is not None and hidden.dim() != self._dims):
            with calling(self._component, callback):
                expect(False, hidden, "a tensor" if self._dims is None else f"a tensor of {self._dims} dimensions")

    def _look_at_outputs(self, outputs: Any, callback: str = "forward") -> None:
        if self._outputs and not (isinstance(outputs, Mapping) and all(name in outputs for name in self._outputs)):
            with calling(self._component, callback):
                expect(False, outputs, f"a map with the outputs {', '.join(self._outputs)}")
