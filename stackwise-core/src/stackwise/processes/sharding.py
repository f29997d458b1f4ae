"""Models of which each process holds a part: PyTorch's `fully_shard` (FSDP2), wrapped around a live model and taken off again.

Wrapping is a function of the model as it is. A boundary takes it off, exchanges parameters by name as in one process, and lays it around
what came of that; so nothing of torch's has to learn of growth, of freezing or of an adapter. A parameter keeps its object and its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import isfinite, sqrt
from typing import Any, cast

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from stackwise.planes.model.module import Model, set_parameter
from stackwise.planes.shards import is_first_copy, is_part, laid_as, own, rows_of
from stackwise.processes.ranks import Ranks
from stackwise.processes.reduction import no_gradient
from stackwise.processes.watch import Watch


class Sharding:
    """Divides models among the processes of a run.

    Args:
        ranks: the processes; neighbours hold the parts of one model, and where there are more of them, others hold the same parts.
        shard: parts of a model.
        device: where the parts lie.
        writes_apart: whether checkpoints are written in threads, while the processes train.
    """

    def __init__(self, ranks: Ranks, shard: int, device: torch.device, *, writes_apart: bool = False) -> None:
        self._ranks, self.parts = ranks, shard
        copies = ranks.place.ranks // shard
        shape, names = ((shard,), ("shard",)) if copies == 1 else ((copies, shard), ("replicate", "shard"))
        self.mesh: DeviceMesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        ranks.groups += [group for group in self.mesh.get_all_groups() if group not in ranks.groups]
        self._placements = [Shard(0)] if copies == 1 else [Replicate(), Shard(0)]
        self._touched: set[int] = set()
        """id of each part that received a gradient in this step."""
        self._watches: list[_Watch] = []
        self.writers: Sharding | _Apart = _Apart(self, ranks) if writes_apart else self
        """The processes as they write a checkpoint together."""

    # -- parts ----------------------------------------------------------------------------------------------------

    def lay(self, parameter: nn.Parameter) -> nn.Parameter:
        """The part of a whole parameter that this process holds; every process has drawn or read the same. A scalar stays whole."""
        if is_part(parameter) or parameter.dim() == 0:
            return parameter
        return nn.Parameter(laid_as(parameter, self._form(parameter)), requires_grad=parameter.requires_grad)

    def lay_all(self, model: nn.Module) -> None:
        """Let a whole model hold parts, one parameter after the other."""
        laid: dict[int, nn.Parameter] = {}
        for name, parameter in list(model.named_parameters(remove_duplicate=False)):
            if id(parameter) not in laid:
                laid[id(parameter)] = self.lay(parameter)
            set_parameter(model, name, laid[id(parameter)])

    def _form(self, parameter: torch.Tensor) -> torch.Tensor:
        """A part without values that shows how a parameter of this shape is divided."""
        mesh_of_parts = self.mesh if self.mesh.ndim == 1 else self.mesh["shard"]
        size = -(-parameter.shape[0] // self.parts)
        rows = max(0, min(parameter.shape[0] - size * mesh_of_parts.get_local_rank(), size))
        local = torch.empty((rows, *parameter.shape[1:]), dtype=parameter.dtype, device=self.mesh.device_type)
        stride = torch.empty(parameter.shape, device="meta").stride()
        return DTensor.from_local(local, self.mesh, self._placements, run_check=False, shape=parameter.shape, stride=stride)

    # -- around a model -------------------------------------------------------------------------------------------

    def wrap(self, model: nn.Module, *, trains: bool = True) -> None:
        """Have a model of parts gather what it computes with, block by block, and add gradients over all processes.

        Args:
            model: its parameters laid.
            trains: whether gradients come of it.
        """
        if isinstance(model, FSDPModule):
            return
        parameters = dict(model.named_parameters(remove_duplicate=False))
        places: dict[int, list[str]] = {}
        for name, parameter in parameters.items():
            places.setdefault(id(parameter), []).append(name)
        stand_ins = {key: _stand_in(parameters[names[0]]) for key, names in places.items() if is_part(parameters[names[0]])}
        for key, stand_in in stand_ins.items():
            for name in places[key]:
                set_parameter(model, name, stand_in)
        single = {p for p in parameters.values() if not is_part(p)}
        shard = partial(fully_shard, mesh=self.mesh, ignored_params=single)
        for block in _blocks(model):
            shard(block)
        shard(model)
        for key in stand_ins:
            for name in places[key]:
                set_parameter(model, name, parameters[name])
        wrapped = cast(FSDPModule, model)
        for module in _wrapped(model):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)
            module.set_custom_all_gather(cast(Any, _Gathering(self._ranks.watch)))  # torch names the forms of both in a private module
            module.set_custom_reduce_scatter(cast(Any, _Scattering(self._ranks.watch)))
            if trains:
                self._watches.append(_Watch(cast(nn.Module, module), self._touched))
        wrapped.reshard()

    def unwrap(self, model: nn.Module) -> None:
        """Take off what `wrap` laid around a model: every parameter is the part that it was.

        torch has no call for this. What `fully_shard` adds to a module is its class, two hooks, an entry in the table of such modules
        and hooks of `state_dict` and of loading one; tests compare a model that was wrapped and unwrapped with one that never was.
        """
        from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
        from torch.distributed._composable_state import _module_state_mapping

        for watch in self._watches:
            watch.remove()
        self._watches.clear()
        for wrapped in list(_wrapped(model)):
            module, state = cast(nn.Module, wrapped), wrapped._get_fsdp_state()
            wrapped.reshard()
            state._pre_forward_hook_handle.remove()
            state._post_forward_hook_handle.remove()
            for group in state._fsdp_param_groups:
                for each in group.fsdp_params:
                    each._post_load_hook_handle.remove()
                for handles in (group._module_to_pre_save_state_dict_hook_handle, group._module_to_pre_load_state_dict_hook_handle):
                    for handle in handles.values():
                        handle.remove()
            del _module_state_mapping[module]
            for key in (STATE_KEY, REGISTRY_KEY):
                module.__dict__.pop(key, None)
            module.__class__ = type(module).__mro__[wrapped._orig_cls_mro_index]
        for module in model.modules():
            for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
                module.__dict__.pop(mark, None)

    def rest(self, model: nn.Module) -> None:
        """Free the parameters that a forward pass without a backward pass has left gathered."""
        if isinstance(model, FSDPModule):
            model.reshard()

    # -- files ----------------------------------------------------------------------------------------------------

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all of them hold."""
        return self._ranks.is_first

    def gather(self, item: Any) -> list[Any]:
        """What every process gives, by rank."""
        return self._ranks.gather(item)

    def to_write(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int] | None:
        """The rows that this process writes of a tensor into a file of all of them, and where they begin; None where that is nothing."""
        if not is_part(tensor):
            return (tensor, 0) if self.is_first else None
        start, stop = rows_of(tensor)
        return (own(tensor), start) if stop > start and is_first_copy(tensor) else None

    @contextmanager
    def waiting(self, what: str = "saves a checkpoint") -> Iterator[None]:
        """The time in which this process waits for a file to be whole, or for the others inside a boundary; longer than for a step."""
        with self._ranks.alone(what) if self.is_first else nullcontext(), self._ranks.watch.waiting():
            yield

    # -- a step ---------------------------------------------------------------------------------------------------

    def stepping(self) -> AbstractContextManager[None]:
        """The time in which an optimizer steps, and may have torch gather matrices."""
        return self._ranks.watch.waiting()

    def begin(self, model: nn.Module, *, last: bool) -> None:
        """To be called before each micro-batch: in the last one of a step, the gradients of all are added over all processes."""
        wrapped = cast(FSDPModule, model)
        wrapped.set_requires_gradient_sync(last)
        wrapped.set_is_last_backward(last)

    def take_touched(self, parameters: Sequence[nn.Parameter]) -> list[bool]:
        """For each parameter, whether this process found a gradient for it in this step; the record is then cleared."""
        touched = [id(parameter) in self._touched or (not is_part(parameter) and parameter.grad is not None) for parameter in parameters]
        self._touched.clear()
        return touched

    def scale(self, parameters: Sequence[nn.Parameter], factor: float) -> None:
        """Multiply this process's part of the gradients."""
        if gradients := [own(p.grad) for p in parameters if p.grad is not None]:
            torch._foreach_mul_(gradients, factor)

    def norm(self, parameters: Sequence[nn.Parameter]) -> float:
        """Global L2 norm of the gradients; the same in every process, and not finite where any of them is not.

        Raises:
            UserError: no parameter has a gradient.
        """
        gradients = [gradient for p in parameters if (gradient := p.grad) is not None]
        if not gradients:
            raise no_gradient()
        parts: list[torch.Tensor] = []
        single: list[torch.Tensor] = []
        for gradient in gradients:
            (parts if is_part(gradient) else single).append(own(gradient))
        of_parts = float(self._ranks.rows(_square(parts))[: self.parts].sum())
        total = of_parts + float(_square(single))
        return sqrt(total) if isfinite(total) else total


