"""Reader processes: the stream of one process at any number, states, faults and the end of processes, and nothing left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import process_loaders as loaders
import pytest
import torch

from stackwise.contracts.protocols import Batch, Fingerprinted, Loader, Scheduled
from stackwise.contracts.specs import EpochSize
from stackwise.errors import DataError, ProviderError
from stackwise.planes.data.readers.processes import ProcessLoader, ReaderStopped

pytestmark = pytest.mark.slow  # every process imports torch

REQUESTS = [(4, 3), (1, 3), (5, 8), (2, 3), (300, 64), (4, 1), (4, 3), (7, 2), (3, 3), (1, 1)]


@pytest.fixture(scope="module")
def two() -> Iterator[ProcessLoader]:
    loader = ProcessLoader(loaders.Everything, 2)
    yield loader
    loader.close()


@pytest.fixture(scope="module")
def three() -> Iterator[ProcessLoader]:
    loader = ProcessLoader(loaders.Rows, 3)
    yield loader
    loader.close()


@pytest.fixture(params=["two", "three"])
def rewound(request: pytest.FixtureRequest) -> ProcessLoader:
    loader: ProcessLoader = request.getfixturevalue(request.param)
    loader.load_state_dict({"position": 0})
    return loader


def same(batch: Batch, other: Batch) -> bool:
    return list(batch) == list(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(batch.values(), other.values(), strict=True)
    )


def children() -> int:
    return len(multiprocessing.active_children())


def test_stream_and_states_are_those_of_one_process(rewound: ProcessLoader) -> None:
    alone, kept = loaders.Rows(), []
    assert isinstance(rewound, Loader)
    assert rewound.get_batch_spec() == alone.get_batch_spec()
    assert rewound.state_dict() == alone.state_dict()
    for rows, length in REQUESTS:
        batch, expected = rewound.take(rows, length), alone.take(rows, length)
        assert same(batch, expected)
        assert rewound.state_dict() == alone.state_dict()
        kept.append((batch, expected))
    assert all(same(*pair) for pair in kept), "a later batch was written over an earlier one"


def test_asking_ahead_changes_nothing_and_states_are_of_what_was_taken(rewound: ProcessLoader) -> None:
    alone = loaders.Rows()
    for rows, length in REQUESTS:
        rewound.ask(rows, length)
    for number, (rows, length) in enumerate(REQUESTS):
        assert same(rewound.take(rows, length), alone.take(rows, length))
        assert rewound.state_dict() == alone.state_dict()
        if number < 4:
            rewound.ask(2, 2)
    for _ in range(4):
        assert same(rewound.take(2, 2), alone.take(2, 2))


@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_resuming_drops_what_was_asked_for_and_goes_on_exactly(rewound: ProcessLoader, taken: int) -> None:
    for rows, length in REQUESTS:
        rewound.ask(rows, length)
    for rows, length in REQUESTS[:taken]:
        rewound.take(rows, length)
    state = rewound.state_dict()
    assert state == {"position": sum(rows for rows, _ in REQUESTS[:taken])}
    rewound.load_state_dict(state)
    alone = loaders.Rows(state["position"])
    for rows, length in REQUESTS[taken:]:
        assert same(rewound.take(rows, length), alone.take(rows, length))


def test_taking_something_else_than_was_asked_for_is_refused(two: ProcessLoader) -> None:
    two.load_state_dict({"position": 0})
    two.ask(4, 3)
    with pytest.raises(RuntimeError, match="rows=4, length=2 is taken where rows=4, length=3 was asked for first"):
        two.take(4, 2)
    two.take(4, 3)


def test_what_the_loader_offers_beside_is_passed_through(two: ProcessLoader, three: ProcessLoader) -> None:
    assert isinstance(two, Fingerprinted) and isinstance(two, Scheduled)
    two.load_state_dict({"position": 0})
    two.ask(2, 1)
    two.apply_values({"offset": 100.0})
    two.ask(2, 1)
    assert two.fingerprint() == {"bytes": 7, "threads": 1}
    assert two.epoch_size() == EpochSize(rows=1000)
    two.ask(1, 1)
    assert [two.take(n, 1)["tokens"].flatten().tolist() for n in (2, 2, 1)] == [[0, 1], [102, 103], [104]]
    two.apply_values({"offset": 0.0})
    assert not any(hasattr(three, name) for name in ("fingerprint", "epoch_size", "apply_values"))


def test_a_state_of_its_own_only(two: ProcessLoader) -> None:
    two.load_state_dict({"position": 5})
    with pytest.raises(DataError, match="position -1 lies before the data"):
        two.load_state_dict({"position": -1})
    assert two.take(1, 1)["tokens"].item() == 5


def test_values_that_a_loader_refuses_are_reported_at_the_next_batch(two: ProcessLoader) -> None:
    two.load_state_dict({"position": 0})
    two.apply_values({})
    for _ in range(2):
        with pytest.raises(KeyError, match="offset"):
            two.take(1, 1)
    assert two.take(1, 1)["tokens"].shape == (1, 1)


def test_a_fault_keeps_class_message_and_step() -> None:
    loader = ProcessLoader(loaders.Failing, 2)
    for _ in range(6):
        loader.ask(8, 2)
    for first in (0, 8):
        assert int(loader.take(8, 2)["tokens"][0, 0]) == first
    loader.take(8, 2)
    with pytest.raises(loaders.Own, match="row 24 is broken") as caught:
        loader.take(8, 2)
    assert caught.value.row == loaders.STOPPED_AT
    assert "in reader process" in caught.value.__notes__[0] and "self.fail()" in caught.value.__notes__[0]
    assert int(loader.take(8, 2)["tokens"][0, 0]) == 32
    loader.close()


def test_a_fault_that_cannot_be_sent_is_named() -> None:
    loader = ProcessLoader(partial(loaders.FailingPrivately, loaders.STOPPED_AT), 1)
    with pytest.raises(ProviderError, match="Private: nobody knows me"):
        loader.take(1, 1)
    before = children()
    del loader
    gc.collect()
    assert children() == before - 1, "forgetting the loader ends its processes"


def test_a_killed_process_is_named_and_nothing_hangs() -> None:
    before = children()
    loader = ProcessLoader(loaders.Killed, 2)
    for _ in range(6):
        loader.ask(8, 2)
    with pytest.raises(ReaderStopped, match=r"reader process \d of 2 \(pid \d+\) ended with exit code -9"):
        for _ in range(6):
            loader.take(8, 2)
    loader.close()
    assert children() == before


@pytest.mark.parametrize(
    ("build", "fault", "message"),
    [
        (loaders.cannot_build, DataError, "the corpus is empty"),
        (loaders.exits, ProviderError, r"reader process 1 of 1 \(pid \d+\) ended with exit code 7"),
        (lambda: loaders.Rows(), ProviderError, "cannot be sent"),
    ],
)
def test_a_loader_that_cannot_be_built(build: Any, fault: type[Exception], message: str) -> None:
    before = children()
    with pytest.raises(fault, match=message):
        ProcessLoader(build, 1)
    assert children() == before


def test_a_process_that_hangs_is_named_and_does_not_outlive_its_loader() -> None:
    before = children()
    loader = ProcessLoader(loaders.Hanging, 2, patience_s=0.5)
    with pytest.raises(ReaderStopped, match=r"reader process 2 of 2 \(pid \d+\) has delivered nothing for 0.5 s"):
        for _ in range(6):
            loader.take(8, 2)
    loader.close()
    assert children() == before


def test_no_process_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="0 reader processes"):
        ProcessLoader(loaders.Rows, 0)


def test_closing_twice_and_taking_after_it() -> None:
    before = children()
    loader = ProcessLoader(loaders.NoTensors, 1)
    assert children() == before + 1
    with pytest.raises(ProviderError, match="delivered a list"):
        loader.take(1, 1)
    loader.close()
    loader.close()
    assert children() == before
    with pytest.raises(RuntimeError, match="closed"):
        loader.take(1, 1)


def test_descriptors_and_segments_do_not_grow_with_batches(two: ProcessLoader) -> None:
    two.load_state_dict({"position": 0})

    def held() -> tuple[int, ...]:
        return tuple(len(list(folder.iterdir())) for folder in (Path("/proc/self/fd"), Path("/dev/shm")) if folder.exists())

    for _ in range(50):
        two.take(8, 16)
    before = held()
    for _ in range(3000):
        two.take(8, 16)
    assert held() == before


def test_a_program_that_forgets_to_close_still_ends_and_leaves_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import process_loaders\n"
        "from stackwise.planes.data.readers.processes import ProcessLoader\n"
        "if __name__ == '__main__':\n"
        "    loader = ProcessLoader(process_loaders.Rows, 1)\n"
        "    loader.ask(2, 2), loader.ask(2, 2), loader.ask(2, 2)\n"
        "    print(loader.take(2, 2)['tokens'].tolist())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[[0, 0], [1, 1]]\n", "")
