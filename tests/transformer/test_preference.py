"""Preferences: the known numbers of three losses, a reference that stays, and responses alone that count."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_draws import fresh_generator
from safetensors.torch import load_file
from tiny_walks import base, drive, losses, machine_of, plan_of, problems_of, same_tensors, weights

import stackwise
from stackwise import Moment, UserError
from stackwise.runs.run import run
from stackwise_providers_transformer.pair_options import PreferenceOptions
from stackwise_providers_transformer.preference import Preference
from stackwise_providers_transformer.preference_losses import dpo_margin, log_odds_ratio, preferred, simpo_margin
from stackwise_providers_transformer.token_nats import summed_by_row

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)


# -- known numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("margin", "loss"), [(0.0, 0.693147), (0.1, 0.644397), (-0.1, 0.744397)])
def test_dpo_at_known_margins(margin: float, loss: float) -> None:
    chosen, rejected = torch.tensor([-7.0 + 10 * margin]), torch.tensor([-9.0])
    known = torch.tensor([-7.0]), torch.tensor([-9.0])
    assert float(preferred(dpo_margin(chosen, rejected, *known, beta=0.1))) == pytest.approx(loss, abs=1e-6)


def test_simpo_of_equal_responses() -> None:
    margin = simpo_margin(torch.tensor([-1.5]), torch.tensor([-1.5]), beta=2.0)
    assert float(preferred(margin - 0.5)) == pytest.approx(0.974077, abs=1e-6)


def test_orpo_of_equal_responses_is_the_likelihood_and_ln_2() -> None:
    ratio = log_odds_ratio(torch.tensor([-1.5]), torch.tensor([-1.5]))
    assert float(preferred(ratio)) == pytest.approx(math.log(2), abs=1e-6)
    better = log_odds_ratio(torch.tensor([math.log(0.8)]), torch.tensor([math.log(0.5)]))
    assert float(better) == pytest.approx(math.log(4), abs=1e-5)  # odds of 4 against odds of 1
    assert log_odds_ratio(torch.tensor([0.0]), torch.tensor([-1.0])).isfinite()


def _batch(generator: torch.Generator, rows: int = 3, length: int = 10) -> dict[str, torch.Tensor]:
    chosen, rejected = (torch.randint(9, (rows, length), generator=generator) for _ in range(2))
    prefix = torch.tensor([2, 4, 0])
    behind = torch.arange(length)[None]
    masks = {"chosen_mask": behind < torch.tensor([[9], [10], [6]]), "rejected_mask": behind < torch.tensor([[5], [8], [10]])}
    return {"chosen": chosen, "rejected": rejected, "prefix": prefix, **masks}


@pytest.mark.parametrize("method", ["dpo", "simpo", "orpo"])
def test_the_loss_of_a_pair_is_that_of_its_log_probabilities(method: str) -> None:
    """Against a calculation pair by pair and token by token, in plain Python."""
    generator = fresh_generator()
    task, batch = Preference(PreferenceOptions(method=method)), _batch(generator)
    prepared = task.prepare(batch, MOMENT, generator)
    logits, known = (torch.randn(6, 9, 9, generator=generator) for _ in range(2))
    reference = {"reference": {"logits": known}} if method == "dpo" else {}
    total, pairs, metrics = task.loss({"logits": logits}, prepared, **reference)
    expected = 0.0
    margins, likelier = [], 0
    for b in range(3):
        sums = []
        for name, row in (("chosen", b), ("rejected", b + 3)):
            places = [t for t in range(9) if t + 1 >= batch["prefix"][b] and batch[f"{name}_mask"][b, t + 1]]
            log_p, log_ref = (
                [float(torch.log_softmax(each[row, t].double(), -1)[batch[name][b, t + 1]]) for t in places] for each in (logits, known)
            )
            sums.append((sum(log_p), sum(log_ref), len(places)))
        (w, ref_w, n_w), (r, ref_r, n_r) = sums
        likelier += w > r
        if method == "dpo":
            margins.append(0.1 * ((w - ref_w) - (r - ref_r)))
            expected += math.log1p(math.exp(-margins[-1]))
        elif method == "simpo":
            margins.append(2 * (w / n_w - r / n_r))
            expected += math.log1p(math.exp(-(margins[-1] - 0.5)))
        else:
            odds = [math.exp(s / n) / (1 - math.exp(s / n)) for s, n in ((w, n_w), (r, n_r))]
            margins.append(math.log(odds[0] / odds[1]))
            expected += -w / n_w + 0.1 * math.log1p(math.exp(-margins[-1]))
    assert float(total) == pytest.approx(expected, rel=1e-5) and pairs == 3
    found = {name: float(value) for name, (value, count) in metrics.items() if count == 3}
    assert found == {
        "accuracy": sum(margin > 0 for margin in margins),
        "reward_margin": pytest.approx(sum(margins), rel=1e-4, abs=1e-5),
        "likelihood_accuracy": likelier,
    }


def test_both_responses_in_one_batch_are_what_they_are_apart() -> None:
    generator = fresh_generator()
    batch = _batch(generator)
    prepared = Preference(PreferenceOptions()).prepare(batch, MOMENT, generator)
    logits = torch.randn(6, 9, 9, generator=generator)
    whole = summed_by_row(logits, prepared["targets"], prepared["counted"])
    for row in range(6):
        alone = summed_by_row(logits[row : row + 1], prepared["targets"][row : row + 1], prepared["counted"][row : row + 1])
        torch.testing.assert_close(alone[0], whole[row])


def test_prompt_and_padding_count_for_nothing() -> None:
    generator = fresh_generator()
    task, batch = Preference(PreferenceOptions(method="simpo")), _batch(generator)
    prepared = task.prepare(batch, MOMENT, generator)
    logits = torch.randn(6, 9, 9, generator=generator, requires_grad=True)
    task.loss({"logits": logits}, prepared)[0].backward()
    assert not logits.grad[~prepared["counted"]].any() and logits.grad[prepared["counted"]].any(-1).all()
    assert prepared["counted"].sum(1).tolist() == [7, 6, 5, 3, 4, 9]


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(UserError, match="gamma: it has no effect on dpo"):
        PreferenceOptions(gamma=1.0)
    with pytest.raises(UserError, match="beta: at 0 every margin is 0"):
        PreferenceOptions(beta=0.0)
    (problem,) = problems_of(_config("orpo"), task={"reference": "phase entry"})
    assert problem.path == "task.reference" and "compares with no other model" in problem.message
    (problem,) = problems_of(_config(), task={"reference": "nowhere"})
    assert problem.path == "task.reference" and "'nowhere' is neither 'phase entry' nor a directory" in problem.message
    assert Preference(PreferenceOptions(method="simpo")).get_spec().reference is None


# -- from a config --------------------------------------------------------------------------------------------------


def _pairs() -> dict[str, torch.Tensor]:
    """Responses of even tokens are preferred to those of odd ones."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(16, (600, 4), generator=generator)
    even, odd = (2 * torch.randint(8, (600, 6), generator=generator) + shift for shift in (0, 1))
    chosen, rejected = torch.cat((prompt, even), dim=1), torch.cat((prompt, odd), dim=1)
    return {"chosen": chosen, "rejected": rejected, "prefix": torch.full((600,), 4)}


