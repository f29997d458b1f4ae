"""Keep the buffers that a forward pass changes, such as running statistics, and put them back where it must leave no trace."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from stackwise.errors import UserError

_WATCHED_STEPS = 3
"""Steps in which to learn which buffers training changes; copying large constant ones (masks, tables) at every step is wasted."""

_SMALL = 1024
"""Entries up to which a buffer is copied at every step, because it may change first later (a count of epochs, a threshold)."""


class KeptBuffers:
    """Copies of a model's buffers, to be put back.

    Args:
        model: may exchange a buffer for another of the same name, or for None.
        paths: of the buffers to keep; all of them when left out.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str] | None = None) -> None:
        self._places = [(path, *_place(model, path)) for path in ([p for p, _ in model.named_buffers()] if paths is None else paths)]
        self._objects: list[torch.Tensor | None] = []
        self._copies: list[torch.Tensor | None] = []
        self.keep()

    def __bool__(self) -> bool:
        return bool(self._places)

    def keep(self) -> None:
        """Copy the current values."""
        self._objects = [getattr(owner, name) for _, owner, name in self._places]
        self._copies = [None if buffer is None else buffer.detach().clone() for buffer in self._objects]

    def put_back(self) -> None:
        """Restore every buffer's object and values."""
        for (_, owner, name), buffer, copy in zip(self._places, self._objects, self._copies, strict=True):
            setattr(owner, name, buffer)
            if buffer is not None and copy is not None and not torch.equal(buffer, copy):  # else left alone: an expanded one is not written
                buffer.detach().copy_(copy)

    def changed(self) -> set[str]:
        """Paths of the buffers that changed since `keep`."""
        return {path for path, now, copy in self._pairs() if not torch.equal(now, copy)} | {
            path for path, owner, name in self._places if getattr(owner, name) is None
        }

    def not_finite(self) -> str | None:
        """The first buffer that has become non-finite; one that was so before, such as a mask of infinities, does not count."""
        for path, now, copy in self._pairs():
            if (now.is_floating_point() or now.is_complex()) and not bool(now.isfinite().all()) and bool(copy.isfinite().all()):
                return path
        return None

    def _pairs(self) -> Iterable[tuple[str, torch.Tensor, torch.Tensor]]:
        for (path, owner, name), copy in zip(self._places, self._copies, strict=True):
            now = getattr(owner, name)
            if now is not None and copy is not None:
                yield path, now, copy


class TrainedBuffers:
    """Copies, from before the current step, of the buffers that the steps of a phase change."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._kept, self._steps = model, KeptBuffers(model), 0
        self._changed: set[str] = set()
        self._still: dict[str, tuple[torch.Tensor, int]] = {}
        """Large buffers that no step has changed so far, which are not copied, each with the version that torch counts of its writes."""

    def before_step(self) -> None:
        """Copy what the step may change: all buffers in the first steps, then small ones and those that some step changed."""
        if not self._kept and not self._still:
            return
        if 0 < self._steps <= _WATCHED_STEPS:
            self._changed |= self._kept.changed()
        if self._steps == _WATCHED_STEPS or (late := self._moved()):
            self._changed |= set() if self._steps == _WATCHED_STEPS else late
            large = {path: each for path, each in self._model.named_buffers() if each.numel() > _SMALL and path not in self._changed}
            self._kept = KeptBuffers(self._model, sorted(dict(self._model.named_buffers()).keys() - large.keys()))
            self._still = {path: (each, _version(each)) for path, each in large.items()}
        else:
            self._kept.keep()
        self._steps += 1

    def _moved(self) -> set[str]:
        """Paths of the large buffers that were written to or exchanged, or are gone, since they were last seen to stand still."""
        present = dict(self._model.named_buffers()) if self._still else {}
        return {p for p, (each, version) in self._still.items() if present.get(p) is not each or _version(each) != version}

    def not_finite(self) -> str | None:
        """The first buffer that this step made non-finite."""
        return self._kept.not_finite() if self._kept else None

    def put_back(self) -> None:
        """Undo the step's changes.

        Raises:
            UserError: it is the first to change a large buffer, of which there is no copy.
        """
        self._kept.put_back()
        if moved := sorted(self._moved()):
            raise UserError(
                f"the buffer {moved[0]} stood still since the phase began and changed first in this step, which is skipped: there is no "
                "copy to put back. Go on from the last checkpoint, with a finite loss here, or let the module change it from the start"
            )


def _version(buffer: torch.Tensor) -> int:
    """How often torch has seen it written to; 0 of one made in inference mode, which nothing counts and training does not write to."""
    return 0 if buffer.is_inference() else buffer._version


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return model.get_submodule(owner), name
