"""Sequence to sequence.

Shapes: B batch, T time, S source, Y target, V vocab.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stackwise import BuildContext, GenerationSettings, Moment, TaskSpec, UserError
from stackwise_providers_transformer.continuation import Forward, continue_prompt
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.pair_options import Seq2SeqOptions
from stackwise_providers_transformer.sampling import limited
from stackwise_providers_transformer.span_corruption import SpanSizes, cut, hidden_spans
from stackwise_providers_transformer.token_nats import Logits, summed_nats
from stackwise_providers_transformer.token_units import BITS_PER_NAT, token_unit


class Seq2Seq:
    """-log p(y_t | y_<t, x), summed over the targets y of sources x.

    Args:
        unit: what one token stands for; `byte` makes the metric `bits_per_byte`, anything else `bits_per_token`.

    The symbols that the task adds follow the loader's ids: the sentinels of spans, then one that ends a source or a target and begins
    what a decoder reads.

    Raises:
        UserError: symbols are to be added, and the number of the loader's ids is unknown.
    """

    def __init__(self, options: Seq2SeqOptions, *, unit: str | None = None) -> None:
        self.options = options
        if options.adds_symbols:
            check_sizes(symbols=options.symbols)
            self.sentinel = options.symbols
            self.end = options.symbols + (options.span_sentinels if options.pairs == "spans" else 0)
        self.metric = options.bits.of(unit if options.pairs == "given" else None)

    def get_spec(self) -> TaskSpec:
        """A rack that sees a whole prefix, or one that takes a memory."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """What the model reads and the targets [B, T] of every position, with `counted` [B, T] where they are of the target.

        As a prefix: tokens [B, T] of source and target in a row, and `prefix` [B], the tokens of the source; with a mask `routed` [B, T],
        what experts count. For a decoder: tokens, the target [B, Y] one later after the end symbol, and the source [B, S] with its
        `memory_mask`.

        Raises:
            UserError: rows that are not one text each; spans are to be cut out of rows that are not whole, or that need more sentinels
                than there are.
        """
        if self.options.pairs == "spans":
            source, target = self._cut(batch, generator)
            if self.options.form == "encoder-decoder":
                return self._for_decoder(source, target, None, None)
            tokens = torch.cat((source, target), dim=1)
            return _as_prefix(tokens, torch.full((len(tokens),), source.shape[1], device=tokens.device), None)
        if "segments" in batch:
            raise UserError("segments: a row holds one source and its target, not several texts: deliver no `segments`")
        if self.options.form == "encoder-decoder":
            return self._for_decoder(batch["prompt"].long(), batch["response"].long(), batch.get("prompt_mask"), batch.get("response_mask"))
        return _as_prefix(batch["tokens"].long(), batch["prefix"].long(), batch.get("mask"))

    def loss(
        self, outputs: Mapping[str, Logits], batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | float, dict[str, tuple[torch.Tensor, torch.Tensor | float]]]:
        """Sum of nats in float32 over the tokens of the targets, their number, the same in bits, and the share that is guessed right
        where all before it is given."""
        targets, counted = batch["targets"], batch["counted"]
        nats, count, right = summed_nats(outputs["logits"], targets, counted, guesses=True)
        return nats, count, {self.metric: (nats.detach() * BITS_PER_NAT, count), "accuracy": (right, count)}

    def generate(self, model: Forward, prompt: torch.Tensor, settings: GenerationSettings, generator: torch.Generator) -> torch.Tensor:
        """The prompt [T], which is the source, and its target token by token.

        Of cut spans the target is the one span that was cut out after the prompt.

        Raises:
            UserError: an empty prompt, more positions than the model has, or a setting without effect.
        """
        source, target = prompt.long(), prompt.new_empty(0, dtype=torch.long)
        if self.options.pairs == "spans":
            marks = torch.tensor([self.sentinel, self.end])
            source, target = torch.cat((source, marks)), marks[:1]
        if self.options.adds_symbols:
            settings = limited(settings, self.options.symbols)
        if self.options.form == "prefix":
            row, beside = torch.cat((source, target)), {"prefix": torch.tensor([len(source)])}
        else:
            row, beside = torch.cat((torch.tensor([self.end]), target)), {"source": source[None]}
        return continue_prompt(model, prompt, settings, generator, row_R=row, beside=beside)

    def _cut(self, batch: Mapping[str, torch.Tensor], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = batch["tokens"].long()
        if "segments" in batch or "mask" in batch:
            raise UserError("pairs: spans are cut out of whole rows of one text: set `rows: stream` at the source")
        density, mean_span = self.options.density, self.options.mean_span
        sizes = SpanSizes.of(
            tokens.shape[1], density=0.15 if density is None else density, mean_span=3.0 if mean_span is None else mean_span
        )
        if sizes.spans > self.options.span_sentinels:
            raise UserError(
                f"sentinels: rows of {sizes.tokens} tokens are cut into {sizes.spans} spans, and there are {self.options.span_sentinels} "
                "sentinels: raise sentinels or shorten data.seq_len"
            )
        hidden = hidden_spans(len(tokens), sizes, generator).to(tokens.device)
        return cut(tokens, hidden, sizes, sentinel=self.sentinel, end=self.end)

    def _for_decoder(
        self, source: torch.Tensor, target: torch.Tensor, source_mask: torch.Tensor | None, target_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        begin = torch.full_like(target[:, :1], self.end)
        prepared = {"tokens": torch.cat((begin, target[:, :-1]), dim=1), "source": source, "targets": target}
        prepared["counted"] = torch.ones_like(target, dtype=torch.bool) if target_mask is None else target_mask
        return prepared if source_mask is None else {**prepared, "memory_mask": source_mask}


def _as_prefix(tokens: torch.Tensor, prefix: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A row in which every entry from `prefix` on is predicted from those before it."""
    place = torch.arange(1, tokens.shape[1], device=tokens.device)
    counted = place >= prefix[:, None]
    prepared = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "prefix": prefix, "counted": counted}
    return prepared if mask is None else {**prepared, "counted": counted & mask[:, 1:], "routed": mask[:, :-1]}


def build_seq2seq(options: Seq2SeqOptions, context: BuildContext) -> Seq2Seq:
    """The factory of `seq2seq`; the loader says what a token stands for."""
    return Seq2Seq(options, unit=token_unit(context, options.bits.batch_field))
