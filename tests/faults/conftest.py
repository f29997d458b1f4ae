"""One fork server for all faults of runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributions import Site
from fork_server import ForkServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs command lines in forked children that know the provider `remembering`."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.install("remembering", (Path(__file__).parents[1] / "support" / "remembering.py").read_text("utf-8"))
    with ForkServer([site.folder]) as running:
        yield running
