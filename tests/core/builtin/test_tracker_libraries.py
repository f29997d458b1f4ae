"""The tests, the conformance and the how-to page of trackers, where wandb, MLflow and trackio are: an environment of its own.

It sees what is installed here and has the libraries before it, as their requirements conflict with ours.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
UNREACHED = ("Connection", "Temporary failure in name resolution", "Network is unreachable", "timed out")
"""What pip says of an index that cannot be reached."""
LONGEST_S = 400


def pip_installs_them(python: Path) -> str:
    """Empty, or what pip says."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    options = ["--no-deps", "--no-compile", "--quiet", "--retries", "1", "-r", str(HERE / "requirements-trackers.txt")]
    done = subprocess.run([*pip, "install", *options], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an environment with the libraries before everything that is installed here."""
    venv.create(tmp_path / "trackers", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "trackers").glob("lib/python*/site-packages")
    here = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
    (packages / "installed-here.pth").write_text("\n".join(here))
    interpreter = tmp_path / "trackers" / "bin" / "python"
    if said := pip_installs_them(interpreter):
        if any(word in said for word in UNREACHED):
            pytest.skip(f"the package index cannot be reached: {said[-300:]}")
        pytest.fail(said)
    return interpreter


@pytest.mark.slow
@pytest.mark.rare  # a minute; what trackers have in common is tried with core.tensorboard, in test_tensorboard.py
def test_trackers_conform_and_their_own_readers_find_every_scalar(python: Path, tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV", "WANDB", "MLFLOW"))}
    environment |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_TRACKING_URI": f"file:{tmp_path}/store"}
    environment |= {name: str(tmp_path / name) for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR")}
    pages = TESTS / "docs" / "test_pages_to_follow.py"
    files = [str(HERE / "test_trackers.py"), str(TESTS / "core" / "conformance" / "test_first_party.py"), str(pages)]
    chosen = ["-k", "test_trackers or core.wandb or core.mlflow or core.trackio or track.md"]
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner")]
    done = subprocess.run(
        [python, "-m", "pytest", *options, *files, *chosen],
        cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
    print(done.stdout.splitlines()[-1])