class _Exchange:
    """One of torch's collectives for a divided model, watched so that a process that does not join is noticed.

    Args:
        watch: notices that process.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Allocate the buffer of the exchange."""
        return torch.empty(*size, dtype=dtype, device=device)


class _Gathering(_Exchange):
    """Gathers the parameters of a block."""

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: distributed.ProcessGroup, async_op: bool = False
    ) -> distributed.Work | None:
        with self._watch.waiting():
            work: distributed.Work | None = distributed.all_gather_single(output_tensor, input_tensor, group, async_op)
        return work


class _Scattering(_Exchange):
    """Adds the gradients of a block and leaves each process its part of the sum."""

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: distributed.ProcessGroup,
        op: distributed.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> distributed.Work | None:
        with self._watch.waiting():
            work: distributed.Work | None = distributed.reduce_scatter_single(output_tensor, input_tensor, op, group, async_op)
        return work


class _Apart:
    """The processes as their writer threads see them, which write a checkpoint during training and have a process group of their own."""

    def __init__(self, sharding: Sharding, ranks: Ranks) -> None:
        self.is_first, self.to_write, self.waiting = sharding.is_first, sharding.to_write, sharding.waiting
        self._ranks, self._group = ranks, ranks.new_group()

    def gather(self, item: Any) -> list[Any]:
        """What every process gives, by rank."""
        return self._ranks.gather(item, self._group)


