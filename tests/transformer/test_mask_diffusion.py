"""Masked diffusion: its bound against enumeration, its noise schedules against one another, and its shares of masks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fresh_draws import fresh_generator, standard_error
from tiny_walks import base, drive, losses, machine_of, memory, plan_of

from stackwise import Moment
from stackwise_providers_transformer.mask_diffusion import NOISE, MaskDiffusion
from stackwise_providers_transformer.masking_options import MaskDiffusionOptions
from stackwise_providers_transformer.unmasking import without

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)
L, V = 4, 2
"""The enumerated model: four tokens of two symbols, symbol 2 is the mask."""
SCHEDULES = sorted(NOISE)


def _task(noise: str = "log-linear", symbols: int = V) -> MaskDiffusion:
    return MaskDiffusion(MaskDiffusionOptions(noise=noise, symbols=symbols))


def _table(generator: torch.Generator) -> torch.Tensor:
    """Logits of an arbitrary model of four tokens, one set for each of the 81 masked rows: [81, L, V + 1]."""
    return 2 * torch.randn(3**L, L, V + 1, generator=generator)


def _logits(table: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    return table[(shown * 3 ** torch.arange(L)).sum(-1)]


def _any_order_nll(table: torch.Tensor, row: torch.Tensor) -> float:
    """Mean over all orders of the autoregressive -log p of a row, each token given those before it in the order."""
    log_p = torch.log_softmax(without(table, V).double(), -1)
    total = 0.0
    for order in itertools.permutations(range(L)):
        shown = torch.full((L,), V)
        for place in order:
            total -= float(log_p[int((shown * 3 ** torch.arange(L)).sum()), place, row[place]])
            shown[place] = row[place]
    return total / math.factorial(L)


def _row_bounds(task: MaskDiffusion, prepare: Any, table: torch.Tensor, row: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Means of many batches of the bound of one row, in nats a row."""
    means = []
    for _ in range(300):
        prepared = prepare({"tokens": row.expand(400, L)}, MOMENT, generator)
        total, count, _ = task.loss({"logits": _logits(table, prepared["tokens"])}, prepared)
        assert int(count) == 400 * L
        means.append(total / 400)
    return torch.stack(means)


def test_the_exact_count_bound_is_the_any_order_likelihood_of_an_enumerated_model() -> None:
    """The estimator's own expectation, written out: every set of masked tokens, every count equally likely."""
    generator = fresh_generator()
    table, row = _table(generator), torch.randint(V, (L,), generator=generator)
    log_p = torch.log_softmax(without(table, V).double(), -1)
    expected = 0.0
    for count in range(1, L + 1):
        sets = list(itertools.combinations(range(L), count))
        for hidden in sets:
            shown = row.clone()
            shown[list(hidden)] = V
            index = int((shown * 3 ** torch.arange(L)).sum())
            expected -= sum(float(log_p[index, i, row[i]]) for i in hidden) * (L / count) / len(sets) / L
    assert expected == pytest.approx(_any_order_nll(table, row), rel=1e-9)
    task = _task()
    found = _row_bounds(task, task.prepare_evaluation, table, row, generator)
    assert abs(float(found.mean()) - expected) < 5 * standard_error(found) + 1e-6


@pytest.mark.parametrize("noise", SCHEDULES)
def test_every_noise_schedule_estimates_the_any_order_likelihood(noise: str) -> None:
    generator = fresh_generator()
    table, row = _table(generator), torch.randint(V, (L,), generator=generator)
    task = _task(noise)
    found = _row_bounds(task, task.prepare, table, row, generator)
    assert abs(float(found.mean()) - _any_order_nll(table, row)) < 5 * standard_error(found)


