"""The options of `run` and `resume` about processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from stackwise.errors import UserError
from stackwise.processes.place import Place


def process_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--ranks` and `--max-restarts`."""
    ranks = click.option("--ranks", type=click.IntRange(1, 4096), metavar="N", help="Train in N processes on this machine.")
    restarts = click.option(
        "--max-restarts",
        type=click.IntRange(0, 1000),
        default=0,
        metavar="N",
        help="With --ranks: start the processes again, at most N times, after one was killed.",
    )
    return ranks(restarts(command))


def start_processes(context: click.Context, ranks: int | None, max_restarts: int) -> None:
    """Start the processes that a command asks for, and end with their exit code; return where this one is to do the work itself.

    Raises:
        UserError: more processes are asked for inside one of them, or restarts without processes.
    """
    if ranks is None or ranks == 1:
        if max_restarts:
            raise UserError("--max-restarts is for several processes: give --ranks N above 1 as well, or leave it out")
        return
    if (place := Place.here()).ranks > 1:
        raise UserError(f"--ranks starts processes, and this is one already ({place}): leave it out under torchrun")
    from stackwise.processes.launch import launch

    context.exit(launch(_without(sys.argv[1:]), ranks, max_restarts))


def _without(arguments: list[str]) -> list[str]:
    """The command line without the options about processes."""
    left, drops = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if drops:
            drops = False
        elif name in ("--ranks", "--max-restarts"):
            drops = not equals
        else:
            left.append(argument)
    return left
