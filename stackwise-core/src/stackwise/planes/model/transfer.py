"""Carry parameters from an old model to a new one, by name: for the model plane and for `stackwise.carry`.

Nothing here knows what a phase is. An *origin* says for each new parameter where its values come from; `load` then adopts the
same Parameter object where nothing about it changed, copies through the map where something did, and leaves fresh ones as
their module drew them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from attrs import field, frozen
from torch import nn

from stackwise.contracts.answers import expect
from stackwise.contracts.growth import BlockOrigin, Combine, CopyOf, Fresh, GrowthRequest, Mapped, Origin, ParameterGrowth
from stackwise.errors import ProviderError, UserError
from stackwise.planes.model.difference import WEIGHT_ADAPTERS
from stackwise.planes.model.module import set_parameter
from stackwise.planes.model.parameter_map import fill
from stackwise.planes.model.state import Tensors

Lay = Callable[[nn.Parameter], nn.Parameter]
"""Whole parameter, which has its values → the one to keep: itself, or this process's part of it."""


def keep_whole(parameter: nn.Parameter) -> nn.Parameter:
    """For a process that holds the whole model."""
    return parameter


Source = Callable[[str], str | None]
"""Canonical name in the new model → its name in the old one; None where the old model has none."""


@frozen(kw_only=True)
class ModelReceipt:
    """What crossing into a state did to the parameters, by canonical name."""

    adopted: Mapping[str, str] = field(factory=dict)
    """Name → the old name of the very same Parameter object."""
    copied: Mapping[str, Mapped] = field(factory=dict)
    """Name → what it takes of which old ones."""
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    """Names of the old model that no parameter of the new one adopted or copied."""
    recast: Mapping[str, torch.dtype] = field(factory=dict)
    """Copied name → the dtype of its source, where the new one differs."""
    merged: tuple[str, ...] = ()
    """Old names of matrices into which a weight adapter was merged."""

    @property
    def moved(self) -> bool:
        """Whether anything but adoption happened."""
        return bool(self.copied or self.fresh or self.dropped or self.merged)


def sources(path: str, blocks: Mapping[tuple[str, int], BlockOrigin], replaced: Collection[str] = ()) -> Source:
    """Map new names to old ones by the origins of the blocks.

    Args:
        path: canonical path of a block, `rack.stacks.{stack}.{index}`.
        blocks: new block → its origin; when empty, every block stays.
        replaced: prefixes of canonical names whose module was replaced.
    """
    old_blocks = {
        path.format(stack=stack, index=index): None
        if origin.source is None
        else path.format(stack=origin.source[0], index=origin.source[1])
        for (stack, index), origin in blocks.items()
    }
    depths = sorted({block.count(".") + 1 for block in old_blocks})

    def source(name: str) -> str | None:
        if any(name.startswith(prefix) for prefix in replaced):
            return None
        if name.startswith(WEIGHT_ADAPTERS):
            adapter, _, beside = name.removeprefix(WEIGHT_ADAPTERS).partition(".")
            old = source(beside)
            return None if old is None else f"{WEIGHT_ADAPTERS}{adapter}.{old}"
        segments = name.split(".")
        block = next((block for depth in depths if (block := ".".join(segments[:depth])) in old_blocks), None)
        if block is None:
            return name
        old = old_blocks[block]
        return None if old is None else old + name[len(block) :]

    return source


def origins(
    old: Tensors,
    new: nn.Module,
    source: Source,
    *,
    growth: object = None,
    request: GrowthRequest | None = None,
    fresh: Collection[str] = (),
) -> dict[str, Origin]:
    """Canonical name in the new model → where its values come from.

    Args:
        old: tensors by canonical name, tied ones under each of theirs.
        new: the model to fill.
        source: new name → old name.
        growth: an operator; a `ParameterGrowth` maps tensor by tensor.
        request: what the operator is called with.
        fresh: names that start anew even if the old model has them.

    Raises:
        UserError: a parameter changes its shape and no operator says how; an operator refuses.
        ProviderError: an operator names a tensor that does not exist.
    """
    origin_of: dict[str, Origin] = {}
    shapes = {name: tuple(parameter.shape) for name, parameter in new.named_parameters()}
    for name in shapes:
        old_name = source(name)
        origin_of[name] = CopyOf(source=old_name) if old_name is not None and old_name in old else Fresh()
    if isinstance(growth, ParameterGrowth):
        origin_of |= _operator_origins(growth, request or GrowthRequest(old_stacks={}, new_stacks={}), old, shapes, source)
    origin_of |= {name: Fresh() for name in fresh}
    for name, origin in origin_of.items():
        for term in _terms(origin):
            _check_shape(name, shapes[name], old[term.source], term, single=origin is term)
    return origin_of


