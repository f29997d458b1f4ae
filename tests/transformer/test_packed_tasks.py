"""Every task that meets documents inside rows: packed, they have the losses and gradients they have apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stackwise import Model, Moment
from stackwise_providers_transformer.conv import Conv
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.mask_diffusion import MaskDiffusion
from stackwise_providers_transformer.masked_lm import MaskedLM
from stackwise_providers_transformer.masking_options import MaskDiffusionOptions, MaskedLMOptions
from stackwise_providers_transformer.options import DecoderOptions, LMOptions, TokenOptions
from stackwise_providers_transformer.rack_options import ConvOptions

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)
LENGTHS = (6, 3, 7)
TASKS: dict[str, Any] = {
    "masked-lm": MaskedLM(MaskedLMOptions(symbols=30, rate=0.5)),
    "mask-diffusion": MaskDiffusion(MaskDiffusionOptions(symbols=30)),
}


def _model(rack: str) -> Model:
    torch.manual_seed(0)
    blocks = [{"base": 2}]
    made: nn.Module
    if rack == "conv":
        made = Conv(ConvOptions(width=16, stacks=blocks, kernel=5, context="bidirectional", init_std=0.3))
    else:
        made = Decoder(DecoderOptions(width=16, heads=2, stacks=blocks, attention="bidirectional", init_std=0.3))
    embedding = TokenEmbedding(TokenOptions(vocab=31, width=16, init_std=1.0))
    return Model(embedding, made, LMHead(LMOptions(vocab=31, width=16, tied=False, init_std=0.3)))


def _total(task: Any, model: Model, batches: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, float, list[torch.Tensor]]:
    results = [task.loss(model(batch), batch) for batch in batches]
    total = torch.stack([result[0] for result in results]).sum()
    return total, sum(float(result[1]) for result in results), list(torch.autograd.grad(total, list(model.parameters())))


def _apart(prepared: dict[str, torch.Tensor], lengths: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    """Each document as rows of its own; what has no time goes with every one."""
    parts = {name: field.split(lengths, dim=1) for name, field in prepared.items() if field.dim() == 2}
    whole = {name: field for name, field in prepared.items() if field.dim() == 1}
    left_out = {"segments", "positions", "mask"}
    return [{**whole, **{name: part[i] for name, part in parts.items() if name not in left_out}} for i in range(len(lengths))]


@pytest.mark.parametrize("rack", ["decoder", "conv"])
@pytest.mark.parametrize("name", TASKS)
def test_packed_documents_are_what_they_are_apart(name: str, rack: str) -> None:
    generator = torch.Generator().manual_seed(1)
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS)).expand(2, 16)
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, 16)
    batch = {"tokens": torch.randint(30, (2, 16), generator=generator), "segments": segments, "positions": positions}
    task, model = TASKS[name], _model(rack)
    prepared = task.prepare(batch, MOMENT, generator)
    ours, theirs = _total(task, model, [prepared]), _total(task, model, _apart(prepared, LENGTHS))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    assert ours[1] == theirs[1] > 0
    for packed, apart in zip(ours[2], theirs[2], strict=True):
        torch.testing.assert_close(packed, apart, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rack", ["decoder", "conv"])
@pytest.mark.parametrize("name", TASKS)
def test_padding_adds_nothing(name: str, rack: str) -> None:
    generator = torch.Generator().manual_seed(2)
    batch = {"tokens": torch.randint(30, (2, 16), generator=generator), "mask": torch.arange(16).expand(2, 16) < 9}
    task, model = TASKS[name], _model(rack)
    prepared = task.prepare(batch, MOMENT, generator)
    ours, theirs = _total(task, model, [prepared]), _total(task, model, _apart(prepared, (9, 7))[:1])
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    assert ours[1] == theirs[1]
    for padded, alone in zip(ours[2], theirs[2], strict=True):
        torch.testing.assert_close(padded, alone, rtol=1e-3, atol=1e-3)
