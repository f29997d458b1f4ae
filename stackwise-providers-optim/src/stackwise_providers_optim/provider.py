"""What this distribution offers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stackwise import Component, hookimpl

_SAMPLES = Path(__file__).with_name("samples")


def _optimizer(name: str, options: str, factory: str, summary: str, /, **example: object) -> Component:
    return Component(
        name=name,
        options=f"stackwise_providers_optim.options:{options}",
        factory=f"stackwise_providers_optim.{factory}",
        summary=summary,
        example=example,
    )


@hookimpl
def stackwise_optimizers() -> Iterable[Component]:
    """The first-party ones, and those of two libraries by name."""
    yield _optimizer("adamw", "AdamWOptions", "adamw:build_adamw", "Adam with decoupled weight decay; by default only matrices decay")
    yield _optimizer("sgd", "SGDOptions", "sgd:build_sgd", "stochastic gradient descent with momentum")
    yield _optimizer("muon", "MuonOptions", "muon:build_muon", "Muon for hidden matrices, AdamW for everything else")
    yield _optimizer("adafactor", "AdafactorOptions", "adafactor:build_adafactor", "second moments as rows times columns: little memory")
    yield _optimizer("lion", "LionOptions", "lion:build_lion", "sign of an interpolated momentum: half of Adam's memory")
    yield _optimizer(
        "schedule-free", "ScheduleFreeOptions", "schedule_free:build_schedule_free", "AdamW whose average needs no learning-rate decay"
    )
    yield _optimizer("torch", "NamedOptions", "from_torch:build_torch", "an optimizer of torch.optim by name", name="RAdam", lr=1e-3)
    yield _optimizer(
        "pytorch-optimizer",
        "NamedOptions",
        "from_pytorch_optimizer:build_pytorch_optimizer",
        "an optimizer of the library pytorch-optimizer by name",
        name="lamb",
        lr=1e-3,
    )


@hookimpl
def stackwise_reactions() -> Iterable[Component]:
    """What the learning rate does when training stalls."""
    yield Component(
        name="plateau",
        options="stackwise_providers_optim.plateau:PlateauOptions",
        factory="stackwise_providers_optim.plateau:build_plateau",
        summary="the learning rate falls when a metric no longer improves",
        example={"metric": "train.loss"},
    )


def _schedule(name: str, options: str, factory: str, summary: str, /, **example: object) -> Component:
    module = "stackwise_providers_optim.schedules"
    return Component(name=name, options=f"{module}:{options}", factory=f"{module}:{factory}", summary=summary, example=example)


@hookimpl
def stackwise_schedules() -> Iterable[Component]:
    """Shapes beside those of the core."""
    yield _schedule(
        "cosine-restarts",
        "CosineRestartsOptions",
        "build_cosine_restarts",
        "half cosines with warm restarts (SGDR)",
        peak=0.002,
        cycle="25%",
    )
    yield _schedule("inverse-root", "InverseRootOptions", "build_inverse_root", "falls with the square root of the step", peak=0.002)
    yield _schedule("table", "TableOptions", "build_table", "values from a CSV file", path=str(_SAMPLES / "rates.csv"))
