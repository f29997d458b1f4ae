"""The model plane: embedding → rack → head, and how a declared change of them is carried over without losing a weight."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import nn

from stackwise.contracts import Batch, BlockOrigin, CopyOf, Fresh, Origin, ParameterGrowth, Scheduled
from stackwise.errors import ProviderError, UserError
from stackwise.phases import ModelState, Part
from stackwise.planes.bridges import fields_across, hidden_bridges, take
from stackwise.selectors import select
from stackwise.specs import EmbeddingSpec, RackSpec
from stackwise.unification import Bridge


class Model(nn.Module):
    """Embedding, rack and head in a row, with the adapters between them. Its parameter names are the canonical ones.

    Args:
        embedding: `forward(**fields) → hidden`; its spec, or its signature, names the batch fields it takes.
        rack: `forward(hidden, **side) → hidden`; likewise for side inputs.
        head: `forward(hidden) → outputs by name`.
        adapters: junction (`embedding-rack`, `rack-head`) → modules from hidden to hidden.
        bridges: lossless differences to cross, as unification found them.
    """

    embedding: nn.Module
    rack: nn.Module
    head: nn.Module

    def __init__(
        self,
        embedding: nn.Module,
        rack: nn.Module,
        head: nn.Module,
        adapters: Mapping[str, Sequence[nn.Module]] | None = None,
        bridges: Sequence[Bridge] = (),
    ) -> None:
        super().__init__()
        self.embedding, self.rack, self.head = embedding, rack, head
        self.adapters = nn.ModuleDict({junction: nn.ModuleList(modules) for junction, modules in (adapters or {}).items() if modules})
        self.wire(bridges)

    def wire(self, bridges: Sequence[Bridge] | None = None) -> None:
        """Read the parts' boundaries and tie what the head declares tied; called again after every exchange of a part."""
        if bridges is not None:
            self._bridges = tuple(bridges)
        self._inputs = fields_across(_fields_of(self.embedding), self._into("embedding"))
        self._side = fields_across(_side_of(self.rack), (b for b in self._into("rack") if b.junction == "task-rack"))
        self._outputs = tuple(b for b in self._into("task") if b.junction == "head-task")
        self._before_rack = self._chain("embedding-rack", "rack")
        self._before_head = self._chain("rack-head", "head")
        spec = _spec_of(self.head)
        for own, canonical in (spec.ties if spec is not None else {}).items():
            _set(self.head, own, self.get_parameter(canonical))

    def forward(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Outputs of the head by name. Side inputs are passed when the batch has them."""
        hidden: torch.Tensor = self.embedding(**take(self._inputs, batch))
        for step in self._before_rack:
            hidden = step(hidden)
        hidden = self.rack(hidden, **take(self._side, batch))
        for step in self._before_head:
            hidden = step(hidden)
        outputs: Mapping[str, torch.Tensor] = self.head(hidden)
        if self._outputs:
            names = {*outputs, *(bridge.field for bridge in self._outputs)}
            return take(fields_across(names, self._outputs), outputs)
        return outputs

    def _chain(self, junction: str, role: str) -> tuple[nn.Module, ...]:
        """What the hidden state passes on its way into a part: declared adapters, and the bridges into each."""
        steps: list[nn.Module | None] = []
        for i, adapter in enumerate(self.adapters.get_submodule(junction).children() if junction in self.adapters else ()):
            steps += [hidden_bridges(self._into(f"adapter:{junction}:{i}")), adapter]
        steps.append(hidden_bridges(b for b in self._into(role) if b.junction == junction))
        return tuple(step for step in steps if step is not None)

    def _into(self, role: str) -> tuple[Bridge, ...]:
        return tuple(bridge for bridge in self._bridges if bridge.into == role)


def rack_spec(rack: Any) -> RackSpec:
    """The rack's own spec, or that of a plain rack: hidden in, hidden out."""
    if hasattr(rack, "to_spec"):
        spec: RackSpec = rack.to_spec()
        return spec
    return RackSpec()


def _spec_of(part: Any) -> Any:
    return part.get_spec() if hasattr(part, "get_spec") else None


def _fields_of(embedding: nn.Module) -> tuple[str, ...]:
    spec = _spec_of(embedding)
    if isinstance(spec, EmbeddingSpec):
        return tuple(spec.inputs)
    return tuple(inspect.signature(embedding.forward).parameters)


def _side_of(rack: nn.Module) -> tuple[str, ...]:
    if hasattr(rack, "to_spec"):
        return tuple(rack_spec(rack).side)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, p in list(inspect.signature(rack.forward).parameters.items())[1:] if p.kind in kinds)


@frozen(kw_only=True)
class ModelReceipt:
    """What crossing into a state did to the parameters, by canonical name."""

    adopted: tuple[str, ...] = ()
    """The same Parameter object as before."""
    copied: Mapping[str, CopyOf] = field(factory=dict)
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    """Names of the old model that no parameter of the new one adopted or copied."""


