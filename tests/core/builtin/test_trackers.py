"""What each tracker's own reader finds after a stop and a resume: one run, every scalar of the log, config and files.

The libraries are not in requirements-dev.txt, as their requirements conflict with ours: test_tracker_libraries.py runs this file where
they are, and everywhere else what needs them is skipped.
"""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from shown_runs import CONFIG, log

import stackwise
from stackwise.builtin import tracking
from stackwise.builtin.tensorboard import TensorBoard
from stackwise.builtin.tracking import IDENTITIES
from stackwise.contracts.events import Event, RunFacts, StepDone
from stackwise.errors import RunStopped, UserError
from stackwise.runs.run import branch, resume

Read = Callable[[Path], tuple[Mapping[str, list[tuple[int, float]]], set[str], str]]
"""Folder of the test → scalars by name, files kept, and the config as text."""


class Interruption(io.StringIO):
    """A terminal whose reader sends SIGTERM when the second phase is entered."""

    def write(self, text: str) -> int:
        if "enter grown" in text:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


def read_wandb(folder: Path) -> tuple[Mapping[str, list[tuple[int, float]]], set[str], str]:
    """wandb reads its files in Go alone, so their form (LevelDB's log) is read here, and their records by wandb's own protocol."""
    scalars: dict[str, list[tuple[int, float]]] = defaultdict(list)
    identities, files, config = set(), set(), ""
    for record in _wandb_records(folder):
        if record.HasField("run"):
            identities.add(record.run.run_id)
            config += str(record.run.config)
        if record.request.HasField("log_artifact"):
            files.add(record.request.log_artifact.artifact.type)
        if record.HasField("artifact"):
            files.add(record.artifact.type)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if "/" in name:
                scalars[name].append((row["step"], value))
    assert len(identities) == 1
    return scalars, files, config


