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

    def judged(outputs: Any, prepared: Any, **how: Any) -> Any:
        result = judge(outputs, prepared, **how)
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


@pytest.mark.parametrize("rows", [None, "packed"])
def test_of_conversations_what_the_assistant_says_and_its_end_are_the_targets(rows: str | None, tmp_path: Path) -> None:
    """In ChatML, of bytes: the content and the ten of `<|im_end|>`, turn by turn; the machine's loss is that of torch over them."""
    said = [("hello", "hi"), ("how are you?", ""), ("bye", "see you")]
    messages = [{"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 40, encoding="utf-8")
    source = {"use": "data.jsonl", "paths": [str(tmp_path / "chat.jsonl")], "messages": "messages", "template": "chatml", "heldout": 0.0}
    declared = config({**source, **({"rows": rows} if rows else {})})
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    declared["data"]["seq_len"] = len(text) - 1
    batch, weight, loss = first_step(declared)
    assert all(bytes(row.tolist()).decode() == text for row in batch["tokens"])
    assert weight == 4 * sum(len(answer) + len("<|im_end|>") for _, answer in said)
    machine = stackwise.assemble(stackwise.experiment(declared))
    next(event for event in machine.train() if isinstance(event, stackwise.PhaseEntered))
    prepared = CausalLM(CausalLMOptions()).prepare(batch, MOMENT, torch.Generator())
    with torch.no_grad():
        logits = machine.live.model.model(prepared)["logits"]
    counted = batch["loss_mask"][:, 1:]
    assert loss == pytest.approx(float(F.cross_entropy(logits[counted], prepared["targets"][counted])), rel=1e-5)
    machine.data.end()


def test_what_nobody_reads_of_conversations_is_refused_and_dropping_it_learns_from_every_turn(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 40, encoding="utf-8")
    declared = config(
        {"use": "data.jsonl", "paths": [str(tmp_path / "chat.jsonl")], "messages": "messages", "template": "chatml", "heldout": 0.0}
    )
    declared["data"] |= {"seq_len": 64, "drop": ["loss_mask"]}
    batch, weight, _ = first_step(declared)
    assert set(batch) == {"tokens", "mask"} and weight == int(batch["mask"][:, 1:].sum())
    masked = {**declared, "task": {"use": "transformer.masked-lm"}, "data": {**declared["data"], "drop": []}}
    with pytest.raises(ConfigError) as caught:
        stackwise.assemble(stackwise.experiment(masked))
    assert "data.sources.s" in [problem.path for problem in caught.value.problems]
