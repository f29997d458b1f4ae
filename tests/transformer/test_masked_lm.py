"""Masked language modelling: the rates of its corruption, what it can never learn, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fresh_draws import CHI_SQUARE, chi_square, fresh_generator, standard_error
from tiny_walks import base, drive, losses, machine_of, memory, plan_of, problems_of, stream, weights

from stackwise import Built, Evaluated, Moment, RackSpec, StepDone, UserError
from stackwise_providers_transformer.masked_lm import MaskedLM
from stackwise_providers_transformer.masking_options import MaskedLMOptions
from stackwise_providers_transformer.whole_words import byte_words

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)
V, MASK = 256, 256
FLOOR_ON_MASKS, FLOOR = math.log(256), 5.127


def _task(**options: Any) -> MaskedLM:
    return MaskedLM(MaskedLMOptions(symbols=V, **options), unit="byte")


def _noise(generator: torch.Generator, rows: int = 1000, length: int = 1000) -> torch.Tensor:
    return torch.randint(V, (rows, length), generator=generator)


def _prepare(task: MaskedLM, generator: torch.Generator, tokens: torch.Tensor, **fields: torch.Tensor) -> dict[str, torch.Tensor]:
    return task.prepare({"tokens": tokens, **fields}, MOMENT, generator)


# -- rates ----------------------------------------------------------------------------------------------------------


def test_the_realised_rates_over_a_million_tokens() -> None:
    generator = fresh_generator()
    tokens = _noise(generator)
    prepared = _prepare(_task(), generator, tokens)
    chosen, shown = prepared["targets"] != -100, prepared["tokens"]
    masked, same = shown == MASK, shown == tokens
    assert torch.equal(prepared["targets"][chosen], tokens[chosen]) and bool(same[~chosen].all())
    counts = torch.stack([(~chosen).sum(), masked.sum(), (chosen & ~masked & ~same).sum(), (chosen & same).sum()])
    rates = torch.tensor([0.85, 0.12, 0.015 * 255 / 256, 0.015 + 0.015 / 256], dtype=torch.float64)
    assert chi_square(counts, rates * tokens.numel()) < CHI_SQUARE[3]


@pytest.mark.parametrize(("rate", "masked", "random"), [(0.3, 1.0, 0.0), (0.05, 0.0, 0.5), (1.0, 0.5, 0.5)])
def test_other_rates_are_realised_too(rate: float, masked: float, random: float) -> None:
    generator = fresh_generator()
    tokens = _noise(generator)
    prepared = _prepare(_task(rate=rate, masked=masked, random=random), generator, tokens)
    chosen, hidden = prepared["targets"] != -100, prepared["tokens"] == MASK
    for count, share in ((chosen.sum(), rate), (hidden.sum(), rate * masked)):
        spread = math.sqrt(share * (1 - share) * tokens.numel())
        assert abs(float(count) - share * tokens.numel()) <= 5 * spread


def test_a_random_token_may_be_any_ordinary_one_and_no_other() -> None:
    generator = fresh_generator()
    task = _task(rate=1.0, masked=0.0, random=1.0, special=(3, 7))
    shown = _prepare(task, generator, torch.full((100, 1000), 9))["tokens"]
    counts = torch.bincount(shown.flatten(), minlength=V + 1)
    assert counts[[3, 7, MASK]].sum() == 0 and counts.count_nonzero() == V - 2


def test_masks_are_fresh_at_every_draw_and_the_same_from_the_same_stream() -> None:
    tokens = _noise(torch.Generator().manual_seed(0), 2, 200)
    one, other, again = (_prepare(_task(), torch.Generator().manual_seed(seed), tokens)["targets"] for seed in (1, 2, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_special_and_padded_tokens_are_never_chosen() -> None:
    generator = fresh_generator()
    tokens = torch.randint(8, (100, 1000), generator=generator)
    mask = torch.arange(1000)[None] < torch.randint(1000, (100, 1), generator=generator)
    prepared = _prepare(_task(special=(0, 5), rate=0.5), generator, tokens, mask=mask)
    chosen = prepared["targets"] != -100
    may = mask & (tokens != 0) & (tokens != 5)
    assert not chosen[~may].any() and torch.equal(prepared["tokens"][~may], tokens[~may])
    assert abs(float(chosen.sum()) - 0.5 * float(may.sum())) < 5 * 0.5 * math.sqrt(float(may.sum()))


# -- whole words ----------------------------------------------------------------------------------------------------


def test_words_of_bytes_are_runs_of_letters_and_digits_and_whole_characters() -> None:
    text = "it's x_1, né! "
    words = byte_words(torch.tensor([list(text.encode())]))[0].tolist()
    found: dict[int, bytes] = {}
    for word, byte in zip(words, text.encode(), strict=True):
        found[word] = found.get(word, b"") + bytes([byte])
    assert [word.decode() for word in found.values()] == ["it", "'", "s", " ", "x_1", ",", " ", "né", "!", " "]


def test_whole_words_are_chosen_whole_at_the_declared_rate_of_tokens() -> None:
    generator = fresh_generator()
    tokens = torch.tensor(list(b"some words and more of them; "))[torch.arange(1000) % 29].expand(1000, 1000)
    chosen = _prepare(_task(whole_words=True), generator, tokens)["targets"] != -100
    words = byte_words(tokens)
    for row in range(50):
        of_word = torch.zeros(1000).scatter_reduce(0, words[row], chosen[row].float(), "mean", include_self=False)
        assert set(of_word.tolist()) <= {0.0, 1.0}
    shares = chosen.float().mean(1)
    assert abs(float(shares.mean()) - 0.15) < 5 * standard_error(shares)


def test_words_that_the_loader_names_are_followed() -> None:
    words = torch.tensor([[4, 4, 4, 9, 9, 4]]).expand(400, 6)
    task = MaskedLM(MaskedLMOptions(symbols=V, whole_words=True, rate=0.5))
    chosen = _prepare(task, fresh_generator(), torch.zeros(400, 6, dtype=torch.int64), words=words)["targets"] != -100
    assert (chosen[:, 0] == chosen[:, 1]).all() and (chosen[:, 1] == chosen[:, 2]).all() and (chosen[:, 3] == chosen[:, 4]).all()
    assert (chosen[:, 0] != chosen[:, 5]).any() and (chosen[:, 0] != chosen[:, 3]).any()
    with pytest.raises(UserError, match="whole_words: tokens are not bytes"):
        _prepare(task, torch.Generator(), torch.zeros(1, 6, dtype=torch.int64))


# -- the loss -------------------------------------------------------------------------------------------------------


def test_the_mean_is_over_the_chosen_only_and_no_gradient_reaches_the_others() -> None:
    generator = fresh_generator()
    tokens = _noise(generator, 4, 50)
    task, logits = _task(), torch.randn(4, 50, V + 1, generator=generator, requires_grad=True)
    prepared = _prepare(task, generator, tokens)
    total, count, metrics = task.loss({"logits": logits}, prepared)
    chosen = prepared["targets"] != -100
    by_hand = -sum(torch.log_softmax(logits, -1)[b, t, tokens[b, t]] for b, t in chosen.nonzero().tolist())
    torch.testing.assert_close(total, by_hand)
    assert int(count) == int(metrics["accuracy"][1]) == int(chosen.sum())
    total.backward()
    assert not logits.grad[~chosen].any() and logits.grad[chosen].any(-1).all()


def _best(shown: torch.Tensor) -> torch.Tensor:
    """The probabilities that no predictor of noise can do better than, by Bayes' rule."""
    visible = (0.1 + 0.1 / V) / 0.2
    best = torch.full((*shown.shape, V + 1), (1 - visible) / (V - 1)).scatter(-1, shown[..., None], visible)
    best[..., MASK] = 0
    best[shown == MASK, :V] = 1 / V
    return best.log()


