"""`carry`: growth in your own training loop. Carries weights and moments from a model to a larger one, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from attrs import frozen
from torch import nn

from stackwise.contracts.growth import BlockOrigin, Fresh, GrowthOperator, GrowthRequest, Origin, ParameterGrowth
from stackwise.errors import UserError, did_you_mean
from stackwise.planes.model.state import carry_state, extra_states
from stackwise.planes.model.transfer import ModelReceipt, load, origins, sources, zero_residuals
from stackwise.planes.optimizer.moments import Crossing, Kept, MomentsReceipt
from stackwise.planes.optimizer.weight_copies import source_of

CANONICAL = "rack.stacks.{stack}.{index}"


@frozen(kw_only=True)
class CarryReceipt:
    """What happened to the parameters, by name, and to their moments, in numbers."""

    model: ModelReceipt
    moments: MomentsReceipt


@frozen
class _TensorMap:
    """A growth operator that returns a ready map by tensor."""

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
    """Carry the weights of a model and the moments of its optimizer into another model, in place.

    Parameters of the same name and shape are adopted: `new_model` takes the Parameter objects of `model`. New blocks copy or start
    anew as the growth operator says. The optimizer keeps its groups and state but loses the parameters that left; a new parameter
    joins the group of the one it copies, or of the same parameter in other blocks. Go on training with `new_model` and the same
    `optimizer`.

    Args:
        model: the old model; afterwards it shares parameters with the new one, so drop it.
        optimizer: any torch optimizer over parameters of `model`.
        new_model: built with the new shape; fresh parameters keep their initial values.
        growth: an operator over blocks or tensors, or a map from new names to `CopyOf`, `Combine` and `Fresh`; without it names must match.
        blocks: path of a block with `{index}`, and `{stack}` where there are several lists of blocks (`layers.{index}`).
        residual_outputs: parameters of a block that write into the residual stream; needed by operators that zero them.
        moments: whether copied parameters copy the moments of their source.
        group_of: name of a fresh parameter → index of its group, where there are several groups and names do not say which.

    Raises:
        UserError: a shape that changes without a map, a map with unknown names, `blocks` that match nothing, a block without an
            origin, a parameter without a group.
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
    membership = _Membership.of(optimizer, old)
    source = sources(blocks, block_map)
    operator = _TensorMap(growth) if isinstance(growth, Mapping) else growth
    origin_of = origins(old, new_model, source, growth=operator, request=request)
    requires_grad = {name: parameter.requires_grad for name, parameter in new_model.named_parameters()}
    receipt = load(old, new_model, origin_of, device=_device(old))
    new_model.to(_device(old))
    carry_state({**dict(model.named_buffers()), **extra_states(model)}, new_model, source, passing={})
    zero_residuals(new_model, blocks, residual_outputs, block_map, {*receipt.fresh, *receipt.copied})
    parameters = dict(new_model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(requires_grad[name])
    return CarryReceipt(model=receipt, moments=membership.regroup(parameters, Crossing(receipt=receipt, moments=moments), group_of))


def _check_map(growth: Mapping[str, Origin], old: Mapping[str, nn.Parameter], new_model: nn.Module) -> None:
    new = dict(new_model.named_parameters())
    for name, origin in growth.items():
        if name not in new:
            raise UserError(f"growth maps '{name}', and the new model has no such parameter{did_you_mean(name, new)}")
        for source in () if isinstance(origin, Fresh) else origin.sources:
            if source not in old:
                raise UserError(f"growth copies {name} from '{source}', and the model has none{did_you_mean(source, old)}")


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
        old_blocks = {(stack, index) for stack, count in old.items() for index in range(count)}
        fresh = [(s, i) for s, count in new.items() for i in range(count) if (s, i) not in old_blocks]
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
        block_map: Mapping[tuple[str, int], BlockOrigin] = growth.map_blocks(request)
    except ValueError as error:
        raise UserError(f"{type(growth).__name__} cannot make this change: {error}") from error
    return block_map


def _device(parameters: Mapping[str, nn.Parameter]) -> torch.device:
    return next(iter(parameters.values())).device


@frozen
class _Membership:
    """Group and optimizer state of each parameter, by name."""

    optimizer: torch.optim.Optimizer
    groups: Mapping[str, int]
    """Name → index of its group."""
    like: Mapping[str, int]
    """Name without block numbers → index of the group."""
    kept: Mapping[str, Kept]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> _Membership:
        """Read an optimizer over these parameters."""
        names = {id(parameter): name for name, parameter in reversed(list(parameters.items()))}
        groups = {}
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) not in names:
                    raise UserError(
                        f"group {index} of the optimizer holds a parameter of shape {tuple(parameter.shape)} that is none of the model"
                    )
                groups[names[id(parameter)]] = index
        kept = {name: Kept(entries=optimizer.state[p]) for name, p in parameters.items() if name in groups and optimizer.state.get(p)}
        return cls(optimizer, groups, {_without_numbers(name): index for name, index in groups.items()}, kept)

    def regroup(self, parameters: Mapping[str, nn.Parameter], crossing: Crossing, group_of: Callable[[str], int] | None) -> MomentsReceipt:
        """Put the parameters of the new model and their carried state into the optimizer."""
        optimizer = self.optimizer
        trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        index = {name: self._index(name, crossing.receipt, group_of) for name in trainable}
        powers = {name: group["moments"] for name, i in index.items() if "moments" in (group := optimizer.param_groups[i])}
        moments = crossing.carry(self.kept, parameters, powers)
        optimizer.state.clear()
        for name, entries in moments.entries.items():
            if name in trainable:
                optimizer.state[trainable[name]] = entries
        for i, group in enumerate(optimizer.param_groups):
            members = [name for name in trainable if index[name] == i]
            group["params"] = [trainable[name] for name in members]
            if "param_names" in group:
                group["param_names"] = members
        return moments.receipt

    def _index(self, name: str, receipt: ModelReceipt, group_of: Callable[[str], int] | None) -> int:
        """Group of a parameter: that of its source, else of the same parameter in other blocks, else the only group."""
        source = source_of(name, receipt)
        if source is not None and source in self.groups:
            return self.groups[source]
        if group_of is not None:
            return group_of(name)
        if _without_numbers(name) in self.like:
            return self.like[_without_numbers(name)]
        count = len(self.optimizer.param_groups)
        if count == 1:
            return 0
        raise UserError(f"{name} is fresh, and none of the {count} groups of the optimizer holds its like: say which with `group_of`")


def _without_numbers(name: str) -> str:
    """The name with `*` for each block number."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
