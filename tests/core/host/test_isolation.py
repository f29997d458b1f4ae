"""The guard around foreign code in a process of its own, where parts of torch are not imported yet."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
import torch

from stackwise.host.isolation import OWN_THREADS, guarded

CODE = """
import os, sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
from stackwise.host.isolation import guarded
class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))
for _ in range(2):
    with Passing(), torch.device("cpu"), guarded(building=True) as changed:
        pass
    print(changed)
with guarded() as changed:
    os.environ["LEFT_BEHIND"] = "1"
print(changed, "LEFT_BEHIND" in os.environ)
"""


def test_what_the_guard_itself_makes_torch_import_is_nobodys_fault() -> None:
    """Under a mode that sees every operation, asking for the default device imports the compiler, which sets an environment variable."""
    env = {"PATH": "", "HOME": "/nonexistent"}
    told = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=env).stdout
    assert told.splitlines() == ["[]", "[]", "['the environment variables'] False"]


def test_an_artifact_that_keeps_stdout_writes_there_later(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded(building=True):
        kept = sys.stdout
        print("while it is built", file=kept)
    assert (kept.encoding, kept.fileno) == (sys.stdout.encoding, sys.stdout.fileno)
    print("while it is used", file=kept)
    assert capsys.readouterr() == ("while it is used\n", "while it is built\n")


def test_a_default_device_is_taken_back_without_leaving_a_mode_behind() -> None:
    with guarded() as changed:
        torch.set_default_device("meta")
    assert changed == ["the default device of torch"] and torch.zeros(1).device.type == "cpu"
    assert torch.overrides._len_torch_function_stack() == 0


def test_an_entry_that_was_taken_off_the_module_path_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("/nowhere/at/all")
    with guarded() as changed:
        sys.path.remove("/nowhere/at/all")
        sys.path.append("/a/library")
    assert changed == ["the module path"]
    assert sys.path[0] == "/nowhere/at/all" and sys.path[-1] == "/a/library"


def test_a_signal_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with guarded() as changed:
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
    assert changed == ["a signal handler"] and signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize(("name", "blamed"), [(f"{OWN_THREADS}asking", []), ("theirs", ["a running thread"])])
def test_threads_of_this_package_that_begin_meanwhile_are_not_blamed_on_foreign_code(name: str, blamed: list[str]) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name=name, daemon=True)
    try:
        with guarded() as changed:
            thread.start()
    finally:
        over.set()
        thread.join()
    assert changed == blamed