def _config(method: str = "dpo", steps: str = "12 steps", **sections: Any) -> dict[str, Any]:
    return base(
        run={"name": "pairs", "seed": 1, "horizon": steps, "device": "cpu"},
        task={"use": "transformer.preference", "method": method},
        data={"sources": {"a": {"use": "data.memory", "arrays": _pairs(), "heldout": 0.2}}, "batch_size": 8, "seq_len": 9},
        evaluate={"held": {"batches": 4}},
        **sections,
    )


def test_dpo_starts_at_ln_2_and_prefers_in_the_end() -> None:
    events = drive(machine_of(_config(steps="60 steps")))
    evaluated = [event for event in events if type(event).__name__ == "Evaluated"]
    assert evaluated[0].metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert evaluated[0].metrics["reward_margin"] == pytest.approx(0, abs=1e-6)
    assert evaluated[0].metrics["accuracy"] == 0  # a tie prefers nothing
    assert evaluated[-1].metrics["accuracy"] > 0.9 and evaluated[-1].metrics["loss"] < 0.6
    assert losses(events)[0][1] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", ["simpo", "orpo"])
def test_the_others_keep_no_reference(method: str) -> None:
    machine = machine_of(_config(method, steps="60 steps"))
    evaluated = [event for event in drive(machine) if type(event).__name__ == "Evaluated"]
    assert machine.objective.reference is None
    assert evaluated[-1].metrics["accuracy"] > 0.9 > evaluated[0].metrics["accuracy"]


def test_causal_then_preference_and_the_reference_is_the_model_at_entry() -> None:
    data = {"sources": {"a": {"use": "data.memory", "arrays": _pairs()}}, "batch_size": 8, "seq_len": 9}
    phases = {
        "causal": {"until": "6 steps"},
        "preference": {"until": "9 steps", "task": {"use": "transformer.preference"}, "data": {"rename": {"tokens": None}, "drop": None}},
        "longer": {"optimizer": {"lr": 0.002}},
    }
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}], "dropout": 0.3}
    embedding = {"use": "transformer.token", "vocab": 16}
    config = base(data={**data, "rename": {"tokens": "chosen"}, "drop": ["rejected"]}, phases=phases)
    machine = machine_of(config, model={"rack": rack, "embedding": embedding})
    walk, at_entry, before, references = machine.train(), {}, {}, []
    for event in walk:
        if type(event).__name__ == "StepDone":
            if event.step == 5:
                before = weights(machine)
            if event.step >= 6:
                references.append(machine.objective.reference)
        if type(event).__name__ == "PhaseEntered":
            if event.phase == "causal":
                assert machine.objective.reference is None
            if event.phase == "preference":
                at_entry = weights(machine)
                assert same_tensors(before, at_entry)
                assert (event.fresh, event.dropped, event.copied) == (0, 0, 0)
    (reference,) = set(references)
    held = {name: parameter.detach() for name, parameter in reference.named_parameters()}
    assert same_tensors(held, at_entry) and not same_tensors(weights(machine), at_entry)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not any(module.training for module in reference.modules())
    assert reference.head.weight is reference.embedding.weight  # tied as the model is
    optimized = {id(p) for group in machine.optimizer.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(parameter) for parameter in reference.parameters()}


def test_a_reference_from_saved_weights(tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(stackwise.experiment(_config(), run={"seed": 9}), output=other, stream=io.StringIO())
    machine = machine_of(_config(), task={"reference": str(tmp_path / "other")})
    found = losses(drive(machine))
    held = {name: parameter.detach() for name, parameter in machine.objective.reference.named_parameters()}
    assert same_tensors(held, load_file(other / "final" / "weights.safetensors"))
    assert abs(found[0][1] - math.log(2)) > 1e-4


def test_a_loader_without_responses_is_refused() -> None:
    config = _config()
    del config["data"]["sources"]["a"]["arrays"]["rejected"]
    (problem,) = problems_of(config)
    assert "task 'transformer.preference' (" in problem.message and "needs 'rejected'" in problem.message
    assert plan_of(_config()).joined[0].drafts.rack.options.attention == "causal"
