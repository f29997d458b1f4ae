"""What the data plane costs beside its data: 32 × 256 tokens a step from a memory-mapped corpus of 1 GB.

Each way of reading delivers int64 batches; a bare gather from the same map is what all of them are held against. The rounds are
interleaved and medians are printed; CPU time is of this process and its threads, not of reader processes. The corpus is a sparse file
of zeros, so that no disk is measured.

Run: python benchmarks/data.py [--rounds N] [--full]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from stackwise import BatchSpec, Moment, TensorSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import BatchShape, DataState
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.readers.processes import ProcessLoader
from stackwise.timeline.schedules import Curve
from stackwise_providers_data.token_stream import TokenStream

ROWS, LENGTH = 32, 256
TOKENS = 500_000_000
"""Of two bytes each."""

Reader = Callable[[int], object]
"""Delivers one batch."""


class Measured(NamedTuple):
    """Microseconds of one batch."""

    wall: float
    cpu: float


def token_stream(path: Path) -> TokenStream:
    """The loader under test over the whole corpus."""
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    spec = BatchSpec(fields={"tokens": TensorSpec("batch time", "int64", bounds=(0, 65536))})
    return TokenStream(tokens, spec, seed=7, page_tokens=LENGTH, shuffle=True, fingerprint={}, name="corpus")


def moment(step: int) -> Moment:
    """The instant of a step; constant weights do not look at the time."""
    return Moment(step, 0.0, "run", 0, 0.0, step * ROWS * LENGTH)


def data_plane(loaders: dict[str, Any], read_ahead: int = 0) -> DataPlane:
    """A plane over finished loaders, mixed evenly; opened to read ahead."""
    plane = DataPlane(lambda name, part: loaders[name], read_ahead=read_ahead)
    sources = {name: Part(kind="loader", id=name) for name in loaders}
    mix = {name: Curve.constant(1.0) for name in loaders}
    shape = BatchShape.of(batch_size=ROWS, seq_len=LENGTH)
    plane.enter(DataState(sources=sources, mix=mix, shapes=((0, shape),)), lookahead=0)
    if read_ahead:
        plane.open(map(moment, count()))
    return plane


class BareGather:
    """The least there is to do: rows chosen by an array of row numbers, widened to int64."""

    def __init__(self, path: Path) -> None:
        tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.rows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
        self.order = np.random.default_rng(7).permutation(len(self.rows))

    def __call__(self, step: int) -> torch.Tensor:
        """One batch."""
        first = step * ROWS % (len(self.order) - ROWS)
        return torch.from_numpy(self.rows[self.order[first : first + ROWS]].astype(np.int64))


class MapRows(Dataset[torch.Tensor]):
    """The corpus as torch's DataLoader wants it: one row an index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: Any = None

    def __len__(self) -> int:
        return TOKENS // LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        """One row."""
        if self.rows is None:
            tokens = np.memmap(self.path, dtype=np.uint16, mode="r")
            self.rows = tokens[: len(self) * LENGTH].reshape(-1, LENGTH)
        return torch.from_numpy(self.rows[index].astype(np.int64))


