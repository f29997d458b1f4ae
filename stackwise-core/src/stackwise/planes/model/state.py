"""The state of a model by name: what it is, how two of them compare, and how one is written into a model.

There is one comparison. Weights that are resumed, started from, loaded from a directory or copied from another model all go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from stackwise.errors import UserError
from stackwise.planes.shards import is_part, put

EXTRA_STATE = "_extra_state"
"""Last segment of the name that torch gives to what a module's `get_extra_state` returns."""

Tensors = Mapping[str, torch.Tensor]


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, tied ones once, and persistent buffers, by canonical name; the tensors themselves."""
    tensors: dict[str, torch.Tensor] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    passing = passing_buffers(model)
    return tensors | {name: buffer for name, buffer in model.named_buffers() if name not in passing}


def passing_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are not persistent: no file of weights holds them, a checkpoint does."""
    persistent = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in persistent}


def extra_states(model: nn.Module) -> dict[str, Any]:
    """What modules say by `get_extra_state`, by the names that torch gives it."""
    return {
        f"{path}.{EXTRA_STATE}".lstrip("."): module.get_extra_state()
        for path, module in model.named_modules()
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }


def unheld(model: nn.Module, twin: nn.Module) -> list[str]:
    """What a file of weights leaves out of a trained model: extra states, and buffers that are not persistent and that training changed.

    A buffer that the first use makes is a cache, which a loaded model makes again.

    Args:
        model: the trained one.
        twin: a new one of the same declaration and instant, with the values that its constructors made.
    """
    now = passing_buffers(model)
    changed = [
        name
        for name, built in passing_buffers(twin).items()
        if (buffer := now.get(name)) is not None and buffer.shape == built.shape and not same_values(buffer, built)
    ]
    return [*extra_states(model), *changed]


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape hold the same values; nan is the same as nan."""
    other = other.to(one.device)
    return bool(((one == other) | ((one != one) & (other != other))).all())  # nan alone differs from itself


def is_finite(buffer: torch.Tensor) -> bool:
    """Whether a buffer holds neither infinity nor nan; on the meta device it holds nothing."""
    return buffer.is_meta or not (buffer.is_floating_point() or buffer.is_complex()) or bool(buffer.isfinite().all())


def named_state(model: nn.Module) -> dict[str, Any]:
    """All that a model goes on from: `named_tensors`, the buffers that are not persistent, and extra states."""
    return named_tensors(model) | passing_buffers(model) | extra_states(model)


def differences(own: Tensors, saved: Mapping[str, Any], dropped: Collection[str] = (), *, dtypes: bool = True) -> list[str]:
    """What keeps saved tensors from being those of a model, in a sentence each.

    Args:
        own: the model's tensors by name. Where several names hold one tensor, the first is needed and the others must agree with it.
        saved: by name.
        dropped: names that are not asked for.
        dtypes: whether another dtype of the same kind is a difference; whole numbers in the place of fractions are one anyway.
    """
    first = {id(tensor): name for name, tensor in reversed(list(own.items()))}
    unequal = [f"missing in the weights: {name}" for name in first.values() if name not in saved and name not in dropped]
    unequal += [f"not in the model: {name}" for name in saved if name not in own]
    for name, tensor in own.items():
        if name not in saved or name in dropped:
            continue
        other, canonical = saved[name], first[id(tensor)]
        if other.shape != tensor.shape:
            unequal.append(f"of another shape: {name} is {list(other.shape)} in the weights and {list(tensor.shape)} in the model")
        elif other.dtype != tensor.dtype and (dtypes or other.is_floating_point() != tensor.is_floating_point()):
            unequal.append(f"of another dtype: {name} is {_dtype(other)} in the weights and {_dtype(tensor)} in the model")
        elif canonical != name and canonical in saved and not torch.equal(other, saved[canonical]):
            unequal.append(f"tied in the model, but different in the weights: {name} and {canonical}")
    return sorted(unequal)


def load_named_tensors(model: nn.Module, saved: Tensors, what: str) -> None:
    """Write `named_tensors` back into a model of the same names, shapes and dtypes.

    Args:
        model: the model to fill.
        saved: by name.
        what: the saved tensors as the message calls them (`the weights in runs/a`).

    Raises:
        UserError: any difference, all of them named; nothing is written then.
    """
    every = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name.rpartition(".")[2] != EXTRA_STATE}
    if unequal := differences(every, saved):
        raise UserError(f"{what} are not this model's:\n  " + "\n  ".join(unequal))
    for name, tensor in named_tensors(model).items():
        write(tensor, saved[name])


def load_named_state(model: nn.Module, saved: Mapping[str, Any], what: str) -> None:
    """Write `named_state` back into a model that was built as the one it was asked of.

    A buffer that is not persistent may have been made or have grown in use, as caches do: it is put in place whatever its shape.

    Raises:
        UserError: any difference in parameters, persistent buffers or extra states, all of them named.
    """
    own, extra = named_tensors(model), extra_states(model)
    passing = {name: value for name, value in saved.items() if name not in own and _is_passing(model, name)}
    stateful = {name: value for name, value in saved.items() if name.rpartition(".")[2] == EXTRA_STATE}
    unequal = differences(own, {name: value for name, value in saved.items() if name not in passing and name not in stateful})
    unequal += [f"missing in the weights: {name}" for name in extra if name not in stateful]
    unequal += [f"not in the model: {name}" for name in stateful if name not in extra]
    if unequal:
        raise UserError(f"{what} are not this model's:\n  " + "\n  ".join(unequal))
    for name, tensor in own.items():
        write(tensor, saved[name])
    for name, value in passing.items():
        put_buffer(model, name, value)
    for name, value in stateful.items():
        model.get_submodule(name.removesuffix(EXTRA_STATE).rstrip(".")).set_extra_state(value)


def write(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Write values into a tensor in place; one that repeats the same memory along a dimension (`expand`) takes one of the repeats."""
    if is_part(tensor):
        put(tensor, values)
        return
    one = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
    with torch.no_grad():
        tensor.detach()[one].copy_(values[one])


