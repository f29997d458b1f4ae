"""A component between neutral partners: the specs that the other parts need, the parts themselves, and one step through the whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar, cast

import attrs
import torch
from attrs import Factory, frozen
from torch import Generator, Tensor, nn

from stackwise.conformance import partners
from stackwise.conformance.subject import LENGTH, MAX_LENGTH, OPEN_SIZE, ROWS, SEED, Broken, NotApplicable, Subject
from stackwise.contracts.specs import (
    GIVEN,
    RUNTIME_DIMS,
    AdapterSpec,
    BatchSpec,
    EmbeddingSpec,
    HeadSpec,
    RackSpec,
    TaskSpec,
    TensorSpec,
    TransformSpec,
)
from stackwise.curriculum.bridges import Bridge
from stackwise.plan.junctions.sides import Side
from stackwise.plan.junctions.unify import unify
from stackwise.planes.model.module import Model
from stackwise.planes.objective import Objective
from stackwise.timeline.duration import Moment

MOMENT = Moment(0, 0.0, "check", 0, 0.0, 0)
LEVEL = TensorSpec(("batch", "time"), "float32")
HIDDEN = TensorSpec(("batch", "time", OPEN_SIZE), "float32")
BLOCKS: Mapping[str, int] = {"base": 2}

_S = TypeVar("_S")


def _neutral() -> Boundaries:
    """One number a position in, a hidden state of three dimensions, one number a position out."""
    return Boundaries(
        batch=BatchSpec(fields={"level": LEVEL}),
        task=TaskSpec(batch={"level": LEVEL}, inputs={"level": LEVEL}, outputs={"out": LEVEL}),
        embedding=EmbeddingSpec(inputs={"level": LEVEL}, output=HIDDEN),
        rack=RackSpec(input=HIDDEN, output=HIDDEN),
        head=HeadSpec(input=HIDDEN, outputs={"out": LEVEL}),
    )


@frozen(kw_only=True)
class Boundaries:
    """The sized specs of all parts around a component."""

    batch: BatchSpec
    task: TaskSpec
    embedding: EmbeddingSpec
    rack: RackSpec
    head: HeadSpec
    ties: Mapping[str, str] = Factory(dict)
    """Parameter of the head → canonical name of the partner's parameter that it is tied to."""


def with_sizes(spec: _S, sizes: Mapping[str, int]) -> _S:
    """A spec with numbers in place of the names of its dimensions."""

    def of(tensor: TensorSpec) -> TensorSpec:
        def number(dim: str | int) -> str | int:
            return dim if isinstance(dim, int) or dim in RUNTIME_DIMS else sizes.get(dim, OPEN_SIZE)

        bounds = tensor.bounds and (tensor.bounds[0], number(tensor.bounds[1]))
        return attrs.evolve(tensor, dims=tuple(number(dim) for dim in tensor.dims), bounds=bounds)

    changes: dict[str, Any] = {}
    for attribute in attrs.fields(cast(Any, type(spec))):
        value = getattr(spec, attribute.name)
        if isinstance(value, TensorSpec):
            changes[attribute.name] = of(value)
        elif isinstance(value, Mapping) and all(isinstance(inner, TensorSpec) for inner in value.values()):
            changes[attribute.name] = {name: of(inner) for name, inner in value.items()}
    return cast(_S, attrs.evolve(cast(Any, spec), **changes))


def boundaries(subject: Subject) -> Boundaries:
    """Specs for the parts around a component that fit it on every side.

    Raises:
        Broken: its spec is not one of its kind.
    """
    spec = subject.spec()
    around = _neutral()
    if spec is None and subject.kind == "transform":
        spec = TransformSpec(inputs=_fields_nearby(subject))
        if not spec.inputs:
            raise NotApplicable("its options have no `to_spec()`, so nobody knows which fields it works on: declare a TransformSpec")
    if spec is None:
        return around
    spec = with_sizes(spec, subject.sizes())
    match spec:
        case EmbeddingSpec():
            return _around_embedding(around, spec.inputs, spec)
        case RackSpec():
            return _around_rack(around, spec)
        case HeadSpec():
            task = attrs.evolve(around.task, outputs=spec.outputs)
            return attrs.evolve(_between(around, spec.input, spec.input), head=spec, task=task, ties=spec.ties)
        case AdapterSpec():
            joined = attrs.evolve(around.embedding, output=spec.input)
            return attrs.evolve(_between(around, spec.output, spec.output), embedding=joined)
        case TaskSpec():
            return _around_task(around, spec, sometimes_offered(subject, spec))
        case BatchSpec():
            return _around_embedding(around, spec.fields, EmbeddingSpec(inputs=spec.fields, output=_hidden_for(spec.fields)))
        case TransformSpec():
            return _around_transform(around, spec, {} if spec.inputs else _fields_nearby(subject))
    return around


