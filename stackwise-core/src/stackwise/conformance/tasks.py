"""Tasks: the batch they prepare, the sums they return, and that their inputs do not give the answer away."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stackwise.conformance import bench, partners
from stackwise.conformance.subject import LENGTH, ROWS, SEED, Broken, NotApplicable, Subject, must
from stackwise.contracts.specs import TaskSpec, TensorSpec
from stackwise.errors import UserError
from stackwise.planes.objective import Objective

FLOOR_STEPS = 60
FLOOR_SHARE = 0.3
"""On noise, how much lower the loss may end for a model that sees its own inputs than for one that sees those of other rows: as a share
of the latter's loss, or of how far that one came down, whichever is larger."""

FLOOR_STREAMS = 3
"""Streams of noise that are tried. A task fails only if all show more: with a loss that never settles (a likelihood) one may by chance."""


def check_prepared_batch(subject: Subject) -> None:
    """The prepared batch holds every field that the spec offers to the model, with its shape and dtype.

    Usual cause: a field under another name; inputs that keep the lookahead.
    """
    task, spec = bench.task_of(subject), _spec(subject)
    own = task.get_spec()
    must(bench.with_sizes(own, subject.sizes()) == spec, f"the task's own spec is another than that of its options: {own}")
    for length in (LENGTH, 3):
        batch = bench.prepare(subject, task, length=length)
        needed = {*bench.boundaries(subject).embedding.inputs, *spec.side, *(given for _, given in spec.embedded.values())}
        runtime: dict[str, int] = {}
        for name, field in spec.inputs.items():
            from_embedding = name in spec.embedded and name not in batch
            if from_embedding or (name not in needed and name not in batch):
                continue
            must(name in batch, f"the spec offers '{name}' to the model, but the prepared batch has {', '.join(batch)}")
            _check_form(name, field, batch[name], runtime)
        _check_runtime(runtime, spec, length)
    if sometimes := bench.sometimes_offered(subject, spec):
        generator = torch.Generator().manual_seed(SEED)
        fields = {**spec.batch, **spec.optional}
        rows = {name: partners.draw(field, ROWS, LENGTH + spec.lookahead, generator) for name, field in fields.items()}
        try:
            batch = bench.prepared(subject, task, rows)
        except UserError:
            return  # these optional fields do not go together, and check_mask_is_honoured looks at one alone
        missing = ", ".join(sorted(sometimes - batch.keys()))
        must(not missing, f"the spec offers '{missing}' to the model, and no prepared batch has it, with optional fields or without")


