"""What the processes of a run compare before its first step, so that none of them trains anything else."""

from __future__ import annotations

import json
import platform
import sys
from hashlib import blake2b
from typing import Any

import torch

import stackwise
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan
from stackwise.processes.ranks import Ranks
from stackwise.saved.clock import clock_as_json
from stackwise.saved.provenance import named_config

_WHEN = "before the first step"


def agree_on_the_config(ranks: Ranks | None, plan: Plan) -> None:
    """Compare the config, the providers and the libraries, before anything is built: how processes meet there follows from the config.

    Raises:
        UserError: a process has something else; rank, host and item are named.
    """
    if ranks is None:
        return
    items = {
        "version of StackWise": stackwise.__version__,
        "version of torch": str(torch.__version__),
        "version of Python": platform.python_version(),
        "byte order": sys.byteorder,
        **{f"provider '{provider.name}'": f"{provider.version} {provider.file_digest}" for provider in plan.providers},
        **{f"config at {key}": _text(value) for key, value in named_config(plan).items()},
    }
    ranks.agree(items, _WHEN)


def agree_on_the_run(ranks: Ranks | None, plan: Plan, machine: TrainingMachine) -> None:
    """Compare the data, what the plan makes of them, and the step to go on from.

    Raises:
        UserError: a process has something else; rank, host and item are named.
    """
    if ranks is None:
        return
    schedule, read = plan.schedule, machine.data.fingerprints_to_come()
    items: dict[str, Any] = {
        **{f"source '{name}'": _text([print_ for each, print_ in read if each == name]) for name, _ in read},
        "tokenizers": ", ".join(str(entry.tokenizer.vocabulary) for entry in plan.tokenizers.entries),
        "plan": _text([clock_as_json(schedule.clock), sorted(map(str, schedule.evaluate_at.items())), list(schedule.save_at)]),
        "step to go on from": machine.step,
    }
    ranks.agree({name: str(value) for name, value in items.items()}, _WHEN)


def _text(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 200 else f"{text[:160]}… ({_digest(text)})"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=12).hexdigest()
