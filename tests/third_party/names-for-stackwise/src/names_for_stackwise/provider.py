"""What this distribution offers. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable

from stackwise import Component, hookimpl


def _component(name: str, options: str, factory: str, summary: str, **example: object) -> Component:
    return Component(
        name=name,
        options=f"names_for_stackwise.options:{options}",
        factory=f"names_for_stackwise.{factory}",
        summary=summary,
        example=example,
    )


@hookimpl
def stackwise_loaders() -> Iterable[Component]:
    yield _component("unicode", "NamesOptions", "data:build_names", "names of characters and their kinds", shuffle=True)


@hookimpl
def stackwise_embeddings() -> Iterable[Component]:
    yield _component("letters", "LettersOptions", "model:build_letters", "a vector for every letter", width=8)


@hookimpl
def stackwise_racks() -> Iterable[Component]:
    yield _component("reader", "ReaderOptions", "model:build_reader", "residual convolutions over letters", width=8, stacks=[{"base": 2}])


@hookimpl
def stackwise_heads() -> Iterable[Component]:
    yield _component("kinds", "KindsOptions", "model:build_kinds", "a logit for every kind", width=8)


@hookimpl
def stackwise_tasks() -> Iterable[Component]:
    yield _component("kind", "KindOptions", "task:build_kind", "which kind a character is of", smoothing=0.05)


@hookimpl
def stackwise_schedules() -> Iterable[Component]:
    yield _component("rise-and-root", "RateOptions", "schedule:build_rate", "a linear rise, then the inverse root of the step", peak=4e-3)