def check_totals(subject: Subject) -> None:
    """`loss` returns sums and their denominators: those of a batch are those of its halves together, metrics included.

    Usual cause: a mean instead of a sum; a denominator that counts rows where targets are summed.
    """
    task = bench.task_of(subject)
    batch = bench.prepare(subject, task)
    outputs = bench.outputs(subject, batch)
    judged = bench.objective(task, bench.model_around(subject))
    whole = _totals(judged, outputs, batch)
    if _spec(subject).couples is not None:
        raise NotApplicable("its spec says that its loss couples the rows of a batch, so that a step is never split")
    halves = [_totals(judged, _half(outputs, part), _half(batch, part)) for part in (slice(None, ROWS // 2), slice(ROWS // 2, None))]
    for name, (value, weight) in whole.items():
        must(weight > 0, f"the denominator of {name} is {weight:g} on an ordinary batch")
        added = [sum(half.get(name, (0.0, 0.0))[i] for half in halves) for i in (0, 1)]
        must(abs(added[1] - weight) <= 1e-4 * abs(weight), f"the denominator of {name} is {weight:g}, and {added[1]:g} over its halves")
        close = abs(added[0] - value) <= 1e-3 * max(abs(value), 1e-3)
        must(close, f"{name} sums to {value:.6g}, and to {added[0]:.6g} over its halves: return a sum, not a mean")
    must("loss" not in judged.judge(outputs, batch)[2], "a metric is named 'loss', which is the name of total / weight")


def check_noise_floor(subject: Subject) -> None:
    """On noise, a model that looks at one position at a time learns no more from its inputs than from those of other rows.

    Usual cause: targets that are not shifted against the inputs, or are among them, so that the model sees the answer. A task that
    is meant to show it, such as denoising, says `reconstructs=True` in its spec.
    """
    if _spec(subject).reconstructs:
        raise NotApplicable("its spec says that its inputs hold what is to be predicted")
    for stream in range(FLOOR_STREAMS):
        (_, seeing), (first, blind) = (_losses_on_noise(subject, stream, blind=blind) for blind in (False, True))
        if blind - seeing <= FLOOR_SHARE * max(abs(blind), first - blind):
            return
    raise Broken(f"on noise the loss comes to {seeing:.4g}, and to {blind:.4g} with the inputs of other rows: the inputs hold the answer")


def check_loss_in_float32(subject: Subject) -> None:
    """The loss of outputs in bfloat16 (`precision: bf16`) is the loss of the same values in float32.

    Usual cause: `outputs["logits"]` used as it comes: say `.float()` before the sum.
    """
    task = bench.task_of(subject)
    batch = bench.prepare(subject, task)
    judged = bench.objective(task, bench.model_around(subject))
    lowered = {name: _lower(tensor) for name, tensor in bench.outputs(subject, batch).items()}
    raised = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in lowered.items()}
    with torch.no_grad():
        (total, weight, _), (expected, own_weight, _) = (judged.judge(outputs, batch) for outputs in (lowered, raised))
    must(total.dtype in (torch.float32, torch.float64), f"the loss of outputs in bfloat16 is summed in {total.dtype}")
    close = abs(float(total) - float(expected)) <= 1e-3 * max(abs(float(expected)), 1e-3) and float(weight) == float(own_weight)
    must(close, f"the loss of outputs in bfloat16 is {float(total):.6g}, and {float(expected):.6g} in float32")


def check_mask_is_honoured(subject: Subject) -> None:
    """Padding, which `mask` marks where a batch has one, changes neither the loss nor its denominator, and is not counted in it.

    Usual cause: a mask among the spec's `optional` fields that `prepare` passes on and `loss` does not look at; a sum over the real
    positions that is divided by the number of all.
    """
    spec = _spec(subject)
    mask = spec.optional.get("mask")
    if mask is None:
        raise NotApplicable("its spec names no optional mask")
    if mask.dims != ("batch", "time"):
        raise NotApplicable(f"its mask is {mask}, which does not mark padding position by position")
    task, length = bench.task_of(subject), LENGTH + spec.lookahead
    hidden = torch.arange(length) >= length - length // 3
    real = (~hidden).to(partners.dtype_of(mask)).expand(ROWS, length)
    losses = []
    batch: dict[str, Tensor] = {}
    for seed in (SEED, SEED + 1):
        rows, others = bench.rows(subject), bench.rows(subject, seed=seed)
        padded = {
            n: torch.where(_along(hidden, t, spec.batch[n]), others[n], t) if "time" in spec.batch[n].dims else t for n, t in rows.items()
        }
        try:
            batch = bench.prepared(subject, task, {**padded, "mask": real})
        except UserError as error:
            raise NotApplicable(f"it refuses rows with a mask: {error}") from error
        judged = bench.objective(task, bench.model_around(subject))
        with torch.no_grad():
            total, weight, _ = judged.judge(bench.outputs(subject, batch), batch)
        losses.append((float(total), float(weight)))
    must(
        losses[0] == losses[1],
        f"with other padding the loss is {losses[1][0]:.6g} over {losses[1][1]:g}, not {losses[0][0]:.6g} over {losses[0][1]:g}",
    )
    full = bench.prepared(subject, task, {**bench.rows(subject), "mask": torch.ones_like(real)})
    _check_padding_is_not_counted(subject, dict(full), batch)


def _check_padding_is_not_counted(subject: Subject, full: dict[str, Tensor], padded: dict[str, Tensor]) -> None:
    """Where the loss is a sum over positions, which shows in gradients that padding elsewhere leaves as they are, its denominator is
    smaller when some of them are padding."""
    task = bench.task_of(subject)
    gradients, weights = [], []
    for batch in (full, padded):
        outputs = bench.outputs(subject, full)
        total, weight, _ = bench.objective(task, bench.model_around(subject)).judge(outputs, {**batch})
        total.backward()
        gradients.append(torch.cat([o.grad.flatten() for o in outputs.values() if o.grad is not None]))
        weights.append(float(weight))
    before, after = gradients
    fewer = int((after != 0).sum()) < int((before != 0).sum())
    still = torch.equal(before[after != 0], after[after != 0])
    if fewer and still:
        sentence = f"a third of the positions is padding and adds nothing to the sum, and the denominator stays {weights[0]:g}"
        must(weights[1] < weights[0], sentence)


def _losses_on_noise(subject: Subject, stream: int, *, blind: bool) -> tuple[float, float]:
    """First and final loss of a pointwise model on noise. A blind model gets the inputs of other rows; the loss gets the right ones."""
    task = bench.task_of(subject)
    model = bench.model_around(subject, zero_head=True).train()
    judged = bench.objective(task, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    fields = bench.boundaries(subject).embedding.inputs
    losses = []
    for step in range(FLOOR_STEPS):
        seed = SEED + 2 * FLOOR_STEPS * stream + step
        batch = bench.prepare(subject, task, seed=seed)
        others = bench.prepare(subject, task, seed=seed + FLOOR_STEPS) if blind else batch
        with bench.seeded(step):
            total, weight, _ = judged.judge(model({**batch, **{name: others[name] for name in fields}}), batch)
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
        losses.append(float(total.detach()) / float(weight))
    return losses[0], sum(losses[-20:]) / 20


def _lower(tensor: Tensor) -> Tensor:
    return tensor.detach().bfloat16() if tensor.dtype.is_floating_point else tensor.detach()


def _along(positions: Tensor, tensor: Tensor, field: TensorSpec) -> Tensor:
    """One value a position, shaped so that it broadcasts against a tensor."""
    return positions.reshape([-1 if dim == "time" else 1 for dim in field.dims])


def _spec(subject: Subject) -> TaskSpec:
    return bench.boundaries(subject).task


def _check_form(name: str, field: TensorSpec, tensor: Tensor, runtime: dict[str, int]) -> None:
    """Compare one field with its spec. Sizes that the request decides must agree between all fields; `runtime` collects them."""
    shape = tuple(tensor.shape)
    must(len(shape) == len(field.dims), f"'{name}' has shape {shape}, and {field} is promised")
    for dim, size in zip(field.dims, shape, strict=True):
        expected = dim if isinstance(dim, int) else runtime.setdefault(dim, size)
        must(size == expected, f"'{name}' has shape {shape}: {field} has {expected} for {dim} here")
    same_kind = field.dtype in ("floating", "integer") or tensor.dtype == partners.dtype_of(field)
    must(same_kind, f"'{name}' is {tensor.dtype}: {field.dtype} is promised")
    if field.bounds is not None:
        low, high = field.bounds[0], int(field.bounds[1])
        inside = bool(((tensor >= low) & (tensor < high)).all())
        must(inside, f"'{name}' has values from {tensor.min()} to {tensor.max()}: {field} is promised")


def _check_runtime(runtime: Mapping[str, int], spec: TaskSpec, length: int) -> None:
    """Every row is there, once or several times; the number of positions is the requested one, unless the task makes its own."""
    rows, time = runtime.get("batch", ROWS), runtime.get("time", length)
    must(rows % ROWS == 0, f"{rows} rows are prepared out of {ROWS}: hand every row on")
    sentence = (
        f"the prepared rows have {time} positions where {length} are asked for: keep the lookahead ({spec.lookahead}) out of the inputs"
    )
    must(not spec.lookahead or time == length, sentence)


def _half(batch: Mapping[str, Tensor], part: slice) -> dict[str, Tensor]:
    """Half of the rows; if a task made several copies of the rows, half of each copy."""

    def halved(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] % ROWS:
            return tensor
        return tensor.reshape(-1, ROWS, *tensor.shape[1:])[:, part].flatten(0, 1)

    return {name: halved(tensor) for name, tensor in batch.items()}


def _totals(judged: Objective, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    result = judged.judge(outputs, batch)
    must(isinstance(result, tuple) and len(result) == 3, "loss returns (sum, denominator, metrics)")
    total, weight, metrics = result
    must(isinstance(total, Tensor) and total.dim() == 0, "the loss is one number, a sum over targets")
    must(total.requires_grad, "no gradient flows back from the loss")
    return {"the loss": (float(total.detach()), float(weight)), **{f"metric '{k}'": (float(v), float(w)) for k, (v, w) in metrics.items()}}
