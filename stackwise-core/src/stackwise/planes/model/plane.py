"""The model plane: embedding → rack → head, and how a declared change of structure keeps the trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import nn

from stackwise.contracts.answers import calling
from stackwise.contracts.growth import Fresh, Origin
from stackwise.contracts.selectors import matching, select
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import UNGATED, CompiledPhase
from stackwise.curriculum.states import ModelState
from stackwise.errors import UserError
from stackwise.planes.followers import Follower
from stackwise.planes.model.bridges import torch_dtype
from stackwise.planes.model.difference import (
    ROLES,
    WEIGHT_ADAPTERS,
    Boundary,
    build_steps,
    goes_on,
    growth_request,
    parts_of,
    replaced,
    weight_adapter,
)
from stackwise.planes.model.frozen_prefix import FrozenPrefix, find_prefix
from stackwise.planes.model.gates import Gates, gated_modules
from stackwise.planes.model.initialisation import check_shapes
from stackwise.planes.model.module import Model, explaining_ties, without_second_names
from stackwise.planes.model.settling import KeptCopies, Settle, settle_nothing, settle_sources
from stackwise.planes.model.start import check_start, fill_start
from stackwise.planes.model.state import (
    Tensors,
    carry_state,
    check_savable,
    extra_states,
    is_finite,
    load_named_state,
    named_state,
    passing_buffers,
    same_values,
    unheld,
)
from stackwise.planes.model.transfer import Lay, ModelReceipt, Source, check_new, keep_whole, load, origins, sources, zero_residuals
from stackwise.planes.model.weight_adapters import Attached, merge, targets
from stackwise.planes.model.whole import check_blocks, check_unwrapped
from stackwise.planes.shards import move, whole

MAX_PARAMETERS = 2**40
"""Of one model: 4 TiB in float32, more than one device holds."""

BuildPart = Callable[..., nn.Module]
"""(path in the model, part, step it is built at, *extra arguments of its kind) → module."""


class ModelPlane:
    """Owns the model; crosses declared states by extract → transform → load.

    Args:
        build: builds the module of a declared part; None for a finished model, whose structure no phase can change.
        device: where the model lives.
        start: reads tensors for the first state to start from, and selectors of those to ignore.
    """

    def __init__(
        self,
        build: BuildPart | None = None,
        *,
        device: torch.device | None = None,
        start: Callable[[], tuple[Tensors, Sequence[str]]] | None = None,
    ) -> None:
        self._build, self._start = build, start
        self._device = device or torch.device("cpu")
        self._state: ModelState | None = None
        self._followers: list[Follower] = []
        self._gates: Gates | None = None
        self._gate = UNGATED
        self._fixed: set[str] = set()
        """Parameters that their module built without a gradient: no config thaws them."""
        self._built_buffers: dict[str, torch.Tensor] = {}
        """Initial values of buffers that are not persistent."""
        self._infinite: dict[str, torch.Tensor] = {}
        """Initial values of buffers that their module built with infinities or nan in them, as masks."""
        self.lay: Lay = keep_whole
        """Puts new parameters where they will live."""
        self.cache_folder: Path | None = None
        """Where hidden states are kept on disk (`model.cache`); the system's folder for temporary files when None."""
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
        boundary: Boundary | None = None,
        *,
        restoring: Mapping[str, int] | None = None,
        settle: Settle = settle_nothing,
    ) -> ModelReceipt:
        """Cross into a declared state.

        Args:
            state: the declaration to reach.
            boundary: how to cross; at step 0 without growth when left out.
            restoring: step at which each part was built (`build_steps`), when saved values are loaded next.
            settle: see `Settle`.

        Raises:
            UserError: a parameter changes its shape and no operator says how; a selector that matches nothing; nothing trainable;
                weights to start from that are not this model's.
        """
        boundary = boundary or Boundary()
        before, self._state = self._state, state
        if self._gates is not None:
            self._gates.remove()
            self._gates = None
        if boundary.rebuilds(before, state):
            if restoring is not None:
                self._start = None
            receipt = self._transform(before, state, boundary, restoring or {}, settle)
        else:
            receipt = ModelReceipt(adopted={name: name for name, _ in self.model.named_parameters()})
        self.model.wire(state.bridges)
        self._freeze(state, settle)
        self._hold_gates(boundary)
        self._hold_prefix(state)
        self._follow(state)
        return receipt

    def train(self) -> None:
        """Put every module in training mode; wholly frozen ones take the declared `frozen_mode`."""
        self.model.train()
        if self._state is None or self._state.frozen_mode == "train":
            return
        for module in self.model.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()

    @property
    def moves(self) -> bool:
        """Whether a value or a gate follows time."""
        gated = self._gates is not None and not self._gate.is_constant
        return gated or any(follower.moves for follower in self._followers)

    def apply_values(self, t: float) -> None:
        """Hand every part the values in force at t, if they changed."""
        for follower in self._followers:
            follower.apply(t)
        if self._gates is not None:
            self._gates.set(self._gate(t))

    def state_dict(self) -> dict[str, Any]:
        """Parameters, tied ones once, buffers and extra states, by canonical name; the tensors themselves, not copies.

        Passing buffers are copied: those that follow time move on before a state that waits for its evaluations is saved.
        """
        return named_state(self.model) | {name: buffer.clone() for name, buffer in passing_buffers(self.model).items()}

    def built_so(self) -> set[str]:
        """Names of buffers that may hold infinities: they are as their module built them, or a cache that its first use made."""
        buffers = dict(self.model.named_buffers())
        kept = {name for name, built in self._infinite.items() if name in buffers and _equal(buffers[name], built)}
        return kept | (passing_buffers(self.model).keys() - self._built_buffers.keys())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned for the same declared state.

        Raises:
            UserError: names, shapes or dtypes differ; all differences are listed and nothing is written.
        """
        load_named_state(self.model, state, "the saved weights")

    def another(self, phases: Sequence[CompiledPhase], t: float) -> Model:
        """Build a second model as the last of these phases declares it, to be filled with saved values.

        Args:
            phases: of a schedule, from the first on; the last has a declared state.
            t: the time whose values are in force, gates included.
        """
        phase = phases[-1]
        assert phase.state is not None
        plane = ModelPlane(self._build, device=self._device)
        plane.enter(phase.state.model, Boundary.of(phase), restoring=build_steps(phases))
        plane.apply_values(t)
        return plane.model

    def left_out(self, phases: Sequence[CompiledPhase]) -> list[str]:
        """Names of the states that a file of weights leaves out of the model as it stands at the end of these phases."""
        return unheld(self.model, self.another(phases, 1.0) if passing_buffers(self.model) else self.model)

    # -- extract, transform, load ---------------------------------------------------------------------------------

    def _transform(
        self, before: ModelState | None, state: ModelState, boundary: Boundary, built: Mapping[str, int], settle: Settle
    ) -> ModelReceipt:
        old, old_state, drop = self._extract(before)
        new = self._build_model(before, state, boundary, built)
        _check_size(new)
        check_savable(new)
        if state.rack_spec is not None:
            check_blocks(new.rack, state.rack_spec)
        new.wire()
        residual_outputs, path = new.rack_spec.residual_outputs, f"rack.{new.rack_spec.block_path}"
        source = sources(path, boundary.blocks if before is not None else {}, replaced(before, state))
        start = old if before is None and self._start is not None else None
        if start is not None:
            start, old = check_start(start, new, drop)
        growth, request = (None, None) if before is None else (boundary.growth, growth_request(before, state, residual_outputs))
        with calling(boundary.enter.growth.id if boundary.enter.growth is not None else "", "map_parameters"):
            origin_of = origins(old, new, source, growth=growth, request=request, fresh=self._fresh(new, boundary, drop))
        self._check_drawn(new, origin_of)
        if before is not None and state.rack_spec is not None:
            check_new(origin_of, source, self._fresh(new, boundary, drop), replaced(before, state))
        kept = {} if before is None else settle_sources(origin_of, self._frozen(state, new), self.model, settle)
        merged = self._merge(before, state, new, source, settle) if boundary.enter.weight_adapters == "merge" else ()
        receipt = self._fill(start, old, new, origin_of, state, kept)
        move(new, self._device)
        carry_state(old_state, new, source, self._changed_buffers())
        if before is not None:
            zero_residuals(new, path, residual_outputs, boundary.blocks, {*receipt.fresh, *receipt.copied})
        self._put_in_place(new)
        self._built_buffers = {name: buffer.clone() for name, buffer in passing_buffers(self.model).items()}
        return evolve(receipt, merged=merged)

    def _fill(
        self, start: Tensors | None, old: Tensors, new: Model, origins: Mapping[str, Origin], state: ModelState, kept: KeptCopies
    ) -> ModelReceipt:
        """Fill the new model from the weights to start from, or else from the old model."""
        dtypes = {name: torch_dtype(held) for name in origins if (held := state.precision.get(_part_of(name))) is not None}
        if start is not None:
            return fill_start(start, old, new, origins, device=self._device, dtype_of=dtypes.get, lay=self.lay)
        return load(old, new, origins, device=self._device, dtype_of=dtypes.get, kept=kept, lay=self.lay)

    def _fresh(self, new: Model, boundary: Boundary, drop: Sequence[str]) -> set[str]:
        parameters = dict(new.named_parameters())
        with explaining_ties(new):
            return set(select(without_second_names(boundary.enter.fresh, new), parameters)) | set(matching(drop, parameters))

    def _check_drawn(self, new: Model, origin_of: Mapping[str, Origin]) -> None:
        """Refuse a fresh parameter whose module is the trained object itself, and so holds no fresh values."""
        old_ids = {id(parameter) for parameter in self.model.parameters()} if hasattr(self, "model") else set()
        for name, parameter in new.named_parameters() if old_ids else ():
            origin = origin_of[name]
            needs_draw = isinstance(origin, Fresh) or origin.keeps_rest
            if needs_draw and id(parameter) in old_ids:
                raise UserError(
                    f"{name} is to start anew, but its module is the very object that was there and cannot be built again: "
                    "give a Built(callable, options) in place of a finished object"
                )

    def _extract(self, before: ModelState | None) -> tuple[Tensors, Mapping[str, Any], Sequence[str]]:
        """Parameters of the old model (tied ones under every name), its buffers and extra states; at the start of a run the tensors
        to start from, and selectors of those to ignore."""
        if before is not None:
            parameters = dict(self.model.named_parameters(remove_duplicate=False))
            return parameters, {**dict(self.model.named_buffers()), **extra_states(self.model)}, ()
        if self._start is None:
            return {}, {}, ()
        tensors, drop = self._start()
        return tensors, {}, drop

    def _changed_buffers(self) -> dict[str, torch.Tensor]:
        """Non-persistent buffers that training changed."""
        if not hasattr(self, "model"):
            return {}
        buffers = passing_buffers(self.model)
        return {name: buffer for name, buffer in buffers.items() if not _equal(buffer, self._built_buffers.get(name))}

    def _build_model(self, before: ModelState | None, state: ModelState, boundary: Boundary, built: Mapping[str, int]) -> Model:
        modules = {}
        for path, part in parts_of(state):
            stays = not boundary.enter.fresh and goes_on(before, state, path)
            modules[path] = self.model.get_submodule(path) if stays else self._build_part(path, part, built.get(path, boundary.step))
        adapters = {
            junction: [modules[f"adapters.{junction}.{i}"] for i in range(len(parts))] for junction, parts in state.adapters.items()
        }
        embedding, rack, head = (modules[role] for role in ROLES)
        new = Model(embedding, rack, head, adapters=adapters, precision=state.precision, declared=state.rack_spec)
        new.components = {role: part.id for role in ROLES if (part := getattr(state, role)).given is None}
        attached = {}
        for name, declared in state.weight_adapters.items():
            with explaining_ties(new):
                paths = targets(new, declared.select, name)
            for path in paths:
                weight, step = whole(new.get_parameter(f"{path}.weight")), built.get(WEIGHT_ADAPTERS, boundary.step)
                attached[name, path] = self._build_part(f"{WEIGHT_ADAPTERS}{name}.{path}", declared.part, step, weight)
        new.attach(attached)
        return new

    def _build_part(self, path: str, part: Part, step: int, *extra: Any) -> nn.Module:
        if self._build is None:
            raise UserError(f"{path} was given as a finished object, so no phase can change its structure: give a Built(callable, options)")
        module = self._build(path, part, step, *extra)
        check_shapes(module, path, meta=self._device.type == "meta")
        check_unwrapped(module, path)
        self._fixed = {name for name in self._fixed if not name.startswith(f"{path}.")}
        self._fixed |= {f"{path}.{name}" for name, parameter in module.named_parameters() if not parameter.requires_grad}
        self._infinite = {name: buffer for name, buffer in self._infinite.items() if not name.startswith(f"{path}.")}
        self._infinite |= {f"{path}.{name}": buffer.clone() for name, buffer in module.named_buffers() if not is_finite(buffer)}
        return module

    def _merge(self, before: ModelState | None, state: ModelState, new: Model, source: Source, settle: Settle) -> tuple[str, ...]:
        """Merge the weight adapters that leave into their matrices; returns the names of the matrices."""
        if before is None:
            return ()
        staying = set()
        for name, path in new.attached:
            old_path = source(path)
            if old_path is not None and weight_adapter(before, name) == weight_adapter(state, name):
                staying.add((name, old_path))
        leaving: Attached = {key: adapter for key, adapter in self.model.attached.items() if key not in staying}
        settle((p for (_, path), a in leaving.items() for p in (*a.parameters(), self.model.get_parameter(f"{path}.weight"))), ())
        with calling(next((before.weight_adapters[name].part.id for name, _ in leaving), ""), "merged"):
            return merge(self.model, leaving) if leaving else ()

    def _put_in_place(self, new: Model) -> None:
        if not hasattr(self, "model"):
            self.model = new
            return
        for name in ("embedding", "rack", "head", "adapters"):
            setattr(self.model, name, getattr(new, name))
        self.model.precision, self.model.declared, self.model.components = new.precision, new.declared, new.components
        attached = new.attached
        new.attach({})
        self.model.attach(attached)

    # -- freezing, gates and values over time ---------------------------------------------------------------------

    def _freeze(self, state: ModelState, settle: Settle) -> None:
        parameters, frozen = dict(self.model.named_parameters()), self._frozen(state, self.model)
        if frozen.issuperset(parameters):
            raise UserError(f"model.freeze {list(state.freeze)} leaves nothing to train: every parameter is frozen")
        settle((parameter for name, parameter in parameters.items() if name in frozen), ())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name not in frozen)
            if name in frozen:
                parameter.grad = None

    def _frozen(self, state: ModelState, model: Model) -> set[str]:
        """Names of the parameters that do not learn."""
        with explaining_ties(model):
            return self._fixed.union(select(without_second_names(state.freeze, model), dict(model.named_parameters())))

    def _hold_gates(self, boundary: Boundary) -> None:
        owners = gated_modules(self.model.rack_spec, boundary.blocks) if boundary.blocks else ()
        if owners:
            self._gate = boundary.gate
            self._gates = Gates(map(self.model.get_submodule, owners), boundary.gate(0.0), self._device)

    def _hold_prefix(self, state: ModelState) -> None:
        """Keep what the frozen blocks make of rows, if asked; what was kept stays where nothing of them changed."""
        before, self.model.prefix = getattr(self.model, "prefix", None), None
        if state.cache != "frozen":
            return
        prefix = find_prefix(self.model, state, gated=self._gates is not None, folder=lambda: self.cache_folder)
        if isinstance(before, FrozenPrefix):
            prefix.take_over(before)
        self.model.prefix = prefix

    def _follow(self, state: ModelState) -> None:
        parts = list(parts_of(state))
        parts += [(f"{WEIGHT_ADAPTERS}{name}.{path}", state.weight_adapters[name].part) for name, path in self._attached()]
        self._followers = [Follower(part, self.model.get_submodule(path), "its module") for path, part in parts if part.curves]

    def _attached(self) -> Iterable[tuple[str, str]]:
        return self.model.attached if isinstance(self.model, Model) else ()


def _part_of(name: str) -> str:
    """The role of a parameter; for a weight adapter, that of the matrix it adapts."""
    segments = name.split(".")
    return segments[2] if segments[0] == "weight_adapters" else segments[0]


def _equal(buffer: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and (buffer.is_meta or (buffer.shape == other.shape and same_values(buffer, other)))


def _check_size(model: Model) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAX_PARAMETERS:
        raise UserError(f"the model has {count:,} parameters: a run has one device, and a model at most {MAX_PARAMETERS:,}")
