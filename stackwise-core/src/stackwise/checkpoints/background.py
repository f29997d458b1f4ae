"""Saving beside training: the state is copied at once, a thread writes the copy, and what goes wrong there is said here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Thread

import torch

from stackwise.checkpoints.tensor_file import distinct


class Snapshot:
    """Copies of tensors in CPU memory that is used again by the next copy: fresh memory costs more than the copying."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values of all tensors as they are now; they are valid until the next call.

        Args:
            tensors: by name; tied ones are copied once and stay tied.
        """
        own, same = distinct(tensors)
        self._memory = {name: self._memory_for(name, tensor) for name, tensor in own.items()}
        for name, tensor in own.items():
            self._memory[name].copy_(tensor.detach())
        return {name: self._memory[same.get(name, name)] for name in tensors}

    def _memory_for(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        held = self._memory.get(name)
        if held is not None and held.shape == tensor.shape and held.dtype == tensor.dtype:
            return held
        return torch.empty(tensor.shape, dtype=tensor.dtype)


class Background:
    """At most one piece of work in a thread; its error is raised by whoever waits for it."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the work before it has been waited for."""
        assert self._thread is None
        self._thread = Thread(target=self._run, args=(work,), name="checkpoint writer")
        self._thread.start()

    def wait(self) -> None:
        """Return when no work is under way; raises what it raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
