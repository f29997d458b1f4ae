"""What this distribution offers. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable

from stackwise import Component, hookimpl


def _component(name: str, options: str, factory: str, summary: str, **example: object) -> Component:
    return Component(
        name=name,
        options=f"waves_for_stackwise.options:{options}",
        factory=f"waves_for_stackwise.{factory}",
        summary=summary,
        example=example,
    )


@hookimpl
def stackwise_embeddings() -> Iterable[Component]:
    yield _component("level", "LevelInOptions", "model:build_level_in", "one linear map from a level to a hidden state", width=8)
    sizes = {"height": 8, "width": 8, "channels": 1, "features": 8}
    yield _component("picture", "PictureInOptions", "pictures:build_picture_in", "a picture and its instant as one position", **sizes)


@hookimpl
def stackwise_racks() -> Iterable[Component]:
    yield _component("conv", "ConvOptions", "model:build_conv", "residual causal convolutions", width=8, stacks=[{"base": 2}])
    yield _component("calm", "CalmOptions", "model:build_calm", "the same, and it adds a loss", width=8, stacks=[{"base": 2}])
    yield _component("echo", "EchoOptions", "model:build_echo", "the same, and rows remember those before", width=8, stacks=[{"base": 2}])


@hookimpl
def stackwise_heads() -> Iterable[Component]:
    yield _component("level", "LevelOutOptions", "model:build_level_out", "one level for every position", width=8)
    sizes = {"height": 8, "width": 8, "channels": 1, "features": 8}
    yield _component("picture", "PictureOutOptions", "pictures:build_picture_out", "a velocity for every pixel", **sizes)


@hookimpl
def stackwise_adapters() -> Iterable[Component]:
    yield _component("squash", "SquashOptions", "model:build_squash", "hidden states held between two bounds", limit=2.0)


@hookimpl
def stackwise_tasks() -> Iterable[Component]:
    yield _component("forecast", "ForecastOptions", "task:build_forecast", "predict the next level")
    yield _component("flow", "FlowOptions", "pictures:build_flow", "pictures made of noise", height=8, width=8, channels=1)


@hookimpl
def stackwise_optimizers() -> Iterable[Component]:
    yield _component("signum", "SignumOptions", "optimizer:build_signum", "the sign of the momentum as the step", lr=1e-3)


@hookimpl
def stackwise_loaders() -> Iterable[Component]:
    yield _component("sines", "SinesOptions", "data:build_sines", "sine waves of random period and phase", shortest=4)


@hookimpl
def stackwise_transforms() -> Iterable[Component]:
    yield _component("jitter", "JitterOptions", "data:build_jitter", "noise on every level", amount=0.1)


@hookimpl
def stackwise_growth_operators() -> Iterable[Component]:
    yield _component("repeat", "RepeatOptions", "growth:build_repeat", "every block becomes several copies of itself, in place")


@hookimpl
def stackwise_weight_adapters() -> Iterable[Component]:
    yield _component("low-rank", "LowRankOptions", "weight_adapter:build_low_rank", "two thin matrices beside a frozen one", rank=2)


@hookimpl
def stackwise_reactions() -> Iterable[Component]:
    yield _component("brake", "BrakeOptions", "reaction:build_brake", "half the learning rate, for good, once the loss explodes", above=10)
    yield _component("goal", "GoalOptions", "reaction:build_goal", "the end of the run, once the loss is low enough", below=0.01)


@hookimpl
def stackwise_schedules() -> Iterable[Component]:
    yield _component("swell", "SwellOptions", "schedule:build_swell", "a level that swells and ebbs", level=1e-3)


@hookimpl
def stackwise_observers() -> Iterable[Component]:
    yield _component("csv", "CsvOptions", "observer:build_csv", "losses into a CSV file", path="losses.csv")
