"""The model as trained: embedding → rack → head, with adapters and bridges between them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from stackwise.contracts.outputs import LinearOutput
from stackwise.contracts.protocols import Batch, LinearHead
from stackwise.contracts.selectors import matching
from stackwise.contracts.specs import EmbeddingSpec, HeadSpec, RackSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.errors import SelectorError
from stackwise.planes.model.bridges import Field, Precision, fields_across, hidden_bridges, take
from stackwise.planes.model.called import Called
from stackwise.planes.model.reported import names_of
from stackwise.planes.model.weight_adapters import Attached, WeightAdapters, attach
from stackwise.planes.model.whole import Fields, Outputs, explain_dtypes


class Prefix(Protocol):
    """The frozen blocks at the start of a rack, and what they made of rows so far."""

    def continued(self, batch: Batch) -> torch.Tensor:
        """The hidden state after the rack."""
        ...


class Model(nn.Module):
    """Embedding, rack and head in sequence, with adapters between them. Its parameter names are the canonical ones.

    Args:
        embedding: `forward(**fields) → hidden`; its spec, or its signature, names the batch fields it takes.
        rack: `forward(hidden, **side) → hidden`; likewise for side inputs.
        head: `forward(hidden) → outputs by name`.
        adapters: junction (`embedding-rack`, `rack-head`) → modules from hidden to hidden.
        bridges: lossless differences to cross, as unification found them.
        weight_adapters: (adapter name, path of the adapted module) → the adapter.
        precision: role → declared dtype of its parameters; the hidden state is cast at the junctions.
        declared: spec of a whole module in the place of the rack, which has none of its own.
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
        weight_adapters: Attached | None = None,
        precision: Mapping[str, str] | None = None,
        declared: RackSpec | None = None,
    ) -> None:
        super().__init__()
        self.embedding, self.rack, self.head = embedding, rack, head
        self.adapters = nn.ModuleDict({junction: nn.ModuleList(modules) for junction, modules in (adapters or {}).items() if modules})
        self._hooks: list[Any] = []
        self.components: Mapping[str, str] = {}
        """Role → id of the registered component, where it is one."""
        self.precision, self.declared = dict(precision or {}), declared
        self.prefix: Prefix | None = None
        """What gives the hidden states after the frozen blocks in training, where they are kept."""
        self.attach(weight_adapters or {})
        self.wire(bridges)

    @property
    def rack_spec(self) -> RackSpec:
        """The spec of the rack."""
        return rack_spec(self.rack) if self.declared is None else self.declared

    @property
    def reads(self) -> frozenset[str]:
        """The batch fields that its parts take when they are there."""
        fields = (*self._inputs, *self._side, *self._head_side)
        return frozenset(field.source for field in fields) | {source for _, _, source in self._side_embeddings}

    @property
    def embeds_side(self) -> bool:
        """Whether the embedding makes a side input of the rack."""
        return bool(self._side_embeddings)

    def attach(self, weight_adapters: Attached) -> None:
        """Attach these weight adapters in place of the present ones."""
        for hook in self._hooks:
            hook.remove()
        self.attached = dict(weight_adapters)
        self.weight_adapters = WeightAdapters(self.attached)
        self._hooks = list(attach(self, self.attached))

    def wire(self, bridges: Sequence[Bridge] | None = None) -> None:
        """Read the parts' specs and tie what the head declares tied; called again whenever a part is exchanged."""
        if bridges is not None:
            self._bridges = tuple(bridges)
        if isinstance(self.embedding, Fields):
            self.embedding.read(self.rack)
        if isinstance(self.head, Outputs) and self.precision:
            self.head.dtype = torch.float32
        self._inputs = fields_across(_fields_of(self.embedding), self._into("embedding"))
        at_rack = [b for b in self._into("rack") if b.junction == "task-rack"]
        self._side = fields_across(_side_of(self.rack), at_rack)
        self._side_embeddings = tuple((b.field, b.after, b.before) for b in at_rack if b.kind == "embed")
        self._head_side = fields_across(_head_side(self.head), (b for b in self._into("head") if b.junction == "task-head"))
        self._outputs = tuple(b for b in self._into("task") if b.junction == "head-task")
        specs = {"embedding": _spec_of(self.embedding), "rack": self.rack_spec, "head": _spec_of(self.head)}
        called = {role: Called(role, self.get_submodule(role), spec, self.components.get(role)) for role, spec in specs.items()}
        self._embedding, self._rack, self._head = called.values()
        self.reported = dict(names_of(each.reporter for each in called.values()))
        """What parts report beside the outputs, `<role>.<name>`, and whether it is a loss that the config weighs."""
        self._fields_out: tuple[Field, ...] = ()
        self._output_names: dict[str, None] = {}
        self._before_rack = self._chain("embedding-rack", "rack")
        self._before_head = self._chain("rack-head", "head")
        spec = _spec_of(self.head)
        for own, canonical in (spec.ties if spec is not None else {}).items():
            set_parameter(self.head, own, self.get_parameter(canonical))

    def forward(self, batch: Batch, linear: Collection[str] = ()) -> Mapping[str, torch.Tensor]:
        """Outputs of the head by name, and what parts report (`reported`). Side inputs are passed when the batch has them.

        Args:
            batch: prepared by the task.
            linear: outputs that may come as a `LinearOutput`, from a head that can.
        """
        reported: dict[str, torch.Tensor] = {}
        if self.prefix is not None and self.training:
            hidden = self.prefix.continued(batch)
        else:
            hidden = self._through_rack(batch, reported)
        for step in self._before_head:
            hidden = step(hidden)
        side = take(self._head_side, batch) if self._head_side else {}
        outputs = self._made(hidden, side, linear, reported)
        if self._outputs:
            outputs = self._bridged(outputs)
        return {**outputs, **reported} if reported else outputs

    def into_rack(self, batch: Batch, reported: dict[str, torch.Tensor]) -> torch.Tensor:
        """The hidden state that enters the rack."""
        hidden: torch.Tensor = self._embedding(reported, **take(self._inputs, batch))
        for step in self._before_rack:
            hidden = step(hidden)
        return hidden

    def side(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The side inputs of the rack that a batch has, but for those that the embedding makes."""
        return take(self._side, batch)

    def _through_rack(self, batch: Batch, reported: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.into_rack(batch, reported)
        side = take(self._side, batch) if self._side else {}
        for name, own, source in self._side_embeddings:
            if source in batch:
                side[name] = self._embedding(reported, **take(self._inputs, {**batch, own: batch[source]}))
        try:
            through: torch.Tensor = self._rack(reported, hidden, **side)
        except RuntimeError as error:
            if self.declared is not None:
                explain_dtypes(self.rack, {self._inputs[0].name: hidden, **side}, error)
            raise
        return through

    def _made(
        self, hidden: torch.Tensor, side: Mapping[str, torch.Tensor], linear: Collection[str], reported: dict[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """The outputs of the head; those named `linear` said and not made, where nothing between head and task has to look at them."""
        if linear and not (self._outputs or self.head._forward_hooks or self._head.reporter) and isinstance(self.head, LinearHead):
            return _linear_outputs(self._head.linear(hidden, **side), linear)
        made: Mapping[str, torch.Tensor] = self._head(reported, hidden, **side)
        return made

    def _bridged(self, outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        if self._output_names.keys() != outputs.keys():
            names = dict.fromkeys((*outputs, *(bridge.field for bridge in self._outputs)))
            self._fields_out, self._output_names = fields_across(names, self._outputs), dict.fromkeys(outputs)
        return take(self._fields_out, outputs)

    def _chain(self, junction: str, role: str) -> tuple[nn.Module, ...]:
        """The modules between two parts: declared adapters, the bridges into each, and casts."""
        steps: list[nn.Module | None] = []
        if self.precision and junction in self.adapters:
            steps.append(Precision("float32"))  # the dtype of adapters
        for i, adapter in enumerate(self.adapters.get_submodule(junction).children() if junction in self.adapters else ()):
            steps += [hidden_bridges(self._into(f"adapter:{junction}:{i}")), adapter]
        steps.append(hidden_bridges(b for b in self._into(role) if b.junction == junction))
        if self.precision and not isinstance(self.head if role == "head" else None, Outputs):
            steps.append(Precision(self.precision.get(role, "float32")))
        return tuple(step for step in steps if step is not None)

    def _into(self, role: str) -> tuple[Bridge, ...]:
        return tuple(bridge for bridge in self._bridges if bridge.into == role)


def _linear_outputs(outputs: Mapping[str, Any], linear: Collection[str]) -> Mapping[str, Any]:
    """The outputs of a head, multiplied out but for those named."""
    return {name: out.tensor() if isinstance(out, LinearOutput) and name not in linear else out for name, out in outputs.items()}


def rack_spec(rack: Any) -> RackSpec:
    """The rack's spec; for a plain module the default, hidden in and hidden out."""
    if hasattr(rack, "to_spec"):
        spec: RackSpec = rack.to_spec()
        return spec
    return RackSpec()


def _head_side(head: nn.Module) -> tuple[str, ...]:
    spec = _spec_of(head)
    return tuple(spec.side) if isinstance(spec, HeadSpec) else ()


def _spec_of(part: Any) -> Any:
    return part.get_spec() if hasattr(part, "get_spec") else None


def _fields_of(embedding: nn.Module) -> tuple[str, ...]:
    if isinstance(embedding, Fields):
        return embedding.names
    spec = _spec_of(embedding)
    if isinstance(spec, EmbeddingSpec):
        return tuple(spec.inputs)
    return tuple(inspect.signature(embedding.forward).parameters)


def _side_of(rack: nn.Module) -> tuple[str, ...]:
    if hasattr(rack, "to_spec"):
        return tuple(rack_spec(rack).side)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, p in list(inspect.signature(rack.forward).parameters.items())[1:] if p.kind in kinds)