def check_new(origin_of: Mapping[str, Origin], source: Source, fresh: Collection[str], anew: Collection[str]) -> None:
    """A whole module that goes on has the parameters it had, apart from those of new blocks and those named in `enter.fresh`.

    Raises:
        UserError: an option gave it others, which would start anew without a word.
    """
    strange = [n for n, o in origin_of.items() if isinstance(o, Fresh) and source(n) is not None and n not in fresh]
    strange = [name for name in strange if not name.startswith((WEIGHT_ADAPTERS, *anew))]
    if strange:
        raise UserError(
            f"{', '.join(strange[:3])}{' and others' if len(strange) > 3 else ''} would be new in this phase, and nothing says so: name "
            "the option that is a number of blocks in model.blocks, or what is to start anew in `enter: {fresh: [...]}`"
        )


def _operator_origins(
    growth: ParameterGrowth, request: GrowthRequest, old: Tensors, shapes: Mapping[str, tuple[int, ...]], source: Source
) -> dict[str, Origin]:
    """An operator's map by tensor, in which blocks have their new positions; `source` turns those into old names."""
    before = {name: tuple(old[old_name].shape) for name in shapes if (old_name := source(name)) is not None and old_name in old}
    before |= {name: tuple(old[name].shape) for name in old if name not in before and source(name) == name}  # what leaves its place
    try:
        answer: Mapping[str, Any] = growth.map_parameters(before, shapes, request)
        expect(isinstance(answer, Mapping), answer, "a map from new names to CopyOf, Combine or Fresh")
    except ValueError as error:
        raise UserError(f"{type(growth).__name__} cannot make this change: {error}") from error
    unknown = [name for name in answer if name not in shapes]
    for name, origin in answer.items():
        if not isinstance(origin, CopyOf | Combine | Fresh):  # a provider's answer, whatever its types promise
            what = f"map_parameters of {type(growth).__name__} gave {origin!r} for {name}"
            raise ProviderError(f"{what}: a CopyOf, a Combine or a Fresh is expected")
    unknown += [source for origin in answer.values() if not isinstance(origin, Fresh) for source in origin.sources if source not in before]
    if unknown:
        raise ProviderError(f"{type(growth).__name__} maps '{unknown[0]}', and there is no such parameter to map")
    old_names = {name: old_name for name in before if (old_name := source(name)) is not None}
    return {name: origin if isinstance(origin, Fresh) else origin.renamed(old_names) for name, origin in answer.items()}


def _terms(origin: Origin) -> tuple[CopyOf, ...]:
    """The maps of single tensors that an origin is made of."""
    if isinstance(origin, Combine):
        return tuple(term for term, _ in origin.terms)
    return (origin,) if isinstance(origin, CopyOf) else ()


def _check_shape(name: str, shape: tuple[int, ...], old: torch.Tensor, origin: CopyOf, single: bool) -> None:
    sizes = {dim: len(positions) for dim, positions in (*origin.project.items(), *origin.index.items())}
    result = tuple(sizes.get(dim, size) for dim, size in enumerate(old.shape))
    for dim, rows in origin.project.items():
        fits = dim < old.dim() and dim not in origin.index and all(len(row) == old.shape[dim] for row in rows)
        if not fits:
            raise ProviderError(f"{name}: the matrix of dimension {dim} does not fit {tuple(old.shape)} of {origin.source}")
    if result == shape:
        return
    if sizes or not single:
        raise ProviderError(f"{name}: the map leads from {tuple(old.shape)} to {result}, but the parameter has {shape}")
    raise UserError(
        f"{name} changes its shape from {tuple(old.shape)} to {shape} at this phase, and no growth operator says how: keep the size, "
        f"declare `enter: {{growth: {{use: ...}}}}` with an operator for widths, or let it start anew with `enter: {{fresh: [{name}]}}`; "
        "in a loop of your own give `carry` a map with `CopyOf` or `Fresh`"
    )


