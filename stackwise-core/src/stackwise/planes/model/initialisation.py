"""Initialisation: a part's constructor runs as its author wrote it, and what it draws comes from a stream of its own.

A part is built whole, so the stream belongs to the part and to the step it is built for: (seed, `init`, part, step). What the old
model brings replaces the constructor's values afterwards; the rest stays as the constructor left it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import nn
from torch.nn.parameter import is_lazy

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
