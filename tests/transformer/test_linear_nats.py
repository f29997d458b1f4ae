"""The cross-entropy of a product, a few rows at a time: as that of logits made at once, for every task on tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stackwise import BuildContext, LinearOutput, Model, Moment
from stackwise.planes.objective import Objective
from stackwise_providers_transformer import linear_nats as chunked
from stackwise_providers_transformer import token_nats as nats
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.head import LMHead, build_lm
from stackwise_providers_transformer.linear_nats import linear_nats
from stackwise_providers_transformer.mask_diffusion import MaskDiffusion
from stackwise_providers_transformer.masked_lm import MaskedLM
from stackwise_providers_transformer.masking_options import MaskDiffusionOptions, MaskedLMOptions
from stackwise_providers_transformer.options import CausalLMOptions, DecoderOptions, LMOptions, TokenOptions
from stackwise_providers_transformer.pair_options import PreferenceOptions, Seq2SeqOptions
from stackwise_providers_transformer.preference import Preference
from stackwise_providers_transformer.seq2seq import Seq2Seq

VOCAB, WIDTH = 13, 6
MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large, and a chunk holds three rows."""
    monkeypatch.setattr(nats, "LARGE", 0)
    monkeypatch.setattr(chunked, "_ENTRIES", {"cpu": 3 * VOCAB})


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_hand(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, cap: float | None, without: int | None) -> torch.Tensor:
    """-log softmax by the formula, in the precision of the inputs."""
    logits = hidden @ weight.T + (0 if bias is None else bias)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    if without is not None:
        logits = torch.cat((logits[:, :without], torch.full_like(logits[:, :1], -torch.inf), logits[:, without + 1 :]), dim=1)
    return logits.exp().sum(dim=1).log()[:, None] - logits


@pytest.mark.parametrize("without", [None, 5])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_the_formula(biased: bool, cap: float | None, without: int | None) -> None:
    sources = [drawn(10, WIDTH).requires_grad_(), drawn(VOCAB, WIDTH, seed=1).requires_grad_()]
    bias = drawn(VOCAB, seed=2).requires_grad_() if biased else None
    targets = torch.tensor([0, 1, 2, 3, 4, 6, 12, 11, 0, 7])
    slopes = drawn(10, seed=3)
    expected = by_hand(*sources, bias, cap, without)
    found, best = linear_nats(*sources, bias, targets, cap=cap, without=without)
    torch.testing.assert_close(found.double(), expected.gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=1e-6)
    assert best.tolist() == expected.argmin(dim=1).tolist()
    wanted = [*sources, *([] if bias is None else [bias])]
    hand = torch.autograd.grad(expected.gather(1, targets[:, None])[:, 0], wanted, slopes)
    for mine, his in zip(torch.autograd.grad(found, wanted, slopes.float()), hand, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-6)


