"""Token embedding, language-model head and next-token prediction."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from stackwise import BatchSpec, BuildContext, Moment, TensorSpec, UserError
from stackwise_providers_transformer.causal_lm import CausalLM, build_causal_lm
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding, build_token
from stackwise_providers_transformer.head import LMHead, build_lm
from stackwise_providers_transformer.options import CausalLMOptions, DecoderOptions, LMOptions, TokenOptions

CONTEXT = BuildContext(seed=0)
MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)


def _tokens(rows: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(0))


def _prepared(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return CausalLM(CausalLMOptions()).prepare({"tokens": tokens}, MOMENT, torch.Generator())


def test_a_zero_head_predicts_uniformly() -> None:
    head = build_lm(LMOptions(vocab=256, width=8, tied=False, init_std=0), CONTEXT)
    batch = _prepared(_tokens())
    total, weight, metrics = CausalLM(CausalLMOptions(), unit="byte").loss(head(torch.randn(3, 8, 8)), batch)
    assert weight == 24
    assert float(total.detach() / weight) == pytest.approx(5.545177, abs=1e-6)
    bits, count = metrics["bits_per_byte"]
    assert float(bits / count) == pytest.approx(8.0, abs=1e-6)


def test_the_loss_is_a_sum_so_that_micro_batches_add_up() -> None:
    logits = torch.randn(4, 5, 11, generator=torch.Generator().manual_seed(2))
    targets = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(3))
    task = CausalLM(CausalLMOptions())
    whole, weight, _ = task.loss({"logits": logits}, {"targets": targets})
    by_hand = -sum(
        math.log(math.exp(logits[b, t, targets[b, t]]) / sum(math.exp(x) for x in logits[b, t])) for b in range(4) for t in range(5)
    )
    assert float(whole) == pytest.approx(by_hand, rel=1e-5)
    parts = [task.loss({"logits": logits[i : i + 1]}, {"targets": targets[i : i + 1]}) for i in range(4)]
    assert float(sum(part[0] for part in parts)) == pytest.approx(float(whole), rel=1e-6)
    assert sum(part[1] for part in parts) == weight == 20


def test_low_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(2, 3, 7).bfloat16().requires_grad_()
    total, _, metrics = CausalLM(CausalLMOptions()).loss({"logits": logits}, {"targets": torch.zeros(2, 3, dtype=torch.int64)})
    assert total.dtype is torch.float32
    assert total.requires_grad
    assert not metrics["bits_per_token"][0].requires_grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_targets_are_the_entries_one_later(dtype: torch.dtype) -> None:
    batch = _prepared(torch.arange(10).view(2, 5).to(dtype))
    assert batch["tokens"].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert batch["tokens"].dtype is batch["targets"].dtype is torch.int64


@pytest.mark.parametrize(("unit", "metric"), [("byte", "bits_per_byte"), (None, "bits_per_token"), ("word", "bits_per_token")])
def test_the_loader_says_what_a_token_stands_for(unit: str | None, metric: str) -> None:
    batch = BatchSpec(fields={"tokens": TensorSpec("batch time", "int64", unit=unit)})
    assert build_causal_lm(CausalLMOptions(), BuildContext(seed=0, specs={"batch": batch})).metric == metric


def test_without_junctions_a_token_is_a_token() -> None:
    assert build_causal_lm(CausalLMOptions(), CONTEXT).metric == "bits_per_token"


def test_changing_a_token_leaves_the_logits_before_it_bit_identical() -> None:
    torch.manual_seed(0)
    embedding = TokenEmbedding(TokenOptions(vocab=256, width=16, init_std=1.0))
    rack = Decoder(DecoderOptions(width=16, heads=2, stacks=[{"base": 2}], init_std=0.3))
    head = LMHead(LMOptions(vocab=256, width=16))
    head.weight = embedding.weight
    tokens = _tokens()
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 256
    before, after = (head(rack(embedding(tokens=t)))["logits"] for t in (tokens, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


def test_an_embedding_vector_is_a_row_of_weight() -> None:
    embedding = build_token(TokenOptions(vocab=5, width=3, init_std=0.5), CONTEXT)
    assert torch.equal(embedding(tokens=torch.tensor([[4, 0]]))[0], embedding.weight[[4, 0]])
    assert [name for name, _ in embedding.named_parameters()] == ["weight"]


def test_a_tied_head_takes_the_parameter_it_is_given() -> None:
    head, shared = LMHead(LMOptions(vocab=5, width=3)), torch.nn.Parameter(torch.eye(5, 3))
    head.weight = shared
    assert dict(head.named_parameters())["weight"] is shared
    assert torch.equal(head(torch.eye(3)[None])["logits"][0], torch.eye(3, 5))


@pytest.mark.parametrize("make", [lambda: TokenEmbedding(TokenOptions(vocab=500, width=40, init_std=0.7)), lambda: _untied(0.7)])
def test_fresh_matrices_have_the_declared_deviation(make: Callable[[], TokenEmbedding | LMHead]) -> None:
    torch.manual_seed(0)
    module = make()
    assert float(module.weight.detach().std()) == pytest.approx(0.7, rel=0.03)  # 20000 draws: one sigma is 0.5 %


def _untied(std: float) -> LMHead:
    return LMHead(LMOptions(vocab=500, width=40, tied=False, init_std=std))


def test_options_and_artifacts_declare_the_same_boundary() -> None:
    token, lm, task = TokenOptions(vocab=256, width=16), LMOptions(vocab=256, width=16), CausalLMOptions()
    assert token.to_spec() == TokenEmbedding(token).get_spec()
    assert lm.to_spec() == LMHead(lm).get_spec()
    assert task.to_spec() == CausalLM(task).get_spec()
    assert token.to_spec().inputs == {"tokens": TensorSpec("batch time", "int64", bounds=(0, "vocab"))}
    assert lm.to_spec().ties == {"weight": "embedding.weight"}
    assert LMOptions(tied=False).to_spec().ties == {}
    assert (task.to_spec().attention, task.to_spec().lookahead) == ("causal", 1)


def test_a_start_that_a_tied_head_would_ignore_is_refused() -> None:
    with pytest.raises(UserError, match=r"init_std: 0\.5 has no effect on a tied head"):
        LMOptions(vocab=5, width=3, init_std=0.5)


@pytest.mark.parametrize("build", [lambda: TokenEmbedding(TokenOptions(width=3)), lambda: LMHead(LMOptions(width=3))])
def test_nothing_is_built_before_its_sizes_are_known(build: Callable[[], object]) -> None:
    with pytest.raises(UserError, match="vocab: it has no size yet"):
        build()
