"""Optuna over a timeline: a learning rate and the instant of growth, at equal training FLOPs, with poor trials ended early.

Each trial trains the config with settings of its own. One that is behind the others at an evaluation is given up. The study is a file,
so the same command goes on with it. Run: python examples/optuna_search.py CONFIG --trials 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna

import stackwise


def settings(trial: optuna.Trial) -> list[str]:
    """What a trial lays on the config, as `--set` takes it."""
    rate = trial.suggest_float("lr", 5e-4, 1e-2, log=True)
    share = trial.suggest_int("grown at %", 10, 60, step=10)
    return [f"optimizer.lr.wsd.peak={rate}", f"phases.small.until={share}%"]


def objective(trial: optuna.Trial, config: Path, metric: str) -> float:
    """The last value of a metric, told to Optuna after every evaluation."""
    evaluation, _, name = metric.partition(".")
    machine, values = stackwise.assemble(stackwise.load(config, settings(trial))), list[float]()
    for event in machine.train():
        if isinstance(event, stackwise.Evaluated) and event.name == evaluation and event.at != "entry":
            values.append(event.metrics[name])
            trial.report(values[-1], len(values))  # evaluations lie at equal shares of the budget; the steps of trials do not compare
            if event.step < machine.schedule.steps and trial.should_prune():
                raise optuna.TrialPruned
    return values[-1]


def search(config: Path, trials: int, metric: str = "heldout.loss", storage: str | None = None) -> optuna.Study:
    """Run so many trials, on top of those that the storage has.

    Args:
        config: with a phase `small`, a learning rate `wsd`, and an evaluation.
        trials: how many.
        metric: `<evaluation>.<metric>`; less is better.
        storage: where the study is kept; nowhere when left out.
    """
    study = optuna.create_study(
        study_name=config.stem,
        storage=storage,
        load_if_exists=True,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    study.optimize(lambda trial: objective(trial, config, metric), n_trials=trials)
    return study


def main() -> None:
    """Search, and print the best settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    study = search(arguments.config, arguments.trials, storage=f"sqlite:///{arguments.config.stem}.db")
    print(f"{len(study.trials)} trials; the best: {study.best_value:.4f} with {study.best_params}")


if __name__ == "__main__":
    main()