def _around_embedding(around: Boundaries, fields: Mapping[str, TensorSpec], embedding: EmbeddingSpec) -> Boundaries:
    """A loader and a task that hand these fields to this embedding."""
    between = _between(around, embedding.output, embedding.output)
    task = attrs.evolve(between.task, batch=fields, inputs=fields)
    return attrs.evolve(between, batch=BatchSpec(fields=fields), embedding=embedding, task=task)


def _between(around: Boundaries, first: TensorSpec, last: TensorSpec) -> Boundaries:
    """Boundaries with the hidden state `first` before the rack and `last` after it."""
    out = TensorSpec(tuple(dim for dim in last.dims if dim in ("batch", "time")), "float32")
    return attrs.evolve(
        around,
        embedding=attrs.evolve(around.embedding, output=first),
        rack=attrs.evolve(around.rack, input=first, output=last),
        head=HeadSpec(input=last, outputs={"out": out}),
        task=attrs.evolve(around.task, outputs={"out": out}),
    )


def _around_rack(around: Boundaries, spec: RackSpec) -> Boundaries:
    """A loader and a task that supply the side inputs that the rack requires."""
    between = _between(around, spec.input, spec.output)
    needed = {name: spec.side[name] for name in spec.needs}
    fields = {**between.batch.fields, **needed}
    attention = spec.attention[0] if spec.attention else None
    task = attrs.evolve(between.task, batch=fields, inputs={**between.task.inputs, **needed}, attention=attention)
    return attrs.evolve(between, batch=BatchSpec(fields=fields), rack=spec, task=task)


def sometimes_offered(subject: Subject, spec: TaskSpec) -> frozenset[str]:
    """The inputs that a task's prepared batch lacks where no optional field is delivered: it makes them of one."""
    made = spec.inputs.keys() - spec.batch.keys() - spec.optional.keys() - set(spec.side) - {given for _, given in spec.embedded.values()}
    if not made or not spec.optional or spec.uses_model:
        return frozenset()
    generator = Generator().manual_seed(SEED)
    rows = {name: partners.draw(field, ROWS, LENGTH + spec.lookahead, generator) for name, field in spec.batch.items()}
    return frozenset(made - dict(task_of(subject).prepare(rows, MOMENT, generator)).keys())


def _around_task(around: Boundaries, spec: TaskSpec, sometimes: Collection[str] = ()) -> Boundaries:
    """The embedding reads every field except side inputs. A second row goes only to the rack, embedded or as it is."""
    embedded = {given for _, given in spec.embedded.values()}
    beside = {*spec.side, *spec.optional, *sometimes}
    side = {n: f for n, f in spec.inputs.items() if n in beside or ("source" in f.dims and n not in embedded)}
    read = {name: field for name, field in spec.inputs.items() if name not in side and name not in embedded}
    hidden = _hidden_for(read)
    from_embedding = {name: attrs.evolve(hidden, dims=("batch", "source", *hidden.dims[2:])) for name in spec.embedded}
    rack = RackSpec(input=hidden, output=hidden, side={**side, **from_embedding}, attention=(spec.attention,) if spec.attention else ())
    return Boundaries(
        batch=BatchSpec(fields=spec.batch),
        task=spec,
        embedding=EmbeddingSpec(inputs=read, output=hidden),
        rack=rack,
        head=HeadSpec(input=hidden, outputs=spec.outputs),
    )


