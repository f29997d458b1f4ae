"""A run directory that is moved, removed or replaced while it trains: nothing is written elsewhere, and what can be kept is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fork_server import Ended, ForkServer
from small_runs import PARTS, write_config
from whole_runs import losses, outcome, saved_steps, status

from stackwise.errors import UserError
from stackwise.storage.lock import MovedError
from stackwise.storage.run_directory import RunDirectory

CONFIG = (
    "run: {name: small, horizon: 8 steps, seed: 1, device: cpu, checkpoint: {every: 3 steps, keep_last: 20}}\n"
    + PARTS
    + "optimizer: {use: optim.adamw, lr: 1e-2}\n"
)

AFTER_STEP = """
import os, shutil
from stackwise.contracts.events import StepDone
from stackwise.storage.run_directory import RunDirectory
log = RunDirectory.__call__
def logged(directory, event):
    log(directory, event)
    if isinstance(event, StepDone) and event.step == 4:
        {action}
RunDirectory.__call__ = logged
"""
REPLACED = "os.rename('run', 'moved'); shutil.copytree('moved', 'run')"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path, CONFIG)
    return tmp_path


def run(server: ForkServer, folder: Path, action: str, *more: str) -> Ended:
    return server.stackwise("run", "exp.yaml", "--output", "run", *more, cwd=folder, patch=AFTER_STEP.format(action=action))


@pytest.mark.parametrize(
    ("action", "more"),
    [
        ("os.rename('run', 'moved')", ()),
        ("os.rename('run', 'moved')", ("--set", "run.checkpoint.asynchronous=true")),
        (REPLACED, ()),
    ],
    ids=["renamed", "renamed, asynchronous", "replaced by another"],
)
def test_a_run_that_is_moved_saves_where_it_is_and_stops(server: ForkServer, folder: Path, action: str, more: tuple[str, ...]) -> None:
    ended = run(server, folder, action, *more)
    assert ended.code == 2 and "Traceback" not in ended.err, ended.err
    assert f"stackwise resume {folder / 'moved'}" in ended.err and "before step 6 is saved there" in ended.err
    assert not (folder / "run").exists() or saved_steps(folder / "run") == [3]  # the copy that took its place got nothing of this run
    assert saved_steps(folder / "moved")[-1] == 6 and status(folder / "moved")["status"].startswith("failed: ")
    assert server.stackwise("resume", "moved", cwd=folder).code == 0
    assert sorted(losses(folder / "moved")) == list(range(8))
    assert server.stackwise("run", "exp.yaml", "--output", "whole", cwd=folder).code == 0
    assert outcome(folder, "moved").weights == outcome(folder, "whole").weights


@pytest.mark.parametrize("action", ["shutil.rmtree('run')", "shutil.rmtree('run'); os.mkdir('run')"], ids=["removed", "emptied"])
def test_a_run_that_is_removed_does_not_come_back_empty(server: ForkServer, folder: Path, action: str) -> None:
    ended = run(server, folder, action)
    assert ended.code == 2 and re.search("run was moved away, removed or replaced", ended.err), ended.err
    assert not (folder / "run").exists() or not list((folder / "run").iterdir())


def test_a_lock_that_is_removed_ends_the_run_because_another_may_write(server: ForkServer, folder: Path) -> None:
    ended = run(server, folder, "os.unlink('run/lock')")
    assert ended.code == 2 and "run/lock was removed or replaced" in ended.err, ended.err
    assert saved_steps(folder / "run") == [3]
    assert server.stackwise("resume", "run", cwd=folder).code == 0


def test_a_link_to_a_run_directory_leads_to_it(server: ForkServer, folder: Path) -> None:
    assert server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder, signals={4: ["KILL"]}).code == -9
    (folder / "link").symlink_to("run")
    assert server.stackwise("resume", "link", cwd=folder).code == 0
    assert sorted(losses(folder / "run")) == list(range(8))


def test_nothing_of_a_moved_directory_is_published_at_its_old_place(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "run", lambda run: run.declare({}, {}))
    directory.path.rename(tmp_path / "moved")
    for publish in (
        lambda: directory.declare({}, {}),
        lambda: directory.write_status({}),
        lambda: directory.cut(0),
        directory.sync,
    ):
        with pytest.raises(MovedError) as error:
            publish()
        assert error.value.directory == tmp_path / "run" and error.value.place == tmp_path / "moved"
    assert not (tmp_path / "run").exists()
    directory.close()


def test_two_lives_of_one_directory_are_told_apart(tmp_path: Path) -> None:
    """The path is the same and the lock is another file: whoever made it may write too."""
    directory = RunDirectory.create(tmp_path / "run", "run", lambda run: run.declare({}, {}))
    (tmp_path / "run" / "lock").unlink()
    second = RunDirectory.open(tmp_path / "run")
    with pytest.raises(UserError, match="lock"):
        directory.write_status({})
    second.write_status({})
    second.close()
    directory.close()
