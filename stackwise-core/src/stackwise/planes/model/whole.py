"""A whole module in the place of the rack: `Fields` hands it what its `forward` names, `Outputs` names what comes back.

Inside a run its parameters are named `rack.<own name>`, as those of any rack. In files of weights they have the names of its own
`state_dict`, tied ones under each of theirs, so that it loads them without anything of StackWise.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stackwise.contracts.specs import RackSpec
from stackwise.errors import UserError

INSIDE = "rack."
"""What stands before the names of a whole module inside a run."""

_WRAPPERS = ("OptimizedModule", "DataParallel", "DistributedDataParallel")


class Fields(nn.Module):
    """The embedding of a whole module: it passes on, unchanged, the field that the module's `forward` names first."""

    names: tuple[str, ...] = ()
    """Fields that `forward` does not run without, the first of them first."""

    def read(self, module: nn.Module) -> None:
        """Learn the fields from a module's `forward`.

        Raises:
            UserError: it names none, or none that is handed over by its position, as the first field is.
        """
        self._module = type(module).__name__
        first, *others = inspect.signature(module.forward).parameters.values() or (None,)
        if first is not None and first.kind is first.KEYWORD_ONLY:
            raise UserError(
                f"forward of {self._module} takes '{first.name}' by keyword alone, and the first field is handed over by its position: "
                f"write forward(self, {first.name}, ...), without a * before it"
            )
        if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
            raise UserError(f"forward of {self._module} names no batch field: write forward(self, images, ...), an argument for each field")
        named = (p for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        self.names = (first.name, *(p.name for p in named if p.default is p.empty))

    def forward(self, **fields: Tensor) -> Tensor:
        """The first field."""
        if len(fields) < len(self.names):
            missing = ", ".join(f"'{name}'" for name in self.names if name not in fields)
            raise UserError(
                f"forward of {self._module} is called with the batch's fields of the names {', '.join(self.names)}, and the batch has no "
                f"{missing}: name the entries of tuples so by data.fields, or give a field that name by data.rename"
            )
        return fields[self.names[0]]


class Outputs(nn.Module):
    """The head of a whole module: a tensor becomes the output `output`, a map of name → tensor stays one."""

    dtype: torch.dtype | None = None
    """Of floating outputs, where the module is held in another precision than it was built in; None: as they come."""

    def forward(self, outputs: Any) -> Mapping[str, Tensor]:
        """Named outputs.

        Raises:
            UserError: neither a tensor nor a map.
        """
        if not isinstance(outputs, Tensor | Mapping):
            raise UserError(f"the module returns a {type(outputs).__name__}: let its forward return a tensor, or a map of name → tensor")
        named: Mapping[str, Tensor] = {"output": outputs} if isinstance(outputs, Tensor) else outputs
        if self.dtype is None:
            return named
        return {name: value.to(self.dtype) if _is_floating(value) else value for name, value in named.items()}


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def check_blocks(module: nn.Module, spec: RackSpec) -> None:
    """Check that a whole module has the lists of blocks that the config names, each of the declared length.

    Raises:
        UserError: it has not.
    """
    for path, count in spec.stacks.items():
        try:
            blocks = module.get_submodule(path)
        except AttributeError:
            lists = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential) and name]
            raise UserError(
                f"model.blocks: {type(module).__name__} has no module '{path}'; its lists are {', '.join(lists) or 'none'}"
            ) from None
        names = [name for name, _ in blocks.named_modules(remove_duplicate=False) if name and "." not in name]
        if names != [str(index) for index in range(count)]:
            modules = f"{len(names)} modules there" + (f" ({', '.join(names[:4])})" if names else "")
            raise UserError(
                f"model.blocks says that {path} holds {count} blocks, numbered from 0, and {type(module).__name__} builds {modules}: name "
                "the option that is their number"
            )
        for output in spec.residual_outputs:
            if any(output not in dict(block.named_parameters()) for block in blocks.children()):
                raise UserError(f"residual_outputs names '{output}', which is not a parameter of the blocks of {path}")


def check_unwrapped(module: nn.Module, path: str) -> None:
    """Check that a module is the one that its author wrote, not a wrapper around it under whose names nothing would be found.

    Raises:
        UserError: it is compiled, or spread over devices.
    """
    for name, part in module.named_modules():
        if type(part).__name__ in _WRAPPERS and type(part).__module__.startswith("torch."):
            where = f"{path}.{name}".rstrip(".")
            raise UserError(
                f"{where} is wrapped in {type(part).__name__}, which renames its parameters: give the module itself; "
                "`run: {compile: true}` compiles it, and a run has one device"
            )


def explain_dtypes(module: nn.Module, fields: Mapping[str, Tensor], error: RuntimeError) -> None:
    """Say why a module failed on a batch, if it is that it holds another dtype than the batch.

    Raises:
        UserError: it does.
    """
    dtypes = {parameter.dtype for parameter in module.parameters()}
    whole = any(word in str(error) for word in ("dtype", "scalar type"))  # else integers are not at fault: an embedding takes them
    suspects = {name: values for name, values in fields.items() if _is_floating(values) or (whole and isinstance(values, Tensor))}
    for field in (name for name, values in suspects.items() if dtypes and values.dtype not in dtypes):
        held, given = (str(dtype).removeprefix("torch.") for dtype in (dtypes.pop(), fields[field].dtype))
        raise UserError(
            f"{type(module).__name__} holds {held} and the field '{field}' is {given}: give the data in {held}, convert it at the start of "
            f"forward, or build the module in {given} (`model: {{precision: {{rack: bfloat16}}}}` trains 16-bit parameters)"
        )


def own_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a run under the names of a whole module's own `state_dict`, tied ones under each of theirs; others keep their names."""
    own = {f"{INSIDE}{name}": id(tensor) for name, tensor in module.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    first = {tensor: name for name, tensor in reversed(own.items())}
    inside = {
        name.removeprefix(INSIDE): tensors[name] if name in tensors else tensors[first[tensor]].clone()
        for name, tensor in own.items()
        if first[tensor] in tensors
    }
    return inside | {name: tensor for name, tensor in tensors.items() if name not in own}


def names_inside(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that they have inside a run, from files with a whole module's own names or with those of a run."""
    own = module.state_dict().keys()
    return {f"{INSIDE}{name}" if name in own else name: tensor for name, tensor in tensors.items()}