def put_buffer(model: nn.Module, name: str, values: torch.Tensor) -> None:
    """Let a buffer that is not persistent hold these values."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    held = getattr(owner, leaf, None)
    if isinstance(held, torch.Tensor) and held.shape == values.shape and held.dtype == values.dtype:
        write(held, values)
    else:
        device = held.device if isinstance(held, torch.Tensor) else next(iter(model.parameters())).device
        fill_place(owner, leaf, values.to(device, copy=True))


def fill_place(owner: nn.Module, leaf: str, values: torch.Tensor) -> None:
    """Let a module hold a buffer in the place that it registered for it, persistent or not; where it registered none, as a passing one."""
    if getattr(owner, leaf, 0) is None:
        setattr(owner, leaf, values)  # a buffer that was registered as None stays one, of its own kind
        if leaf in dict(owner.named_buffers(recurse=False)):
            return
        delattr(owner, leaf)
    owner.register_buffer(leaf, values, persistent=False)


def check_savable(model: nn.Module) -> None:
    """All that the model goes on from can be written to a file.

    Raises:
        UserError: a dtype or an extra state that no file holds; the sentence names it.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype == torch.complex128:
            raise UserError(f"{name} is complex128, which no file of weights can hold: use complex64, or two tensors of float64")
    for name, value in extra_states(model).items():
        if (strange := _strange(value)) is not None:
            raise UserError(
                f"{name} holds a {strange}, which no checkpoint can hold: let get_extra_state return maps, lists, tensors, numbers, texts"
            )


def _strange(value: Any) -> str | None:
    """The type of the first value inside that a checkpoint cannot hold."""
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor):
        return None
    if isinstance(value, Mapping):
        return next((found for item in (*value.keys(), *value.values()) if (found := _strange(item))), None)
    if type(value) in (list, tuple):
        return next((found for item in value if (found := _strange(item))), None)
    return type(value).__name__


def _is_passing(model: nn.Module, name: str) -> bool:
    """Whether a saved name is that of a buffer that is not persistent: the module has it so, or as a place that is still empty."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        return False
    return (
        leaf != EXTRA_STATE and name not in model.state_dict() and (name in dict(model.named_buffers()) or getattr(owner, leaf, 0) is None)
    )


def carry_state(old: Mapping[str, Any], new: nn.Module, source: Callable[[str], str | None], passing: Tensors) -> None:
    """Buffers and extra states follow their module into a new model.

    Args:
        old: persistent buffers and extra states of the model that is left, by name.
        new: the model to fill.
        source: name in the new model → the name it had in the old one; None where it is new.
        passing: buffers that are not persistent and changed since their module was built; others are as their constructor made them,
            which may have other options now.
    """
    held = passing_buffers(new)
    for name, buffer in new.named_buffers():
        values = (passing if name in held else old).get(source(name) or "")
        if values is not None and values.shape == buffer.shape and values is not buffer:
            write(buffer, values)
    made = {**{name: value for name, value in old.items() if isinstance(value, torch.Tensor)}, **passing}
    unmade = {name.rpartition(".")[2] for name in made}
    for path, module in new.named_modules():
        for leaf in (leaf for leaf in unmade if getattr(module, leaf, 0) is None):  # a cache that its first use makes
            if (values := made.get(source(f"{path}.{leaf}") or "")) is not None:
                fill_place(module, leaf, values.clone())
        if type(module).get_extra_state is nn.Module.get_extra_state:
            continue
        before = source(f"{path}.{EXTRA_STATE}".lstrip("."))
        if before is not None and before in old:
            module.set_extra_state(old[before])


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
