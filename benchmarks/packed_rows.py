"""Packed rows of growing length with documents of one length: peak memory and time of a step, document by document and under one mask.

A decoder of two blocks, width 128, forward and backward, 4,096 tokens a batch, documents of 128 tokens; each length and way in a process of
its own, interleaved. `python benchmarks/packed_rows.py [ROUNDS]`; 3 when left out.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from time import process_time

import torch

from stackwise_providers_transformer import packed
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.options import DecoderOptions

TOKENS, WIDTH, DOCUMENT, STEPS = 4096, 128, 128, 3
LENGTHS = (256, 1024, 4096)


def measured(length: int, *, masked: bool) -> list[float]:
    """Peak MB above the start, and the median of CPU seconds a step."""
    if masked:
        packed._LONG = 2**62
    rack = Decoder(DecoderOptions(width=WIDTH, heads=4, stacks={"base": 2}))
    hidden = torch.randn(TOKENS // length, length, WIDTH)
    segments = (torch.arange(length) // DOCUMENT).expand(len(hidden), length)
    start, spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, []
    for _ in range(STEPS):
        began = process_time()
        rack(hidden, segments=segments).square().mean().backward()
        spent.append(process_time() - began)
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - start, statistics.median(spent)]


def main() -> None:
    """Print one line a length; `--child LENGTH WAY` measures one."""
    if sys.argv[1:2] == ["--child"]:
        torch.set_num_threads(1)
        print(json.dumps(measured(int(sys.argv[2]), masked=sys.argv[3] == "masked")))
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: dict[tuple[int, str], list[list[float]]] = {}
    for _ in range(rounds):
        for length in LENGTHS:
            for way in ("documents", "masked"):
                made = subprocess.run([sys.executable, __file__, "--child", str(length), way], check=True, capture_output=True, text=True)
                found.setdefault((length, way), []).append(json.loads(made.stdout))
    print(f"{TOKENS:,} tokens, documents of {DOCUMENT}, width {WIDTH}; one thread, medians of {rounds} processes of {STEPS} steps\n")
    print(f"{'tokens a row':>12}{'by document':>24}{'one mask':>24}")
    for length in LENGTHS:
        cells = []
        for way in ("documents", "masked"):
            peak, seconds = (statistics.median(column) for column in zip(*found[length, way], strict=True))
            cells.append(f"{peak:>12.0f} MB {seconds:>6.2f} s")
        print(f"{length:>12,}{cells[0]:>24}{cells[1]:>24}")


if __name__ == "__main__":
    main()