class EndlessRows(torch.utils.data.Sampler[list[int]]):
    """Batches of row numbers without end, drawn in numpy so that the sampler costs next to nothing."""

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng(7)
        while True:
            yield from generator.integers(TOKENS // LENGTH, size=(4096, ROWS)).tolist()


def torch_reader(path: Path, workers: int) -> Reader:
    """The next batch of a DataLoader."""
    batches = iter(DataLoader(MapRows(path), batch_sampler=EndlessRows(), num_workers=workers))
    return lambda step: next(batches)


def process_reader(path: Path, workers: int) -> Reader:
    """The loader in processes, asked twice a process ahead."""
    loader = ProcessLoader(partial(token_stream, path), workers)
    for _ in range(2 * workers):
        loader.ask(ROWS, LENGTH)

    def read(step: int) -> object:
        loader.ask(ROWS, LENGTH)
        return loader.take(ROWS, LENGTH)

    return read


def readers(path: Path) -> dict[str, Reader]:
    """Every way to read, the bare gather first."""
    bare = BareGather(path)
    stream = token_stream(path)
    one, three = data_plane({"a": token_stream(path)}), data_plane({name: token_stream(path) for name in "abc"})
    ahead = data_plane({"a": token_stream(path)}, read_ahead=2)
    return {
        "bare gather": bare,
        "token stream": lambda step: stream.take(ROWS, LENGTH),
        "data plane, 1 source": lambda step: one.batches(moment(step)),
        "data plane, 3 sources": lambda step: three.batches(moment(step)),
        "data plane, 1 source, read-ahead 2": lambda step: ahead.batches(moment(step)),
        "reader processes, 2": process_reader(path, 2),
        "torch DataLoader, 0 workers": torch_reader(path, 0),
        "torch DataLoader, 2 workers": torch_reader(path, 2),
    }


def time_rounds(ways: dict[str, Reader], rounds: int, batches: int) -> dict[str, Measured]:
    """Median microseconds a batch, over interleaved rounds; CPU time is of this process."""
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    steps = dict.fromkeys(ways, 0)
    for _ in range(rounds + 1):
        for name, read in ways.items():
            wall, cpu = perf_counter(), process_time()
            for _ in range(batches):
                read(steps[name])
                steps[name] += 1
            found[name].append(Measured((perf_counter() - wall) / batches * 1e6, (process_time() - cpu) / batches * 1e6))
    return {name: Measured(*map(statistics.median, zip(*times[1:], strict=True))) for name, times in found.items()}


def print_times(title: str, times: dict[str, Measured], least: Measured) -> None:
    """One table; `adds` is over the least."""
    print(f"{title:38} {'wall µs':>9} {'adds':>8} {'CPU µs':>9} {'adds':>8}")
    for name, measured in times.items():
        adds = Measured(measured.wall - least.wall, measured.cpu - least.cpu)
        print(f"{name:38} {measured.wall:9.1f} {adds.wall:8.1f} {measured.cpu:9.1f} {adds.cpu:8.1f}")


def print_delivery(path: Path, rounds: int, batches: int) -> None:
    """µs a batch when nothing else is done in between."""
    times = time_rounds(readers(path), rounds, batches)
    print_times("delivered, 32 × 256 tokens", times, times["bare gather"])


def print_overlap(path: Path, rounds: int, batches: int) -> None:
    """µs a step that also trains: matrix products that leave the interpreter free, as a training step does."""
    weight, hidden = torch.randn(512, 512), torch.randn(ROWS, 512)

    def training(read: Reader) -> Reader:
        def step(number: int) -> None:
            read(number)
            for _ in range(4):
                torch.mm(hidden, weight)

        return step

    plane, ahead = data_plane({"a": token_stream(path)}), data_plane({"a": token_stream(path)}, read_ahead=2)
    ways: dict[str, Reader] = {
        "no data": lambda step: None,
        "read-ahead off": lambda step: plane.batches(moment(step)),
        "read-ahead 2": lambda step: ahead.batches(moment(step)),
    }
    times = time_rounds({name: training(read) for name, read in ways.items()}, rounds, batches)
    print()
    print_times("beside matrix products", times, times["no data"])


def first_batch(path: Path, state: dict[str, Any] | None) -> float:
    """Milliseconds from nothing to the first batch, at a read position when one is given."""
    start = perf_counter()
    plane = data_plane({"a": token_stream(path)})
    if state is not None:
        plane.load_state_dict(state)
    plane.batches(moment(0))
    return (perf_counter() - start) * 1e3


def print_starts(path: Path, rounds: int) -> None:
    """ms until the first batch: fresh, and resumed at three places of the epoch."""
    plane = data_plane({"a": token_stream(path)})
    plane.batches(moment(0))
    epoch = TOKENS // LENGTH * LENGTH
    places: dict[str, dict[str, Any] | None] = {"first batch of a 1 GB corpus": None}
    for name, position in {"resumed at the start": 0, "resumed in the middle": epoch // 2, "resumed at the end": epoch - 1}.items():
        places[name] = {**plane.state_dict(), "sources": {"a": {"epoch": 0, "position": position}}}
    times: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(rounds):
        for name, state in places.items():
            times[name].append(first_batch(path, state))
    print(f"\n{'until the first batch':38} {'ms':>9}")
    for name, measured in times.items():
        print(f"{name:38} {statistics.median(measured):9.2f}")


def private_bytes() -> int:
    """Resident memory of this process that is not of mapped files."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status says no RssAnon")


def print_memory(path: Path, batches: int) -> None:
    """Private resident memory along many batches."""
    if not Path("/proc/self/status").exists():
        print("\nresident memory: this system has no /proc to read it from")
        return
    plane = data_plane({"a": token_stream(path)})
    print(f"\n{'private resident memory after batches':38} {'MiB':>9}")
    marks = {batches * tenth // 10 for tenth in (1, 5, 10)} | {1000}
    for step in range(batches):
        plane.batches(moment(step))
        if step + 1 in marks:
            print(f"{step + 1:38,} {private_bytes() / 2**20:9.1f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=200, help="batches of a round")
    parser.add_argument("--full", action="store_true", help="a million batches for the memory table, not a hundred thousand")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, numpy {np.__version__}, {os.cpu_count()} processors, 1 thread, {arguments.rounds} interleaved rounds"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.bin"
        with path.open("wb") as file:
            file.truncate(2 * TOKENS)
        print_delivery(path, arguments.rounds, arguments.batches)
        print_overlap(path, arguments.rounds, arguments.batches)
        print_starts(path, arguments.rounds)
        print_memory(path, 1_000_000 if arguments.full else 100_000)


if __name__ == "__main__":
    main()
