"""`--help` reads well on a terminal of 80 columns, for every command, and each says its exit codes."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from stackwise import cli

COMMANDS = [(), *((name,) for name in cli.COMMANDS)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_says_the_exit_codes(command: tuple[str, ...]):
    done = CliRunner().invoke(cli.main, [*command, "--help"], terminal_width=80, max_content_width=80)
    assert done.exit_code == 0
    assert [line for line in done.output.splitlines() if len(line) > 80] == []
    assert "Exit code" in done.output


def test_every_command_has_one_line_in_the_listing():
    lines = CliRunner().invoke(cli.main, ["--help"], terminal_width=80).output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(cli.COMMANDS)
