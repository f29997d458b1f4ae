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
FOLDS = 5


class Unigram(nn.Module):
    """Every target by its frequency among training targets, whatever is seen."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.logits = (counts + 1).log()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """tokens [B, T] → logits [B, T, V]."""
        return {"logits": self.logits.expand(*batch["tokens"].shape, -1)}


def machine_of(name: str, *overrides: str) -> Any:
    """The machine of an example, with `a.b=c` laid on it."""
    return stackwise.assemble(config.load(EXAMPLES / f"{name}.yaml", overrides))


def targets_of(machine: Any) -> Tensor:
    """How often each id is a target in the first training batches of a fresh machine."""
    phase = machine.schedule.phases[0]
    machine.live.enter(phase)
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


def train(name: str, *overrides: str) -> dict[str, float]:
    """Train, and print every evaluation at the end of a phase; the last one's metrics."""
    started, last = perf_counter(), {}
    for event in machine_of(name, *overrides).train():
        if isinstance(event, Evaluated) and event.at != "cadence":
            last = dict(event.metrics)
            told(f"step {event.step:>4} {event.phase} {event.at}", last)
    print(f"{'training':>40}  {perf_counter() - started:.0f} s")
    return last


def digits() -> None:
    """The digits, and scikit-learn's logistic regression and support vector machine, over five folds: every image is held out once."""
    runpy.run_path(str(EXAMPLES / "prepare_digits.py"))
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    whole = dict(np.load("digits.npz"))
    count, right = len(whole["label"]), dict.fromkeys(("LogisticRegression", "SVC", "model"), 0.0)
    held = round(count / FOLDS)
    for fold in range(FOLDS):
        arrays = {name: np.roll(array, fold * held, axis=0) for name, array in whole.items()}
        np.savez("digits.npz", **arrays)
        image, label, split = arrays["image"].reshape(count, -1), arrays["label"], count - held
        for made in (LogisticRegression(max_iter=5000), SVC()):
            right[type(made).__name__] += made.fit(image[:split], label[:split]).score(image[split:], label[split:]) / FOLDS
        right["model"] += train("digits")["accuracy"] / FOLDS
    for name, share in right.items():
        told(f"{FOLDS} folds: {name}", {"accuracy": share})


def preferences() -> None:
    """Alignment; the baselines are the model that it begins from, and one that was supervised for all steps but the last, which shows
    what it prefers in the evaluation at its entry."""
    runpy.run_path(str(EXAMPLES / "prepare_preferences.py"))
    told("baseline: supervised to the end", {})
    train("preferences", "phases.supervised.until=599 steps")
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
