"""Initialisation: a part's constructor runs as its author wrote it, and what it draws comes from a stream of its own.

A part is built whole, so the stream belongs to the part and to the step it is built for: (seed, `init`, part, step). What the old
model brings replaces the constructor's values afterwards; the rest stays as the constructor left it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from stackwise.errors import UserError
from stackwise.timeline.streams import step_seed, stream_key


def build_seed(seed: int, path: str, step: int) -> int:
    """The seed of what a part draws while it is built for the boundary at a step."""
    return step_seed(stream_key(seed, "init", path), step)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let the generators of torch, NumPy and Python begin at a seed, and put them back afterwards."""
    python, array = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]  # torch does not type it
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            random.seed(seed)
            numpy.random.seed(seed & 0xFFFFFFFF)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)


@contextmanager
def building_on(device: torch.device) -> Iterator[None]:
    """Let constructors make their parameters on a device; on `meta`, where there are no values, none is drawn."""
    with device, _Undrawn() if device.type == "meta" else nullcontext():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        yield


class _Undrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]  # likewise
    """Leaves a tensor on the meta device as it is where its values would be drawn.

    torch would do no more, but import its compiler for it: 1,500 modules, which take as long as torch itself.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler to mark this mode as not to be compiled

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and func._schema.name.endswith("_") and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def check_shapes(module: nn.Module, path: str, *, meta: bool = False) -> None:
    """Every parameter and buffer has a shape and values; a lazy layer (`nn.LazyLinear`) gets its shape at the first batch only.

    Args:
        module: as it was built or given.
        path: where it stands in the model.
        meta: whether it was built without values, to be priced.

    Raises:
        UserError: one has none; names, moments and maps need the shape before the first step.
    """
    if without := [name for name, parameter in module.named_parameters() if parameter.is_meta and not meta]:
        raise UserError(
            f"{path}.{without[0]} is on the device meta, which holds no values: build the module on another device and load its weights, "
            "or give a Built(callable, options), which is built where it is needed"
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UserError(
                f"{path}.{name} has no shape before the first batch: give the layer its sizes (nn.Linear in place of nn.LazyLinear), as "
                "the plan, the optimizer and growth need them before the first step"
            )
