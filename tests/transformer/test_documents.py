"""Documents inside rows: packed, they are to the model what they are apart; padded, what stands around them does not count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_walks import base, drive, losses, machine_of, plan_of, problems_of
from torch import nn

from stackwise import Built, Moment, RackSpec
from stackwise.assembly.pricing import price
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.documents import attention_mask, positions_within
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.options import CausalLMOptions, DecoderOptions, LMOptions, TokenOptions

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)
LENGTHS = ((5, 3, 8), (1, 12, 3))
"""Documents of the rows; 16 tokens a row, the lookahead included."""
TASK = CausalLM(CausalLMOptions())


class Language(nn.Module):
    """Embedding, decoder and head, the side inputs passed as the core does."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = TokenEmbedding(TokenOptions(vocab=32, width=16, init_std=1.0))
        self.rack = Decoder(DecoderOptions(**{"width": 16, "heads": 2, "stacks": [{"base": 2}], "init_std": 0.3, **options}))
        self.head = LMHead(LMOptions(vocab=32, width=16, tied=False, init_std=0.3))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        side = {name: batch[name] for name in ("segments", "positions") if name in batch}
        return self.head(self.rack(self.embedding(tokens=batch["tokens"]), **side))


def _tokens() -> torch.Tensor:
    return torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(1))


