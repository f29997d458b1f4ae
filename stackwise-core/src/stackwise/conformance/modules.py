"""Parts of the model: embeddings, racks, heads, adapters of junctions and of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stackwise.conformance import bench, partners
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.specs import AdapterSpec, EmbeddingSpec, HeadSpec, RackSpec, TensorSpec
from stackwise.planes.model.reported import Reporter


def check_same_seed_same_weights(subject: Subject) -> None:
    """Two modules built from one seed have the same weights, bit for bit.

    Usual cause: a generator that is seeded from the clock or from entropy; weights drawn in the order of a set.
    """
    first, second = (bench.build_module(subject).state_dict() for _ in range(2))
    must(first.keys() == second.keys(), f"two builds have other names: {sorted(first.keys() ^ second.keys())}")
    differing = [name for name in first if not bench.same(first[name], second[name])]
    must(not differing, f"two builds from one seed differ in {', '.join(differing[:3])}")


def check_state_round_trip(subject: Subject) -> None:
    """A module that loads another's `state_dict` computes what the other does, bit for bit.

    Usual cause: a tensor that is neither a parameter nor a persistent buffer, such as a plain attribute drawn at construction.
    """
    trained, other = bench.build_module(subject), bench.build_module(subject, seed=SEED + 1)
    with bench.seeded(SEED), torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    other.load_state_dict(trained.state_dict(), strict=True)
    sentence = "after load_state_dict of another's state the outputs differ: something that counts is not in the state"
    must(bench.same(outputs(subject, trained.eval()), outputs(subject, other.eval())), sentence)


def check_builds_on_meta(subject: Subject) -> None:
    """A module builds and runs on torch's meta device, so that a plan is priced without memory.

    Usual cause: `item()`, `tolist()` or numpy in the constructor or in `forward`; a tensor pinned to `cpu`.
    """
    module = bench.build_module(subject, device="meta")
    elsewhere = [name for name, tensor in module.state_dict().items() if tensor.device.type != "meta"]
    must(not elsewhere, f"{', '.join(elsewhere[:3])} was made on another device than the one in force")
    if subject.kind == "weight-adapter":
        module(torch.ones(2, 3, device="meta"))
        return
    model = bench.model_around(subject, module, device="meta")
    batch = {name: tensor.to("meta") for name, tensor in bench.prepare(subject, bench.task_of(subject)).items()}
    with torch.device("meta"):
        model(batch)


def check_measured_shapes(subject: Subject) -> None:
    """What a module takes and gives has the shapes and dtypes of its spec, for any number of rows and positions.

    Usual cause: `forward` gives a field another name than the spec; a dimension squeezed away, a transposed output.
    """
    module = bench.build_module(subject).eval()
    own, spec = _own_spec(module), bench.with_sizes(subject.options().to_spec(), subject.sizes())
    sentence = f"the module's own spec is another than that of its options: {own} and {spec}"
    must(own is None or bench.with_sizes(own, subject.sizes()) == spec, sentence)
    for count, length in ((ROWS, LENGTH), (1, 3), (3, LENGTH - 1)):
        with bench.seeded(SEED), torch.no_grad():
            result = forward(module, spec, given_for(spec, count, length))
        for name, tensor_spec in _output_specs(spec).items():
            output: Any = result if name == "hidden" else result.get(name) if isinstance(result, dict) else None
            must(isinstance(output, Tensor), f"the output '{name}' is {type(output).__name__}: a tensor is promised")
            free = isinstance(spec, EmbeddingSpec) and not any("time" in field.dims for field in spec.inputs.values())
            shape = partners.shape_of(tensor_spec, count, _own_length(tensor_spec, output) if free else length)
            must(tuple(output.shape) == shape, f"'{name}' has shape {tuple(output.shape)}: {tensor_spec} is {shape} here")
            fits = output.dtype.is_floating_point if tensor_spec.dtype == "floating" else output.dtype == partners.dtype_of(tensor_spec)
            must(fits, f"'{name}' is {output.dtype}: {tensor_spec.dtype} is promised")


def check_finite_loss(subject: Subject) -> None:
    """One forward and backward pass over ordinary data gives a finite loss and finite gradients.

    Usual cause: a logarithm or a division without a floor; an initialisation far too large; a mask that hides everything.
    """
    model, total, weight = _one_step(subject)
    must(bool(torch.isfinite(total)), f"the loss is {total.item()} at the first step")
    must(weight > 0, "the loss of an ordinary batch has no target: its weight is 0")
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    must(not bad, f"the gradient of {', '.join(bad[:3])} is not finite")


def check_gradients_reach_every_parameter(subject: Subject) -> None:
    """Every trainable parameter of a module receives a gradient.

    Usual cause: a layer that is created and never called, or a `detach` on the way.
    """
    module = bench.build_module(subject)
    model, _, _ = _one_step(subject, module)
    own = {id(parameter): name for name, parameter in module.named_parameters()}
    reached = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    dry = [name for key, name in own.items() if key not in reached and module.get_parameter(name).requires_grad]
    must(not dry, f"no gradient reaches {', '.join(dry[:3])}")


def check_reported_sums(subject: Subject) -> None:
    """What a module adds to the loss or reports are sums and denominators: those of a batch are those of its halves together.

    Usual cause: a mean with the denominator 1; a statistic of the whole batch, such as the share of each expert, multiplied by another:
    take it row by row.
    """
    module, spec = bench.build_module(subject).eval(), bench.with_sizes(subject.options().to_spec(), subject.sizes())
    if not Reporter("part", spec, None):
        raise NotApplicable("its spec names no losses and no metrics")
    inputs = given_for(spec)
    whole = _reported(module, spec, inputs)
    halves = [
        _reported(
            module, spec, {name: tensor[part] if "batch" in fields_of(spec)[name].dims else tensor for name, tensor in inputs.items()}
        )
        for part in (slice(None, ROWS // 2), slice(ROWS // 2, None))
    ]
    for name, pair in whole.items():
        for what, i in (("denominator", 1), ("sum", 0)):
            value, added = float(pair[i]), sum(float(half[name][i]) for half in halves)
            close = abs(added - value) <= 1e-3 * max(abs(value), 1e-3)
            must(close, f"the {what} of '{name.partition('.')[2]}' is {value:.6g}, and {added:.6g} over the halves of the batch")


def _reported(module: nn.Module, spec: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    reported: dict[str, Tensor] = {}
    with bench.seeded(SEED), torch.no_grad():
        forward(module, spec, inputs, reported)
    return reported


def outputs(subject: Subject, module: nn.Module) -> Any:
    """The outputs of the module for a fixed input."""
    with bench.seeded(SEED), torch.no_grad():
        if subject.kind == "weight-adapter":
            return module(torch.randn(4, 3))
        model = bench.model_around(subject, module)
        model.train(module.training)
        return bench.copy_of(model(bench.prepare(subject, bench.task_of(subject))))


def _one_step(subject: Subject, module: nn.Module | None = None) -> tuple[nn.Module, Tensor, float]:
    """The model after one backward pass, the loss and its weight."""
    task = bench.task_of(subject)
    model = bench.model_around(subject, module).train()
    batch = bench.prepare(subject, task)
    with bench.seeded(SEED):
        total, weight, _, added = bench.objective(task, model).loss(model, batch)
        torch.autograd.backward([total, *(each.pair[0] for each in added)])
    return model, total.detach(), float(weight)


def _own_spec(module: nn.Module) -> Any:
    for name in ("get_spec", "to_spec"):
        if hasattr(module, name):
            return getattr(module, name)()
    return None


def fields_of(spec: Any) -> dict[str, TensorSpec]:
    """What a module of a sized spec is given: the fields of an embedding; otherwise `hidden`, and the side inputs that a rack needs."""
    if isinstance(spec, EmbeddingSpec):
        return dict(spec.inputs)
    return {"hidden": spec.input, **({name: spec.side[name] for name in spec.needs} if isinstance(spec, RackSpec) else {})}


def given_for(spec: Any, count: int = ROWS, length: int = LENGTH, seed: int = SEED) -> dict[str, Tensor]:
    """Random tensors for a module of a sized spec."""
    generator = torch.Generator().manual_seed(seed)
    return {name: partners.draw(field, count, length, generator) for name, field in fields_of(spec).items()}


def forward(module: nn.Module, spec: Any, inputs: dict[str, Tensor], reported: dict[str, Tensor] | None = None) -> Any:
    """The outputs of the module alone for these inputs; what it reports besides goes into `reported`, each [2]: sum and denominator."""
    if isinstance(spec, EmbeddingSpec):
        result = module(**inputs)
    else:
        result = module(inputs["hidden"], **{name: tensor for name, tensor in inputs.items() if name != "hidden"})
    reporter = Reporter("part", spec, None)
    return reporter.take(result, {} if reported is None else reported) if reporter else result


def _own_length(spec: TensorSpec, output: Tensor) -> int:
    """Positions that an embedding makes out of fields without time, such as the pieces of an image."""
    return output.shape[spec.dims.index("time")] if "time" in spec.dims and output.dim() == len(spec.dims) else LENGTH


def _output_specs(spec: EmbeddingSpec | RackSpec | HeadSpec | AdapterSpec) -> dict[str, Any]:
    return dict(spec.outputs) if isinstance(spec, HeadSpec) else {"hidden": spec.output}
