"""The most memory that each phase took: of the accelerator where there is one, else of the process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from stackwise.contracts.events import Event, PhaseEntered

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Reads the peak when a phase ends, and begins anew; crossing into the next phase counts with the one before.

    Args:
        device: what the run trains on.
        phase: the first to come.
        before: phase → bytes, of earlier processes of the run.
    """

    def __init__(self, device: torch.device, phase: str, before: Mapping[str, int]) -> None:
        self._cuda = device if device.type == "cuda" else None
        self.peaks = dict(before)
        self._phase = phase
        self._reset()

    def __call__(self, event: Event) -> None:
        """A phase that begins ends the one before."""
        if isinstance(event, PhaseEntered) and event.phase != self._phase:
            self.read()
            self._phase = event.phase
            self._reset()

    def read(self) -> None:
        """Take the peak up to here into account."""
        peak = _cuda_peak(self._cuda) if self._cuda is not None else _process_peak()
        if peak is not None:
            self.peaks[self._phase] = max(peak, self.peaks.get(self._phase, 0))

    def _reset(self) -> None:
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            try:
                _RESET.write_text("5")  # forget the peak; where that is not allowed, a phase shows that of the process so far
            except OSError:
                return


def _cuda_peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated(device))


def _process_peak() -> int | None:
    """Bytes; None where the system does not say, as on others than Linux."""
    try:
        match = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else 1024 * int(match[1])
