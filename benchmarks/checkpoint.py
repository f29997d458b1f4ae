"""What a checkpoint costs beside the least that durability needs: sha256, a safetensors write and one fsync of the same tensors.

About 100 MB of float32 in 96 tensors. Synchronous saving is timed whole, asynchronous saving by how long the caller stands still, beside a
clone of every tensor in memory. Rounds are interleaved, in another order each; ratios of medians, and of the least times, which other
processes on the machine disturb less.
Run: python benchmarks/checkpoint.py
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import file_digest
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from safetensors.torch import save_file

from stackwise.storage.checkpoints.store import CheckpointStore

Tensors = dict[str, torch.Tensor]
DOCUMENT = {"seed": 7, "data": {"cursor": list(range(64))}}
SYNCHRONOUS_BOUND, STALL_BOUND = 1.3, 1.2


def make_tensors(megabytes: float) -> Tensors:
    """Weights and two moments of 16 layers, each a matrix and a vector."""
    width = int((megabytes * 1e6 / 4 / 3 / 16) ** 0.5)
    shapes = {"weight": (width, width), "bias": (width,)}
    kinds = ("model", "exp_avg", "exp_avg_sq")
    return {f"{kind}.{i}.{name}": torch.randn(shape) for kind in kinds for i in range(16) for name, shape in shapes.items()}


def plain_write(folder: Path, tensors: Tensors) -> float:
    """Seconds of the library's own write, a digest of the file and one fsync."""
    path = folder / "plain.safetensors"
    path.unlink(missing_ok=True)
    start = perf_counter()
    save_file(tensors, path)
    with path.open("rb") as file:
        file_digest(file, "sha256")
        os.fsync(file.fileno())
    return perf_counter() - start


def synchronous(store: CheckpointStore, step: int, tensors: Tensors) -> float:
    """Seconds of a whole save: digests, manifest, rename, fsync of every file and directory, and pruning of the one before."""
    start = perf_counter()
    store.save(step, tensors, DOCUMENT)
    return perf_counter() - start


def stall(store: CheckpointStore, step: int, tensors: Tensors) -> float:
    """Seconds until an asynchronous save returns; the writing is then waited for, untimed."""
    start = perf_counter()
    store.save(step, tensors, DOCUMENT, asynchronous=True)
    seconds = perf_counter() - start
    store.wait()
    return seconds


def clone(tensors: Tensors) -> float:
    """Seconds of a clone of every tensor."""
    start = perf_counter()
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    seconds = perf_counter() - start
    del copies
    return seconds


def measure(folder: Path, tensors: Tensors, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way to save, round by round; the first round of all is left out."""
    stores = {name: CheckpointStore(folder / name, keep_last=last) for name, last in (("keep", None), ("prune", 1), ("beside", 1))}
    seconds: dict[str, list[float]] = {}
    for i in range(rounds + 1):
        step = i + 1
        ways: dict[str, Callable[[], float]] = {
            "sha256 + safetensors + fsync": lambda: plain_write(folder, tensors),
            "save": lambda step=step: synchronous(stores["keep"], step, tensors),  # type: ignore[misc]
            "save, prune the one before": lambda step=step: synchronous(stores["prune"], step, tensors),  # type: ignore[misc]
            "clone": lambda: clone(tensors),
            "asynchronous save": lambda step=step: stall(stores["beside"], step, tensors),  # type: ignore[misc]
        }
        names = list(ways)[i % len(ways) :] + list(ways)[: i % len(ways)]
        for name in names:
            os.sync()
            seconds.setdefault(name, []).append(ways[name]())
        rmtree(folder / "keep")
        stores["keep"] = CheckpointStore(folder / "keep")
    return {name: timed[1:] for name, timed in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--directory", type=Path, help="where to write; the disk of the current directory when left out")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tensors = make_tensors(chosen.megabytes)
    total = sum(tensor.nbytes for tensor in tensors.values())
    place = nullcontext(chosen.directory) if chosen.directory else TemporaryDirectory(dir=".", prefix="checkpoint-benchmark-")
    with place as folder:
        seconds = measure(Path(folder), tensors, chosen.rounds)
    middle = {name: statistics.median(timed) for name, timed in seconds.items()}
    least = {name: min(timed) for name, timed in seconds.items()}
    print(f"torch {torch.__version__}, 1 thread, {total / 1e6:.0f} MB in {len(tensors)} tensors, {chosen.rounds} interleaved rounds")
    print(f"{'way':32} {'median ms':>10} {'ratio':>6} {'least ms':>10} {'ratio':>6} {'bound':>6}")
    base, copy = "sha256 + safetensors + fsync", "clone"
    against = {base: base, "save": base, "save, prune the one before": base, copy: copy, "asynchronous save": copy}
    for name, other in against.items():
        bound = "" if name == other else f"{SYNCHRONOUS_BOUND if other == base else STALL_BOUND:.1f}"
        columns = (f"{of[name] * 1e3:10.1f} {of[name] / of[other]:6.2f}" for of in (middle, least))
        print(f"{name:32} {' '.join(columns)} {bound:>6}")


if __name__ == "__main__":
    main()
