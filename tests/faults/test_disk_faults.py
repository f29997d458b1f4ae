"""A disk that refuses, stops short, lies or loses its power never costs a checkpoint that was there."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_disk import (
    TENSORS,
    PowerCut,
    RecordingDisk,
    check_whole,
    count_calls,
    failing,
    hidden_entries,
    ruled,
    save,
    short_writes,
)

from stackwise.errors import DiskError
from stackwise.storage.checkpoints.store import CheckpointStore

Prepare = Callable[[Path], CheckpointStore]


def one_before(place: Path) -> CheckpointStore:
    save(CheckpointStore(place), 10, 1)
    return CheckpointStore(place)


def found(place: Path) -> tuple[int, int] | None:
    newest, _ = CheckpointStore(place).newest()
    return None if newest is None else (newest.step, check_whole(newest))


@pytest.mark.parametrize(
    ("error", "once", "step"),
    [
        (errno.ENOSPC, True, 20),
        (errno.ENOSPC, False, 10),
        (errno.EIO, True, 10),  # which error it is changes the sentence alone
        (errno.EROFS, False, 20),
        pytest.param(errno.ENOSPC, True, 10, marks=pytest.mark.rare),
        pytest.param(errno.ENOSPC, False, 20, marks=pytest.mark.rare),
    ],
)
def test_any_call_that_fails_is_named_as_the_disks_and_leaves_the_old_checkpoint(tmp_path: Path, error: int, once: bool, step: int) -> None:
    """`step` 10 replaces the checkpoint there is, 20 stands beside it; `once`: the disk works again after one failure."""
    calls = count_calls(lambda: save(one_before(tmp_path / "counted"), step, 2))
    named = 0
    for at in range(len(calls)):
        place = tmp_path / f"{at}"
        store = one_before(place)
        with ruled(failing(at, error, once=once)):
            try:
                save(store, step, 2)
                result = None
            except DiskError as refused:
                result = str(refused)
        if result is None:
            assert found(place) == (step, 2)
            continue
        named += 1
        assert result.startswith("disk error: ") and os.strerror(error) in result and str(place) in result
        assert found(place) in ((10, 1), (step, 2))
        left = hidden_entries(place)
        if found(place) == (10, 1):
            assert left == [] or (not once and left == [".step-000000010.replaced"])  # it could not be renamed back, and is found there
        save(store, 30, 3)
        assert found(place) == (30, 3) and hidden_entries(place) == []
    assert named > 20


def test_a_full_disk_in_the_writer_thread_surfaces_once_and_names_the_disk(tmp_path: Path) -> None:
    store = one_before(tmp_path / "c")
    full = failing(6, errno.ENOSPC, once=False)
    for surfaces in (store.wait, store.close, lambda: save(store, 30, 3)):
        with ruled(full):
            save(store, 20, 2, asynchronous=True)
            with pytest.raises(DiskError, match="No space left"):
                surfaces()
        store.wait()
        assert found(tmp_path / "c") == (10, 1) and hidden_entries(tmp_path / "c") == []
    save(store, 40, 4, asynchronous=True)
    store.close()
    assert found(tmp_path / "c") == (40, 4)


def test_writes_that_take_less_than_they_are_given_are_gone_on_with(tmp_path: Path) -> None:
    with ruled(short_writes):
        save(CheckpointStore(tmp_path / "c"), 10, 1)
    assert found(tmp_path / "c") == (10, 1)


def lying(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Claims to have written everything, and has not."""
    if name == "write":
        real(arguments[0], arguments[1][:-1])
        return len(arguments[1])
    if name == TENSORS:
        real(*arguments)
        return os.truncate(arguments[1], arguments[1].stat().st_size - 1)
    return real(*arguments)


