"""Heads that the library transformers computes: models for a task, with something in the place of their base that hands on a hidden state.

Shapes: B batch, T time, D width, V vocab, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stackwise import BuildContext, HeadSpec, UserError
from stackwise_providers_transformer.hugging_face.wrapped import build_whole, is_causal, library, make_config
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.row_heads import pooled
from stackwise_providers_transformer.wrapped_options import WrappedClassifierOptions, WrappedHeadOptions


class _Given:
    """The result of a base model of which the last hidden state is known, and what its pooler makes of it where it has one."""

    def __init__(self, hidden_BTD: torch.Tensor, pooled_BD: torch.Tensor | None) -> None:
        self.last_hidden_state, self.pooler_output = hidden_BTD, pooled_BD

    def __getitem__(self, index: int) -> Any:
        known = (self.last_hidden_state, self.pooler_output)
        return () if index >= len(known) or known[index] is None else known[index]

    def __getattr__(self, name: str) -> None:
        return None


class HandsOn(nn.Module):
    """Takes the place of a base model: returns the hidden state unchanged.

    Args:
        pooler: that of the base model, for a head that reads what it makes.
    """

    def __init__(self, pooler: nn.Module | None = None) -> None:
        super().__init__()
        self.pooler = pooler

    @property
    def decoder(self) -> HandsOn:
        """Some models call the inside of their base."""
        return self

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> _Given:
        """[B, T, D] → the same."""
        return _Given(inputs_embeds, None if self.pooler is None else self.pooler(inputs_embeds))


def _without_base(
    options: WrappedHeadOptions | WrappedClassifierOptions, head: str, sizes: Mapping[str, str], *, pools: bool = False
) -> tuple[Any, Any]:
    """transformers, and its model for a task with what hands on a hidden state in the place of its base.

    Args:
        options: of the head.
        head: its id.
        sizes: options → the fields of the library's config that say the same.
        pools: whether the base's pooler stays, where it has one.

    Raises:
        UserError: transformers is missing or refuses the config, which has other sizes than the options.
    """
    hf = library(f"head {head}")
    config = make_config(hf, options.config, "model.head.config", 1)
    model = build_whole(hf, options.auto, config, "model.head.config")
    pooler = getattr(getattr(model, model.base_model_prefix), "pooler", None) if pools else None
    setattr(model, model.base_model_prefix, HandsOn(pooler))
    for name, field in sizes.items():
        if (said := getattr(options, name)) != (built := getattr(config, field)):
            raise UserError(f"model.head.{name} is {said}, and the model of this config has {built}: write {name}: {built}")
    return hf, model


class WrappedHead(nn.Module):
    """A model for a task without its base; its parameters are named `model.<own name>`.

    Raises:
        UserError: transformers is missing or refuses the config.
    """

    def __init__(self, options: WrappedHeadOptions) -> None:
        super().__init__()
        check_sizes(vocab=options.vocab, width=options.width)
        self.options = options
        _, self.model = _without_base(options, "transformer.hf", {"width": "hidden_size", "vocab": "vocab_size"})
        if options.tied is not None and options.tied not in dict(self.model.named_parameters(remove_duplicate=False)):
            names = ", ".join(name for name, _ in self.model.named_parameters())
            raise UserError(f"model.head.tied: {options.tied} is not a parameter of this head; it has {names}")

    def get_spec(self) -> HeadSpec:
        """Hidden state in, logits out."""
        return self.options.to_spec()

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """hidden [B, T, D] → logits [B, T, V]."""
        return {"logits": self.model(inputs_embeds=hidden).logits}


class WrappedClassifier(nn.Module):
    """A model that classifies, without its base; its parameters are named `model.<own name>`.

    Raises:
        UserError: transformers is missing or refuses the config, which has other sizes than the options.
    """

    def __init__(self, options: WrappedClassifierOptions) -> None:
        super().__init__()
        check_sizes(classes=options.classes, width=options.width)
        self.options = options
        hf, self.model = _without_base(options, "transformer.hf-classifier", {"width": "hidden_size", "classes": "num_labels"}, pools=True)
        self._reads_last = options.each == "row" and is_causal(hf, self.model.config)
        if self._reads_last and self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = 0  # the library takes no batch without one, and looks for it in tokens alone

    def get_spec(self) -> HeadSpec:
        """Hidden state in, logits out."""
        return self.options.to_spec()

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """hidden [B, T, D] → logits [B, C], or [B, T, C] of positions; mask [B, T] bool says which positions are real.

        A causal family's row is its last real position. The library finds it by tokens, which are gone here, so it is given that one alone.
        """
        if self._reads_last and mask is not None:
            hidden, mask = pooled(hidden, mask, "last").unsqueeze(1), None
        given = {} if mask is None else {"attention_mask": mask.long()}
        return {"logits": self.model(inputs_embeds=hidden, **given).logits}


def build_wrapped_head(options: WrappedHeadOptions, context: BuildContext) -> WrappedHead:
    """The factory of the head `hf`."""
    return WrappedHead(options)


def build_wrapped_classifier(options: WrappedClassifierOptions, context: BuildContext) -> WrappedClassifier:
    """The factory of the head `hf-classifier`."""
    return WrappedClassifier(options)
