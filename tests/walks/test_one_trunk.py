"""`examples/one_trunk.py`: every end of a trunk is the run that its budget alone would have given, but for the rounding of rates."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stackwise.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_an_end_of_the_trunk_is_the_run_of_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the example run in this process, which spares five starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    config = yaml.safe_load((EXAMPLES / "one-trunk.yaml").read_text())
    Path("text").mkdir()
    for i in range(4):
        Path(f"text/{i}.txt").write_text(f"all the {i} ends of one trunk " * 100)
    source = {"use": "data.text-files", "paths": ["text/*.txt"], "heldout": 0.25}
    config["data"] |= {"sources": {"text": source}, "batch_size": 2, "seq_len": 16}
    config["run"]["device"] = "cpu"
    config["model"]["rack"] |= {"width": 16, "heads": 2}
    config["optimizer"]["lr"]["wsd"]["warmup"] = "3 steps"
    Path("small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def call(words: Sequence[str], *, check: bool) -> None:
        assert words[0] == "stackwise" and check
        main(list(words[1:]), standalone_mode=False)

    monkeypatch.setattr(subprocess, "run", call)
    monkeypatch.setattr(sys, "argv", ["one_trunk.py", "small.yaml", "--budgets", "10,20"])
    runpy.run_path(str(EXAMPLES / "one_trunk.py"), run_name="__main__")
    assert "22 steps in place of 30" in capsys.readouterr().out  # 16 of the trunk, 2 and 4 of the ends
    settings = ("run.horizon=10 steps", "optimizer.lr.wsd.decay=2 steps")
    call(["stackwise", "run", "small.yaml", "--output", "alone", *(word for each in settings for word in ("--set", each))], check=True)
    alone, end = (load_file(Path(place) / "final" / "weights.safetensors") for place in ("alone", "runs/trunk-10"))
    for name, tensor in alone.items():
        torch.testing.assert_close(end[name], tensor, rtol=1e-5, atol=1e-6)
    steps = [json.loads(line)["step"] for line in Path("runs/trunk/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 16  # the trunk ends where the last budget leaves it
