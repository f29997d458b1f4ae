"""`examples/optuna_search.py` as a user calls it: trials of equal budget, poor ones given up, and a study that goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "optuna_search.py"
CONFIG = {
    "run": {"seed": 3, "horizon": "3e7 flops", "device": "cpu", "threads": 1},
    "task": {"use": "transformer.causal-lm"},
    "data": {"sources": {"a": {"use": "data.python-stdlib"}}, "batch_size": 2, "seq_len": 16},
    "model": {
        "embedding": {"use": "transformer.token"},
        "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]},
        "head": {"use": "transformer.lm"},
    },
    "optimizer": {"use": "optim.adamw", "lr": {"wsd": {"peak": 0.01, "decay": "30%"}}},
    "evaluate": {"heldout": {"at": ["50%", "100%"], "batches": 1}},
    "phases": {
        "small": {"until": "40%"},
        "grown": {"model": {"rack": {"stacks": [{"base": 2}]}}, "enter": {"growth": {"use": "transformer.stack"}}},
    },
}


@pytest.mark.slow
def test_a_study_goes_on_and_ends_a_poor_trial(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    storage = f"sqlite:///{tmp_path}/tiny.db"
    study = optuna.create_study(study_name="tiny", storage=storage)
    for rate in (9e-3, 9.2e-3, 9.4e-3, 9.6e-3, 5e-4):  # the last one hardly learns
        study.enqueue_trial({"lr": rate, "grown at %": 20})
    command = [sys.executable, str(EXAMPLE), "tiny.yaml", "--trials", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *complete, poor = optuna.load_study(study_name="tiny", storage=storage).trials
    assert all(trial.state is optuna.trial.TrialState.COMPLETE and list(trial.intermediate_values) == [1, 2] for trial in complete)
    assert [trial.value for trial in complete] == [trial.intermediate_values[2] for trial in complete]
    assert poor.state is optuna.trial.TrialState.PRUNED and len(poor.intermediate_values) == 1
    assert f"5 trials; the best: {study.best_value:.4f}" in done.stdout
