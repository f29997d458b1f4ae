"""One example a task at full size, and a baseline on the very batches that it is evaluated on.

python benchmarks/quality/tasks.py [masked-to-causal | mask-diffusion | span-corruption | digits | preferences]

`digits` and `preferences` write what they read into a temporary directory first.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import stackwise
from stackwise import Evaluated, config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
UNIGRAM_BATCHES = 100


class Unigram(nn.Module):
    """Every target by its frequency among training targets, whatever is seen."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.logits = (counts + 1).log()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """tokens [B, T] → logits [B, T, V]."""
        return {"logits": self.logits.expand(*batch["tokens"].shape, -1)}


def machine_of(name: str) -> Any:
    """The machine of an example."""
    return stackwise.assemble(config.load(EXAMPLES / f"{name}.yaml"))


def targets_of(machine: Any) -> Tensor:
    """How often each id is a target in the first training batches of a fresh machine."""
    phase = machine.schedule.phases[0]
    machine._enter(phase)
    vocab = machine.model.model.embedding.weight.shape[0]
    counts, generator = torch.zeros(vocab), torch.Generator().manual_seed(0)
    for moment in islice(machine.schedule.moments(phase, 0), UNIGRAM_BATCHES):
        for batch in machine.data.batches(moment):
            prepared = machine.objective.task.prepare(batch, moment, generator)
            counted = prepared["counted"] if "counted" in prepared else prepared["targets"] >= 0
            counts += torch.bincount(prepared["targets"][counted], minlength=vocab)
    return counts


def evaluated(machine: Any, model: nn.Module) -> dict[str, float]:
    """What another model gets in the evaluation of the first phase."""
    metrics: dict[str, float] = machine.evaluations["heldout"].run(model, machine.objective, machine.placement, machine.schedule.at(step=0))
    return metrics


def against_unigram(name: str) -> None:
    """An example and the unigram of its targets."""
    fresh = machine_of(name)
    baseline = evaluated(fresh, Unigram(targets_of(fresh)))
    told("baseline: unigram of the targets", baseline)
    train(name)


def train(name: str) -> None:
    """Train, and print every evaluation at the end of a phase."""
    started = perf_counter()
    for event in machine_of(name).train():
        if isinstance(event, Evaluated) and event.at != "cadence":
            told(f"step {event.step:>4} {event.phase} {event.at}", event.metrics)
    print(f"{'training':>40}  {perf_counter() - started:.0f} s")


def digits() -> None:
    """The digits, and scikit-learn's logistic regression and support vector machine on the same split."""
    runpy.run_path(str(EXAMPLES / "prepare_digits.py"))
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    arrays = np.load("digits.npz")
    image, label = arrays["image"].reshape(len(arrays["label"]), -1), arrays["label"]
    split = len(label) - round(0.2 * len(label))
    for made in (LogisticRegression(max_iter=5000), SVC()):
        right = made.fit(image[:split], label[:split]).score(image[split:], label[split:])
        told(f"baseline: {type(made).__name__}", {"accuracy": right})
    train("digits")


def preferences() -> None:
    """Alignment; the baseline is the supervised model, which is the evaluation at the entry of the second phase."""
    runpy.run_path(str(EXAMPLES / "prepare_preferences.py"))
    train("preferences")


def told(what: str, metrics: dict[str, float]) -> None:
    """One line."""
    print(f"{what:>40}  " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)


TASKS: dict[str, Callable[[], None]] = {
    **{name: lambda name=name: against_unigram(name) for name in ("masked-to-causal", "mask-diffusion", "span-corruption")},  # type: ignore[misc]
    "digits": digits,
    "preferences": preferences,
}


def main() -> None:
    """Run what is named, or all."""
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in sys.argv[1:] or TASKS:
            print(name, flush=True)
            TASKS[name]()
        os.chdir("/")


if __name__ == "__main__":
    main()
