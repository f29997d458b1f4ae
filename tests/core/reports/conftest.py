"""One tiny run for all tests of this folder that only look at it."""

from __future__ import annotations

from pathlib import Path

import pytest
from shown_runs import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("shown"))
