"""`stackwise schema`: what editors complete and check configs with."""

from __future__ import annotations

import json

import click


@click.command(
    epilog="""\b
Examples:
  stackwise schema > stackwise.schema.json

\b
Then begin a config with the line
  # yaml-language-server: $schema=stackwise.schema.json

Exit code: 0; a component whose options do not load is known by its id only.
"""
)
def schema() -> None:
    """Print the JSON Schema (Draft 2020-12) of configs in this environment.

    It holds the core's keys, phases as deltas, durations, schedules, and the options of every installed component, chosen by
    `use`. Editors with the YAML language server complete and check configs with it. Rules over more than one key (timelines, sizes that
    must agree, selectors that match nothing) are checked by `stackwise validate` alone.
    """
    from stackwise.config.schema import config_schema
    from stackwise.host.discovery import discover

    click.echo(json.dumps(config_schema(discover()), indent=1, ensure_ascii=False))