BuildPart = Callable[[str, Part], nn.Module]


class ModelPlane:
    """Owns the model; crosses declared states by extract → transform → load.

    Args:
        build: makes the module of a declared part (role, part), seeded by role and phase, on the CPU or any device; None when
            the model was given finished, and then no phase can change its structure.
        device: where the model lives.
    """

    def __init__(self, build: BuildPart | None = None, *, device: torch.device | None = None) -> None:
        self._build = build
        self._device = device or torch.device("cpu")
        self._state: ModelState | None = None
        self._values: list[tuple[Scheduled, Part, dict[str, float]]] = []
        self._fixed: set[str] = set()
        """Parameters that their module itself made without a gradient: no config thaws them."""
        self.model: Model

    @classmethod
    def of(cls, model: nn.Module, device: torch.device | None = None) -> ModelPlane:
        """A plane around a finished model."""
        plane = cls(device=device)
        plane.model = model.to(plane._device)  # type: ignore[assignment]  # any module from batch to outputs will do here
        return plane

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by canonical name, tied ones once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def enter(
        self, state: ModelState, *, blocks: Mapping[tuple[str, int], BlockOrigin] | None = None, growth: object = None
    ) -> ModelReceipt:
        """Cross into a declared state.

        Args:
            state: the declaration to reach.
            blocks: origin of every block of the new rack, when its stacks change.
            growth: the growth operator, asked for a map by tensor if it can give one.

        Raises:
            UserError: a parameter changes its shape and no operator says how; a selector that matches nothing; nothing trainable.
        """
        before = self._state
        embedding, rack, head = (
            self._exchange(role, getattr(state, role), getattr(before, role, None)) for role in ("embedding", "rack", "head")
        )
        adapters = {
            junction: [self._exchange(f"adapters.{junction}.{i}", part, _nth(before, junction, i)) for i, part in enumerate(parts)]
            for junction, parts in state.adapters.items()
        }
        old = dict(self.model.named_parameters(remove_duplicate=False)) if before is not None else {}
        old_buffers = dict(self.model.named_buffers()) if before is not None else {}
        new = Model(embedding, rack, head, adapters=adapters, bridges=state.bridges)
        new.to(self._device)
        source = _source_names(new, before, state, blocks or {})
        receipt = _load(old, new, _origins(old, new, source, growth))
        _carry_buffers(old_buffers, new, source)
        _zero_residuals(new, blocks or {}, receipt.fresh)
        new.wire()
        _freeze(new, state.freeze, self._fixed)
        if before is None:
            self.model = new
        else:
            for name in ("embedding", "rack", "head", "adapters"):
                setattr(self.model, name, getattr(new, name))
            self.model.wire(state.bridges)
        self._state = state
        self._follow(state)
        return receipt

    def apply_values(self, t: float) -> None:
        """Hand every part the values in force at t, when they changed."""
        for module, part, last in self._values:
            values = part.values_at(t)
            if values != last:
                module.apply_values(values)
                last.update(values)

    def _exchange(self, role: str, part: Part, before: Part | None) -> nn.Module:
        """The module of a part: the one in place while its structure stays, a new one when it changes."""
        if before is not None and before.structure == part.structure:
            return self.model.get_submodule(role)
        if self._build is None:
            raise UserError(f"{role} was given as a finished object, so no phase can change its structure: give a Built(callable, options)")
        module = self._build(role, part)
        self._fixed = {name for name in self._fixed if not name.startswith(f"{role}.")}
        self._fixed |= {f"{role}.{name}" for name, parameter in module.named_parameters() if not parameter.requires_grad}
        return module

    def _follow(self, state: ModelState) -> None:
        parts = [("embedding", state.embedding), ("rack", state.rack), ("head", state.head)]
        parts += [(f"adapters.{j}.{i}", part) for j, adapters in state.adapters.items() for i, part in enumerate(adapters)]
        self._values = []
        for role, part in parts:
            if part.curves:
                module = self.model.get_submodule(role)
                if not isinstance(module, Scheduled):
                    raise ProviderError(
                        f"{part.id} declares options that follow time ({', '.join(part.curves)}) but its module has no apply_values"
                    )
                self._values.append((module, part, {}))


def _nth(state: ModelState | None, junction: str, index: int) -> Part | None:
    parts = state.adapters.get(junction, ()) if state is not None else ()
    return parts[index] if index < len(parts) else None


def _source_names(
    new: Model, before: ModelState | None, after: ModelState, blocks: Mapping[tuple[str, int], BlockOrigin]
) -> Callable[[str], str | None]:
    """A function from a canonical name of the new model to the name its values had in the old one; None where there was none."""
    path = rack_spec(new.rack).block_path
    moved = {}
    for (stack, index), origin in blocks.items():
        here = "rack." + path.format(stack=stack, index=index) + "."
        moved[here] = None if origin.source is None else "rack." + path.format(stack=origin.source[0], index=origin.source[1]) + "."
    roles = ("embedding", "rack", "head")
    replaced = tuple(f"{role}." for role in roles if before is None or getattr(before, role).id != getattr(after, role).id)

    def source(name: str) -> str | None:
        here = next((prefix for prefix in moved if name.startswith(prefix)), None)
        if here is not None:
            there = moved[here]
            return None if there is None else there + name[len(here) :]
        return None if name.startswith(replaced) else name

    return source


