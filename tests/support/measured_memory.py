"""Measures what runs take of the process: `python measured_memory.py CONFIG …` prints the bytes of each phase of each.

MALLOC_MMAP_THRESHOLD_ in the environment has glibc give freed tensors back at once, so that what is resident is what lives.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import torch

from stackwise import config
from stackwise.assembly.machine import assemble
from stackwise.contracts.events import PhaseEntered
from stackwise.host.discovery import discover
from stackwise.plan import make_plan

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(key: str) -> int:
    """Bytes that the process holds now (`VmRSS`), or held at most since it was last asked to forget (`VmHWM`)."""
    found = re.search(rf"^{key}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def measured(path: Path) -> dict[str, int]:
    """Phase → the most bytes above those before training."""
    gc.collect()
    machine = assemble(make_plan(config.load(path), discover()))
    start, peaks, phase = resident("VmRSS"), dict[str, int](), ""
    for event in machine.train():
        phase = event.phase if isinstance(event, PhaseEntered) else phase
        peaks[phase] = max(peaks.get(phase, 0), resident("VmHWM") - start)
        RESET.write_text("5")
    return {name: peak for name, peak in peaks.items() if name}


def main() -> None:
    """The first config is trained once before, so that everything is loaded that is loaded once."""
    torch.set_num_threads(1)
    paths = [Path(each) for each in sys.argv[1:]]
    measured(paths[0])
    print(json.dumps({path.stem: measured(path) for path in paths}))


if __name__ == "__main__":
    main()