def _around_transform(around: Boundaries, spec: TransformSpec, nearby: Mapping[str, TensorSpec]) -> Boundaries:
    """A loader of the fields that the transform needs (or, if it names none, of those of loaders nearby); a model of its result."""
    delivered = dict(spec.inputs) or nearby or {"level": LEVEL}
    read = {**delivered, **spec.outputs}
    made = _around_embedding(around, read, EmbeddingSpec(inputs=read, output=_hidden_for(read)))
    return attrs.evolve(made, batch=BatchSpec(fields=delivered))


def _fields_nearby(subject: Subject) -> dict[str, TensorSpec]:
    """Fields that a transform without a spec probably changes: those that loaders and tasks of the same provider name."""
    fields_by_name: dict[str, TensorSpec] = {}
    for registered in subject.registry:
        if registered.provider == subject.registered.provider and registered.kind in ("loader", "task"):
            near = attrs.evolve(subject, registered=registered)
            spec = near.spec()
            fields = spec.fields if isinstance(spec, BatchSpec) else spec.batch if isinstance(spec, TaskSpec) else {}
            for name, tensor in with_sizes(BatchSpec(fields=fields), near.sizes()).fields.items():
                fields_by_name.setdefault(name, tensor)
    return fields_by_name


def _hidden_for(fields: Mapping[str, TensorSpec]) -> TensorSpec:
    timed = any("time" in field.dims for field in fields.values())
    return HIDDEN if timed else TensorSpec(("batch", OPEN_SIZE), "float32")


# -- the parts --------------------------------------------------------------------------------------------------------


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Use a random stream of its own, as a run does when it builds and steps, and put the process's generator back afterwards. If the
    code reseeded the generator, that stays visible."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
        left = torch.initial_seed()
    if left != seed:
        torch.default_generator.manual_seed(left)


def build_module(
    subject: Subject, *, options: Any = None, seed: int = SEED, device: str = "cpu", max_length: int = MAX_LENGTH
) -> nn.Module:
    """A part of the model, initialised from `seed`."""
    extra = (weight(device),) if subject.kind == "weight-adapter" else ()
    with seeded(seed), torch.device(device):
        module = subject.build(*extra, options=options, specs=specs(subject), max_length=max_length)
    if not isinstance(module, nn.Module):
        raise Broken(f"it was built as a {type(module).__name__}: {subject.article} {subject.kind} is an nn.Module")
    return module


def specs(subject: Subject) -> dict[str, Any]:
    """The specs of the junctions, as a build context gives them."""
    around = boundaries(subject)
    return {"batch": around.batch, "task": around.task, "embedding": around.embedding, "rack": around.rack, "head": around.head}


def weight(device: str = "cpu") -> Tensor:
    """The frozen matrix [out, in] that weight adapters stand beside."""
    matrix: Tensor = torch.randn(5, 3, generator=Generator().manual_seed(SEED)).to(device)
    return matrix


def model_around(
    subject: Subject, own: nn.Module | None = None, *, seed: int = SEED, device: str = "cpu", zero_head: bool = False
) -> Model:
    """The whole model: the subject's module if it has one, and neutral partners for the rest."""
    around = boundaries(subject)
    own = build_module(subject, seed=seed, device=device) if own is None and subject.kind in _ROLES else own
    extra = _tie_shapes(around, own)
    with seeded(SEED), torch.device(device):
        parts: dict[str, Any] = {
            "embedding": partners.NeutralEmbedding(around.embedding, extra.get("embedding")),
            "rack": partners.NeutralRack(around.rack, BLOCKS, extra.get("rack")) if subject.kind != "rack" else None,
            "head": partners.NeutralHead(around.head, zero_head) if subject.kind != "head" else None,
        }
    adapters = {"embedding-rack": [own]} if subject.kind == "adapter" and own is not None else None
    if own is not None and subject.kind in parts:
        parts[subject.kind] = own
    return Model(**parts, adapters=adapters, bridges=_joined(subject, around))


def _joined(subject: Subject, around: Boundaries) -> tuple[Bridge, ...]:
    """What the core puts between the parts.

    Raises:
        Broken: it refuses to join them.
    """
    delivered = BatchSpec(fields={**around.batch.fields, **around.task.batch})
    parts: dict[str, Any] = {
        "source:data": delivered,
        "task": around.task,
        "embedding": around.embedding,
        "rack": around.rack,
        "head": around.head,
    }
    if subject.kind == "adapter":
        parts["adapter:embedding-rack:0"] = with_sizes(subject.spec(), subject.sizes())
    unified = unify({role: Side(role=role, label=f"the {role.partition(':')[0]}", spec=spec) for role, spec in parts.items()})
    if unified.problems:
        raise Broken(f"the core does not join it: {'; '.join(map(str, unified.problems))}")
    return unified.bridges