def _origins(old: Mapping[str, nn.Parameter], new: Model, source: Callable[[str], str | None], growth: object) -> dict[str, Origin]:
    """Canonical name in the new model → where its values come from.

    Raises:
        UserError: a parameter changes its shape and no operator says how.
    """
    origins: dict[str, Origin] = {}
    for name, _ in new.named_parameters():
        there = source(name)
        origins[name] = CopyOf(source=there) if there is not None and there in old else Fresh()
    if isinstance(growth, ParameterGrowth):
        origins |= growth.map_parameters(
            {n: tuple(p.shape) for n, p in old.items()}, {n: tuple(p.shape) for n, p in new.named_parameters()}
        )
    for name, parameter in new.named_parameters():
        origin = origins[name]
        if isinstance(origin, CopyOf) and origin.index is None and old[origin.source].shape != parameter.shape:
            raise UserError(
                f"{name} changes its shape from {tuple(old[origin.source].shape)} to {tuple(parameter.shape)} at this phase, "
                "and no growth operator says how: keep the size, or declare `enter: {growth: {use: ...}}` with an operator for widths"
            )
    return origins


def _load(old: Mapping[str, nn.Parameter], new: Model, origins: Mapping[str, Origin]) -> ModelReceipt:
    """Put adopted Parameter objects in place, copy the copied, leave the fresh as they were initialised."""
    adopted: list[str] = []
    copied: dict[str, CopyOf] = {}
    fresh: list[str] = []
    kept: set[int] = set()
    canonical = _first_names(old)
    for name, parameter in list(new.named_parameters()):
        origin = origins[name]
        if isinstance(origin, Fresh):
            fresh.append(name)
            if origin.init == "zeros":
                parameter.data.zero_()
        elif origin == CopyOf(source=name) and id(old[name]) not in kept:
            _set(new, name, old[name])
            kept.add(id(old[name]))
            adopted.append(name)
        else:
            values = old[origin.source].detach()
            values = values if origin.index is None else values[list(origin.index)]
            with torch.no_grad():
                parameter.copy_(values if origin.scale == 1.0 else values * origin.scale)
            copied[name] = evolve(origin, source=canonical[id(old[origin.source])])
    used = {id(old[name]) for name in adopted} | {id(old[origin.source]) for origin in copied.values()}
    return ModelReceipt(adopted=tuple(adopted), copied=copied, fresh=tuple(fresh), dropped=_unused(old, used))


def _unused(old: Mapping[str, nn.Parameter], used: set[int]) -> tuple[str, ...]:
    canonical = _first_names(old)
    return tuple(name for name, parameter in old.items() if id(parameter) not in used and canonical[id(parameter)] == name)


def _first_names(parameters: Mapping[str, nn.Parameter]) -> dict[int, str]:
    """Identity of a parameter → its canonical name, the first of those it is tied under."""
    return {id(parameter): name for name, parameter in reversed(list(parameters.items()))}


def _carry_buffers(old: Mapping[str, torch.Tensor], new: Model, source: Callable[[str], str | None]) -> None:
    """Running statistics and other persistent buffers follow their block."""
    persistent = new.state_dict().keys()
    for name, buffer in new.named_buffers():
        there = source(name)
        if name in persistent and there is not None and there in old and old[there].shape == buffer.shape and old[there] is not buffer:
            buffer.copy_(old[there])


def _zero_residuals(model: Model, blocks: Mapping[tuple[str, int], BlockOrigin], fresh: Sequence[str]) -> None:
    spec = rack_spec(model.rack)
    zero = set()
    for (stack, index), origin in blocks.items():
        if origin.zero_residual:
            if not spec.residual_outputs:
                raise UserError(
                    "this growth operator zeroes the residual outputs of new blocks, but the rack's spec names none: "
                    "use an operator that copies"
                )
            block = "rack." + spec.block_path.format(stack=stack, index=index)
            zero |= {f"{block}.{output}" for output in spec.residual_outputs}
            zero |= {f"{block}.{output.rsplit('.', 1)[0]}.bias" for output in spec.residual_outputs}
    for name in zero & set(fresh):
        model.get_parameter(name).data.zero_()


def _freeze(model: Model, selectors: Sequence[str], fixed: set[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    frozen_names = fixed.union(select(selectors, names))
    if frozen_names.issuperset(names):
        raise UserError(f"model.freeze {list(selectors)} leaves nothing to train: every parameter is frozen")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen_names)
        if name in frozen_names:
            parameter.grad = None


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).register_parameter(leaf, parameter)
