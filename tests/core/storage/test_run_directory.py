"""The run directory: its own, never another's, and every line of it JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from time import time

import pytest
import yaml

from stackwise.contracts.events import Evaluated, RunFinished, StepDone
from stackwise.errors import UserError
from stackwise.storage import run_directory as rundir
from stackwise.storage.lock import RunLock, is_held
from stackwise.storage.run_directory import RunDirectory


def step(k: int, loss: float = 1.5, skipped: bool = False) -> StepDone:
    return StepDone(k, "p", loss, 0.5, 1e-3, 8 * (k + 1), 0.01, skipped)


def nothing(made: RunDirectory) -> None:
    """Filled with nothing."""


def lines(path: Path) -> list[dict[str, object]]:
    def refuse(constant: str) -> object:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_path_that_exists_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").write_text("x")
    for path in (taken, taken / "precious"):
        with pytest.raises(UserError, match="exists already"):
            RunDirectory.create(path, "n", nothing)
    assert [path.name for path in taken.iterdir()] == ["precious"]


def test_missing_parents_are_made_and_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    made = RunDirectory.create(tmp_path / "a" / "b" / "run", "n", nothing)
    made.close()
    assert made.path == tmp_path / "a" / "b" / "run"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        RunDirectory.create(tmp_path / "file" / "run", "n", nothing)
    assert f"{tmp_path / 'file' / 'run'} exists already" not in str(caught.value)


def test_runs_are_numbered_from_the_first_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "n-002").mkdir(parents=True)
    made = [RunDirectory.create(None, "n", nothing) for _ in range(3)]
    assert [str(run.path) for run in made] == ["runs/n-001", "runs/n-003", "runs/n-004"]
    for run in made:
        run.close()


def test_steps_go_to_the_metrics_and_everything_else_to_the_events(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "n", nothing)
    metrics = {"loss": 2.0, "bits": nan}
    for event in (
        step(0),
        step(1, nan, True),
        Evaluated(2, "p", "e", "exit", metrics, 0.1),
        RunFinished(2, 16, 0.1, 1, {"a": {"rows": 4}}),
    ):
        run(event)
    run.close()
    measured = lines(run.path / "metrics.jsonl")
    assert measured[0] == {"step": 0, "phase": "p", "loss": 1.5, "grad_norm": 0.5, "lr": 1e-3, "tokens": 8, "seconds": 0.01}
    assert (measured[1]["loss"], measured[1]["skipped"]) == ("nan", True)
    assert measured[2] == {"step": 2, "phase": "p", "evaluation": "e", "at": "exit", "loss": 2.0, "bits": "nan"}
    assert [line["event"] for line in lines(run.path / "events.jsonl")] == ["evaluated", "run_finished"]


def test_events_are_on_disk_at_once(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "n", nothing)
    run(RunFinished(2, 16, inf, 1, {}))
    assert lines(run.path / "events.jsonl")[0]["seconds"] == "inf"
    run(step(0))
    run.sync()
    assert len(lines(run.path / "metrics.jsonl")) == 1
    run.close()


def test_the_resolved_config_is_yaml_that_says_the_same(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "n", nothing)
    config = {"run": {"name": "ü", "horizon": "5 steps"}, "data": {"mix": {"b": 1, "a": 0.5}}}
    run.declare(config, {"name": "ü", "path": Path("x")})
    run.close()
    read = yaml.safe_load((run.path / "config.yaml").read_text("utf-8"))
    assert read == config and list(read["data"]["mix"]) == ["b", "a"]
    assert json.loads((run.path / "plan.json").read_text("utf-8")) == {"name": "ü", "path": "x"}


def test_no_plan_stands_beside_the_config_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the two, the plan is missing, so that whoever goes on writes it."""
    run = RunDirectory.create(tmp_path / "run", "n", lambda made: made.declare({"a": 1}, {"providers": []}))
    assert run.declares({"a": 1}, []) and not run.declares({"a": 2}, []) and not run.declares({"a": 1}, [{"version": "2"}])
    put, calls = rundir.replace_file, []

    def stops(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        put(path, text)

    monkeypatch.setattr(rundir, "replace_file", stops)
    with pytest.raises(KeyboardInterrupt):
        run.declare({"a": 2}, {"providers": []})
    run.close()
    assert not run.declares({"a": 1}, []) and not run.declares({"a": 2}, [])


def test_a_directory_that_could_not_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def fails(made: RunDirectory) -> None:
        made.declare({"a": 1}, {"providers": []})
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        RunDirectory.create(tmp_path / "run", "n", fails)
    assert not list(tmp_path.iterdir())
    RunDirectory.create(tmp_path / "run", "n", nothing).close()


def test_what_a_killed_process_left_half_made_is_swept_when_it_is_old_and_nobodys(tmp_path: Path) -> None:
    yesterday = time() - 86400
    names = (".1-old.making", ".2-held.making", ".3-young.making", ".4-empty.making", "5-visible.making", ".6-other")
    for name in names:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    holder = RunLock(tmp_path / ".2-held.making")
    (tmp_path / ".1-old.making" / "lock").write_text("{}")
    for name in names:
        if "young" not in name:
            os.utime(tmp_path / name, (yesterday, yesterday))
    RunDirectory.create(tmp_path / "run", "n", nothing).close()
    holder.release()
    assert {path.name for path in tmp_path.iterdir()} == {"run", ".2-held.making", ".3-young.making", "5-visible.making", ".6-other"}


STRANGE: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda place, other: place.symlink_to(other),
    "pipe": lambda place, other: os.mkfifo(place),
    "device": lambda place, other: place.symlink_to("/dev/null"),
    "directory": lambda place, other: place.mkdir(),
}


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("kind", STRANGE)
def test_a_log_that_is_no_file_is_never_opened(tmp_path: Path, name: str, kind: str) -> None:
    RunDirectory.create(tmp_path / "run", "n", lambda made: made.declare({"a": 1}, {"providers": []})).close()
    (other := tmp_path / "precious").write_text("x")
    (tmp_path / "run" / name).unlink()
    STRANGE[kind](tmp_path / "run" / name, other)
    with pytest.raises(UserError):
        RunDirectory.open(tmp_path / "run")
    assert other.read_text() == "x" and not is_held(tmp_path / "run")


@pytest.mark.parametrize("kind", STRANGE)
def test_small_files_are_neither_read_from_nor_written_through_what_is_none(tmp_path: Path, kind: str) -> None:
    run = RunDirectory.create(tmp_path / "run", "n", nothing)
    (other := tmp_path / "precious").write_text('{"status": "finished"}')
    for name in ("status.json", ".status.json.writing"):
        STRANGE[kind](run.path / name, other)
    assert run.status() == {}
    if kind != "directory":
        run.write_status({"status": "running"})
        assert run.status() == {"status": "running"} and not (run.path / "status.json").is_symlink()
    run.close()
    assert other.read_text() == '{"status": "finished"}'


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff", b"[]", b"null", b"{", b'{"status": ' + b"9" * 5000 + b"}"])
def test_a_status_that_is_none_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert rundir.read_status(tmp_path) == {}


def test_a_sparse_document_of_gigabytes_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "status.json").open("wb") as file:
        file.truncate(20 << 30)
    assert rundir.read_status(tmp_path) == {}
