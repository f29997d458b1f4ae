"""What this distribution offers."""

from __future__ import annotations

from stackwise import Component, hookimpl


@hookimpl
def stackwise_optimizers() -> list[Component]:
    """AdamW."""
    return [
        Component(
            name="adamw",
            options="stackwise_providers_optim.options:AdamWOptions",
            factory="stackwise_providers_optim.adamw:build_adamw",
            summary="Adam with decoupled weight decay; by default only matrices decay",
        )
    ]
