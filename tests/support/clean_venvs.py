"""Wheels built as a release would, and environments that hold nothing but them and what they declare.

An environment is a fresh venv whose third-party packages are links to those installed here, and only those that the wheels under
test declare, directly or through others: a dependency that is used but not declared is missing there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path, PurePosixPath
from shutil import copytree, ignore_patterns

import pytest
from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CORE = "stackwise-core"
PROVIDERS = ("stackwise-providers-transformer", "stackwise-providers-optim", "stackwise-providers-data")
ALL = (CORE, *PROVIDERS)


def run(*command: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command that sees nothing of this environment or its checkout, and hold it to its exit code."""
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "COV", "VIRTUAL_ENV"))}
    environment = {**hidden, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command} exited {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def build_wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a distribution, built by way of its sdist from a copy of its source; once for all processes of one session."""
    name, base = source.name, tmp_path_factory.getbasetemp()
    here = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheels" / name
    here.mkdir(parents=True, exist_ok=True)
    with FileLock(here / "lock"):
        if not (here / "dist").exists():
            _build(source, here)
    (built,) = (here / "dist").glob(f"{name.replace('-', '_')}-*.whl")
    return built


def _build(source: Path, here: Path) -> None:
    name = source.name
    copytree(source, here / name, ignore=ignore_patterns("build", "dist", "*.egg-info", "__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", here / "made", here / name, cwd=here)
    (here / "made").rename(here / "dist")


class Environment:
    """A venv with some of our wheels and links to the third-party distributions they declare, and to `tools`, named as requirements."""

    def __init__(self, folder: Path, wheels: Iterable[Path], tools: Iterable[str] = ()) -> None:
        self.folder = folder
        self.work = folder / "work"
        venv.create(folder, with_pip=False, symlinks=True)
        self.work.mkdir()
        wheels = list(wheels)
        (site,) = folder.glob("lib/python*/site-packages")
        declared = [requirement for wheel in wheels for requirement in requirements(metadata(wheel))]
        for found in third_party([*declared, *map(Requirement, tools)]):
            link(found, site)
        python = folder / "bin" / "python"
        run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--no-compile", *wheels, cwd=self.work)

    def python(self, program: str) -> str:
        return run(self.folder / "bin" / "python", "-c", program, cwd=self.work).stdout

    def stackwise(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        return run(self.folder / "bin" / "stackwise", *arguments, cwd=self.work, code=code)


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def requirements(text: str) -> list[Requirement]:
    """The requirements that hold here, extras left out."""
    found = [Requirement(value) for value in Parser().parsestr(text).get_all("Requires-Dist", [])]
    return [need for need in found if need.marker is None or need.marker.evaluate({"extra": ""})]


def third_party(needs: Iterable[Requirement]) -> list[Distribution]:
    """The installed distributions behind the requirements, and behind theirs; ours left out."""
    waiting, found = list(needs), {}
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name not in found and name not in ALL:
            found[name] = distribution(name)
            waiting += [n for n in map(Requirement, found[name].requires or ()) if n.marker is None or n.marker.evaluate({"extra": ""})]
    return list(found.values())


def link(found: Distribution, site: Path) -> None:
    """Link the top-level files and folders of an installed distribution into another site-packages."""
    tops = {PurePosixPath(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"}
    assert tops, f"{found.metadata['Name']} lists no files"
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(found.locate_file(top))))