def set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).register_parameter(leaf, parameter)


def without_second_names(selectors: Sequence[str], model: nn.Module) -> list[str]:
    """The selectors but for those that match only other names of parameters which the rest selects: `head` beside `embedding`, if tied."""
    names, first = dict(model.named_parameters(remove_duplicate=False)), {id(p): name for name, p in model.named_parameters()}
    chosen = set(matching(selectors, first.values()))

    def adds_nothing(selector: str) -> bool:
        matched = matching((selector,), names)
        return bool(matched) and all(name not in chosen and first[id(names[name])] in chosen for name in matched)

    return [selector for selector in selectors if not adds_nothing(selector)]


@contextmanager
def explaining_ties(model: nn.Module) -> Iterator[None]:
    """Explain a selector that matches only a tied parameter: tied parameters are selected by their first name.

    Raises:
        SelectorError: from the body, with the first name in place of near names.
    """
    try:
        yield
    except SelectorError as error:
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        names = dict(model.named_parameters(remove_duplicate=False))
        aliases = matching((error.selector,), [name for name, p in names.items() if first[id(p)] != name]) if error.selector else []
        if not aliases:
            raise
        one = first[id(names[aliases[0]])]
        raise SelectorError(
            f"selector '{error.selector}' matches {aliases[0]} alone, which is tied to {one}: they are one parameter, so name '{one}', "
            "or untie the two",
            error.selector,
        ) from None