def test_the_best_predictor_of_noise_reaches_the_two_floors_and_no_less() -> None:
    generator, task = fresh_generator(), _task()
    means, on_masks = [], []
    for _ in range(100):
        prepared = _prepare(task, generator, _noise(generator, 10, 1000))
        total, count, metrics = task.loss({"logits": _best(prepared["tokens"])}, prepared)
        means.append(total / count)
        on_masks.append(metrics["loss_on_masks"][0] / metrics["loss_on_masks"][1])
    assert float(torch.stack(on_masks).mean()) == pytest.approx(FLOOR_ON_MASKS, abs=1e-5)
    found = torch.stack(means)
    assert abs(float(found.mean()) - FLOOR) < 5 * standard_error(found) + 5e-4  # the floor is known to three decimals


def _learnt(corrupt: MaskedLM, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, over all chosen and on masks, of a table of logits by shown symbol, trained on fresh noise and then tried on more."""
    table = torch.zeros(V + 1, V + 1, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.3)
    means, on_masks = [], []
    for step in range(160):
        prepared = _prepare(corrupt, generator, _noise(generator, 20, 300))
        total, count, metrics = corrupt.loss({"logits": table[prepared["tokens"]]}, prepared)
        if step >= 140:
            means.append(total.detach() / count)
            on_masks.append(metrics["loss_on_masks"][0] / metrics["loss_on_masks"][1])
            continue
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    return torch.stack(means), torch.stack(on_masks)


def test_training_on_noise_ends_above_both_floors_and_without_corruption_far_below() -> None:
    means, on_masks = _learnt(_task(), fresh_generator())
    assert float(on_masks.mean()) > FLOOR_ON_MASKS - 5 * standard_error(on_masks)
    assert FLOOR - 5 * standard_error(means) < float(means.mean()) < FLOOR_ON_MASKS - 0.1  # it has learnt the leak, and only the leak
    forgotten, _ = _learnt(_task(masked=0.0, random=0.0), fresh_generator())
    assert float(forgotten.mean()) < 1.0


# -- from a config --------------------------------------------------------------------------------------------------


def _config(**sections: Any) -> dict[str, Any]:
    model = {
        "embedding": {"use": "transformer.token"},
        "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}]},
        "head": {"use": "transformer.lm"},
    }
    data = {"sources": {"a": memory(vocab=16, heldout=0.2)}, "batch_size": 8, "seq_len": 16}
    return base(task={"use": "transformer.masked-lm"}, data=data, model=model, **sections)


def test_the_vocabulary_grows_by_the_mask_symbol() -> None:
    drafts = plan_of(_config()).joined[0].drafts
    assert drafts.embedding.options.vocab == drafts.head.options.vocab == 17
    machine = machine_of(_config())
    drive(machine)
    assert machine.objective.task.options.mask_id == machine.objective.task.options.symbols == 16
    assert machine.model.model.rack.options.attention == "bidirectional"
    larger = machine_of(_config(), model={"embedding": {"vocab": 40}})
    drive(larger)
    assert larger.objective.task.options.mask_id == 16


def test_a_vocabulary_without_room_for_the_mask_symbol_is_refused() -> None:
    problems = problems_of(_config(), model={"embedding": {"vocab": 16}})
    (problem,) = [each for each in problems if "room" in each.message]
    assert problem.path == "model.embedding.vocab"
    for part in ("task 'transformer.masked-lm' (stackwise-providers-transformer", "embedding 'transformer.token'", "at least 17"):
        assert part in problem.message
    assert problems_of(_config(), task={"mask_token": 3}, model={"embedding": {"vocab": 16}}) == ()
    assert "id 30" in problems_of(_config(), task={"mask_token": 30}, model={"embedding": {"vocab": 20}})[0].message


@pytest.mark.parametrize(
    "rack",
    [
        {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}], "attention": "causal"},
        Built(lambda width: None, spec=RackSpec(attention=("causal",)), width=8),
    ],
    ids=["declared", "by nature"],
)
def test_a_causal_rack_is_refused(rack: object) -> None:
    (problem,) = problems_of(_config(), model={"rack": rack, "embedding": {"width": 8}, "head": {"width": 8}})
    assert "task 'transformer.masked-lm' (stackwise-providers-transformer" in problem.message
    assert "needs bidirectional attention, but rack" in problem.message and "offers causal" in problem.message


def test_the_rate_follows_time_and_evaluations_stand_still() -> None:
    task = {"use": "transformer.masked-lm", "rate": {"linear": {"from": 0.9, "to": 0.1}}}
    config = _config() | {"task": task, "evaluate": {"e": {"batches": 2, "task": {"rate": 0.2}}}}
    machine = machine_of(config)
    names, rates = [], []
    for event in machine.train():
        if isinstance(event, Evaluated):
            names.append(event.metrics.keys())
        if isinstance(event, StepDone):
            rates.append(machine.objective.task.rate)
    assert rates == [pytest.approx(0.9 - 0.8 * step / 12) for step in range(12)]
    assert names == [{"loss", "accuracy", "loss_on_masks"}] * 2
    shares = {}
    for rate in (0.2, 0.9):
        machine = machine_of(config, evaluate={"e": {"task": {"rate": rate}}})
        list(machine.train())
        moment = machine.schedule.at(step=0)
        counts = []
        task, loss = machine.objective.task, type(machine.objective.task).loss

        def watched(outputs: Any, batch: Any) -> Any:
            counts.append(float((batch["targets"] != -100).float().mean()))  # noqa: B023 - called before the next turn
            return loss(task, outputs, batch)  # noqa: B023 - the same

        task.loss = watched
        machine.evaluations["e"].run(machine.model.model, machine.objective, machine.placement, moment)
        shares[rate] = sum(counts) / len(counts)
    assert shares[0.2] == pytest.approx(0.2, abs=0.13) and shares[0.9] == pytest.approx(0.9, abs=0.1)  # 256 tokens: five errors


def test_a_rate_that_chooses_nothing_is_refused() -> None:
    for rate in (0, {"linear": {"from": 0.3, "to": 0}}):
        (problem,) = problems_of(_config(), task={"rate": rate})
        assert problem.path == "task.rate" and "below the minimum of 0.001" in problem.message


def test_masked_then_causal_over_one_rack() -> None:
    phases = {"masked": {"until": "6 steps"}, "causal": {"task": {"use": "transformer.causal-lm"}}}
    machine = machine_of(_config(phases=phases), model={"embedding": {"vocab": 17}})
    walk, attention = machine.train(), {}
    before: dict[str, torch.Tensor] = {}
    for event in walk:
        name = type(event).__name__
        if name == "StepDone" and event.step == 5:
            before = weights(machine)
        if name == "PhaseEntered":
            attention[event.phase] = machine.model.model.rack.options.attention
            if event.phase == "causal":
                after = weights(machine)
                assert (event.fresh, event.dropped, event.copied) == (0, 0, 0)
                assert all(torch.equal(before[key], after[key]) for key in after) and before.keys() == after.keys()
    assert attention == {"masked": "bidirectional", "causal": "causal"}


def test_training_on_real_repetition_learns() -> None:
    pattern = torch.arange(3000) % 16
    config = _config() | {"data": {"sources": {"a": memory()}, "batch_size": 16, "seq_len": 32}}
    config["data"]["sources"]["a"] = {"use": "data.memory", "arrays": {"tokens": pattern}, "vocab": 16}
    found = losses(drive(machine_of(config, run={"horizon": "120 steps"}, optimizer={"lr": 0.02})))
    assert sum(loss for _, loss, _, _ in found[-10:]) / 10 < 1.5 < math.log(16) < found[0][1] + 0.2


def test_tokens_of_the_stream_stay_what_they_were() -> None:
    tokens = stream(64).view(4, 16)
    kept = tokens.clone()
    MaskedLM(MaskedLMOptions(symbols=16, rate=0.9)).prepare({"tokens": tokens}, MOMENT, torch.Generator())
    assert torch.equal(tokens, kept)