def _wandb_records(folder: Path) -> Iterator[Any]:
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its own process writes; this waits for it, as the end of ours does
    for path in sorted((folder / "run" / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        for data in _records_of(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record


def _records_of(log: bytes) -> Iterator[bytes]:
    """The records of a file: behind seven bytes of header, in blocks of 32 KiB, each piece with checksum, length and kind."""
    assert log[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(log):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", log[place : place + 7])
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def read_mlflow(folder: Path) -> tuple[Mapping[str, list[tuple[int, float]]], set[str], str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"file:{folder}/store")
    (experiment,) = [each for each in client.search_experiments() if each.name == "stackwise"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    kinds = {"report.html": "report", "config.yaml": "config", "plan.json": "plan", "weights": "weights", "checkpoint": "checkpoint"}
    return {n: [(m.step, m.value) for m in history] for n, history in histories.items()}, {kinds[f] for f in files}, str(run.data.params)


def read_trackio(folder: Path) -> tuple[Mapping[str, list[tuple[int, float]]], set[str], str]:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = json.loads((folder / "run" / IDENTITIES).read_text()).values()
    assert SQLiteStorage.get_runs("stackwise").count(name) == 1  # its folder is that of the whole process
    scalars: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in SQLiteStorage.get_logs("stackwise", name):
        for key, value in row.items():
            if "/" in key:
                scalars[key].append((row["step"], value))
    files = {each["type"] for each in SQLiteStorage.list_artifacts("stackwise") if each["name"].startswith(f"{name}-")}
    return scalars, files, str(SQLiteStorage.get_run_config("stackwise", name))


TRACKERS: Mapping[str, tuple[str, Read]] = {
    "wandb": ("mode: offline", read_wandb),
    "mlflow": ("uri: 'file:{folder}/store'", read_mlflow),
    "trackio": ("project: stackwise", read_trackio),
}


def config(folder: Path, name: str, options: str) -> Path:
    path = folder / "tracked.yaml"
    tokens = [(i * i + 3 * i) % 8 for i in range(240)]
    kept = "" if "artifacts" in options else "artifacts: checkpoints, "
    observer = f"{{use: core.{name}, {kept}{options.format(folder=folder)}}}"
    path.write_text(CONFIG.format(seed=3, lr=1e-2, steps=16, tokens=tokens) + f"observers: [{observer}]\n")
    return path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for everything that the libraries write."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tmp_path


def evaluations(run: Path, *, entry: bool) -> list[tuple[int, float]]:
    """Step and held-out loss on one side of boundaries, from the log."""
    evaluated = [event for event in log(run, "events.jsonl") if event["event"] == "evaluated"]
    return [(event["step"], event["metrics"]["loss"]) for event in evaluated if (event["at"] == "entry") == entry]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::stackwise.host.provider.StateChanged")
@pytest.mark.parametrize("name", TRACKERS)
def test_one_run_across_a_stop_and_a_resume_holds_every_scalar_of_the_log(name: str, places: Path) -> None:
    pytest.importorskip(name)
    options, read = TRACKERS[name]
    run = places / "run"
    with pytest.raises(RunStopped):
        stackwise.run(config(places, name, options), output=run, stream=Interruption())
    first = json.loads((run / IDENTITIES).read_text())
    resume(run, stream=io.StringIO())
    assert json.loads((run / IDENTITIES).read_text()) == first and len(first) == 1
    scalars, files, text = read(places)
    steps = [line for line in log(run, "metrics.jsonl") if "evaluation" not in line]
    for tag, key in {"train/loss": "loss", "train/grad_norm": "grad_norm", "train/tokens": "tokens", "lr/lr": "lr"}.items():
        assert scalars[tag] == [(line["step"], pytest.approx(line[key], rel=1e-12)) for line in steps]
    for tag, entry in {"held/loss": False, "held after boundary/loss": True}.items():
        expected = evaluations(run, entry=entry)
        again = [each for each in expected if each[0] == 8 and not entry]  # the run goes on with the evaluation of the step it was saved at
        assert sorted(scalars[tag]) == sorted(expected + again)
    assert {tag.split("/")[0] for tag in scalars} == {"train", "lr", "boundary", "held", "held after boundary"}
    assert "16 steps" in text
    assert files == {"report", "config", "plan", "weights", "checkpoint"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::stackwise.host.provider.StateChanged")
def test_a_branch_is_another_run(places: Path) -> None:
    pytest.importorskip("mlflow")
    run = stackwise.run(config(places, "mlflow", TRACKERS["mlflow"][0]), output=places / "run", stream=io.StringIO()).directory
    branch(run, "step 8", output=places / "other", stream=io.StringIO())
    ids = [set(json.loads((folder / IDENTITIES).read_text()).values()) for folder in (run, places / "other")]
    assert len(ids[0] | ids[1]) == 2


class Killed(BaseException):
    """A process that ends without another word."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_steps_that_a_run_repeats_stand_twice_with_equal_values(name: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in step 10 with the state of step 8 saved: no library takes back what it has, and training again gives the same."""
    pytest.importorskip(name)
    options, read = TRACKERS[name]
    act = tracking.Tracker.__call__

    def until_killed(tracker: tracking.Tracker, event: Event) -> None:
        act(tracker, event)
        if isinstance(event, StepDone) and event.step == 10:
            sleep(1.5)  # trackio's own thread writes twice a second; what it has not written by then would go with a real process
            raise Killed

    run = places / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(tracking.Tracker, "__call__", until_killed)
        stackwise.run(config(places, name, options), output=run, stream=io.StringIO())
    resume(run, stream=io.StringIO())
    steps = [(line["step"], line["loss"]) for line in log(run, "metrics.jsonl") if "evaluation" not in line]
    assert sorted(read(places)[0]["train/loss"]) == sorted(steps + steps[8:11])


FIFTHS = [0, 5, 10, 15]


def tracked(places: Path, name: str, options: str) -> None:
    stackwise.run(config(places, name, options), output=places / "run", stream=io.StringIO())


@pytest.mark.slow
def test_the_options_of_wandb_say_where_which_steps_and_which_files(places: Path) -> None:
    pytest.importorskip("wandb")
    tracked(places, "wandb", "mode: offline, project: other, entity: us, every: 5, artifacts: none")
    assert {(record.run.project, record.run.entity) for record in _wandb_records(places) if record.HasField("run")} == {("other", "us")}
    scalars, files, _ = read_wandb(places)
    assert [step for step, _ in scalars["train/loss"]] == FIFTHS
    assert files == set()


@pytest.mark.slow
def test_the_options_of_mlflow_say_where_which_steps_and_which_files(places: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    tracked(places, "mlflow", "uri: 'file:{folder}/elsewhere', experiment: other, every: 5, artifacts: none")
    client = MlflowClient(tracking_uri=f"file:{places}/elsewhere")
    (experiment,) = [each for each in client.search_experiments() if each.name == "other"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == FIFTHS
    assert client.list_artifacts(run.info.run_id) == []


@pytest.mark.slow
def test_the_options_of_trackio_say_where_which_steps_and_which_files(places: Path) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    tracked(places, "trackio", "project: other, every: 5, artifacts: none")
    (name,) = SQLiteStorage.get_runs("other")
    assert [row["step"] for row in SQLiteStorage.get_logs("other", name) if "train/loss" in row] == FIFTHS
    assert SQLiteStorage.list_artifacts("other") == []


@pytest.mark.slow
def test_a_space_of_trackio_is_elsewhere_than_this_machine(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network it cannot be reached, which is told; without the option the same run needs none."""
    pytest.importorskip("trackio")
    monkeypatch.setattr(tracking, "PAUSES_S", ())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.warns(RuntimeWarning, match="Trackio could not begin"):
        tracked(places, "trackio", "space: nobody/nowhere")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_named_with_what_to_install(name: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (name, f"{name}.tracking"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"stackwise-core\[{name}\]"):
        stackwise.run(config(places, name, TRACKERS[name][0]), output=places / "run", stream=io.StringIO())
    assert not (places / "run").exists()


def test_what_tensorboard_holds_is_written_where_nobody_finishes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    before = set(threading.enumerate())
    board = TensorBoard("board")
    board.open(RunFacts("run", "", {}, {}), 0, None)
    board.write(1, {"loss": 2.0})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where a relative place would be another
    del board
    assert set(threading.enumerate()) <= before  # its writer has ended, and writes nothing into a folder that is gone
    (written,) = (tmp_path / "board" / "run").iterdir()
    assert b"loss" in written.read_bytes()
