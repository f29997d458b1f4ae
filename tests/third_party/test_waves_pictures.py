"""The third party's task on float images: it conforms, learns scikit-learn's digits, and makes new ones by the command."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from distributions import Site
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import stackwise
from stackwise.cli import main
from stackwise.runs.run import run
from stackwise.saved.sample import sample

SOURCE = Path(__file__).parent / "waves-for-stackwise" / "src"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "site"
    folder.mkdir()
    Site(folder).install("waves", None, value="waves_for_stackwise.provider", distribution="waves-for-stackwise")
    monkeypatch.syspath_prepend(str(SOURCE))
    monkeypatch.syspath_prepend(str(folder))
    yield
    for name in [name for name in sys.modules if name.startswith("waves_for_stackwise")]:
        del sys.modules[name]


def digits() -> torch.Tensor:
    return torch.tensor(load_digits().images, dtype=torch.float32)[..., None] / 8 - 1


def config(steps: int) -> dict[str, Any]:
    return {
        "run": {"name": "pictures", "seed": 7, "horizon": f"{steps} steps", "device": "cpu"},
        "task": {"use": "waves.flow"},
        "data": {"sources": {"d": {"use": "data.memory", "arrays": {"image": digits()}, "heldout": 0.1}}, "batch_size": 64},
        "model": {
            "embedding": {"use": "waves.picture"},
            "rack": {"use": "transformer.mlp", "width": 128, "stacks": [{"base": 3}]},
            "head": {"use": "waves.picture"},
        },
        "optimizer": {"use": "optim.adamw", "lr": {"wsd": {"peak": 2e-3, "warmup": "5%", "decay": "50%"}}},
        "evaluate": {"heldout": {"batches": 2, "batch_size": 64}},
    }


@pytest.mark.slow
def test_pictures_of_digits_come_out_of_noise(installed: None, tmp_path: Path) -> None:
    run(stackwise.experiment(config(600)), output=tmp_path / "r", stream=io.StringIO())
    written = tmp_path / "new.safetensors"
    done = CliRunner().invoke(main, ["generate", str(tmp_path / "r"), "--count", "64", "--output", str(written)])
    assert done.exit_code == 0, done.output
    made, known = load_file(written)["image"], digits()
    assert made.shape == (64, 8, 8, 1)
    assert torch.equal(made, sample(tmp_path / "r", 64)["image"]) and not torch.equal(made, sample(tmp_path / "r", 64, seed=1)["image"])
    pixels = torch.stack((made.mean(0).flatten(), known.mean(0).flatten()))
    assert float(torch.corrcoef(pixels)[0, 1]) > 0.95

    def nearest(images: torch.Tensor) -> float:
        return float(torch.cdist(images.flatten(1), known.flatten(1)).min(1).values.mean())

    apart = torch.cdist(known.flatten(1), known.flatten(1)).fill_diagonal_(torch.inf).min(1).values.mean()
    noise = known.mean() + known.std() * torch.randn(64, 8, 8, 1, generator=torch.Generator().manual_seed(0))
    assert nearest(made) < 1.7 * float(apart) < nearest(noise)
    spread = torch.cdist(made.flatten(1), made.flatten(1))
    assert float(spread.mean()) > 0.7 * float(torch.cdist(known.flatten(1), known.flatten(1)).mean())


def test_what_makes_no_rows_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "r"
    directory.mkdir()
    one = CliRunner().invoke(main, ["generate", str(directory)])
    assert one.exit_code == 2 and "--prompt" in one.output
    two = CliRunner().invoke(main, ["generate", str(directory), "--count", "2"])
    assert two.exit_code == 2 and "--output" in two.output
    three = CliRunner().invoke(main, ["generate", str(directory), "--prompt", "a", "--output", "x"])
    assert three.exit_code == 2