def flipping(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Writes one bit wrong in everything long enough."""
    if name == "write" and len(arguments[1]) > 40:
        content = bytearray(arguments[1])
        content[30] ^= 4
        return real(arguments[0], bytes(content))
    if name == TENSORS:
        real(*arguments)
        content = bytearray(arguments[1].read_bytes())
        content[-1] ^= 4
        return arguments[1].write_bytes(content)
    return real(*arguments)


@pytest.mark.parametrize(("rule", "reason"), [(lying, "bytes on disk|read back"), (flipping, "does not read back as it was written")])
def test_a_disk_that_lies_is_caught_before_the_checkpoint_gets_its_name(tmp_path: Path, rule: Any, reason: str) -> None:
    place = tmp_path / "c"
    save(CheckpointStore(place), 10, 1)
    with ruled(rule), pytest.raises(DiskError, match=reason):
        save(CheckpointStore(place, keep_last=1), 20, 2)
    assert found(place) == (10, 1) and hidden_entries(place) == []


SCENARIOS: dict[str, tuple[tuple[tuple[int, int], ...], tuple[int, int]]] = {
    "first": ((), (10, 1)),
    "second": (((10, 1),), (20, 2)),
    "replacing": (((10, 1),), (10, 2)),
    "pruning": (((10, 1), (20, 2)), (30, 3)),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_power_that_goes_at_any_call_leaves_a_complete_checkpoint(tmp_path: Path, scenario: str) -> None:
    """What was not forced down may be lost, names and bytes each: the old checkpoint is found until the new one is, whole."""
    before, after = SCENARIOS[scenario]
    root = tmp_path / "run"
    root.mkdir()
    for step, which in before:
        save(CheckpointStore(root / "checkpoints"), step, which)
    recorded = RecordingDisk(root)
    cuts = [PowerCut(*kept) for kept in product((True, False), repeat=2)]
    answers: list[list[tuple[int, int] | None]] = [[] for _ in cuts]

    def cut_after(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        result = recorded(number, name, real, arguments)
        for i, cut in enumerate(cuts):
            place = tmp_path / f"{number}-{i}"
            recorded.lay_down(cut, place)
            answers[i].append(found(place / "checkpoints"))
        return result

    with ruled(cut_after):
        save(CheckpointStore(root / "checkpoints", keep_last=1 if scenario == "pruning" else None), *after)
    for cut, found_then in zip(cuts, answers, strict=True):
        switch = found_then.index(after)
        assert found_then == [before[-1] if before else None] * switch + [after] * (len(found_then) - switch), cut


def test_a_file_size_limit_of_the_system_is_a_disk_error(tmp_path: Path) -> None:
    """No simulation: the kernel takes a part of the write and refuses the rest."""
    store = CheckpointStore(tmp_path / "c")
    store.save(1, {"x": torch.arange(10)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DiskError, match=os.strerror(errno.EFBIG)):
            store.save(2, {"x": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    newest, skipped = CheckpointStore(tmp_path / "c").newest()
    assert newest is not None and newest.step == 1 and skipped == [] and hidden_entries(tmp_path / "c") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only directories")
def test_a_read_only_directory_is_a_disk_error(tmp_path: Path) -> None:
    place = tmp_path / "c"
    store = one_before(place)
    place.chmod(0o555)
    try:
        with pytest.raises(DiskError, match="Permission denied"):
            save(store, 20, 2)
    finally:
        place.chmod(0o755)
    assert found(place) == (10, 1)


def test_a_file_where_the_directory_should_be_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("")
    with pytest.raises(DiskError, match="disk error"):
        save(CheckpointStore(tmp_path / "c"), 1, 1)


def test_a_process_that_ends_without_closing_still_finishes_the_save_in_flight(tmp_path: Path) -> None:
    code = f"""
import torch
from pathlib import Path
from stackwise.storage.checkpoints.store import CheckpointStore
CheckpointStore(Path({str(tmp_path / "c")!r})).save(1, {{"x": torch.zeros(3_000_000)}}, {{}}, asynchronous=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    newest, _ = CheckpointStore(tmp_path / "c").newest()
    assert newest is not None and newest.step == 1 and hidden_entries(tmp_path / "c") == []