def test_it_can_be_differentiated_twice() -> None:
    hidden, weight, targets = drawn(7, WIDTH).requires_grad_(), drawn(VOCAB, WIDTH, seed=1).requires_grad_(), torch.arange(7)

    def penalty(value: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(value.sum(), hidden, create_graph=True)
        return torch.autograd.grad(slope.double().square().sum(), weight)[0]

    whole = by_hand(hidden, weight, None, None, None).gather(1, targets[:, None])
    torch.testing.assert_close(penalty(linear_nats(hidden, weight, None, targets)[0]), penalty(whole), rtol=1e-5, atol=1e-6)


def test_what_needs_no_gradient_gets_none() -> None:
    hidden, weight = drawn(5, WIDTH).requires_grad_(), drawn(VOCAB, WIDTH, seed=1)
    linear_nats(hidden, weight, None, torch.arange(5))[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_under_autocast_the_product_is_in_its_precision() -> None:
    hidden, weight = (
        drawn(10, WIDTH, dtype=torch.float32).requires_grad_(),
        drawn(VOCAB, WIDTH, seed=1, dtype=torch.float32).requires_grad_(),
    )
    targets = torch.arange(10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
        parts, _ = linear_nats(hidden, weight, None, targets)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    for mine, his in zip(*(torch.autograd.grad(each.sum(), (hidden, weight)) for each in (parts, whole)), strict=True):
        assert mine.dtype is torch.float32
        torch.testing.assert_close(mine, his, rtol=2**-6, atol=2**-6)


def test_no_target_at_all_gives_a_sum_of_nothing() -> None:
    said = LinearOutput(drawn(2, 3, WIDTH).requires_grad_(), drawn(VOCAB, WIDTH))
    each = nats.token_nats(said, torch.full((2, 3), nats.IGNORED))
    each.nats.sum().backward()
    assert said.hidden.grad is not None
    assert not said.hidden.grad.any()
    assert not each.right.any()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_what_the_head_says_is_what_it_makes_to_the_bit(biased: bool, cap: float | None) -> None:
    head = build_lm(LMOptions(vocab=VOCAB, width=WIDTH, tied=False, bias=biased, cap=cap), BuildContext(seed=0))
    hidden = drawn(2, 5, WIDTH, dtype=torch.float32)
    said = head.forward_linear(hidden)["logits"]
    made = head(hidden)["logits"]
    assert torch.equal(said.tensor(), made)
    assert said.shape == made.shape
    torch.testing.assert_close(said.at((slice(None), -1)).tensor(), made[:, -1])


def _tokens(rows: int = 4, length: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB - 1, (rows, length), generator=torch.Generator().manual_seed(seed))


TASKS: dict[str, Callable[[], tuple[Any, Mapping[str, torch.Tensor]]]] = {
    "causal": lambda: (CausalLM(CausalLMOptions()), {"tokens": _tokens()}),
    "causal with padding": lambda: (CausalLM(CausalLMOptions()), {"tokens": _tokens(), "mask": torch.arange(8).expand(4, 8) < 6}),
    "masked": lambda: (MaskedLM(MaskedLMOptions(symbols=VOCAB - 1, rate=0.5)), {"tokens": _tokens()}),
    "diffusion": lambda: (MaskDiffusion(MaskDiffusionOptions(symbols=VOCAB - 1)), {"tokens": _tokens()}),
    "seq2seq": lambda: (Seq2Seq(Seq2SeqOptions()), {"tokens": _tokens(), "prefix": torch.tensor([1, 2, 3, 4])}),
    "simpo": lambda: (
        Preference(PreferenceOptions(method="simpo")),
        {"chosen": _tokens(), "rejected": _tokens(seed=1), "prefix": torch.tensor([1, 2, 3, 4])},
    ),
    "dpo": lambda: (
        Preference(PreferenceOptions()),
        {"chosen": _tokens(), "rejected": _tokens(seed=1), "prefix": torch.tensor([1, 2, 3, 4])},
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_sums_the_same_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, rows = TASKS[name]()
    torch.manual_seed(0)
    rack = Decoder(DecoderOptions(width=8, heads=2, stacks={"base": 1}, attention=task.get_spec().attention or "causal"))
    model = Model(TokenEmbedding(TokenOptions(vocab=VOCAB, width=8)), rack, LMHead(LMOptions(vocab=VOCAB, width=8, tied=False)))
    objective = Objective.of(task)
    objective.take_reference(model)
    with torch.no_grad():  # away from the reference
        model.head.weight.add_(drawn(VOCAB, 8, dtype=torch.float32))
    prepared = task.prepare(rows, MOMENT, torch.Generator().manual_seed(0))

    def judged() -> tuple[list[float], torch.Tensor]:
        total, weight, metrics, _ = objective.loss(model, prepared)
        slopes = torch.autograd.grad(total, list(model.parameters()))
        numbers = [float(total.detach()), float(weight), *(float(x) for pair in metrics.values() for x in pair)]
        return numbers, torch.cat([slope.flatten() for slope in slopes])

    def refuse(*_: object) -> None:
        raise AssertionError("the logits were made")

    with monkeypatch.context() as patch:
        patch.setattr(LMHead, "forward", refuse)
        patch.setattr(LinearOutput, "tensor", refuse)
        in_chunks, slopes = judged()
    monkeypatch.setattr(nats, "LARGE", 2**24)
    at_once, expected = judged()
    assert in_chunks == pytest.approx(at_once, rel=1e-6)
    assert (slopes - expected).norm() <= 1e-6 * expected.norm()


def test_a_task_of_a_few_logits_and_a_forward_hook_have_the_logits_made() -> None:
    model = Model(
        TokenEmbedding(TokenOptions(vocab=VOCAB, width=8)),
        Decoder(DecoderOptions(width=8, heads=2, stacks={"base": 1})),
        LMHead(LMOptions(vocab=VOCAB, width=8, tied=False)),
    )
    batch = {"tokens": _tokens()}
    assert isinstance(model(batch, ("logits",))["logits"], LinearOutput)
    assert isinstance(model(batch, ("others",))["logits"], torch.Tensor)
    model.head.register_forward_hook(lambda _, __, output: {name: value + 1 for name, value in output.items()})
    assert torch.equal(model(batch, ("logits",))["logits"], model(batch)["logits"])


def test_it_compiles_whole() -> None:
    torch.compiler.reset()
    hidden, weight, targets = (
        drawn(7, WIDTH, dtype=torch.float32).requires_grad_(),
        drawn(VOCAB, WIDTH, seed=1, dtype=torch.float32),
        torch.arange(7),
    )
    compiled = torch.compile(lambda h: linear_nats(h, weight, None, targets)[0].sum(), fullgraph=True, backend="aot_eager")
    found, expected = compiled(hidden), linear_nats(hidden, weight, None, targets)[0].sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, hidden), torch.autograd.grad(expected, hidden))
