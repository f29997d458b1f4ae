"""What this distribution offers."""

from __future__ import annotations

from stackwise import Component, hookimpl

_PACKAGE = "stackwise_providers_transformer"


@hookimpl
def stackwise_embeddings() -> list[Component]:
    """One learned vector a token."""
    return [
        Component(
            name="token",
            options=f"{_PACKAGE}.options:TokenOptions",
            factory=f"{_PACKAGE}.embedding:build_token",
            summary="one learned vector for every token id",
            example={"vocab": 256, "width": 16},
        )
    ]


@hookimpl
def stackwise_racks() -> list[Component]:
    """The pre-norm decoder."""
    return [
        Component(
            name="decoder",
            options=f"{_PACKAGE}.options:DecoderOptions",
            factory=f"{_PACKAGE}.decoder:build_decoder",
            summary="pre-norm transformer blocks: RMSNorm or LayerNorm, rotary or learned positions, grouped queries, SwiGLU or GELU",
            example={"width": 16, "heads": 2, "stacks": [{"base": 2}]},
        )
    ]


@hookimpl
def stackwise_heads() -> list[Component]:
    """Logits over the vocabulary."""
    return [
        Component(
            name="lm",
            options=f"{_PACKAGE}.options:LMOptions",
            factory=f"{_PACKAGE}.head:build_lm",
            summary="logits over the vocabulary, by default with the embedding's own matrix",
            example={"vocab": 256, "width": 16},
        )
    ]


@hookimpl
def stackwise_tasks() -> list[Component]:
    """Next-token prediction."""
    return [
        Component(
            name="causal-lm",
            options=f"{_PACKAGE}.options:CausalLMOptions",
            factory=f"{_PACKAGE}.causal_lm:build_causal_lm",
            summary="predict every token from those before it",
        )
    ]


@hookimpl
def stackwise_growth_operators() -> list[Component]:
    """Two ways to make a stack deeper."""
    return [
        Component(
            name="stack",
            options=f"{_PACKAGE}.options:GrowthOptions",
            factory=f"{_PACKAGE}.growth:build_stack",
            summary="a new block copies the block at its index modulo the old depth; changes the function",
        ),
        Component(
            name="identity",
            options=f"{_PACKAGE}.options:GrowthOptions",
            factory=f"{_PACKAGE}.growth:build_identity",
            summary="a new block starts as the identity; keeps the function",
        ),
    ]
