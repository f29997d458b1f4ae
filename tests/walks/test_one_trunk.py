"""`examples/one_trunk.py`: every end of a trunk is the very run that its budget alone would have given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_an_end_of_the_trunk_is_the_run_of_its_budget(tmp_path: Path) -> None:
    config = yaml.safe_load((EXAMPLES / "one-trunk.yaml").read_text())
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("all the ends of one trunk " * 400)
    config["data"] |= {"sources": {"text": {"use": "data.text-files", "paths": ["text/*.txt"], "heldout": 0.2}}, "batch_size": 2}
    config["data"]["seq_len"], config["run"]["device"] = 16, "cpu"
    config["model"]["rack"] |= {"width": 16, "heads": 2}
    config["optimizer"]["lr"]["wsd"]["warmup"] = "3 steps"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    surroundings = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STACKWISE_CACHE": str(tmp_path / "cache"),
    }

    def call(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = call(sys.executable, str(EXAMPLES / "one_trunk.py"), "small.yaml", "--budgets", "10,20")
    assert "22 steps in place of 30" in printed  # 16 of the trunk, 2 and 4 of the ends
    call("stackwise", "run", "small.yaml", "--output", "alone", "--set", "run.horizon=10 steps", "--set", "optimizer.lr.wsd.decay=2 steps")
    weights = [load_file(tmp_path / place / "final" / "weights.safetensors") for place in ("alone", "runs/trunk-10")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    trunk = [json.loads(line)["step"] for line in (tmp_path / "runs" / "trunk" / "metrics.jsonl").read_text().splitlines()]
    assert max(trunk) == 15  # the trunk ends where the last budget leaves it
