"""Float32 masters of parameters that are held in sixteen bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stackwise.errors import UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.weight_copies import SIXTEEN_BITS, carry_copy, copy_of, source_of


class Masters:
    """The weights that an optimizer steps where parameters are held in float16 or bfloat16 (arXiv 1710.03740, section 3.1).

    Above 1.0 the next bfloat16 is 2⁻⁷ away, so an update below 2⁻⁸ would be rounded away, at every step anew. The master takes it
    in, and the parameter is the master rounded. Gradients are float32 as well, so that the sum over micro-batches loses nothing.

    Args:
        parameters: every parameter of the model in place, by canonical name; frozen ones keep the master they trained with.
        before: what learned before the boundary, and the masters of what was frozen then, by the names of then.
        receipt: what the boundary did to the parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], before: Mapping[str, torch.Tensor], receipt: ModelReceipt) -> None:
        narrow = {name: parameter for name, parameter in parameters.items() if parameter.dtype in SIXTEEN_BITS}
        self._masters = {
            name: nn.Parameter(copy_of(parameter), requires_grad=parameter.requires_grad)
            for name, parameter in narrow.items()
            if parameter.requires_grad or source_of(name, receipt) in before
        }
        self._hold(parameters)
        self.go_on_from(before, receipt)

    def __bool__(self) -> bool:
        return bool(self._masters)

    def go_on_from(self, before: Mapping[str, torch.Tensor], receipt: ModelReceipt) -> None:
        """Take over what lies below the rounding of the weights, where it rounds to the weight that the model now holds.

        Elsewhere the boundary gave the model another value, a zeroed output or a merged adapter, and the master begins there.
        """
        for name, master in self._masters.items():
            parameter = self._parameters[name].detach()
            old = carry_copy(name, self._parameters[name], before, receipt)
            own = copy_of(parameter)
            master.detach().copy_(
                own if old is None else torch.where(old.detach().to(own.dtype).to(parameter.dtype) == parameter, old.detach(), own)
            )

    def by_name(self) -> dict[str, nn.Parameter]:
        """The masters by canonical name, those of frozen parameters included."""
        return dict(self._masters)

    def learning(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The same names, each with what learns: its master where it has one, else the parameter itself."""
        return {name: self._masters.get(name, parameter) for name, parameter in parameters.items()}

    def take_gradients(self) -> None:
        """Hand the gradients of the parameters to their masters."""
        for name, master in self._masters.items():
            master.grad = self._parameters[name].grad

    def write(self) -> None:
        """Round the masters into their parameters."""
        for name, master in self._masters.items():
            self._parameters[name].detach().copy_(master.detach())
            master.grad = None

    def load(self, saved: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        """Restore masters that were saved by name, for the model in place.

        Args:
            saved: masters by canonical name, those of frozen parameters that once trained included.
            parameters: every parameter of the model.

        Raises:
            UserError: masters of other names or shapes.
        """
        wrong = [name for name, master in saved.items() if name not in parameters or parameters[name].shape != master.shape]
        if wrong or self._masters.keys() - saved.keys():
            raise UserError(f"saved masters are not of this model: {', '.join([*wrong, *(self._masters.keys() - saved.keys())][:5])}")
        for name, master in saved.items():
            if name not in self._masters:
                self._masters[name] = nn.Parameter(copy_of(parameters[name]), requires_grad=False)
            self._masters[name].detach().copy_(master)
        self._hold(parameters)

    def _hold(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = {name: parameters[name] for name in self._masters}
        for parameter in self._parameters.values():
            if parameter.requires_grad:
                parameter.grad_dtype = torch.float32
