"""One thread, reproducible examples, and the helper modules of `tests/support` by name."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is first imported, here and in every subprocess of a test

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

for profile, count in (("all", 30), ("without the rare", 10)):
    settings.register_profile(
        profile, derandomize=True, database=None, deadline=None, max_examples=count, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("all")


def pytest_configure(config: pytest.Config) -> None:
    """`make test` draws a third of the examples that `make test-all` draws; a file that is run by itself draws all of them."""
    if "not rare" in config.option.markexpr:
        settings.load_profile("without the rare")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported to find the tests is never garbage: no collector goes through it, now or in any test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
