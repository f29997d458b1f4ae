"""Saving during training: the state is copied at once, a thread writes the copy, and `wait` raises the error of the thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext

import torch

from stackwise.storage.shared_file import Others
from stackwise.storage.tensor_file import distinct


class Snapshot:
    """Copies of tensors in CPU memory. The next copy uses the same memory, because new memory costs more than the copy itself."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values of all tensors as they are now; they are valid until the next call.

        Args:
            tensors: by name; tied ones are copied once and stay tied.
        """
        own, same = distinct(tensors)
        copies = self.copy(own)
        return {name: copies[same.get(name, name)] for name in tensors}

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same of tensors of which no two share memory."""
        self._memory = {name: self._memory_for(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self._memory[name].copy_(tensor)
        return self._memory

    def _memory_for(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        memory = self._memory.get(name)
        if memory is not None and memory.shape == tensor.shape and memory.dtype == tensor.dtype:
            return memory
        return torch.empty(tensor.shape, dtype=tensor.dtype)


class Background:
    """At most one job in a thread of its own; `wait` raises the error of the job.

    The thread of the executor lives on between two jobs, because to start one costs milliseconds. The interpreter waits for it when it
    ends.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start a job; the caller has waited for the one before."""
        assert self._work is None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint writer")
        self._work = self._executor.submit(work)

    def wait(self, others: Others | None = None) -> None:
        """Return when no job runs; raise the error of the last one, once.

        Args:
            others: processes that do the same job.
        """
        if self._work is not None:
            with nullcontext() if others is None else others.waiting():
                wait([self._work])
            work, self._work = self._work, None
            work.result()

    def close(self) -> None:
        """End the thread; the caller has waited for the last job."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


class Writer:
    """What the stores of all processes have in common: the memory of the copies, and at most one save in a thread.

    Args:
        others: processes that hold parts of the state and write them; None where this one holds all of it.
    """

    def __init__(self, others: Others | None) -> None:
        self._others = others
        self._snapshot, self._background = Snapshot(), Background()

    def wait(self) -> None:
        """Return when no save is in flight.

        Raises:
            DiskError: the save in flight failed; raised once.
        """
        self._background.wait(self._others)

    def close(self) -> None:
        """Wait for the save in flight, then release the thread and the memory of the copies.

        Raises:
            DiskError: the save in flight failed.
        """
        try:
            self.wait()
        finally:
            self._background.close()
            self._snapshot = Snapshot()

    def _start(self, save: Callable[[], None], *, asynchronous: bool) -> None:
        """Save now or in the thread."""
        if asynchronous:
            self._background.start(save)
        else:
            save()
