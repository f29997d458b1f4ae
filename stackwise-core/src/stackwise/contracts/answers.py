"""Which component an answer came from: calls of a component are marked, so that an error names component and callback."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from stackwise.contracts.components import SPEC_OF, Kind
from stackwise.errors import UserError

_MARK = "__stackwise_callback__"

METHODS: Mapping[Kind, tuple[str, ...]] = {
    "embedding": ("get_spec",),
    "head": ("get_spec",),
    "adapter": ("get_spec",),
    "task": ("get_spec", "prepare", "loss"),
    "optimizer": ("step", "zero_grad", "param_groups"),
    "loader": ("get_batch_spec", "take", "state_dict", "load_state_dict"),
    "growth": ("map_blocks", "preserves_function"),
    "reaction": ("watch", "factor", "state_dict", "load_state_dict"),
    "schedule": ("value",),
    "weight-adapter": ("forward", "merged"),
    "transform": ("__call__",),
    "observer": ("__call__",),
    "format": ("recognises", "read", "write", "example"),
}
"""Methods that an artifact of a kind has; a plain rack may leave its spec to its options."""

_SPECS: Mapping[Kind, str] = {"embedding": "get_spec", "rack": "to_spec", "head": "get_spec", "adapter": "get_spec", "task": "get_spec"}


MAPS = (dict, Mapping)
"""The classes of maps, for `isinstance` in every step: a dict is recognised at once, while `Mapping` alone costs a call."""


class WrongAnswer(UserError):
    """A component returned something that its kind does not allow. For a component given in code this is the user's fault."""


class calling:
    """Marks an error as caused by a component's callback: `with calling("waves.forecast", "prepare"): …`. May be kept and used again.

    Args:
        component: id of the component, or the name of what was given in code.
        callback: which of its methods is called and its answer used.
    """

    __slots__ = ("callback", "component")

    def __init__(self, component: str, callback: str) -> None:
        self.component, self.callback = component, callback

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            mark(error, self.component, self.callback)


def mark(error: BaseException, component: str, callback: str) -> None:
    """Mark an error as `calling` does, unless a callback further in did."""
    if not hasattr(error, _MARK):
        setattr(error, _MARK, (component, callback))


def callback_of(error: BaseException | None) -> tuple[str, str] | None:
    """Component and callback that an error, or what it was raised from, was marked with."""
    while error is not None:
        if (mark := getattr(error, _MARK, None)) is not None:
            return mark  # type: ignore[no-any-return]  # set above
        error = error.__cause__
    return None


def expect(condition: bool, answer: Any, expected: str) -> None:
    """Check what a callback returned.

    Args:
        condition: whether the answer is allowed.
        answer: what was returned, for the message.
        expected: what is allowed, in words.

    Raises:
        WrongAnswer: the condition does not hold; the message says what was returned and what was expected.
    """
    if not condition:
        raise WrongAnswer(f"it gave {short(answer)}, and {expected} is expected")


def expect_rows(answer: Any, rows: int) -> Mapping[str, Any]:
    """Check that a task returned a map from names to tensors with one entry for each row.

    Raises:
        WrongAnswer: it returned something else.
    """
    expect(isinstance(answer, Mapping) and bool(answer), answer, "a map from names to tensors")
    for name, tensor in answer.items():
        fits = hasattr(tensor, "shape") and len(tensor.shape) > 0 and tensor.shape[0] == rows
        expect(isinstance(name, str) and fits, tensor, f"as {name!r} a tensor with an entry for each of {rows} rows")
    return dict(answer)


def expect_state(state: Any) -> dict[str, Any]:
    """Check that `state_dict` returned a map with string keys.

    Raises:
        WrongAnswer: it returned something else.
    """
    expect(isinstance(state, MAPS) and all(isinstance(key, str) for key in state), state, "a dict of names and plain values")
    return dict(state)


def expect_artifact(kind: Kind, artifact: Any) -> None:
    """Check that a factory built an artifact of the right kind.

    Raises:
        WrongAnswer: a method is missing, or its spec is of another kind.
    """
    missing = [name for name in METHODS.get(kind, ()) if not hasattr(artifact, name)]
    expect(not missing, artifact, f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}, which has {', '.join(missing)},")
    if kind == "reaction":
        factor = artifact.factor
        expect(is_number(factor), factor, "a factor that is a number")
    name = _SPECS.get(kind)
    if name is not None and hasattr(artifact, name):
        spec = getattr(artifact, name)()
        wanted = SPEC_OF[kind]
        if not isinstance(spec, wanted):
            raise WrongAnswer(f"{name}() of what it built gave {short(spec)}, and {wanted.__name__} is expected")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0


def short(value: Any) -> str:
    """An answer in few words."""
    if hasattr(value, "shape"):
        return f"a tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
