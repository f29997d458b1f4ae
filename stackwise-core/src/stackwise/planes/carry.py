"""`carry`: growth for a training loop of one's own. Weights and moments go from a model to a larger one, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from attrs import frozen
from torch import nn

from stackwise.contracts.growth import BlockOrigin, CopyOf, GrowthOperator, GrowthRequest, Origin, ParameterGrowth
from stackwise.errors import UserError, did_you_mean
from stackwise.planes.model.transfer import ModelReceipt, carry_buffers, load, origins, sources, zero_residuals
from stackwise.planes.optimizer.moments import Crossing, MomentsReceipt, Powers

CANONICAL = "rack.stacks.{stack}.{index}"


@frozen(kw_only=True)
class CarryReceipt:
    """What was done: to the parameters by name, and to their moments by number."""

    model: ModelReceipt
    moments: MomentsReceipt


@frozen
class _Mapped:
    """A map by tensor that was given as such."""

    origins: Mapping[str, Origin]

    def map_parameters(
        self, old: Mapping[str, tuple[int, ...]], new: Mapping[str, tuple[int, ...]], request: GrowthRequest
    ) -> Mapping[str, Origin]:
        return self.origins


def carry(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    new_model: nn.Module,
    growth: GrowthOperator | ParameterGrowth | Mapping[str, Origin] | None = None,
    *,
    blocks: str = CANONICAL,
    residual_outputs: Sequence[str] = (),
    moments: Literal["copy", "reset"] = "copy",
    group_of: Callable[[str], int] | None = None,
) -> CarryReceipt:
    """Take the weights of a model and the moments of its optimizer over into another model, in place.

    Parameters of the same name and shape are adopted: `new_model` goes on with the very Parameter objects of `model`. Blocks that
    are new copy or start anew as the growth operator says. The optimizer keeps its groups and its state; parameters that left are
    gone from it, new ones join the group of what they copy, or of their like in other blocks. Go on training with `new_model` and
    the same `optimizer`.

    Args:
        model: the model so far; it shares parameters with the new one afterwards and should be let go.
        optimizer: any torch optimizer over parameters of `model`.
        new_model: built with the new shape; what it was initialised with stays where parameters are fresh.
        growth: an operator over blocks or tensors, or a map from new names to `CopyOf` and `Fresh`; none: names must match.
        blocks: path of a block with `{index}`, and `{stack}` where there are several lists of blocks (`layers.{index}`).
        residual_outputs: parameters of a block that write into the residual stream; needed by operators that zero them.
        moments: whether copied parameters copy the moments of their source.
        group_of: name of a fresh parameter → index of its group, where there are several groups and names do not tell.

    Raises:
        UserError: a shape that changes without a map, a map of names that are not there, `blocks` that stand nowhere, a block that
            nothing says the origin of, a parameter without a group.
    """
    old = dict(model.named_parameters(remove_duplicate=False))
    if isinstance(growth, Mapping):
        _check_map(growth, old, new_model)
    request = GrowthRequest(
        old_stacks=_stacks(model, blocks), new_stacks=_stacks(new_model, blocks), residual_outputs=tuple(residual_outputs)
    )
    block_map = _block_map(growth, request, blocks)
    if any(origin.gated for origin in block_map.values()):
        raise UserError("a gate follows the time of a run, which a loop of one's own has not: use an operator that does not gate")
    groups = _groups(optimizer, old)
    state = {name: optimizer.state[p] for name, p in model.named_parameters() if optimizer.state.get(p)}
    source = sources(blocks, block_map)
    maps = _Mapped(growth) if isinstance(growth, Mapping) else growth
    found = origins(old, new_model, source, growth=maps, request=request)
    trained = {name: parameter.requires_grad for name, parameter in new_model.named_parameters()}
    receipt = load(old, new_model, found, device=_device(old))
    new_model.to(_device(old))
    carry_buffers(dict(model.named_buffers()), new_model, source)
    zero_residuals(new_model, blocks, residual_outputs, block_map, {*receipt.fresh, *receipt.copied})
    parameters = dict(new_model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(trained[name])
    return CarryReceipt(model=receipt, moments=_regroup(optimizer, parameters, receipt, groups, state, moments, group_of))


def _check_map(growth: Mapping[str, Origin], old: Mapping[str, nn.Parameter], new_model: nn.Module) -> None:
    new = dict(new_model.named_parameters())
    for name, origin in growth.items():
        if name not in new:
            raise UserError(f"growth maps '{name}', and the new model has no such parameter{did_you_mean(name, new)}")
        if isinstance(origin, CopyOf) and origin.source not in old:
            raise UserError(f"growth copies {name} from '{origin.source}', and the model has none{did_you_mean(origin.source, old)}")


def _stacks(model: nn.Module, path: str) -> dict[str, int]:
    """Stack → number of blocks, in forward order; one stack without a name where the path has no `{stack}`."""
    if "{index}" not in path:
        raise UserError(f"blocks: '{path}' has no place for the number of a block: write it as in 'layers.{{index}}'")
    pattern = re.compile(re.escape(path).replace(r"\{stack\}", r"(?P<stack>[^.]+)").replace(r"\{index\}", r"(?P<index>\d+)") + r"\.")
    counts: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if match := pattern.match(name):
            stack = match.groupdict().get("stack", "")
            counts[stack] = max(counts.get(stack, 0), int(match["index"]) + 1)
    return counts


def _block_map(growth: object, request: GrowthRequest, path: str) -> Mapping[tuple[str, int], BlockOrigin]:
    old, new = request.old_stacks, request.new_stacks
    if not hasattr(growth, "map_blocks"):
        known = {(stack, index) for stack, count in old.items() for index in range(count)}
        fresh = [(s, i) for s, count in new.items() for i in range(count) if (s, i) not in known]
        if fresh and growth is None:
            stack, index = fresh[0]
            raise UserError(
                f"block {index} of {f'stack {stack!r}' if stack else 'the model'} is new, and nothing says where it comes from: "
                "give a growth operator, or a map by name"
            )
        return {}
    if not new and not isinstance(growth, ParameterGrowth):
        raise UserError(
            f"blocks: no block of the new model stands at '{path}', so {type(growth).__name__} has nothing to map: say where blocks "
            "stand in the names of parameters, as in 'layers.{index}'"
        )
    try:
        found: Mapping[tuple[str, int], BlockOrigin] = growth.map_blocks(request)
    except ValueError as error:
        raise UserError(f"{type(growth).__name__} cannot make this change: {error}") from error
    return found


def _device(parameters: Mapping[str, nn.Parameter]) -> torch.device:
    return next(iter(parameters.values())).device


def _groups(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Name → index of the group that holds the parameter."""
    names = {id(parameter): name for name, parameter in reversed(list(parameters.items()))}
    found = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise UserError(
                    f"group {index} of the optimizer holds a parameter of shape {tuple(parameter.shape)} that is none of the model"
                )
            found[names[id(parameter)]] = index
    return found


