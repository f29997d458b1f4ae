"""`doctor` tells what is wrong, and where nothing is it says so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from stackwise.cli import main
from stackwise.planes.model.state import named_tensors
from stackwise.runs import diagnosis
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.lock import RunLock
from stackwise.storage.weights import save_weights


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run directory with three checkpoints and final weights."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text("run: {}\n")
    (out / "status.json").write_text(json.dumps({"status": "finished", "steps": 30}))
    store = CheckpointStore(out / "checkpoints")
    for step in (10, 20, 30):
        store.save(step, {"x": torch.arange(step)}, {})
    save_weights(named_tensors(torch.nn.Linear(2, 2)), out / "final", {})
    return out


def examine(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(main, ["doctor", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_a_healthy_run(made: Path) -> None:
    before = sorted(path for path in made.rglob("*"))
    code, told = examine(str(made))
    assert code == told["exit_code"] == 0 and told["run"]["problems"] == []
    assert [entry["name"] for entry in told["run"]["checkpoints"]] == ["step-000000030", "step-000000020", "step-000000010"]
    assert (told["run"]["status"], told["run"]["steps"], told["run"]["written_by"]) == ("finished", 30, None)
    assert told["environment"]["torch"] == torch.__version__ and told["environment"]["threads"] == torch.get_num_threads()
    assert told["disk"]["free_bytes"] <= told["disk"]["total_bytes"] == shutil.disk_usage(made).total
    assert {"core", "data", "optim", "transformer"} <= {entry["provider"] for entry in told["providers"]}
    text = CliRunner().invoke(main, ["doctor", str(made)])
    assert text.exit_code == 0 and text.stdout.count("valid") == 4 and "DAMAGED" not in text.stdout
    assert sorted(path for path in made.rglob("*")) == before


def test_every_damage_is_named_one_by_one(made: Path) -> None:
    checkpoints = made / "checkpoints"
    (checkpoints / "step-000000030" / "manifest.json").unlink()
    (checkpoints / "step-000000020" / "state.json").write_text("{}")
    (made / "final" / "weights.safetensors").write_bytes(b"")
    (checkpoints / ".step-000000040.writing").mkdir()
    code, told = examine(str(made))
    assert code == 2
    found = {entry["name"]: entry["problems"] for entry in told["run"]["checkpoints"]}
    assert "no manifest.json" in found["step-000000030"][0] and "state.json has 2 bytes" in found["step-000000020"][0]
    assert found["step-000000010"] == [] and "damaged" in told["run"]["final"]["problems"][0]
    assert told["run"]["unfinished"] == [".step-000000040.writing"] and len(told["run"]["problems"]) == 3
    text = CliRunner().invoke(main, ["doctor", str(made)])
    assert text.exit_code == 2 and text.stdout.count("DAMAGED") == 3 and "interrupted" in text.stdout


def test_who_writes_now_is_told_and_left_in_peace(made: Path) -> None:
    lock = RunLock(made)
    try:
        assert examine(str(made))[1]["run"]["written_by"].startswith(f"process {os.getpid()} on host ")
    finally:
        lock.release()
    assert examine(str(made))[1]["run"]["written_by"] is None
    RunLock(made).release()


def test_no_run_directory_is_the_users_mistake(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", str(tmp_path)])
    assert done.exit_code == 2 and "is not a run directory" in done.stderr


def test_a_broken_provider_has_its_own_code(distributions: ModuleType, tmp_path: Path) -> None:
    site = distributions.Site(tmp_path / "site")
    site.folder.mkdir()
    site.install("bad", "raise RuntimeError('no luck')")
    done = distributions.run_stackwise("doctor", sites=[site.folder])
    assert done.returncode == 3 and "BROKEN" in done.stdout and "no luck" in done.stdout and "fake-bad 1.0" in done.stdout


def test_a_disk_short_of_space_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: usage._replace(free=5 * 10**8))
    code, told = examine()
    assert code == 2 and told["disk"]["problems"] == ["only 0.50 GB are free"] and told["run"] is None
