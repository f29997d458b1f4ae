"""What tasks and transforms promise about the batch they get, and about randomness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from stackwise.conformance import bench, partners
from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import LENGTH, ROWS, SEED, Subject, must
from stackwise.contracts.specs import TransformSpec

ASKED = 4
"""Steps at which a transform is asked to leave its batch alone."""


def check_own_stream(subject: Subject) -> None:
    """All randomness comes from the generator that is passed in: the same seed gives the same batch, and no other stream is drawn from.

    Usual cause: `torch.rand(...)` without `generator=generator`; numpy's or Python's own generator.
    """
    artifact, batch = artifact_of(subject), bench.rows(subject)
    before = torch.get_rng_state()
    try:
        first = _apply(subject, artifact, bench.copy_of(batch))
        drawn = not torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(SEED + 1)
        second = _apply(subject, artifact, bench.copy_of(batch))
    finally:
        torch.set_rng_state(before)
    must(not drawn, "it draws from torch's own generator: pass generator=generator to every draw")
    must(bench.same(first, second), "the same batch and the same seed give two results: some randomness does not come from the generator")


def check_leaves_the_batch(subject: Subject) -> None:
    """The batch that is passed in stays as it was.

    Usual cause: an operation in place (`add_`, `masked_fill_`), or a field set in the mapping that came.
    """
    batch, artifact = bench.rows(subject), artifact_of(subject)
    copies = bench.copy_of(batch)
    for step in range(ASKED):
        _apply(subject, artifact, batch, step)
        same = {name for name in batch.keys() & copies.keys() if bench.same(copies[name], batch[name])}
        changed = ", ".join(sorted({*copies, *batch} - same))
        must(not changed, f"at step {step} it changes {changed} of the batch that was passed to it")


def check_transformed_fields(subject: Subject) -> None:
    """A transform passes on every row and field, and the fields that its spec adds have the shapes and dtypes it says.

    Usual cause: a new map that leaves out the fields it does not change; rows dropped by a filter.
    """
    batch = bench.rows(subject)
    result = _apply(subject, artifact_of(subject), bench.copy_of(batch))
    lost = sorted(batch.keys() - result.keys())
    must(not lost, f"{', '.join(lost)} is missing from the result: pass on what is not changed")
    spec = subject.spec()
    outputs = bench.with_sizes(spec, subject.sizes()).outputs if isinstance(spec, TransformSpec) else {}
    for name, field in outputs.items():
        must(name in result, f"the spec adds '{name}', but the result has {', '.join(result)}")
        shape = partners.shape_of(field, ROWS, LENGTH)
        must(tuple(result[name].shape) == shape, f"'{name}' has shape {tuple(result[name].shape)}: {field} is {shape} here")
        same_kind = field.dtype in ("floating", "integer") or result[name].dtype == partners.dtype_of(field)
        must(same_kind, f"'{name}' is {result[name].dtype}: {field.dtype} is promised")
    for name in batch.keys() - outputs.keys():
        same = result[name].shape == batch[name].shape and result[name].dtype == batch[name].dtype
        must(same, f"'{name}' goes from {_form(batch[name])} to {_form(result[name])}, which no spec says: declare it as an output")


def _apply(subject: Subject, artifact: Any, batch: Mapping[str, Tensor], step: int = 0) -> dict[str, Tensor]:
    generator = Generator().manual_seed(SEED)
    if subject.kind == "task":
        return bench.prepared(subject, artifact, batch, generator)
    return dict(artifact(batch, bench.MOMENT._replace(step=step), generator))


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
