"""Supervised fine-tuning: under causal attention the response alone is predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import stackwise
from stackwise import ConfigError, Moment, StepDone
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.options import CausalLMOptions

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)


def pairs(folder: Path) -> dict[str, Any]:
    """Prompts of 13 to 17 bytes with responses of one to three, and the end of text behind each response."""
    lines = [json.dumps({"prompt": f"add {i} and {i + 1}: ", "response": str(2 * i + 1)}) for i in range(400)]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"use": "data.jsonl", "paths": [str(folder / "pairs.jsonl")], "prompt": "prompt", "response": "response"}


def config(source: dict[str, Any], **task: Any) -> dict[str, Any]:
    return {
        "run": {"name": "t", "seed": 1, "horizon": "2 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm", **task},
        "data": {"sources": {"s": source}, "batch_size": 4, "seq_len": 32},
        "model": {
            "embedding": {"use": "transformer.token"},
            "rack": {"use": "transformer.decoder", "width": 32, "heads": 2, "stacks": [{"base": 2}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 1e-2},
    }


def first_step(declared: dict[str, Any]) -> tuple[dict[str, torch.Tensor], float, float]:
    """The first batch, its number of targets, and the mean loss that the machine reports."""
    machine = stackwise.assemble(stackwise.experiment(declared))
    batches, weights, deliver, judge = [], [], machine.data.batches, machine.objective.judge

    def seen(moment: Moment) -> Any:
        batches.append(deliver(moment))
        return batches[-1]

    def judged(outputs: Any, prepared: Any) -> Any:
        result = judge(outputs, prepared)
        weights.append(float(result[1]))
        return result

    machine.data.batches, machine.objective.judge = seen, judged  # type: ignore[method-assign]
    done = next(event for event in machine.train() if isinstance(event, StepDone))
    machine.data.end()
    return dict(batches[0][0]), weights[0], done.loss


def test_pairs_train_on_their_responses_alone(tmp_path: Path) -> None:
    batch, weight, _ = first_step(config(pairs(tmp_path)))
    responses = int(batch["mask"].sum()) - int(batch["prefix"].sum())
    assert weight == responses > 4  # a response of at least one byte in each of four rows, and its end
    _, all_targets, _ = first_step(config(pairs(tmp_path), targets="all"))
    assert all_targets == int(batch["mask"].sum()) - 4  # every real token but the first of a row


def test_loss_and_gradient_are_those_of_a_masked_cross_entropy_by_hand() -> None:
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(11, (3, 9), generator=draw)
    prefix, real = torch.tensor([2, 0, 5]), torch.tensor([9, 6, 8])
    mask = torch.arange(9) < real[:, None]
    task = CausalLM(CausalLMOptions())
    prepared = task.prepare({"tokens": tokens, "prefix": prefix, "mask": mask}, MOMENT, torch.Generator())
    logits = torch.randn(3, 8, 11, generator=draw, requires_grad=True)
    total, count, _ = task.loss({"logits": logits}, prepared)
    (gradient,) = torch.autograd.grad(total, logits)
    own = logits.detach().clone().requires_grad_()
    places = [(row, t) for row in range(3) for t in range(1, 9) if prefix[row] <= t < real[row]]
    by_hand = sum(F.cross_entropy(own[row, t - 1], tokens[row, t]) for row, t in places)
    (expected,) = torch.autograd.grad(by_hand, own)
    assert float(count) == len(places) == 7 + 5 + 3
    torch.testing.assert_close(total.detach(), by_hand.detach())
    torch.testing.assert_close(gradient, expected)


def test_a_choice_of_targets_needs_rows_with_a_prompt() -> None:
    with pytest.raises(ConfigError, match="prefix"):
        stackwise.assemble(stackwise.experiment(config({"use": "data.python-stdlib"}, targets="response")))
