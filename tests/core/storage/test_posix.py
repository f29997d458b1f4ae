"""The package imports on a system without POSIX, and its cold commands run there: simulated, and drawn from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "stackwise-core" / "src" / "stackwise"
ONLY_POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "spwd"}
EVERYWHERE = {
    "SIGINT",
    "SIGTERM",
    "SIGABRT",
    "SIG_IGN",
    "SIG_DFL",
    "Signals",
    "valid_signals",
    "signal",
    "getsignal",
    "Handlers",
    "strsignal",
}
"""What Windows has of the module `signal`, as far as it is used here."""
SYSTEM_CALLS = {"getuid", "geteuid", "register_at_fork", "sysconf", "uname", "statvfs", "mkfifo", "fchmod", "kill", "killpg"}
"""What fails where it is missing; `os.fork` is looked for where it is called."""


def only_posix(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in ONLY_POSIX)
        elif isinstance(node, ast.ImportFrom) and node.module in ONLY_POSIX:
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
            flag = (
                owner == "os" and name.startswith("O_") and name not in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_EXCL", "O_TRUNC")
            )
            if flag or (owner == "os" and name in SYSTEM_CALLS) or (owner == "signal" and name not in EVERYWHERE):
                yield f"{owner}.{name}"


def test_one_module_asks_for_what_only_posix_has() -> None:
    found = {path.relative_to(SOURCE).as_posix(): set(only_posix(ast.parse(path.read_text("utf-8")))) for path in SOURCE.rglob("*.py")}
    assert {path: names for path, names in found.items() if names and path != "storage/posix.py"} == {}


SIMULATED = """
import builtins, os, pkgutil, signal, sys
import attrs, cattrs, click, filelock, numpy, torch, safetensors.torch, yaml, pluggy, packaging, multiprocessing, concurrent.futures
import importlib_metadata, pytest, torch.utils.flop_counter, torch.nn.attention, torch._dynamo, subprocess, tempfile
import torch.distributed.launcher.api
real = builtins.__import__
def refuse(name, globals=None, locals=None, fromlist=(), level=0):
    if name in {only_posix!r} and (globals or {{}}).get("__name__", "").startswith("stackwise"):
        raise ImportError(name + " is not on this system")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = refuse
for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK", "fork", "getuid", "geteuid", "register_at_fork", "uname", "mkfifo"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGKILL", "SIGPIPE", "SIGALRM"):
    delattr(signal, name)
import enum
signal.Signals = enum.IntEnum("Signals", {{"SIGINT": 2, "SIGTERM": 15}})
import stackwise
for module in pkgutil.walk_packages(stackwise.__path__, "stackwise."):
    real(module.name)
print("imported")
from stackwise.cli import main
main(sys.argv[1:], prog_name="stackwise")
"""


@pytest.mark.rare  # two processes that import every module; what only POSIX has is drawn from the source above
def test_every_module_imports_and_cold_commands_run_without_posix(tmp_path: Path) -> None:
    code = SIMULATED.format(only_posix=ONLY_POSIX)
    for command in (("list-providers",), ("plan", str(ROOT / "examples" / "grow-bytes.yaml"))):
        done = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stdout.startswith("imported\n"), done.stderr
