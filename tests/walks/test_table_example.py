"""A table trained from YAML alone: better than least squares, resumed as if nothing had been, and true to its training rows."""

from __future__ import annotations

import csv
import io
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stackwise
from stackwise import DataError, config, read_tokenizers
from stackwise.runs.run import resume
from stackwise_providers_data import tables

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBERS, SIGNS = ["a", "b", "c", "d", "e", "f"], {"oak": 1, "pine": -1, "ash": 0}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    runpy.run_path(str(EXAMPLES / "prepare_table.py"))


def _trained(name: str, *overrides: str) -> Path:
    experiment = config.load(EXAMPLES / "table.yaml", ("run.device=cpu", *overrides))
    stackwise.run(experiment, output=name, stream=io.StringIO())
    return Path(name)


def _logged(directory: Path, key: str) -> list[Any]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines if key in line]


def _rows() -> list[dict[str, Any]]:
    with Path("table.csv").open(newline="", encoding="utf-8") as file:
        return [{name: cell if name == "kind" else float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _least_squares() -> tuple[float, float]:
    """Held-out error of least squares over numbers and indicators of the kinds, and of the function that made the rows.

    Which rows are held out is taken from the loader: the scaled numbers of a held-out row are found among all rows.
    """
    rows = _rows()
    plan = stackwise.make_plan(config.load(EXAMPLES / "table.yaml"), stackwise.discover()).with_tokenizers()
    (entry,) = plan.tokenizers.entries
    scales = json.loads(entry.tokenizer.files["table.json"])["numbers"]
    options = plan.tokenizers.bind(entry.use, plan.schedule.phases[0].state.data.sources["table"].options)
    loader = stackwise.discover().get("loader", "data.csv").load_factory()(options, stackwise.BuildContext(seed=0, split="heldout"))
    held = loader.take(loader.epoch_size().rows, None)["features"][:, 0].double() * scales["a"]["std"] + scales["a"]["mean"]
    out = np.isclose(np.array([row["a"] for row in rows])[:, None], held.numpy()[None], rtol=0, atol=1e-6).any(axis=1)
    x = np.array([[row[name] for name in NUMBERS] + [row["kind"] == kind for kind in SIGNS] for row in rows], dtype=np.float64)
    y = np.array([row["strength"] for row in rows])
    weights, *_ = np.linalg.lstsq(x[~out], y[~out], rcond=None)
    a, b, c, d, e = (x[:, i] for i in range(5))
    made = 100 + 10 * np.sin(np.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d * [SIGNS[row["kind"]] for row in rows] + 5 * e
    assert 0.2 < out.mean() < 0.3
    return float(np.mean((x[out] @ weights - y[out]) ** 2)), float(np.mean((made - y)[out] ** 2))


def test_it_is_far_below_least_squares_and_near_the_noise() -> None:
    directory = _trained("run", "run.horizon=400 steps", "evaluate.heldout.every=100%")
    error = _logged(directory, "squared_error")[-1]
    linear, noise = _least_squares()
    assert linear > 8 and 0.9 < noise < 1.15  # the kinds turn the effect of d around, which no linear map sees
    assert error < 1.6 * noise < linear / 4


def test_a_resume_goes_on_with_the_encoding_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    short = ("run.horizon=8 steps", "run.checkpoint.every=1 steps", "run.checkpoint.keep_last=9", "evaluate.heldout.batches=1")
    whole, half = _trained("whole", *short), _trained("half", *short)
    for step in (6, 7, 8):
        shutil.rmtree(half / "checkpoints" / f"step-{step:09d}", ignore_errors=True)
    (half / "status.json").write_text(json.dumps({"status": "stopped"}))
    shutil.rmtree("cache", ignore_errors=True)
    (entry,) = read_tokenizers(half).entries
    assert entry.use == "data.csv" and entry.tokenizer.vocabulary.startswith("table-")

    def never(*arguments: Any) -> Any:
        raise AssertionError("statistics are learnt at a resume")

    monkeypatch.setattr(tables, "learn_encoding", never)
    resume(half, stream=io.StringIO())
    assert _logged(half, "grad_norm") == _logged(whole, "grad_norm") and len(_logged(half, "grad_norm")) == 8


def test_a_table_that_changed_between_stop_and_resume_is_refused() -> None:
    directory = _trained("run", "run.horizon=2 steps", "evaluate.heldout.batches=1")
    lines = Path("table.csv").read_text(encoding="utf-8").splitlines()
    changed = [line.replace("oak", "ash") if 700 < i < 720 else line for i, line in enumerate(lines)]
    Path("table.csv").write_text("\n".join(changed) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="source 'table'"):
        resume(directory, ["run.horizon=3 steps"], stream=io.StringIO())
