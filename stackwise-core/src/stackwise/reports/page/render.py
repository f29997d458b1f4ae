"""One self-contained HTML page of a run, of several, or of a plan: styles, scripts and data inside, and nothing fetched."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError, select_autoescape
from markupsafe import Markup

from stackwise import __version__
from stackwise.reports import comparison
from stackwise.reports.drawing import drawing_of, drawing_of_plan
from stackwise.reports.page import tables
from stackwise.reports.record import RunRecord

SCRIPTS = ("vendor/uPlot.iife.min.js", "lanes.js", "charts.js", "page.js")
STYLES = ("vendor/uPlot.min.css", "page.css")
_AS_TEXT = {"&": "\\u0026", "<": "\\u003c", ">": "\\u003e", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Characters that could end the element that holds the data, as JSON writes them otherwise."""


def render_page(records: Sequence[RunRecord], *, live: bool = False) -> str:
    """The page of some runs, first the one whose figures stand at its top.

    Args:
        records: at least one.
        live: whether the page asks its server for news.
    """
    groups = comparison.seed_groups(records)
    several = tables.comparison_tables(records, groups) if len(records) > 1 else None
    views = [tables.view_of(record) for record in records]
    title = records[0].name if len(records) == 1 else f"{len(records)} runs"
    return _render(title, drawing_of(records, groups), runs=views, several=several, plan=None, live=live)


def render_plan(plan: Mapping[str, Any], text: str) -> str:
    """The page of a plan before anything ran.

    Args:
        plan: as `plan.json` holds it.
        text: as the terminal shows it.
    """
    view = {"plan": plan, "text": text, "phases": tables.phase_rows(plan, ()), "cards": tables.cards_of(plan, ())}
    return _render(f"plan of {plan['name']}", drawing_of_plan(plan), runs=[], several=None, plan=view, live=False)


def _render(title: str, drawing: Mapping[str, Any], **context: Any) -> str:
    scripts, styles = [_asset(name) for name in SCRIPTS], [_asset(name) for name in STYLES]
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    connect = "connect-src 'self'; " if context["live"] else ""
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; {connect}base-uri 'none'; form-action 'none'"
    template = _environment().get_template("page.html")
    try:
        return template.render(
            title=title,
            policy=policy,
            scripts=[Markup(script) for script in scripts],  # ours: files of this package
            styles=[Markup(style) for style in styles],
            data=_as_data(drawing),
            version=__version__,
            licence=_asset("vendor/LICENSE-uPlot.txt"),
            **context,
        )
    except UndefinedError as error:
        raise LookupError(str(error)) from error  # a document lacks what the page shows


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"si": tables.si, "whole": tables.whole, "figure": tables.figure, "span": tables.span_of, "size": tables.size}
    return environment


def _as_data(drawing: Mapping[str, Any]) -> Markup:
    text = json.dumps(_finite(drawing), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup("".join(_AS_TEXT.get(character, character) for character in text))


def _finite(value: Any) -> Any:
    """JSON has no nan and no infinity: a drawing leaves a gap there."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value
