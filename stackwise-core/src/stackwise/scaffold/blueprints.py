"""What a first component of each kind is called and where a config names it; its code is a template of that kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, frozen

from stackwise.contracts.components import Kind


@frozen(kw_only=True)
class Blueprint:
    """One component of a new provider."""

    hook: str
    component: str
    module: str
    """Module of the factory, which is called `build`."""
    summary: str
    example: Mapping[str, Any] = Factory(dict)
    run: Mapping[str, str]
    """Place in a config → what stands there instead of the usual, with `$provider` for the provider's name."""


TOKENS = {
    "task": "{use: transformer.causal-lm}",
    "loader": "{use: data.python-stdlib}",
    "embedding": "{use: transformer.token}",
    "rack": "{use: transformer.decoder, width: 16, heads: 2, stacks: [{base: 1}]}",
    "head": "{use: transformer.lm}",
    "optimizer": "{use: optim.adamw, lr: 2e-3}",
}
"""The rest of the config that a first run uses."""

_DEEPER = """
phases:
  shallow: {until: 50%}
  deep:
    model: {rack: {stacks: [{base: 2}]}}
    enter: {growth: {use: $provider.append}}"""

BLUEPRINTS: Mapping[Kind, Blueprint] = {
    "embedding": Blueprint(
        hook="stackwise_embeddings",
        component="table",
        module="embedding",
        summary="one learnt vector for every token id",
        example={"vocab": 32, "width": 8},
        run={"embedding": "{use: $provider.table}", "head": "{use: transformer.lm, tied: false}"},
    ),
    "rack": Blueprint(
        hook="stackwise_racks",
        component="mixer",
        module="rack",
        summary="residual blocks that mix each position with those before it",
        example={"width": 8, "stacks": [{"base": 2}]},
        run={"rack": "{use: $provider.mixer, width: 16, stacks: [{base: 2}]}"},
    ),
    "head": Blueprint(
        hook="stackwise_heads",
        component="logits",
        module="head",
        summary="one number for every token id",
        example={"vocab": 32, "width": 8},
        run={"head": "{use: $provider.logits}"},
    ),
    "task": Blueprint(
        hook="stackwise_tasks",
        component="next-token",
        module="task",
        summary="predict every token from those before it",
        run={"task": "{use: $provider.next-token}"},
    ),
    "optimizer": Blueprint(
        hook="stackwise_optimizers",
        component="momentum",
        module="optimizer",
        summary="gradient descent with momentum",
        example={"lr": 0.05},
        run={"optimizer": "{use: $provider.momentum, lr: 0.05}"},
    ),
    "loader": Blueprint(
        hook="stackwise_loaders",
        component="counting",
        module="loader",
        summary="rows that count from a random number in random steps",
        example={"vocab": 32},
        run={"loader": "{use: $provider.counting, vocab: 32}"},
    ),
    "transform": Blueprint(
        hook="stackwise_transforms",
        component="blank",
        module="transform",
        summary="token ids set to one id, at a rate that may follow time",
        example={"rate": 0.1},
        run={"transforms": "[{use: $provider.blank, rate: {linear: {from: 0.2, to: 0}}}]"},
    ),
    "adapter": Blueprint(
        hook="stackwise_adapters",
        component="scale",
        module="adapter",
        summary="a learnt factor for every feature",
        example={"width": 8},
        run={"adapters": "{rack-head: [{use: $provider.scale}]}"},
    ),
    "weight-adapter": Blueprint(
        hook="stackwise_weight_adapters",
        component="low-rank",
        module="weight_adapter",
        summary="a trainable product of two thin matrices beside a frozen one",
        example={"rank": 2},
        run={"weight_adapters": "{first: {use: $provider.low-rank, select: [rack]}}"},
    ),
    "growth": Blueprint(
        hook="stackwise_growth_operators",
        component="append",
        module="growth",
        summary="new blocks on top of their stack, as the identity at first",
        run={"phases": _DEEPER},
    ),
    "reaction": Blueprint(
        hook="stackwise_reactions",
        component="plateau",
        module="reaction",
        summary="halves the learning rates when the loss no longer falls",
        run={"optimizer": "{use: optim.adamw, lr: 2e-3, reaction: {use: $provider.plateau}}"},
    ),
    "observer": Blueprint(
        hook="stackwise_observers",
        component="losses",
        module="observer",
        summary="a line of CSV for every step",
        example={"path": "losses.csv"},
        run={"observers": "[{use: $provider.losses, path: losses.csv}]"},
    ),
}
"""Kind → the component that a new provider of that kind begins with."""
