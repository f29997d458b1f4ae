"""Masked discrete diffusion as a language model.

Diffusion time τ, from 0 (nothing is masked) to 1 (everything is), is drawn anew for every row; it has nothing to do with the time t of
the run. Shapes: B batch, T time, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import pi

import torch
from attrs import frozen

from stackwise import BuildContext, GenerationSettings, Moment, TaskSpec
from stackwise_providers_transformer.continuation import Forward
from stackwise_providers_transformer.masking_options import MaskDiffusionOptions
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.token_nats import IGNORED, Logits, token_nats
from stackwise_providers_transformer.token_units import BITS_PER_NAT, bits_of, token_unit
from stackwise_providers_transformer.unmasking import unmask

_HANDED_ON = ("segments", "positions", "mask")


@frozen
class NoiseSchedule:
    """How likely a token is masked at time τ, 1 - α(τ), and what a masked one weighs, -α'(τ) / (1 - α(τ))
    (MDLM, arXiv 2406.07524, equation 10)."""

    masked: Callable[[torch.Tensor], torch.Tensor]
    weight: Callable[[torch.Tensor], torch.Tensor]


NOISE = {
    "log-linear": NoiseSchedule(lambda tau: tau, lambda tau: 1 / tau),
    "cosine": NoiseSchedule(lambda tau: torch.sin(pi / 2 * tau), lambda tau: pi / 2 / torch.tan(pi / 2 * tau)),
}
"""log-linear: α = 1 - τ; cosine: α = 1 - cos(π/2 · (1 - τ)), both of arXiv 2406.07524."""


class MaskDiffusion:
    """The negative evidence lower bound E_τ[-α'/(1 - α) · Σ over masked tokens of -log p(x_t | the masked row)], over the number of
    tokens (arXiv 2406.07524, equation 11; arXiv 2502.09992, equation 3).

    Args:
        unit: what one token stands for; `byte` makes the metric `bits_per_byte`, anything else `bits_per_token`.

    Raises:
        UserError: the number of the loader's ids is unknown.
    """

    def __init__(self, options: MaskDiffusionOptions, *, unit: str | None = None) -> None:
        check_sizes(symbols=options.symbols)
        self.options = options
        self.metric = bits_of().of(unit)
        self._noise = NOISE[options.noise]

    def get_spec(self) -> TaskSpec:
        """Bidirectional attention, and room for the mask symbol."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """tokens [B, T] → masked tokens and targets [B, T], -100 where nothing is masked, weights [B], real [B, T].

        Every token of a row is masked by a draw of its own with the probability of the row's τ; the τ of a batch lie one in each of B
        equal parts of (0, 1], the low-discrepancy sampler of arXiv 2406.07524.
        """
        tokens_BT, real_BT = batch["tokens"].long(), _real(batch)
        tau_B = _spread(len(tokens_BT), generator).to(tokens_BT.device)
        draws_BT = torch.rand(tokens_BT.shape, generator=generator).to(tokens_BT.device)
        return self._masked(batch, (draws_BT < self._noise.masked(tau_B)[:, None]) & real_BT, self._noise.weight(tau_B))

    def prepare_evaluation(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The same with exactly l of a row's L tokens masked, l uniform in 1..L, each of weight L/l: the same bound, whatever the noise
        schedule, at a fraction of the variance (arXiv 2502.09992, equation 6)."""
        tokens_BT, real_BT = batch["tokens"].long(), _real(batch)
        length_B = real_BT.sum(dim=1)
        spread_B = _spread(len(tokens_BT), generator).to(tokens_BT.device)
        count_B = torch.minimum((spread_B * length_B).ceil().long().clamp(min=1), length_B)
        draws_BT = torch.rand(tokens_BT.shape, generator=generator).to(tokens_BT.device).masked_fill(~real_BT, torch.inf)
        rank_BT = draws_BT.argsort(dim=1).argsort(dim=1)
        return self._masked(batch, (rank_BT < count_B[:, None]) & real_BT, length_B / count_B.clamp(min=1))

    def loss(
        self, outputs: Mapping[str, Logits], batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """logits [B, T, V] → the weighted sum in nats in float32, the number of tokens, masked or not, and the same in bits.

        A token that is shown is carried over: its likelihood is 1. The mask symbol's logit is -inf.
        """
        targets_BT = batch["targets"]
        nats_BT, right_BT = token_nats(outputs["logits"], targets_BT, without=self.options.mask_id)
        total, count = (nats_BT.sum(dim=1) * batch["weights"]).sum(), batch["real"].sum()
        right, hidden = right_BT.sum(), (targets_BT != IGNORED).sum()
        return total, count, {self.metric: (total.detach() * BITS_PER_NAT, count), "accuracy_on_masks": (right, hidden)}

    def generate(self, model: Forward, prompt: torch.Tensor, settings: GenerationSettings, generator: torch.Generator) -> torch.Tensor:
        """The prompt [T] with masked tokens after it, unmasked step by step.

        Raises:
            UserError: more steps than tokens, more positions than the model has, or a setting without effect.
        """
        return unmask(model, prompt, settings, generator, mask_id=self.options.mask_id, ids=self.options.symbols)

    def _masked(self, batch: Mapping[str, torch.Tensor], hidden_BT: torch.Tensor, weights_B: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens_BT = batch["tokens"].long()
        prepared = {
            "tokens": tokens_BT.masked_fill(hidden_BT, self.options.mask_id),
            "targets": tokens_BT.masked_fill(~hidden_BT, IGNORED),
            "weights": weights_B.float(),
            "real": _real(batch),
        }
        return prepared | {name: batch[name] for name in _HANDED_ON if name in batch}


def _real(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return batch["mask"] if "mask" in batch else torch.ones_like(batch["tokens"], dtype=torch.bool)


def _spread(rows: int, generator: torch.Generator) -> torch.Tensor:
    """A number for every row, one in each of as many equal parts of (0, 1]; float64, so that none is 0 by rounding."""
    u = 1 - torch.rand(rows, generator=generator, dtype=torch.float64)
    return (torch.arange(rows, dtype=torch.float64) + u) / rows


def build_mask_diffusion(options: MaskDiffusionOptions, context: BuildContext) -> MaskDiffusion:
    """The factory of `mask-diffusion`."""
    return MaskDiffusion(options, unit=token_unit(context))
