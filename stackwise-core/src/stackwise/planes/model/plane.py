"""The model plane: embedding → rack → head, and how a declared change of them is carried over without losing a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import nn

from stackwise.contracts.growth import BlockOrigin, GrowthRequest
from stackwise.contracts.selectors import matching, select
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import UNGATED, CompiledPhase
from stackwise.curriculum.states import ModelState
from stackwise.curriculum.transitions import Enter
from stackwise.errors import UserError
from stackwise.planes.followers import Follower
from stackwise.planes.model.gates import Gates, gated_modules
from stackwise.planes.model.initialisation import DeferredInitialisation
from stackwise.planes.model.module import Model, load_named_tensors, named_tensors, rack_spec
from stackwise.planes.model.start import check_start
from stackwise.planes.model.transfer import ModelReceipt, Tensors, carry_buffers, load, origins, sources, zero_residuals
from stackwise.planes.model.weight_adapters import Attached, merge, targets
from stackwise.timeline.schedules import Curve
from stackwise.timeline.streams import step_seed, stream_key

MAX_PARAMETERS = 2**40
"""Of one model, on one device: 256 GiB in float32."""

BuildPart = Callable[..., nn.Module]
"""(role, part, step, *what its kind is built with) → module."""

ROLES = ("embedding", "rack", "head")


class ModelPlane:
    """Owns the model; crosses declared states by extract → transform → load.

    Args:
        build: makes the module of a declared part; None when the model was given finished, and then no phase can change its
            structure.
        device: where the model lives.
        seed: fresh parameters are drawn from streams of (seed, name, step).
        start: tensors by canonical name that the first state begins from instead of drawing, and selectors of what not to take.
    """

    def __init__(
        self,
        build: BuildPart | None = None,
        *,
        device: torch.device | None = None,
        seed: int = 0,
        start: Callable[[], tuple[Tensors, Sequence[str]]] | None = None,
    ) -> None:
        self._build, self._seed, self._start = build, seed, start
        self._device = device or torch.device("cpu")
        self._state: ModelState | None = None
        self._followers: list[Follower] = []
        self._gates: Gates | None = None
        self._gate = UNGATED
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
        self,
        state: ModelState,
        *,
        step: int = 0,
        blocks: Mapping[tuple[str, int], BlockOrigin] | None = None,
        growth: object = None,
        gate: Curve = UNGATED,
        enter: Enter | None = None,
        restoring: bool = False,
        settle: Callable[[Iterable[nn.Parameter]], None] = lambda leaving: None,
    ) -> ModelReceipt:
        """Cross into a declared state.

        Args:
            state: the declaration to reach.
            step: the step at the boundary.
            blocks: origin of every block of the new rack, when its stacks change.
            growth: the growth operator, asked for a map by tensor if it can give one.
            gate: value over time of the gate on blocks that are gated.
            enter: the phase's own word on how to cross.
            restoring: whether saved values follow, so that the first state needs none to begin from.
            settle: called with parameters before they are frozen or merged, so that they hold the weights to keep.

        Raises:
            UserError: a parameter changes its shape and no operator says how; a selector that matches nothing; nothing trainable;
                weights to start from that are not this model's.
        """
        before, self._state = self._state, state
        if self._gates is not None:
            self._gates.remove()
            self._gates = None
        if before is None or _differ(before, state) or blocks or growth is not None or (enter is not None and enter.fresh):
            self._start = None if restoring else self._start
            receipt = self._transform(before, state, step, blocks or {}, growth, enter or Enter(), settle)
        else:
            receipt = ModelReceipt(adopted={name: name for name, _ in self.model.named_parameters()})
        self.model.wire(state.bridges)
        self._freeze(state, settle)
        self._hold_gates(blocks or {}, gate)
        self._follow(state)
        return receipt

    def train(self) -> None:
        """Put every module in training mode, but those that are wholly frozen in the mode declared for them."""
        self.model.train()
        if self._state is None or self._state.frozen_mode == "train":
            return
        for module in self.model.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()

    def apply_values(self, t: float) -> None:
        """Hand every part the values in force at t, when they changed."""
        for follower in self._followers:
            follower.apply(t)
        if self._gates is not None:
            self._gates.set(self._gate(t))

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

    def another(self, phase: CompiledPhase, t: float) -> Model:
        """A model as a phase declares it beside the one in place, to be filled with saved values.

        Args:
            phase: one with a declared state.
            t: the instant whose values are in force in what follows time, gates included.
        """
        assert phase.state is not None
        plane = ModelPlane(self._build, device=self._device, seed=self._seed)
        plane.enter(phase.state.model, step=phase.start, blocks=phase.blocks, gate=phase.gate, restoring=True)
        plane.apply_values(t)
        return plane.model

    # -- extract, transform, load ---------------------------------------------------------------------------------

    def _transform(
        self,
        before: ModelState | None,
        state: ModelState,
        step: int,
        blocks: Mapping[tuple[str, int], BlockOrigin],
        growth: object,
        enter: Enter,
        settle: Callable[[Iterable[nn.Parameter]], None],
    ) -> ModelReceipt:
        old, old_buffers, drop = self._extract(before)
        with DeferredInitialisation() as draws:
            new = self._build_model(None if enter.fresh else before, state, step)
        draws.make_others([*new.parameters(), *new.buffers()], lambda number: self._stream(f"attribute {number}", step))
        _check_size(new)
        new.wire()
        path = "rack." + rack_spec(new.rack).block_path
        source = sources(path, blocks if before is not None else {}, _replaced(before, state))
        named = dict(new.named_parameters())
        fresh = set(select(enter.fresh, named)) | set(matching(drop, named))
        if before is None and self._start is not None:
            old = check_start(old, new, drop)
        found = origins(old, new, source, growth=growth, request=_request(before, state, new), fresh=fresh)
        leaving = self._leaving(before, new, source) if enter.weight_adapters == "merge" else {}
        settle(p for (_, path), adapter in leaving.items() for p in (*adapter.parameters(), self.model.get_parameter(f"{path}.weight")))
        merged = merge(self.model, leaving) if leaving else ()
        receipt = load(
            old,
            new,
            found,
            draw=lambda name, parameter: self._draw(name, parameter, draws, step),
            device=self._device,
            dtype_of=lambda name: _dtype(state.precision.get(_part_of(name))),
        )
        for name, buffer in new.named_buffers():
            draws.make(buffer, self._stream(name, step))
        new.to(self._device)
        carry_buffers(old_buffers if before is not None else old, new, source)
        if before is not None:
            zero_residuals(new, path, rack_spec(new.rack).residual_outputs, blocks, {*receipt.fresh, *receipt.copied})
        self._put_in_place(new)
        return evolve(receipt, merged=merged)

    def _draw(self, name: str, parameter: nn.Parameter, draws: DeferredInitialisation, step: int) -> None:
        """Give a parameter the values that its module begins with."""
        if hasattr(self, "model") and any(parameter is old for old in self.model.parameters()):
            raise UserError(
                f"{name} is to start anew, but its module is the very object that was there and cannot be built again: "
                "give a Built(callable, options) in place of a finished object"
            )
        draws.make(parameter.data, self._stream(name, step))

    def _extract(self, before: ModelState | None) -> tuple[Tensors, Tensors, Sequence[str]]:
        """Parameters of the model that is left, tied ones under each of their names, and its buffers; at the start the tensors to
        begin from, and selectors of what not to take."""
        if before is not None:
            return dict(self.model.named_parameters(remove_duplicate=False)), dict(self.model.named_buffers()), ()
        if self._start is None:
            return {}, {}, ()
        tensors, drop = self._start()
        return tensors, {}, drop

    def _build_model(self, before: ModelState | None, state: ModelState, step: int) -> Model:
        embedding, rack, head = (self._exchange(role, getattr(state, role), _same_precision(before, state, role), step) for role in ROLES)
        adapters = {
            junction: [self._exchange(f"adapters.{junction}.{i}", part, _nth(before, junction, i), step) for i, part in enumerate(parts)]
            for junction, parts in state.adapters.items()
        }
        new = Model(embedding, rack, head, adapters=adapters, precision=state.precision)
        attached = {}
        for name, declared in state.weight_adapters.items():
            for path in targets(new, declared.select, name):
                weight = new.get_parameter(f"{path}.weight")
                attached[name, path] = self._made(f"weight_adapters.{name}.{path}", declared.part, step, weight)
        new.attach(attached)
        return new

    def _exchange(self, role: str, part: Part, before: Part | None, step: int) -> nn.Module:
        """The module of a part: the one in place while its structure stays, a new one when it changes."""
        if before is not None and before.structure == part.structure:
            return self.model.get_submodule(role)
        return self._made(role, part, step)

    def _made(self, role: str, part: Part, step: int, *extra: Any) -> nn.Module:
        if self._build is None:
            raise UserError(f"{role} was given as a finished object, so no phase can change its structure: give a Built(callable, options)")
        module = self._build(role, part, step, *extra)
        self._fixed = {name for name in self._fixed if not name.startswith(f"{role}.")}
        self._fixed |= {f"{role}.{name}" for name, parameter in module.named_parameters() if not parameter.requires_grad}
        return module

    def _leaving(self, before: ModelState | None, new: Model, source: Callable[[str], str | None]) -> Attached:
        """Weight adapters of the model that is left whose matrix goes on without them."""
        if before is None:
            return {}
        staying = set()
        for name, path in new.attached:
            there = source(path)
            if there is not None and _adapter(before, name) == _adapter(self._state, name):
                staying.add((name, there))
        return {key: adapter for key, adapter in self.model.attached.items() if key not in staying}

    def _put_in_place(self, new: Model) -> None:
        if not hasattr(self, "model"):
            self.model = new
            return
        for name in (*ROLES, "adapters"):
            setattr(self.model, name, getattr(new, name))
        self.model.precision = new.precision
        attached = new.attached
        new.attach({})
        self.model.attach(attached)

    def _stream(self, name: str, step: int) -> int:
        return step_seed(stream_key(self._seed, "init", name), step)

    # -- what the state says of the model in place ----------------------------------------------------------------

    def _freeze(self, state: ModelState, settle: Callable[[Iterable[nn.Parameter]], None]) -> None:
        named = dict(self.model.named_parameters())
        held = self._fixed.union(select(state.freeze, named))
        if held.issuperset(named):
            raise UserError(f"model.freeze {list(state.freeze)} leaves nothing to train: every parameter is frozen")
        settle(parameter for name, parameter in named.items() if name in held)
        for name, parameter in named.items():
            parameter.requires_grad_(name not in held)
            if name in held:
                parameter.grad = None

    def _hold_gates(self, blocks: Mapping[tuple[str, int], BlockOrigin], gate: Curve) -> None:
        owners = gated_modules(rack_spec(self.model.rack), blocks) if blocks else ()
        if owners:
            self._gate = gate
            self._gates = Gates(map(self.model.get_submodule, owners), gate(0.0), self._device)

    def _follow(self, state: ModelState) -> None:
        parts = [(role, getattr(state, role)) for role in ROLES]
        parts += [(f"adapters.{j}.{i}", part) for j, adapters in state.adapters.items() for i, part in enumerate(adapters)]
        parts += [(f"weight_adapters.{name}.{path}", state.weight_adapters[name].part) for name, path in self._attached()]
        self._followers = [Follower(part, self.model.get_submodule(role), "its module") for role, part in parts if part.curves]

    def _attached(self) -> Iterable[tuple[str, str]]:
        return self.model.attached if isinstance(self.model, Model) else ()


def _same_precision(before: ModelState | None, state: ModelState, role: str) -> Part | None:
    """The part before, where it held its parameters in the dtype that they have now; another one is built in its own dtype first."""
    if before is None or before.precision.get(role) != state.precision.get(role):
        return None
    part: Part = getattr(before, role)
    return part


def _nth(state: ModelState | None, junction: str, index: int) -> Part | None:
    parts = state.adapters.get(junction, ()) if state is not None else ()
    return parts[index] if index < len(parts) else None


def _adapter(state: ModelState | None, name: str) -> object:
    declared = state.weight_adapters.get(name) if state is not None else None
    return None if declared is None else declared.part.structure


def _request(before: ModelState | None, after: ModelState, new: Model) -> GrowthRequest | None:
    """What a growth operator is asked."""
    if before is None:
        return None
    return GrowthRequest(
        old_stacks=before.stacks,
        new_stacks=after.stacks,
        residual_outputs=rack_spec(new.rack).residual_outputs,
        old_options={role: getattr(before, role).plain_options for role in ROLES},
        new_options={role: getattr(after, role).plain_options for role in ROLES},
    )


def _differ(before: ModelState, after: ModelState) -> bool:
    """Whether anything must be built, attached or cast to get from one to the other."""

    def built(state: ModelState) -> tuple[object, ...]:
        return (
            [getattr(state, role).structure for role in ROLES],
            [(junction, [part.structure for part in parts]) for junction, parts in state.adapters.items()],
            [(name, declared.select, declared.part.structure) for name, declared in state.weight_adapters.items()],
            dict(state.precision),
        )

    return built(before) != built(after)


def _replaced(before: ModelState | None, after: ModelState) -> tuple[str, ...]:
    """Prefixes of names whose component is another one now."""
    if before is None:
        return ()
    roles = [f"{role}." for role in ROLES if getattr(before, role).id != getattr(after, role).id]
    between = [
        f"adapters.{junction}.{i}."
        for junction, parts in after.adapters.items()
        for i, part in enumerate(parts)
        if (there := _nth(before, junction, i)) is None or there.id != part.id
    ]
    beside = [f"weight_adapters.{name}." for name in after.weight_adapters if _adapter(before, name) != _adapter(after, name)]
    return (*roles, *between, *beside)


def _part_of(name: str) -> str:
    """The role that a parameter belongs to; a weight adapter to that of the matrix it stands beside."""
    segments = name.split(".")
    return segments[2] if segments[0] == "weight_adapters" else segments[0]


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _check_size(model: Model) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAX_PARAMETERS:
        raise UserError(f"the model has {count:,} parameters: a run has one device, and a model at most {MAX_PARAMETERS:,}")
