"""Errors that torch raises in training although no code is wrong: out of memory, a reader process that was killed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from stackwise.contracts.protocols import Batch
from stackwise.errors import DataError, UserError
from stackwise.planes.data.sampled_loader import comes_of_a_worker
from stackwise.timeline.duration import Moment


def check_surroundings(device_type: str) -> None:
    """Check that torch computes here as the config says: with gradients, in the declared precision, on the declared device.

    Raises:
        UserError: the caller has switched one of them.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        where = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise UserError(f"training is called inside {where}, where nothing has a gradient: call it outside")
    if torch.is_autocast_enabled(device_type):
        raise UserError(
            "training is called inside torch.autocast, and run.precision says the precision: call it outside, and write bf16 there"
        )
    if (default := torch.get_default_device()).type != "cpu":
        raise UserError(
            f"torch's default device is set to {default}, and run.device says where to train: call it without, and write it there"
        )


def memory_fault(error: BaseException, batches: Sequence[Batch], moment: Moment) -> UserError | None:
    """The error for a step that ran out of memory; None where something else is wrong."""
    if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
        return None
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batches[0].items())
    count = f"{len(batches)} micro-batches, the first" if len(batches) > 1 else "a batch"
    return UserError(
        f"there is not enough memory for step {moment.step} in phase '{moment.phase}', {count} of {shapes} "
        f"({str(error).partition(chr(10))[0] or type(error).__name__}): split the step by data.accumulate, with a smaller data.batch_size, "
        "shorten data.seq_len, or compute in run.precision: bf16"
    )


def worker_fault(error: Exception, sources: Iterable[str]) -> DataError | None:
    """What to say when a worker process of a DataLoader died, which torch reports at any moment; None where something else is wrong."""
    if not comes_of_a_worker(error):
        return None
    return DataError(
        f"a worker process of a DataLoader was ended from outside, or waits ({error}); sources that have such loaders: "
        f"{', '.join(sources)}. Is memory short? Look at the dataset, lower num_workers, or give a longer timeout"
    )