def load(
    old: Tensors,
    new: nn.Module,
    origins: Mapping[str, Origin],
    *,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype | None] = lambda name: None,
    kept: Mapping[tuple[str, str], torch.Tensor] = MappingProxyType({}),
    lay: Lay = keep_whole,
) -> ModelReceipt:
    """Adopt, copy or leave fresh every parameter of the new model; fresh ones keep the values that their module drew.

    One pass over the parameters with a branch for each kind of origin: as functions the branches would share all their state.

    Args:
        old: tensors by canonical name; those that are Parameters may be adopted.
        new: the model to fill; its ties are made.
        origins: where every parameter comes from.
        device: where new parameters live.
        dtype_of: declared dtype of a parameter; None: as it was built.
        kept: (copy, source) where a copy takes other values than its source now holds → these values, of the source's shape.
        lay: puts a new parameter where it will live, once it has its values.
    """
    canonical = first_names(old)
    values = {name: tensor.detach() for name, tensor in old.items()}  # a module that stays may be source and target at once
    dtypes = {name: dtype_of(name) or parameter.dtype for name, parameter in new.named_parameters()}
    adopters = _adopters(old, origins, dtypes, device)
    aliases: dict[int, list[str]] = {}
    for name, parameter in new.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    adopted: dict[str, str] = {}
    copied: dict[str, Mapped] = {}
    recast: dict[str, torch.dtype] = {}
    for name, parameter in list(new.named_parameters()):
        origin, dtype = origins[name], dtypes[name]
        if isinstance(origin, Fresh):
            zeros = origin.init == "zeros"
            parameter.data = torch.zeros_like(parameter, dtype=dtype, device=device) if zeros else parameter.data.to(device, dtype)
            put_parameter(new, aliases[id(parameter)], lay(parameter), instead_of=parameter)
            continue
        source = old[origin.source]
        if adopters.get(id(source)) == name:
            assert isinstance(source, nn.Parameter)  # only those are adopted
            put_parameter(new, aliases[id(parameter)], source)
            adopted[name] = canonical[id(source)]
            continue
        parameter.data = parameter.data.to(device, dtype) if origin.keeps_rest else torch.empty_like(parameter, dtype=dtype, device=device)
        fill(parameter.data, {each: kept.get((name, each), values[each]) for each in origin.sources}, origin)
        put_parameter(new, aliases[id(parameter)], lay(parameter), instead_of=parameter)
        copied[name] = origin.renamed({each: canonical[id(old[each])] for each in origin.sources})
        if source.dtype != dtype:
            recast[name] = source.dtype
    fresh = tuple(name for name, origin in origins.items() if isinstance(origin, Fresh))
    used_names = {*adopted.values(), *(source for origin in copied.values() for source in origin.sources)}
    dropped = tuple(name for name in canonical.values() if name not in used_names)
    return ModelReceipt(adopted=adopted, copied=copied, fresh=fresh, dropped=dropped, recast=recast)


def put_parameter(model: nn.Module, names: Iterable[str], parameter: nn.Parameter, *, instead_of: nn.Parameter | None = None) -> None:
    """Let a model hold a parameter under all of its tied names, unless it does."""
    for name in names if parameter is not instead_of else ():
        set_parameter(model, name, parameter)


def _adopters(old: Tensors, origins: Mapping[str, Origin], dtypes: Mapping[str, torch.dtype], device: torch.device) -> dict[int, str]:
    """id of an old parameter → the new name that adopts the object: its own name, else the first that copies it whole."""
    candidates = [(name, origin) for name, origin in origins.items() if isinstance(origin, CopyOf) and origin.whole]
    adopters: dict[int, str] = {}
    for own in (True, False):
        for name, origin in candidates:
            parameter = old[origin.source]
            adoptable = isinstance(parameter, nn.Parameter) and parameter.dtype == dtypes[name] and parameter.device.type == device.type
            if adoptable and (origin.source == name) is own:
                adopters.setdefault(id(parameter), name)
    return adopters


def first_names(tensors: Tensors) -> dict[int, str]:
    """id of a tensor → its canonical name, the first of its tied names."""
    return {id(tensor): name for name, tensor in reversed(list(tensors.items()))}


def zero_residuals(
    model: nn.Module,
    path: str,
    residual_outputs: Sequence[str],
    blocks: Mapping[tuple[str, int], BlockOrigin],
    new: Collection[str],
) -> None:
    """Zero the residual outputs of the new blocks that ask for it, and the biases beside them.

    Args:
        model: the new model.
        path: canonical path of a block, `rack.stacks.{stack}.{index}`.
        residual_outputs: parameters of a block that write into the residual stream.
        blocks: new block → its origin.
        new: names of fresh and copied parameters; an adopted one is not touched.

    Raises:
        UserError: the rack names no residual outputs.
        ProviderError: the operator zeroes a block that was adopted.
    """
    zero = set()
    for (stack, index), origin in blocks.items():
        if origin.zero_residual:
            if not residual_outputs:
                raise UserError(
                    "this growth operator zeroes the residual outputs of new blocks, but the rack's spec names none: "
                    "use an operator that copies"
                )
            block = path.format(stack=stack, index=index)
            if f"{block}.{residual_outputs[0]}" not in new:
                raise ProviderError(f"the growth operator zeroes the residual outputs of {block}, which is an old block that goes on")
            zero |= {f"{block}.{output}" for output in residual_outputs}
            zero |= {f"{block}.{output.rsplit('.', 1)[0]}.bias" for output in residual_outputs}
    for name in zero.intersection(new):
        model.get_parameter(name).data.zero_()