def _square(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The square of the norm of all of them, [1], in float64 on the CPU."""
    if not gradients:
        return torch.zeros(1, dtype=torch.float64)
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum().cpu().reshape(1)


def _stand_in(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of the whole shape without values, in whose place the part comes back: torch reads it anew at the first forward."""
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"), requires_grad=parameter.requires_grad)


def _wrapped(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of the rack that share no parameter with anything else; what is shared is gathered with the rest of the model."""
    if not isinstance(model, Model):
        return
    spec, users = model.rack_spec, dict[int, int]()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    for stack, count in spec.stacks.items():
        for index in range(count):
            block = model.rack.get_submodule(spec.block_path.format(stack=stack, index=index))
            inside: dict[int, int] = {}
            for module in block.modules():
                for parameter in module.parameters(recurse=False):
                    inside[id(parameter)] = inside.get(id(parameter), 0) + 1
            if inside and all(users[key] == count for key, count in inside.items()):
                yield block


class _Watch:
    """A hook of the first forward, which finds the gathered parameters and notes each that gets a gradient from then on."""

    def __init__(self, module: nn.Module, touched: set[int]) -> None:
        self._groups, self._touched = cast(FSDPModule, module)._get_fsdp_state()._fsdp_param_groups, touched
        self._handle = module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self.remove()
        for each in (each for group in self._groups for each in group.fsdp_params if each.sharded_param.requires_grad):
            gathered: Any = each.unsharded_param
            gathered.register_post_accumulate_grad_hook(partial(self._note, id(each.sharded_param)))

    def remove(self) -> None:
        """Take the hook off, if it is still there."""
        self._handle.remove()

    def _note(self, key: int, parameter: torch.Tensor) -> None:
        self._touched.add(key)