def _packed(lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> dict[str, torch.Tensor]:
    """What a loader of packed rows delivers."""
    segments = torch.tensor([[i for i, length in enumerate(row) for _ in range(length)] for row in lengths])
    positions = torch.tensor([[i for length in row for i in range(length)] for row in lengths])
    return {"tokens": _tokens(), "segments": segments, "positions": positions}


def _apart(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [part[None] for row, lengths in zip(batch["tokens"], LENGTHS, strict=True) for part in row.split(lengths)]


def _prepare(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return TASK.prepare(batch, MOMENT, torch.Generator())


def _mean_and_gradients(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> tuple[float, float, list[torch.Tensor]]:
    totals, weights = [], 0.0
    for batch in batches:
        prepared = _prepare(batch)
        total, weight, _ = TASK.loss(model(prepared), prepared)
        totals.append(total)
        weights += float(weight)
    loss = torch.stack(totals).sum() / weights
    return loss.item(), weights, list(torch.autograd.grad(loss, list(model.parameters())))


FORMS: list[dict[str, object]] = [
    {},
    {"attention": "bidirectional"},
    {"positions": "learned", "max_positions": 16},
    {"attention": "bidirectional", "norm": "layernorm", "qk_norm": True, "kv_heads": 1, "bias": True},
]


@pytest.mark.parametrize("form", [form for form in FORMS if "attention" not in form], ids=str)
def test_packed_documents_train_as_they_do_apart(form: dict[str, object]) -> None:
    model = Language(**form)
    packed = _packed()
    loss, weight, gradients = _mean_and_gradients(model, [packed])
    separate = [{"tokens": tokens} for tokens in _apart(packed) if tokens.shape[1] > 1]
    loss_apart, weight_apart, gradients_apart = _mean_and_gradients(model, separate)
    assert weight == weight_apart == 32 - 6  # every token but the first of each of six documents
    assert loss == pytest.approx(loss_apart, abs=1e-5)
    for ours, theirs in zip(gradients, gradients_apart, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_entry_has_the_loss_and_the_gradients_it_has_apart(form: dict[str, object]) -> None:
    model, packed = Language(**form), _packed()
    targets = _tokens().flip(1).flatten()
    nats = F.cross_entropy(model(packed)["logits"].flatten(0, 1), targets, reduction="none")
    apart = [model({"tokens": tokens})["logits"][0] for tokens in _apart(packed)]
    nats_apart = F.cross_entropy(torch.cat(apart), targets, reduction="none")
    torch.testing.assert_close(nats, nats_apart, rtol=1e-5, atol=1e-5)
    gradients, gradients_apart = (torch.autograd.grad(each.mean(), list(model.parameters())) for each in (nats, nats_apart))
    for ours, theirs in zip(gradients, gradients_apart, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("document", [0, 1, 2])
def test_a_changed_token_changes_its_own_document_only(form: dict[str, object], document: int) -> None:
    model, packed = Language(**form), _packed()
    begin = sum(LENGTHS[0][:document])
    changed = packed["tokens"].clone()
    changed[0, begin] = (changed[0, begin] + 1) % 32
    before, after = (model(_prepare({**packed, "tokens": tokens}))["logits"] for tokens in (packed["tokens"], changed))
    own = torch.zeros(2, 15, dtype=torch.bool)
    own[0, begin : begin + LENGTHS[0][document]] = True
    assert torch.equal(before[~own], after[~own])
    assert (before[own] != after[own]).any(dim=-1).all()


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_documents_that_end_beyond_a_block_of_the_kernel(attention: str) -> None:
    """The kernel of a CPU walks keys in blocks of 512: here whole blocks lie outside a document."""
    model = Language(attention=attention, stacks=[{"base": 1}]).eval()
    tokens = torch.randint(32, (1, 1301), generator=torch.Generator().manual_seed(2))
    segments = torch.repeat_interleave(torch.arange(2), torch.tensor([1100, 201]))[None]
    with torch.inference_mode():
        packed = model(_prepare({"tokens": tokens, "segments": segments}))["logits"]
        apart = model({"tokens": tokens[:, 1100:-1]})["logits"]
    torch.testing.assert_close(packed[:, 1100:], apart, rtol=1e-5, atol=1e-4)


def test_positions_left_out_begin_anew_in_every_segment() -> None:
    packed = _packed()
    assert torch.equal(positions_within(packed["segments"]), packed["positions"])
    assert positions_within(torch.tensor([[4, 4, 0, 4]])).tolist() == [[0, 1, 0, 0]]
    model = Language(positions="learned", max_positions=16)
    without = {name: field for name, field in packed.items() if name != "positions"}
    assert torch.equal(model(_prepare(packed))["logits"], model(_prepare(without))["logits"])


@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_entry_by_entry(causal: bool) -> None:
    segments = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    mask = attention_mask(torch.zeros(2, 4, 8), segments, causal=causal)
    for b in range(2):
        for s in range(4):
            for t in range(4):
                seen = segments[b, s] == segments[b, t] and (t <= s or not causal)
                assert mask[b, 0, s, t] == (0.0 if seen else -math.inf)


def test_all_blocks_keep_one_mask() -> None:
    """A mask of their own would cost every block [B, 1, T, T] numbers until the backward pass."""
    model, kept = Language(stacks=[{"base": 3}]), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model(_prepare(_packed()))
    masks = [tensor for tensor in kept if tensor.shape == (2, 1, 15, 15)]
    assert len(masks) == 3
    assert len({tensor.data_ptr() for tensor in masks}) == 1


def test_no_mask_is_made_for_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, kernel = [], F.scaled_dot_product_attention

    def watched(*args: torch.Tensor, **how: Any) -> torch.Tensor:
        seen.append((how["attn_mask"], how["is_causal"]))
        return kernel(*args, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    Language()(_prepare({"tokens": _tokens()}))
    assert seen == [(None, True)] * 2


# -- the task -------------------------------------------------------------------------------------------------------


def test_segments_and_positions_come_along_with_the_tokens() -> None:
    packed = _packed()
    prepared = _prepare(packed)
    for name in ("tokens", "segments", "positions"):
        assert torch.equal(prepared[name], packed[name][:, :-1])
    assert set(_prepare({"tokens": packed["tokens"]})) == {"tokens", "targets"}


def test_which_targets_count() -> None:
    tokens = torch.arange(6)[None]
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    assert _prepare({"tokens": tokens, "segments": segments})["counted"].tolist() == [[True, True, False, True, True]]
    assert _prepare({"tokens": tokens, "mask": mask})["counted"].tolist() == [[True, True, True, True, False]]
    both = _prepare({"tokens": tokens, "segments": segments, "mask": mask})
    assert both["counted"].tolist() == [[True, True, False, True, False]]


def test_the_loss_is_the_sum_over_the_targets_that_count() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])
    counted = torch.tensor([[True, False, True, True, False], [False, False, True, True, True]])
    total, weight, metrics = TASK.loss({"logits": logits}, {"targets": targets, "counted": counted})
    by_hand = -sum(torch.log_softmax(logits, -1)[b, t, targets[b, t]] for b in range(2) for t in range(5) if counted[b, t])
    torch.testing.assert_close(total, by_hand)
    assert float(weight) == 6
    bits, count = metrics["bits_per_token"]
    assert float(bits / count) == pytest.approx(by_hand.item() / 6 / math.log(2), rel=1e-6)
    total.backward()
    assert not logits.grad[~counted].any() and logits.grad[counted].any(dim=-1).all()


def test_padding_adds_nothing() -> None:
    model, tokens = Language(), _tokens()
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[0, 11:], mask[1, 4:] = False, False
    loss, weight, gradients = _mean_and_gradients(model, [{"tokens": tokens, "mask": mask}])
    alone, weight_alone, gradients_alone = _mean_and_gradients(model, [{"tokens": tokens[:1, :11]}, {"tokens": tokens[1:, :4]}])
    assert weight == weight_alone == 13
    assert loss == pytest.approx(alone, abs=1e-6)
    for ours, theirs in zip(gradients, gradients_alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# -- from a config --------------------------------------------------------------------------------------------------


def _rows(**fields: torch.Tensor) -> dict[str, Any]:
    arrays = {"tokens": torch.randint(16, (24, 9), generator=torch.Generator().manual_seed(5)), **fields}
    return {"use": "data.memory", "arrays": arrays, "time": list(arrays), "shuffle": False}


def _config(**fields: torch.Tensor) -> dict[str, Any]:
    return base(data={"sources": {"a": _rows(**fields)}, "batch_size": 2, "seq_len": 8})


SEGMENTS = (torch.arange(9) // 4).expand(24, 9).contiguous()


def test_a_config_trains_on_packed_rows() -> None:
    stream, packed = losses(drive(machine_of(_config()))), losses(drive(machine_of(_config(segments=SEGMENTS))))
    assert len(packed) == 12
    assert all(math.isfinite(loss) for _, loss, _, _ in packed)
    assert [loss for _, loss, _, _ in packed] != [loss for _, loss, _, _ in stream]


def test_micro_batches_of_packed_rows_add_up_to_the_whole() -> None:
    ragged = SEGMENTS.clone()
    ragged[1::2] = torch.arange(9)[None] // 2  # rows with more first tokens, so that micro-batches weigh differently
    whole, halves = (
        losses(drive(machine_of(base(data={"sources": {"a": _rows(segments=ragged)}, "seq_len": 8, **how}))))
        for how in ({"batch_size": 2}, {"batch_size": 1, "accumulate": 2})
    )
    for (_, loss, norm, _), (_, other_loss, other_norm, _) in zip(whole, halves, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert other_norm == pytest.approx(norm, rel=1e-3)


def test_pricing_runs_the_model_on_what_is_delivered() -> None:
    plain, packed = (price(plan_of(config))[0] for config in (_config(), _config(segments=SEGMENTS, positions=SEGMENTS)))
    assert plain.flops is not None and packed.flops == plain.flops
    assert plan_of(_config(segments=SEGMENTS)).joined[0].optional == {"segments"}


def test_a_mixture_of_packed_and_whole_rows_is_refused() -> None:
    data = {"sources": {"a": _rows(segments=SEGMENTS), "b": _rows()}, "mix": {"a": 1, "b": 1}, "batch_size": 2, "seq_len": 8}
    (problem,) = problems_of(base(data=data))
    assert problem.path == "data.sources.b"
    assert "data.sources.a, loader 'data.memory' (stackwise-providers-data" in problem.message and "'segments'" in problem.message


def test_a_rack_that_would_mix_documents_is_refused() -> None:
    rack = Built(lambda width: nn.Linear(width, width), spec=RackSpec(), width=8)
    embedding = {"use": "transformer.token", "vocab": 16, "width": 8}
    model = {"embedding": embedding, "rack": rack, "head": {"use": "transformer.lm", "width": 8}}
    (problem,) = problems_of(_config(segments=SEGMENTS), model=model)
    assert problem.path == "model.rack"
    for part in ("loader 'data.memory'", "task 'transformer.causal-lm'", "rack <lambda> takes no side input", "rows: stream"):
        assert part in problem.message
    assert problems_of(_config(), model=model) == ()
