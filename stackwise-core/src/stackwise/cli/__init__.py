"""The command line: `stackwise COMMAND`. Commands are imported when they are called; errors become sentences and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from stackwise import __version__
from stackwise.cli.escaping import escaped_streams
from stackwise.errors import (
    DiskError,
    EndedTogether,
    ProviderError,
    RunStopped,
    StackwiseError,
    UserError,
    bytes_asked,
    did_you_mean,
    lacks_memory,
)
from stackwise.host.admission import lists_of, observing
from stackwise.host.isolation import stray_threads
from stackwise.processes.place import Place

COMMANDS: Mapping[str, tuple[str, str]] = {
    "list-providers": ("stackwise.cli.list_providers:list_providers", "List installed providers and what is wrong with them."),
    "show": ("stackwise.cli.show:show", "Explain one component: options, spec, example."),
    "init": ("stackwise.cli.init:init", "Write a config to begin with."),
    "migrate": ("stackwise.cli.migrate:migrate", "Translate a config of another tool."),
    "validate": ("stackwise.cli.validate:validate", "Check a config and report every mistake at once."),
    "plan": ("stackwise.cli.plan:plan", "Show the timeline and its transitions before anything runs."),
    "run": ("stackwise.cli.run:run", "Train what a config declares."),
    "check": ("stackwise.cli.check:check", "Check an installed provider against the contract."),
    "new-provider": ("stackwise.cli.new_provider:new_provider", "Write a complete provider to start from."),
    "schema": ("stackwise.cli.schema:schema", "Print the JSON Schema of configs."),
    "resume": ("stackwise.cli.resume:resume", "Go on with a run from its newest checkpoint."),
    "branch": ("stackwise.cli.branch:branch", "Begin a run in the middle of another."),
    "sweep": ("stackwise.cli.sweep:sweep", "Run one config many times, with other values and seeds."),
    "export": ("stackwise.cli.export:export", "Write the weights of a run for use elsewhere."),
    "generate": ("stackwise.cli.generate:generate", "Continue a prompt with the model of a run."),
    "predict": ("stackwise.cli.predict:predict", "Predict new rows with the model of a run."),
    "report": ("stackwise.cli.report:report", "Write the page of one run or several."),
    "preview": ("stackwise.cli.preview:preview", "Show what the model gets, before anything trains."),
    "runs": ("stackwise.cli.runs:runs", "List the runs of a directory."),
    "compare": ("stackwise.cli.compare:compare", "Compare runs: what differs, and what each reached."),
    "evaluate": ("stackwise.cli.evaluate:evaluate", "Evaluate the model of a run."),
    "doctor": ("stackwise.cli.doctor:doctor", "Examine the installation, and a run directory."),
    "completion": ("stackwise.cli.completion:completion", "Print the code that completes words in your shell."),
}
"""Command → ("module:attribute", its line in the listing). A command is a file of its own and a line here."""

BROKEN_PIPE = 128 + 13
"""Exit code when the reader of our output left (`| head -1`): as if stopped by SIGPIPE."""

DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Errors of the operating system that are never a bug, wherever they are raised; mostly a full disk behind standard output."""


class _LazyGroup(click.Group):
    """Knows its commands by name, imports one when it is called, and turns whatever it raises into an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"no command '{args[0]}'{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            with escaped_streams():
                return super().main(*args, **extra)
        except SystemExit as end:
            if stray_threads():
                _leave(end.code)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_place()
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except BrokenPipeError:
            _silence_stdout()
            code = BROKEN_PIPE
        except (KeyboardInterrupt, click.Abort) as error:
            code = _report(ctx, error, "stopped", 128 + signal.SIGINT)
        except EndedTogether as error:
            code = error.exit_code
        except StackwiseError as error:
            code = _report(ctx, error, f"{_culprit(error)}: {error}", error.exit_code)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_REFUSES:
                _silence_stdout()
                raise click.exceptions.Exit(_report(ctx, error, f"disk error: {error}", DiskError.exit_code)) from error
            if lacks_memory(error):
                raise click.exceptions.Exit(_report(ctx, error, f"out of memory{bytes_asked(error)}", 2)) from error
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            advice = "" if ctx.params.get("debug") else "; 'stackwise --debug …' prints where"
            code = _report(ctx, error, f"this is a bug in StackWise, please report it: {text}{advice}", 1)
        raise click.exceptions.Exit(code)


def _leave(code: object) -> NoReturn:
    """End the process even if a provider's thread is still running, which the interpreter would wait for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _culprit(error: StackwiseError) -> str:
    if isinstance(error, RunStopped):
        return "stopped"
    return "provider error" if isinstance(error, ProviderError) else "error"


def _report(ctx: click.Context, error: BaseException, sentence: str, code: int) -> int:
    from stackwise.reports.terminal import columns_of, wrap

    if ctx.params.get("debug"):
        import traceback

        with suppress(OSError):
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    with suppress(OSError):  # nobody is left to read it
        text = f"{place}: {sentence}" if (place := Place.here()).rank else sentence
        click.echo(wrap(text, columns_of(sys.stderr)), err=True)
    return code


def _check_place() -> None:
    """Check that the working directory is there, which paths of configs are read from.

    Raises:
        UserError: it has been removed.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory has been removed: change into one that is there") from None


def _silence_stdout() -> None:
    """Keep the interpreter from complaining about a closed pipe or a full disk when it flushes at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stackwise", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Print the traceback of an error as well.")
@click.option("--allow-provider", "allow", multiple=True, metavar="NAME", help="Import only this provider; repeatable.")
@click.option("--block-provider", "block", multiple=True, metavar="NAME", help="Do not import this provider; repeatable.")
@click.pass_context
def main(ctx: click.Context, debug: bool, allow: tuple[str, ...], block: tuple[str, ...]) -> None:
    """Train neural networks along a timeline of declared states.

    \b
    stackwise list-providers      what is installed
    stackwise show core.project   one component and its options
    stackwise plan config.yaml    the timeline, before anything runs
    stackwise run config.yaml     train

    \b
    Exit codes:
      0    done
      1    a bug in StackWise
      2    the input is at fault: command line, config or data
      3    an installed provider is at fault
      4    training halted: losses or gradients were not finite
      5    stopped by its own limit of time, run.stop.after
      137  one of several processes was killed from outside, or hangs
      130  stopped by Ctrl-C, 143 by SIGTERM, 129 when the terminal closed
           (128 + number of the signal)
    """
    ctx.with_resource(observing(lists_of("--{}-provider", allow or None, block)))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a terminal that knows only ASCII still gets every line
