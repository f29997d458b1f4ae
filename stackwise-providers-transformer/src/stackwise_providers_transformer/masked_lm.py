"""Masked language modelling.

Shapes: B batch, T time, V vocab.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stackwise import BuildContext, Moment, TaskSpec, UserError
from stackwise_providers_transformer.masking_options import MaskedLMOptions
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.token_nats import IGNORED, Logits, token_nats
from stackwise_providers_transformer.token_units import token_unit
from stackwise_providers_transformer.whole_words import byte_words, runs

_HANDED_ON = ("segments", "positions", "mask")


class MaskedLM:
    """-log p(x_t | the corrupted row), summed over the chosen tokens alone (BERT, arXiv 1810.04805, section 3.1).

    Args:
        unit: what one token stands for; whole words of bytes are found by their letters.

    Raises:
        UserError: the number of the loader's ids is unknown, or all of them are special.
    """

    def __init__(self, options: MaskedLMOptions, *, unit: str | None = None) -> None:
        check_sizes(symbols=options.symbols)
        self.options, self.rate, self._unit = options, options.rate, unit
        special = {*options.special, options.mask_id}
        self._special = torch.tensor(sorted(special))
        self._ordinary = torch.tensor([i for i in range(options.symbols) if i not in special])
        if not len(self._ordinary):
            raise UserError(f"special: it names all {options.symbols} ids of the loader, and leaves none to be chosen: leave some out")

    def get_spec(self) -> TaskSpec:
        """Bidirectional attention, and room for the mask symbol."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the rate in force."""
        self.rate = values.get("rate", self.rate)

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """tokens [B, T] → corrupted tokens [B, T], targets [B, T] with -100 where nothing is to be predicted, all int64.

        Every token (every word) is chosen by a draw of its own; what a chosen one shows is drawn for each token. Special ids and tokens
        that a mask says are not real are never chosen.

        Raises:
            UserError: whole words are asked for, and nothing says where words begin.
        """
        tokens_BT = batch["tokens"].long()
        device = tokens_BT.device
        may_BT = ~torch.isin(tokens_BT, self._special.to(device))
        if "mask" in batch:
            may_BT = may_BT & batch["mask"]
        chosen_BT = (self._draws(batch, tokens_BT, generator) < self.rate) & may_BT
        fate_BT = torch.rand(tokens_BT.shape, generator=generator).to(device)
        random_BT = self._ordinary[torch.randint(len(self._ordinary), tokens_BT.shape, generator=generator)].to(device)
        masked, replaced = self.options.masked, self.options.masked + self.options.random
        shown_BT = tokens_BT.masked_fill(chosen_BT & (fate_BT < masked), self.options.mask_id)
        shown_BT = torch.where(chosen_BT & (fate_BT >= masked) & (fate_BT < replaced), random_BT, shown_BT)
        prepared = {"tokens": shown_BT, "targets": tokens_BT.masked_fill(~chosen_BT, IGNORED)}
        return prepared | {name: batch[name] for name in _HANDED_ON if name in batch}

    def loss(
        self, outputs: Mapping[str, Logits], batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """logits [B, T, V] → the sum in nats over the chosen tokens in float32, their number, and the share that is guessed right;
        `loss_on_masks` counts those alone that show the mask symbol."""
        targets = batch["targets"]
        nats, right = token_nats(outputs["logits"], targets)
        chosen = targets != IGNORED
        count, hidden = chosen.sum(), (batch["tokens"] == self.options.mask_id) & chosen
        return nats.sum(), count, {"accuracy": (right.sum(), count), "loss_on_masks": (nats.detach()[hidden].sum(), hidden.sum())}

    def _draws(self, batch: Mapping[str, torch.Tensor], tokens_BT: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A uniform number for every token, the same one for all tokens of a word where words are chosen."""
        draws_BT = torch.rand(tokens_BT.shape, generator=generator).to(tokens_BT.device)
        if not self.options.whole_words:
            return draws_BT
        if "words" in batch:
            return draws_BT.gather(1, runs(batch["words"]))
        if self._unit == "byte":
            return draws_BT.gather(1, byte_words(tokens_BT))
        raise UserError("whole_words: tokens are not bytes, and the loader delivers no `words`: give them, or set whole_words: false")


def build_masked_lm(options: MaskedLMOptions, context: BuildContext) -> MaskedLM:
    """The factory of `masked-lm`."""
    return MaskedLM(options, unit=token_unit(context))
