"""All providers at once, loaded in a process of their own: one that ends the process, or leaves a thread in it, is data as well.

The child is forked before anything heavy is imported, so it costs a few milliseconds, and what it learns comes back as JSON.
Where there is no fork, or this process has threads or torch already, the caller loads the providers itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NoReturn

import attrs

from stackwise.contracts.components import Component, Starter
from stackwise.host.offers import Offer
from stackwise.host.provider import Provider, Registered

Resolve = Callable[[str], tuple[Provider, ...]]


def survey(offers: Mapping[str, Sequence[Offer]], resolve: Resolve) -> dict[str, tuple[Provider, ...]]:
    """The providers of every name that a child process could report.

    Args:
        offers: provider name → what is installed under it.
        resolve: loads the providers of a name; called in the child.
    """
    providers: dict[str, tuple[Provider, ...]] = {}
    left = sorted(offers)
    while left and _may_fork():
        answers, end = _ask_child(left, resolve)
        for name, answer in zip(left, answers, strict=False):
            if answer is not None:
                providers[name] = tuple(map(_from_json, answer))
        left = left[len(answers) :]
        if left:  # the child ended while it loaded the first of them
            name, *left = left
            offer = offers[name][0]
            value = offer.entry_point.value if offer.entry_point is not None else name
            providers[name] = (attrs.evolve(offer.claim, status=f"loading '{value}' ended the whole process ({end})"),)
    return providers


def _may_fork() -> bool:
    return hasattr(os, "fork") and threading.active_count() == 1 and "torch" not in sys.modules


def _ask_child(names: Sequence[str], resolve: Resolve) -> tuple[list[Any], str]:
    """The answers of a child, one a name until it ends, and how it ended."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        _answer(names, resolve, writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as lines:
        answers = [
            json.loads(line) for line in islice(lines, len(names)) if line.endswith("\n")
        ]  # a process it left behind may never close
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answers, f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _answer(names: Sequence[str], resolve: Resolve, writer: int) -> NoReturn:
    """The child: writes a line for every name, and ends without running what was meant for the end of the parent."""
    try:
        with os.fdopen(writer, "w", encoding="utf-8") as lines:
            for name in names:
                try:
                    answer = _to_json(resolve(name))
                except Exception:  # not the provider's: the parent meets it again, where it is reported
                    answer = None
                print(json.dumps(answer), file=lines, flush=True)
        if sys.stderr is not None:
            sys.stderr.flush()
    finally:
        os._exit(0)


def _to_json(providers: Sequence[Provider]) -> list[dict[str, Any]] | None:
    """Records as plain data; None: an example is none, so that the caller has to load the provider itself."""
    records = [attrs.asdict(provider) for provider in providers]
    try:
        plain: list[dict[str, Any]] = json.loads(json.dumps(records))
    except (TypeError, ValueError):
        return None
    same = all(
        component.component.example == record["component"]["example"]
        for provider, row in zip(providers, plain, strict=True)
        for component, record in zip(provider.components, row["components"], strict=True)
    )
    return plain if same else None


def _from_json(row: Mapping[str, Any]) -> Provider:
    components = tuple(Registered(**{**each, "component": Component(**each["component"])}) for each in row["components"])
    starters = tuple(Starter(**each) for each in row["starters"])
    return Provider(**{**row, "requires": tuple(row["requires"]), "components": components, "starters": starters})
