"""Parts that are built outside any plan, and whose fault it is where a factory fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from stackwise.assembly.given import checked_module
from stackwise.contracts.components import BuildContext
from stackwise.curriculum.parts import Part
from stackwise.errors import ProviderError, StackwiseError, UserError, asks_too_much, bytes_asked
from stackwise.host.registry import Registry
from stackwise.planes.model.initialisation import drawing_from


def build_module(part: Part, registry: Registry, context: BuildContext, *extra: object) -> nn.Module:
    """Build a module outside any plan; the process-wide generators are left unchanged.

    Args:
        part: a registered component with its options complete.
        registry: has its factory.
        context: passed to the factory.
        extra: further arguments of its kind.

    Raises:
        ProviderError: it cannot be built, or is not a module.
    """
    component = registry.get(part.kind, part.id)  # type: ignore[arg-type]  # a Part's kind is a Kind
    with drawing_from(context.seed), as_faults_of(part):
        module = component.build(part.options, context, *extra)
    return checked_module(part, module)


def build_task(part: Part, registry: Registry) -> Any:
    """A task outside any plan; ProviderError where it cannot be built."""
    with as_faults_of(part):
        return registry.get("task", part.id).build(part.options, BuildContext(seed=0, specs={"task": part.options.to_spec()}))


@contextmanager
def as_faults_of(part: Part) -> Iterator[None]:
    """Report an error of a registered factory as the provider's; one of a user's own callable passes unchanged."""
    try:
        yield
    except StackwiseError:
        raise
    except Exception as error:
        if part.given is not None:
            raise
        if asks_too_much(error):
            raise UserError(
                f"{part.kind} '{part.id}': no memory holds tensors of the sizes that its options ask for{bytes_asked(error)}"
            ) from error
        raise ProviderError(
            f"{part.kind} '{part.id}' could not be built: {type(error).__name__}: {error}", provider=part.id.partition(".")[0]
        ) from error
