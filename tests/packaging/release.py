"""Builds wheels and sdists of all four distributions, checks them, and follows README.md with nothing else installed: `make wheels`."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from clean_venvs import ALL, ROOT, Environment, run  # found by the line above

SHORT = ("--set", "run.horizon=10 steps", "--set", "data.batch_size=2", "--set", "evaluate.heldout.batches=1", "--set", "run.device=cpu")


def build(folder: Path) -> list[Path]:
    """Build everything into a folder that may hold no other release; returns the wheels."""
    shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory() as scratch:
        for name in ALL:
            copy = Path(scratch) / name
            shutil.copytree(ROOT / name, copy, ignore=shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__"))
            run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy, cwd=Path(scratch))
    files = sorted(folder.iterdir())
    assert len(files) == 2 * len(ALL), files
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=folder)
    return [path for path in files if path.suffix == ".whl"]


def commands() -> list[list[str]]:
    """The commands of README.md that need nothing but a working directory; `make run` trains what the Makefile says."""
    blocks = re.findall(r"^```console\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (first,) = re.findall(r"^CONFIG \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    lines = [line.replace("make run", f"stackwise run {first}") for block in blocks for line in block.splitlines()]
    called = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("stackwise ")]
    assert [line[0] for line in called].count("run") == 1
    return [line for line in called if line[0] not in ("new-provider", "check")]


def follow(wheels: list[Path]) -> None:
    """Every command of README.md, runs cut short, in an environment of the wheels and what they declare."""
    with TemporaryDirectory() as scratch:
        environment = Environment(Path(scratch) / "clean", wheels)
        shutil.copytree(ROOT / "examples", environment.work / "examples")
        for command in [["list-providers"], *commands()]:
            environment.stackwise(*command, *(SHORT if command[0] == "run" else ()))
            print("ran  stackwise", shlex.join(command))


if __name__ == "__main__":
    made = build(Path(sys.argv[1]).absolute())
    follow(made)
    print("\n".join(str(path) for path in sorted(made[0].parent.iterdir())))
