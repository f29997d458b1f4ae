"""What torch raises when a worker of a DataLoader ends, and what a dataset raises in one."""

from __future__ import annotations

import pytest

from stackwise.planes.data.sampled_loader import comes_of_a_worker


@pytest.mark.parametrize(
    ("error", "of_a_worker"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("DataLoader timed out after 2 seconds"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (EOFError(), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), False),
        (ConnectionError("Caught ConnectionError in DataLoader worker process 0."), False),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_only_the_end_of_a_worker_is_taken_for_one(error: Exception, of_a_worker: bool) -> None:
    assert comes_of_a_worker(error) is of_a_worker
