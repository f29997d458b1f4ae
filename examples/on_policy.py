"""A task that samples from the model it trains: answers are drawn, a rule says which are right, and right ones become likelier.

Rows are three digits and two questions about them: the first, and the last. The model writes both answers; nobody shows it one.
Run it: python examples/on_policy.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import frozen
from torch import Generator, Tensor

import stackwise
from stackwise import Built, Moment, TaskSpec, TensorSpec

DIGITS, ANSWERS = 5, 2
TOKENS = TensorSpec("batch time", "int64", bounds=(0, "vocab"))


@frozen
class Verified:
    """REINFORCE on answers that are drawn at each step; the other answers to a prompt are the baseline (arXiv 2402.14740, equation 6)."""

    samples: int = 8
    """Answers to each prompt."""
    entropy: float = 0.05
    """Nats of entropy count as so much reward, so that no answer is ruled out before it was tried."""

    def get_spec(self) -> TaskSpec:
        """`uses_model`: prepare is called with the model as it is."""
        outputs = {"logits": TensorSpec("batch time vocab")}
        fields = {"tokens": TOKENS}
        return TaskSpec(batch=fields, inputs=fields, outputs=outputs, attention="causal", metrics=("reward",), uses_model=True)

    def prepare(
        self,
        batch: Mapping[str, Tensor],
        moment: Moment,
        generator: Generator,
        *,
        model: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Prompts [B, 3] → rows of prompts with their answers [B · samples, 3 + 2], and what each answer is worth against the others."""
        rows = batch["tokens"].repeat_interleave(self.samples, 0)
        for _ in range(ANSWERS):
            shares = model({"tokens": rows})["logits"][:, -1].softmax(-1)
            rows = torch.cat((rows, torch.multinomial(shares, 1, generator=generator)), 1)
        reward = verify(rows)
        groups = reward.view(-1, self.samples, ANSWERS)
        others = (groups.sum(1, keepdim=True) - groups) / (self.samples - 1)
        return {"tokens": rows[:, :-1], "answers": rows[:, -ANSWERS:], "worth": (groups - others).flatten(0, 1), "reward": reward}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, float, dict[str, tuple[Tensor, float]]]:
        """-worth · log p(answer | what stands before it), less the entropy's share, summed over answers."""
        nats = outputs["logits"][:, -ANSWERS:].float().log_softmax(-1)
        taken = nats.gather(-1, batch["answers"][..., None])[..., 0]
        count = float(taken.numel())
        entropy = -(nats.exp() * nats).sum()
        return -(batch["worth"] * taken).sum() - self.entropy * entropy, count, {"reward": (batch["reward"].sum(), count)}


def verify(rows: Tensor) -> Tensor:
    """1 for each of a row's two answers that is right, 0 for the other ones."""
    digits = rows[:, :-ANSWERS]
    right = torch.stack((digits[:, 0], digits[:, -1]), 1)
    return (rows[:, -ANSWERS:] == right).float()


def make_experiment() -> stackwise.Experiment:
    """Small causal convolutions on random prompts."""
    prompts = torch.randint(DIGITS, (2000, 3), generator=Generator().manual_seed(0))
    return stackwise.experiment(
        run={"name": "on-policy", "seed": 7, "horizon": "150 steps", "device": "cpu"},
        task=Built(Verified, spec=Verified().get_spec()),
        data={
            "sources": {"prompts": {"use": "data.memory", "arrays": {"tokens": prompts}, "heldout": 0.1}},
            "batch_size": 32,
            "seq_len": 3,
        },
        model={
            "embedding": {"use": "transformer.token", "vocab": DIGITS},
            "rack": {"use": "transformer.conv", "width": 32, "kernel": 5, "stacks": [{"base": 2}]},
            "head": {"use": "transformer.lm"},
        },
        optimizer={"use": "optim.adamw", "lr": 5e-3, "clip": 1.0},
        evaluate={"heldout": {"every": "50 steps", "batches": 8}},
    )


if __name__ == "__main__":
    for event in stackwise.assemble(make_experiment()).train():
        if isinstance(event, stackwise.Evaluated):
            print(f"step {event.step}: {event.metrics['reward']:.3f} of the answers are right")
