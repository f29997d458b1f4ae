"""Computing on the meta device without importing torch's compiler, a second that most runs would import it for in vain.

Torch marks functions as not to be compiled, and a mark imports the compiler when its function is first called, only to ask that it
leave the function alone. Most operations on the meta device are marked, and so is whatever watches operations.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_ANSWER = "__dynamo_disable"
"""The attribute of a marked function in which the mark keeps what the compiler answered."""


@contextmanager
def without_compiler() -> Iterator[None]:
    """A while in which marks do not import the compiler; whoever asks anything else of it gets it.

    Afterwards everything is as it was, and the marks ask again. Nothing changes where the compiler is loaded.
    """
    if _COMPILER in sys.modules:
        yield
        return
    stand_in = _StandIn(_COMPILER)
    sys.modules[_COMPILER] = stand_in
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(ModuleType):
    """Answers marks in the compiler's place, and gives the place up at any other question."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._marked: list[Callable[..., Any]] = []

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """For a mark, which alone says `wrapping=False`, the function as it is; else what the compiler answers."""
        if fn is None or options != {"wrapping": False}:
            return self._compiler().disable(fn, recursive, **options)
        self._marked.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiler(), name)

    def leave(self) -> None:
        """Give the place up, and have every mark ask anew."""
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        if vars(torch).get("_dynamo") is self:
            del torch._dynamo
        for function in self._marked:
            vars(function).pop(_ANSWER, None)
        self._marked.clear()

    def _compiler(self) -> ModuleType:
        self.leave()
        return importlib.import_module(_COMPILER)
