"""What a command that computes asks of its process before torch is loaded, and what it imports."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from stackwise.cli.spinning import load_of_others

EXAMPLE = Path(__file__).parents[3] / "examples" / "one-phase.yaml"
UNSET = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GLIBC_TUNABLES", "LD_PRELOAD")

WATCHED = """
import signal, sys
from importlib.abc import MetaPathFinder
class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("as torch is loaded:", signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN, file=sys.stderr)
sys.meta_path.insert(0, Watch())
from stackwise.cli import main
main(prog_name="stackwise")
"""

SAVE_ASKED = """
import os, signal, sys
from importlib.abc import MetaPathFinder
class Ask(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("stackwise.storage.lock", "stackwise.runs.run"):
            os.kill(os.getpid(), signal.SIGUSR1)
            print("asked", flush=True)
            os._exit(2)
sys.meta_path.insert(0, Ask())
from stackwise.cli import main
main(prog_name="stackwise")
"""
"""Asks for a save just before a command imports what does its work."""

FAULTS = """
import resource, sys
from stackwise.cli.process import prepare_process
prepare_process()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (16 << 20) for _ in range(5)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Pages that the third of three equal rounds touches for the first time; 5 × 16 MB are more than glibc keeps by itself."""


def environment(**more: str) -> dict[str, str]:
    """That of the tests, without what a user may say of threads and memory."""
    return {name: value for name, value in os.environ.items() if name not in UNSET and not name.startswith("MALLOC_")} | more


def python(code: str, **more: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(**more), timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


SPINS = """
import os, pathlib, threading
from stackwise.cli import process, spinning
if os.environ.get("HIDDEN"):
    spinning._STAT = pathlib.Path("/none")
process.prepare_process()
process.load_torch()
print(os.environ.get("GOMP_SPINCOUNT"), "stackwise-spinning" in [each.name for each in threading.enumerate()])
"""


@pytest.mark.parametrize(
    ("said", "spins"),
    [
        ({}, "None True" if load_of_others() else "1000 False"),
        ({"HIDDEN": "1"}, "1000 False"),
        ({"GOMP_SPINCOUNT": "7"}, "7 False"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None False"),
    ],
)
def test_the_way_that_threads_wait_is_watched_or_set_unless_the_user_says_it(said: dict[str, str], spins: str) -> None:
    assert python(SPINS, **said).strip() == spins


def test_nothing_is_set_where_torch_is_loaded_already(monkeypatch: pytest.MonkeyPatch) -> None:
    from stackwise.cli.process import prepare_process

    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", object())  # type: ignore[arg-type]  # only its name is looked at
    prepare_process()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_garbage_is_looked_for_again_once_torch_is_loaded() -> None:
    code = """
import gc
from stackwise.cli.process import load_torch
load_torch()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
"""
    python(code)
    python("import gc; gc.disable(); from stackwise.cli.process import load_torch as l; l(); assert not gc.isenabled()")


@pytest.mark.parametrize(("before", "after"), [("SIG_DFL", "SIG_IGN"), ("default_int_handler", "default_int_handler")])
def test_a_request_to_save_kills_no_run_that_starts_up(before: str, after: str) -> None:
    code = (
        "import signal as s; from stackwise.cli.process import prepare_process as p; "
        f"s.signal(s.SIGUSR1, s.{before}); p(); assert s.getsignal(s.SIGUSR1) is s.{after}"
    )
    python(code)


@pytest.mark.parametrize("command", [("run", "none.yaml"), ("resume", "none"), ("branch", "none", "--at", "50%")])
def test_commands_that_train_ignore_it_first_of_all(command: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAVE_ASKED, *command], capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=100
    )
    assert done.returncode == 2, done.stderr
    assert "asked" in done.stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_stays_unless_the_user_says_otherwise() -> None:
    kept, given_back = int(python(FAULTS)), int(python(FAULTS, MALLOC_TRIM_THRESHOLD_="131072"))
    assert kept < 1000
    assert given_back > 5 * (16 << 20) // os.sysconf("SC_PAGE_SIZE") // 2


UNCOMPILED = """
import sys
from stackwise.cli.process import load_torch
load_torch()
import torch
from stackwise.assembly.uncompiled import without_compiler

def marked():
    return (torch.zeros(2, 3, device="meta") + torch.ones(3, device="meta")).shape

class Watcher(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

with without_compiler(), Watcher():
    assert marked() == (2, 3)
    assert sys.modules["torch._dynamo"].__spec__ is None
assert "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch)
with without_compiler():
    marked()
    from torch._dynamo import config
    assert config.recompile_limit > 0
    assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.__spec__ is not None
before = torch._dynamo
with without_compiler():
    assert sys.modules["torch._dynamo"] is before
with Watcher():
    marked()
assert getattr(Watcher.__torch_dispatch__.__wrapped__, "__dynamo_disable") is not Watcher.__torch_dispatch__.__wrapped__
"""
"""Marks are answered without the compiler; any other question loads it; afterwards the marks ask the compiler itself."""


def test_marks_are_answered_without_the_compiler_and_nothing_else_is() -> None:
    python(UNCOMPILED)


def test_whoever_disables_a_function_meanwhile_gets_the_compiler() -> None:
    code = """
import sys, torch
from stackwise.assembly.uncompiled import without_compiler
with without_compiler():
    left_alone = torch.compiler.disable(len)
assert sys.modules["torch._dynamo"].__spec__ is not None and left_alone is not len and left_alone([1]) == 1
"""
    python(code)


def commanded(*arguments: str, cwd: Path) -> tuple[set[str], list[str]]:
    """Modules that a command imports, and the lines of the watcher."""
    command = [sys.executable, "-X", "importtime", "-c", WATCHED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stderr.splitlines()
    modules = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time:")}
    return modules, [line for line in lines if line.startswith("as torch")]


NEVER = {
    "jinja2", "pygments", "rich", "click_man", "tokenizers", "transformers", "datasets", "pyarrow", "tensorboard", "matplotlib", "pandas",
    "stackwise.conformance", "stackwise.scaffold", "stackwise.reports.page", "stackwise.saved.generate", "stackwise.saved.evaluate",
    "stackwise.runs.diagnosis", "stackwise_providers_transformer.hugging_face",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.rare  # three processes that compute; an import too many makes a start slower and nothing wrong
def test_commands_import_what_they_use(tmp_path: Path) -> None:
    run, before = commanded("run", str(EXAMPLE), "--set", "run.horizon=2 steps", "--output", "r", cwd=tmp_path)
    assert before == ["as torch is loaded: True"]
    assert {"torch", "stackwise.assembly.pricing", "stackwise.machine.step"} <= run
    assert not run & NEVER
    assert not run & {"stackwise.plan.amendments", "stackwise.saved.generate", "torch._dynamo", "torch._inductor"}

    plan, _ = commanded("plan", str(EXAMPLE), cwd=tmp_path)
    assert not plan & NEVER
    assert not plan & {"stackwise.runs", "stackwise.saved", "stackwise.storage.checkpoints"}

    resume, before = commanded("resume", "r", cwd=tmp_path)
    assert before == ["as torch is loaded: True"]
    assert not resume & NEVER
    assert not resume & {"stackwise.assembly.pricing", "torch.utils.flop_counter", "torch._dynamo", "sympy"}
