"""New rows, such as images, made by the model of a run or of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stackwise.contracts.answers import calling, expect_rows
from stackwise.contracts.generation import GeneratesFields
from stackwise.errors import UserError
from stackwise.host.registry import Registry, blaming
from stackwise.saved.task_model import open_model
from stackwise.timeline.streams import step_seed, stream_key


def sample(run: Path | str, count: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make new rows with the model of a run (its final weights, or those of its newest whole checkpoint), or with an export.

    Args:
        run: a run directory or an export; it is only read.
        count: of rows.
        seed: of every draw; the same seed gives the same rows.

    Returns:
        Field → [count, …].

    Raises:
        UserError: no run directory or no weights in it; a task that makes no rows.
        ProviderError: a component that cannot be built, or that does not keep to its contract.
    """
    if count < 1:
        raise UserError(f"count: {count} is not a number of rows: it is at least 1")
    source = open_model(Path(run), _making)
    task: Any = source.task
    generator = torch.Generator().manual_seed(step_seed(stream_key(seed, "generate"), 0))
    with blaming(source.providers), calling(source.task_id, "generate_fields"), torch.no_grad():
        return dict(expect_rows(task.generate_fields(source.model, count, generator), count))


def _making(task: object, id: str, registry: Registry) -> Any:
    if not isinstance(task, GeneratesFields):
        registered = registry.get("task", id)
        raise UserError(
            f"task '{id}' ({registered.distribution} {registered.version}) makes no rows of its own: `--prompt` continues text where a "
            "task can, and `--count` asks for images and the like"
        )
    return task
