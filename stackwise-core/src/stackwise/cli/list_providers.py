"""`stackwise list-providers`: what is installed, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from stackwise.host.discovery import discover
from stackwise.host.offers import GROUP
from stackwise.host.provider import Provider

SLOW_SECONDS = 0.25
"""A provider that takes longer than this to list is named: every command waits for it."""


@click.command(
    epilog="""\b
Examples:
  stackwise list-providers
  stackwise --block-provider waves list-providers --json

Exit code: 0, whatever the state of the providers.
"""
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects instead of a table.")
def list_providers(as_json: bool) -> None:
    """List the installed providers, their components and their faults.

    A provider is any installed distribution with an entry point in the group 'stackwise.providers'; install one with pip and
    it is listed here. A broken provider is listed with the reason and does not disturb the others.

    The JSON objects have the keys provider, distribution, version, status ('ok', or why it cannot be used), refused (true if an allow
    or block list left it out), editable, location, and components, a list of objects with kind, name, id and summary.
    """
    providers = discover().providers
    if as_json:
        click.echo(_as_json(providers))
    else:
        from stackwise.reports.terminal import columns_of, wrap

        click.echo(wrap(_as_text(providers), columns_of()))
    for provider in providers:
        if provider.seconds > SLOW_SECONDS:
            sentence = f"note: provider '{provider.name}' ({provider.distribution}) took {provider.seconds:.1f} s to list"
            click.echo(f"{sentence}; its entry-point module should import nothing heavy", err=True)


def _as_json(providers: Sequence[Provider]) -> str:
    import json

    rows = [
        {
            "provider": provider.name,
            "distribution": provider.distribution,
            "version": provider.version,
            "status": provider.status,
            "refused": provider.refused,
            "editable": provider.editable,
            "location": provider.location,
            "components": [
                {"kind": each.kind, "name": each.component.name, "id": each.id, "summary": each.component.summary}
                for each in provider.components
            ],
        }
        for provider in providers
    ]
    return json.dumps(rows, indent=2)


def _as_text(providers: Sequence[Provider]) -> str:
    if not providers:
        return f"no provider is installed: pip install a distribution with an entry point in the group '{GROUP}'"
    heads = [
        (p.name, p.distribution, p.version + (" (editable)" if p.editable else ""), "ok" if p.ok else "left out" if p.refused else "broken")
        for p in providers
    ]
    titles = ("provider", "distribution", "version", "status")
    widths = [max(len(row[i]) for row in (titles, *heads)) for i in range(3)]
    components = [component for provider in providers for component in provider.components]
    kind_width, id_width = (
        max((len(text) for text in texts), default=0) for texts in ([c.kind for c in components], [c.id for c in components])
    )

    def line(row: Sequence[str]) -> str:
        return "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]])

    lines = [line(titles)]
    for provider, head in zip(providers, heads, strict=True):
        lines.append(line(head))
        if not provider.ok:
            lines.append(f"    {provider.status}")
        for c in provider.components:
            lines.append(f"    {c.kind:<{kind_width}}  {c.id:<{id_width}}  {c.component.summary}".rstrip())
    return "\n".join(lines)