def _regroup(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    receipt: ModelReceipt,
    groups: Mapping[str, int],
    state: Mapping[str, Mapping[str, Any]],
    moments: Literal["copy", "reset"],
    group_of: Callable[[str], int] | None,
) -> MomentsReceipt:
    like = {_pattern(name): index for name, index in groups.items()}
    members: list[list[nn.Parameter]] = [[] for _ in optimizer.param_groups]
    names: list[list[str]] = [[] for _ in optimizer.param_groups]
    declared: dict[str, Powers] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        index = _index(name, receipt, groups, like, len(members), group_of)
        members[index].append(parameter)
        names[index].append(name)
        if "moments" in optimizer.param_groups[index]:
            declared[name] = optimizer.param_groups[index]["moments"]
    crossing = Crossing(receipt=receipt, moments=moments)
    counts = crossing.carry(state, parameters, declared)
    optimizer.state.clear()
    for name, entries in {**crossing.kept, **crossing.copied}.items():
        if parameters[name].requires_grad:
            optimizer.state[parameters[name]] = entries
    for group, held, called in zip(optimizer.param_groups, members, names, strict=True):
        group["params"] = held
        if "param_names" in group:
            group["param_names"] = called
    return counts


def _index(
    name: str,
    receipt: ModelReceipt,
    groups: Mapping[str, int],
    like: Mapping[str, int],
    count: int,
    group_of: Callable[[str], int] | None,
) -> int:
    """The group of a parameter: that of what it was or copies, else of its like in other blocks, else the only one."""
    origin = receipt.copied.get(name)
    was = receipt.adopted.get(name) or (origin.source if isinstance(origin, CopyOf) else None)
    if was is not None and was in groups:
        return groups[was]
    if group_of is not None:
        return group_of(name)
    if _pattern(name) in like:
        return like[_pattern(name)]
    if count == 1:
        return 0
    raise UserError(f"{name} is fresh, and none of the {count} groups of the optimizer holds its like: say which with `group_of`")


def _pattern(name: str) -> str:
    """The name with its block numbers taken out."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