def _row_estimates(task: MaskDiffusion, prepared: dict[str, torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """What the loss makes of every row, in nats a token: it is linear in the rows' weights."""
    weights = prepared["weights"].requires_grad_()
    total, _, _ = task.loss({"logits": logits.expand(*prepared["tokens"].shape, -1)}, prepared)
    (nats,) = torch.autograd.grad(total, weights)
    return (nats * weights.detach()).double() / prepared["tokens"].shape[1]


def test_the_exact_count_varies_thirteen_times_less() -> None:
    """Ten tokens that cost c = 1, 2, … 10 nats whatever is seen, and τ above 1/1000, where samplers cut it: below, the variance is endless.

    Both estimates have the mean of c as expectation, at every τ and every l. At τ the drawn one varies by Σc²(1 - τ)/(τL²), and the mean
    of (1 - τ)/τ over (ε, 1] is ln(1/ε)/(1 - ε) - 1. With l of L tokens masked the exact one is the mean of l of the c without
    replacement, which varies by S²(1/l - 1/L), S² = Σ(c - mean)²/(L - 1). Squares are weighed by τ and l: without, rare rows decide.
    """
    generator, task, length, cut = fresh_generator(), _task(), 10, 1e-3
    cost = torch.arange(1, length + 1, dtype=torch.float64)
    squared, spread = float((cost**2).sum()) / length**2, float(cost.var())
    harmonic = sum(1 / count for count in range(1, length + 1))
    drawn, exact = squared * (math.log(1 / cut) / (1 - cut) - 1), spread / length * (harmonic - 1)
    assert round(drawn / exact) == 13
    logits = torch.stack((-cost, torch.log1p(-torch.exp(-cost)), torch.zeros(length)), dim=-1).float()
    batch = {"tokens": torch.zeros(200_000, length, dtype=torch.int64)}
    prepared = task.prepare(batch, MOMENT, generator)
    tau = 1 / prepared["weights"].double()
    found = _row_estimates(task, prepared, logits)
    excess = ((found - cost.mean()) ** 2 * tau - squared * (1 - tau))[tau > cut]
    assert abs(float(excess.mean())) < 5 * standard_error(excess) < 0.05 * squared
    prepared = task.prepare_evaluation(batch, MOMENT, generator)
    count = length / prepared["weights"].double()
    found = _row_estimates(task, prepared, logits)
    excess = (found - cost.mean()) ** 2 * count - spread * (1 - count / length)
    assert abs(float(excess.mean())) < 5 * standard_error(excess) < 0.05 * spread


def test_a_uniform_predictor_is_worth_ln_v_exactly() -> None:
    task, generator = _task(symbols=256), fresh_generator()
    tokens = torch.randint(256, (16, 50), generator=generator)
    mask = torch.arange(50)[None] < torch.randint(1, 51, (16, 1), generator=generator)
    prepared = task.prepare_evaluation({"tokens": tokens, "mask": mask}, MOMENT, generator)
    total, count, metrics = task.loss({"logits": torch.zeros(16, 50, 257)}, prepared)
    assert int(count) == int(mask.sum())
    assert float(total / count) == pytest.approx(math.log(256), rel=1e-5)
    assert float(metrics["bits_per_token"][0] / metrics["bits_per_token"][1]) == pytest.approx(8, rel=1e-5)


@pytest.mark.parametrize("noise", SCHEDULES)
def test_the_bound_of_a_predictor_without_context_is_its_cross_entropy(noise: str) -> None:
    generator, task = fresh_generator(), _task(noise, symbols=5)
    logits = torch.randn(6, generator=generator)
    tokens = torch.randint(5, (64, 100), generator=generator)
    cross_entropy = float(-torch.log_softmax(logits[:5], 0)[tokens].mean())
    means = []
    for _ in range(200):
        prepared = task.prepare({"tokens": tokens}, MOMENT, generator)
        total, count, _ = task.loss({"logits": logits.expand(64, 100, 6)}, prepared)
        means.append(total / count)
    found = torch.stack(means)
    assert abs(float(found.mean()) - cross_entropy) < 5 * standard_error(found)


@pytest.mark.parametrize("noise", SCHEDULES)
def test_the_weight_is_the_slope_of_the_schedule(noise: str) -> None:
    tau = torch.linspace(0.01, 1, 100, dtype=torch.float64, requires_grad=True)
    masked = NOISE[noise].masked(tau)
    (slope,) = torch.autograd.grad(masked.sum(), tau)
    torch.testing.assert_close(NOISE[noise].weight(tau), slope / masked)
    assert float(NOISE[noise].masked(torch.tensor(1.0, dtype=torch.float64))) == 1
    assert float(NOISE[noise].masked(torch.tensor(0.0))) == 0
    assert bool((masked.diff() > 0).all())


def test_times_lie_one_in_each_equal_part_and_shares_follow_them() -> None:
    generator, task = fresh_generator(), _task(symbols=8)
    tokens = torch.randint(8, (10, 20000), generator=generator)
    prepared = task.prepare({"tokens": tokens}, MOMENT, generator)
    tau = 1 / prepared["weights"].double()
    assert torch.equal((tau * 10).ceil().long(), torch.arange(1, 11))
    hidden = prepared["targets"] != -100
    spread = (tau * (1 - tau) / 20000).sqrt()
    assert bool(((hidden.double().mean(1) - tau).abs() < 5 * spread).all())
    assert torch.equal(hidden, prepared["tokens"] == 8)
    assert torch.equal(prepared["targets"][hidden], tokens[hidden])  # at its own place, not one later
    assert torch.equal(prepared["tokens"][~hidden], tokens[~hidden])


def test_exactly_the_drawn_count_is_masked_and_every_count_comes() -> None:
    generator, task = fresh_generator(), _task(symbols=8)
    tokens = torch.randint(8, (600, 6), generator=generator)
    mask = torch.arange(6).expand(600, 6) < 5
    prepared = task.prepare_evaluation({"tokens": tokens, "mask": mask}, MOMENT, generator)
    counts = (prepared["targets"] != -100).sum(1)
    assert torch.bincount(counts, minlength=6).tolist() == [0, 120, 120, 120, 120, 120]
    torch.testing.assert_close(prepared["weights"], 5 / counts.float())
    assert not (prepared["targets"][:, 5] != -100).any()


def test_the_mask_symbol_is_never_predicted_and_padding_counts_for_nothing() -> None:
    task = _task()
    tokens, mask = torch.tensor([[0, 1, 0, 0]]), torch.tensor([[True, True, True, False]])
    prepared = task.prepare_evaluation({"tokens": tokens, "mask": mask}, MOMENT, torch.Generator().manual_seed(3))
    logits = torch.zeros(1, L, V + 1)
    logits[..., V] = 50.0  # all on the mask symbol
    total, count, _ = task.loss({"logits": logits}, prepared)
    assert int(count) == 3 and float(total / count) == pytest.approx(math.log(2), rel=1e-6)


def test_the_share_of_masks_that_are_guessed_right_is_one_of_masks() -> None:
    generator, task = fresh_generator(), _task(symbols=5)
    tokens = torch.randint(5, (20, 30), generator=generator)
    prepared = task.prepare({"tokens": tokens, "mask": torch.arange(30).expand(20, 30) < 25}, MOMENT, generator)
    right = torch.rand(20, 30, generator=generator) < 0.5
    logits = F.one_hot(torch.where(right, tokens, (tokens + 1) % 5), 6).float()
    found, count = task.loss({"logits": logits}, prepared)[2]["accuracy_on_masks"]
    masked = prepared["tokens"] == 5
    assert int(count) == int(masked.sum()) and int(found) == int((right & masked).sum())


def test_a_config_trains_and_its_evaluations_count_exactly() -> None:
    config = base(
        task={"use": "transformer.mask-diffusion"},
        data={"sources": {"a": memory(vocab=16, heldout=0.2)}, "batch_size": 8, "seq_len": 16},
        evaluate={"e": {"batches": 2}},
    )
    del config["model"]["embedding"]["vocab"]
    assert plan_of(config).joined[0].drafts.embedding.options.vocab == 17
    machine, weights_seen = machine_of(config), []
    events = []
    for event in machine.train():
        if type(event).__name__ == "PhaseEntered":
            inner = machine.objective.task.loss
            machine.objective.task.loss = lambda outputs, batch: weights_seen.append(batch["weights"]) or inner(outputs, batch)  # noqa: B023 - entered once
        events.append(event)
    found = losses(events)
    assert len(found) == 12 and all(math.isfinite(loss) for _, loss, _, _ in found)
    exact = [bool(((16 / each) - (16 / each).round()).abs().max() < 1e-4) for each in weights_seen]
    assert exact == [True] * 2 + [False] * 12 + [True] * 2


def test_noise_never_falls_below_ln_v() -> None:
    """Uniform noise on fresh rows: no order and no mask tells anything."""
    config = base(
        task={"use": "transformer.mask-diffusion"},
        data={"sources": {"a": {"use": "data.memory", "arrays": {"tokens": _noise()}, "vocab": 16}}, "batch_size": 16, "seq_len": 16},
        run={"name": "noise", "seed": 3, "horizon": "60 steps", "device": "cpu"},
        optimizer={"use": "optim.adamw", "lr": 0.02},
    )
    del config["model"]["embedding"]["vocab"]
    last = [loss for _, loss, _, _ in losses(drive(machine_of(config)))][-30:]
    found = torch.tensor(last)
    assert float(found.mean()) > math.log(16) - 5 * standard_error(found)


def _noise() -> torch.Tensor:
    return torch.randint(16, (60 * 16 * 20,), generator=fresh_generator())
