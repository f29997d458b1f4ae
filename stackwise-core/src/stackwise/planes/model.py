"""The model plane: embedding → rack → head, and how a declared change of them is carried over without losing a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import evolve, field, frozen
from torch import nn

from stackwise.contracts import BlockOrigin, CopyOf, Fresh, Origin, ParameterGrowth, Scheduled
from stackwise.errors import ProviderError, UserError
from stackwise.model import Model, load_named_tensors, named_tensors, rack_spec, set_parameter
from stackwise.phases import ModelState, Part
from stackwise.planes.parameter_map import fill
from stackwise.selectors import select


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

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters, tied ones once, and persistent buffers, by canonical name; the tensors themselves, not copies."""
        return named_tensors(self.model)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Write what `state_dict` returned into a model that was entered into the same declared state.

        Raises:
            UserError: any difference of names, shapes and dtypes, all of them named; nothing is written then.
        """
        if differences := load_named_tensors(self.model, state):
            raise UserError("the saved weights are not this model's:\n  " + "\n  ".join(differences))

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
        if isinstance(origin, CopyOf) and not origin.index and old[origin.source].shape != parameter.shape:
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
            set_parameter(new, name, old[name])
            kept.add(id(old[name]))
            adopted.append(name)
        else:
            fill(parameter.data, old[origin.source].detach(), origin)
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
