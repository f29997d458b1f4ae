"""Losses that parts of the model add, and the weights of them that the config declares: both, or it is refused."""

from __future__ import annotations

from collections.abc import Iterable

from stackwise.errors import did_you_mean


def unweighed(name: str) -> str:
    """The sentence on a declared loss without a weight."""
    role, _, loss = name.partition(".")
    return f"the {role} adds the loss '{loss}', and nothing weighs it: write task.auxiliary: {{{name}: 0.01}}, or 0 to only report it"


def undeclared(name: str, losses: Iterable[str]) -> str:
    """The sentence on a weight without a declared loss."""
    known = sorted(losses)
    hint = f"the losses that parts add here are {', '.join(known)}" if known else "no part of the model adds a loss here"
    return f"no part of the model declares the loss '{name}'{did_you_mean(name, known)}; {hint}"
