"""What parts of the model add to the loss or report beside it: sums and denominators on their way from `forward` to the task.

They travel among the outputs of the model as `<role>.<name>`, each one tensor [2] of sum and denominator in float32, so that the model
still returns tensors by name, compiled or wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stackwise.contracts.specs import EmbeddingSpec, HeadSpec, RackSpec
from stackwise.errors import ProviderError, UserError


class Reporter:
    """The losses and metrics that a part in a role declares.

    Args:
        role: `embedding`, `rack` or `head`.
        spec: of the part; None where it has none.
        component: id of the registered component; None for a part that came in code, whose faults are its user's.
    """

    def __init__(self, role: str, spec: Any, component: str | None) -> None:
        declares = isinstance(spec, EmbeddingSpec | RackSpec | HeadSpec)
        self.role, self._component = role, component
        self.losses: tuple[str, ...] = tuple(spec.losses) if declares else ()
        self.metrics: tuple[str, ...] = tuple(spec.metrics) if declares else ()
        self._names = {*self.losses, *self.metrics}

    def __bool__(self) -> bool:
        return bool(self._names)

    def take(self, returned: Any, outputs: dict[str, Tensor]) -> Any:
        """What a part returned, without what it reports, which goes into `outputs`.

        Raises:
            ProviderError: it returned something else than its spec says; UserError for a part given in code.
        """
        if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
            declared = ", ".join(sorted(self._names))
            raise self._fault(f"declares {declared} and returned {_kind(returned)}: return (its own result, {{name: (sum, denominator)}})")
        value, reported = returned
        if self._names != reported.keys():
            lacking, strange = sorted(self._names - reported.keys()), sorted(map(str, reported.keys() - self._names))
            wrong = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has {', '.join(strange)} undeclared"] * bool(strange)
            raise self._fault(f"reports a map that {' and '.join(wrong)}: it holds the losses and metrics of the spec, each of them")
        for name, pair in reported.items():
            key, packed = f"{self.role}.{name}", self._packed(name, pair)
            outputs[key] = outputs[key] + packed if key in outputs else packed  # an embedding of two rows reports twice
        return value

    def _packed(self, name: str, pair: Any) -> Tensor:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], Tensor) or pair[0].dim() != 0:
            raise self._fault(f"reports {_kind(pair)} as '{name}': it is a pair, a sum (a tensor of one number) and its denominator")
        total, denominator = pair
        if not isinstance(denominator, Tensor):
            if isinstance(denominator, bool) or not isinstance(denominator, int | float) or denominator < 0:
                raise self._fault(f"reports '{name}' with the denominator {denominator!r}: it is a number of at least 0")
            denominator = torch.full_like(total, denominator, dtype=torch.float32, requires_grad=False)
        elif denominator.dim() != 0:
            raise self._fault(f"reports '{name}' with a denominator of shape {list(denominator.shape)}: it is one number")
        return torch.stack((total.float(), denominator.detach().float()))

    def _fault(self, sentence: str) -> ProviderError | UserError:
        if self._component is None:
            return UserError(f"the {self.role} {sentence}")
        return ProviderError(f"{self.role} '{self._component}' {sentence}", provider=self._component.partition(".")[0])


def split(outputs: Mapping[str, Tensor], names: Mapping[str, bool]) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """The outputs that a head made, and what parts reported; `names` are those of the model."""
    if not names:
        return outputs, {}
    own = {name: tensor for name, tensor in outputs.items() if name not in names}
    return own, {name: outputs[name] for name in names}


def names_of(reporters: Iterable[Reporter | None]) -> Iterator[tuple[str, bool]]:
    """`<role>.<name>`, and whether it is a loss."""
    for reporter in reporters:
        if reporter is not None:
            yield from ((f"{reporter.role}.{name}", True) for name in reporter.losses)
            yield from ((f"{reporter.role}.{name}", False) for name in reporter.metrics)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_kind, value))})"
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