_ROLES = ("embedding", "rack", "head", "adapter")


def tied_parameters(subject: Subject, role: str) -> dict[str, tuple[int, ...]]:
    """Parameters by name that the partner in a role must have because the subject (a head) is tied to them."""
    own = build_module(subject) if subject.kind == "head" else None
    return _tie_shapes(boundaries(subject), own).get(role, {})


def _tie_shapes(around: Boundaries, head: nn.Module | None) -> dict[str, dict[str, tuple[int, ...]]]:
    """Role → parameters that the partner in that role must have because the head is tied to them."""
    parameters: dict[str, dict[str, tuple[int, ...]]] = {}
    for own, canonical in around.ties.items():
        role, _, name = canonical.partition(".")
        assert head is not None, "only a head declares ties"
        parameters.setdefault(role, {})[name] = tuple(head.get_parameter(own).shape)
    return parameters


def task_of(subject: Subject, options: Any = None) -> Any:
    """The subject if it is a task, else the neutral task."""
    return subject.build(options=options) if subject.kind == "task" else partners.NeutralTask(boundaries(subject).task)


def objective(task: Any, model: nn.Module) -> Objective:
    """The task as the core calls it. If it declares a reference, that is the model as it is now."""
    losses = [name for name, is_loss in getattr(model, "reported", {}).items() if is_loss]
    other = deepcopy(model) if task.get_spec().reference == GIVEN else None
    asked_task = Objective.of(task, dict.fromkeys(losses, 1.0), other)
    asked_task.take_reference(model)
    return asked_task


def output_shapes(subject: Subject, batch: Mapping[str, Tensor]) -> tuple[int, int]:
    """Rows and positions of a prepared batch, and so of the outputs; a task may make more of them than it received."""
    for name, field in boundaries(subject).embedding.inputs.items():
        if name in batch and "time" in field.dims:
            shape = dict(zip(field.dims, batch[name].shape, strict=False))
            return shape["batch"], shape["time"]
    return ROWS, LENGTH


def outputs(subject: Subject, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random outputs of a model for a prepared batch; they require gradients."""
    generator = Generator().manual_seed(SEED)
    specs_by_name = boundaries(subject).task.outputs
    return {name: partners.draw(spec, *output_shapes(subject, batch), generator).requires_grad_() for name, spec in specs_by_name.items()}


def rows(subject: Subject, *, count: int = ROWS, length: int = LENGTH, seed: int = SEED) -> dict[str, Tensor]:
    """Random rows as the task or the transform receives them, including the task's lookahead."""
    around = boundaries(subject)
    generator = Generator().manual_seed(seed)
    return {name: partners.draw(field, count, length + around.task.lookahead, generator) for name, field in around.batch.fields.items()}


def prepare(subject: Subject, task: Any, **shape: int) -> dict[str, Tensor]:
    """A batch as the embedding and the loss read it."""
    return prepared(subject, task, rows(subject, **shape))


def prepared(subject: Subject, task: Any, batch: Mapping[str, Tensor], generator: Generator | None = None) -> dict[str, Tensor]:
    """What a task makes of rows; one that asks the model asks a neutral one."""
    generator = Generator().manual_seed(SEED) if generator is None else generator
    if not task.get_spec().uses_model:
        return dict(task.prepare(batch, MOMENT, generator))
    model = model_around(subject).eval()
    with torch.no_grad():
        return dict(task.prepare(batch, MOMENT, generator, model=model))


def same(left: Any, right: Any) -> bool:
    """Whether two nests of maps and tensors hold the same bits."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return isinstance(left, Tensor) and isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return isinstance(right, Mapping) and left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return isinstance(right, list | tuple) and len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def copy_of(value: Any) -> Any:
    """A copy of a nest of maps and tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copy_of(inner) for key, inner in value.items()}
    return type(value)(map(copy_of, value)) if type(value) in (list, tuple) else value
