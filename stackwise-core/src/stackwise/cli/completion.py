"""`stackwise completion`: the shell code that completes commands, options and component ids."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(epilog="Exit codes: 0 done, 2 an unknown shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the shell code that completes commands, options and component ids.

    \b
    bash:  stackwise completion bash >> ~/.bashrc
    zsh:   stackwise completion zsh >> ~/.zshrc
    fish:  stackwise completion fish > ~/.config/fish/completions/stackwise.fish

    Open a new shell afterwards.
    """
    complete = get_completion_class(shell)
    assert complete is not None  # click brings all three
    click.echo(complete(ctx.find_root().command, {}, "stackwise", "_STACKWISE_COMPLETE").source())
