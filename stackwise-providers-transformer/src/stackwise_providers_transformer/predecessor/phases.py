"""The progressive building and the schedule dictionaries of stack-wise, as phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from stackwise import UserError
from stackwise_providers_transformer.predecessor.keys import Old

REJECTED = (
    "time_embedding_dim",
    "time_encoding_type",
    "stack_time_mapping",
    "time_per_stack",
    "progressive_qlora_rank",
    "progressive_qlora_alpha",
)
TASKS = {
    "mlm": "transformer.masked-lm",
    "masked_lm": "transformer.masked-lm",
    "clm": "transformer.causal-lm",
    "causal_lm": "transformer.causal-lm",
    "diffusion": "transformer.mask-diffusion",
}


@frozen(kw_only=True)
class Timeline:
    """Length, phases, and the stacks that the first of them has."""

    horizon: str
    phases: dict[str, Any]
    stacks: list[dict[str, int]] | None = None


def phases_of(old: Old, training: Old, stacks: list[dict[str, int]]) -> Timeline:
    """The timeline: a schedule of dictionaries, else stack by stack, else one phase."""
    epochs = training.take("epochs_per_stack", 1)
    progressive, schedule = training.section("progressive"), old.take("schedule")
    if schedule:
        for key in list(progressive.rest):
            progressive.drop(key, "`schedule` says it")
        return _scheduled(schedule, old)
    if not progressive.take("enabled", False):
        for key in list(progressive.rest):
            progressive.drop(key, "progressive.enabled is false")
        return Timeline(horizon=f"{_plain(epochs * len(stacks))} epochs", phases={})
    return _progressive(progressive, stacks, epochs)


def _progressive(old: Old, stacks: list[dict[str, int]], epochs: float) -> Timeline:
    """A phase a stack: the new one trains, the trunk is frozen, or has low-rank adapters."""
    count = int(old.take("target_stacks") or old.take("max_stacks") or len(stacks))
    old.drop("max_stacks", "target_stacks says it")
    depth = next(iter(stacks[0].values()))
    mode, trunk = str(old.take("building_mode", "append")), str(old.take("trunk_strategy", "frozen"))
    if mode not in ("append", "prepend"):
        raise UserError(f"training.progressive.building_mode: {mode!r} is neither append nor prepend")
    adapters = _adapters(old) if trunk == "qlora" else None
    phases: dict[str, Any] = {}
    for k in range(count):
        names = [f"stack{i}" for i in range(k + 1)]
        phase: dict[str, Any] = {"until": f"{_plain(100 * (k + 1) / count)}%"}
        if k:
            order = names if mode == "append" else names[::-1]
            phase["model"] = {
                "rack": {"stacks": [{name: depth} for name in order]},
                "freeze": ["embedding", *(f"rack.stacks.{n}" for n in names[:-1])],
            }
            phase["enter"] = {"growth": {"use": "transformer.identity"}}
            if adapters is not None:
                select = [f"rack.stacks.{name}.*.attention.*" for name in names[:-1]]
                phase["model"]["weight_adapters"] = {"trunk": {"use": "transformer.lora", "select": select, **adapters}}
        phases[f"build{k}"] = phase
    del phases[f"build{count - 1}"]["until"]
    old.end()
    return Timeline(horizon=f"{_plain(epochs * count)} epochs", phases=phases if count > 1 else {}, stacks=[{"stack0": depth}])


def _adapters(old: Old) -> dict[str, Any]:
    """Options of the adapters beside the trunk."""
    for key in REJECTED:
        old.drop(key, "its own reader rejected it")
    old.drop("progressive_qlora", "its own reader rejected it")
    old.take("qlora_enabled")
    old.drop("qlora_strategy", "its own reader rejected it")
    rank, alpha = old.take("qlora_rank", 8), old.take("qlora_alpha", 16)
    return {"rank": int(rank), "alpha": float(alpha)}


def _scheduled(schedule: Any, old: Old) -> Timeline:
    """A phase a dictionary, by its end."""
    if not isinstance(schedule, list) or not all(isinstance(entry, Mapping) for entry in schedule):
        raise UserError("schedule: a list of maps is wanted, each with end_t or end_step")
    phases: dict[str, Any] = {}
    last_step = 0
    for i, entry in enumerate(schedule):
        inner = Old(f"schedule.{i}", dict(entry), old.dropped)
        name = str(inner.take("name", f"phase{i}"))
        end_t, end_step = inner.take("end_t"), inner.take("end_step")
        for key in ("start_t", "start_step"):
            inner.take(key)  # a phase begins where the one before it ends
        last_step = int(end_step) if end_step is not None else last_step
        until = f"{int(end_step)} steps" if end_step is not None else f"{_plain(100 * float(end_t if end_t is not None else 1))}%"
        phases[name] = {"until": until, **_changes(inner)}
        inner.end()
    del phases[list(phases)[-1]]["until"]
    return Timeline(horizon=f"{last_step} steps" if last_step else "1000 steps", phases=phases)


def _changes(entry: Old) -> dict[str, Any]:
    """What a dictionary of a schedule changes."""
    changes: dict[str, Any] = {}
    if (task := entry.take("task")) is not None:
        changes["task"] = {"use": TASKS.get(str(task), "transformer.causal-lm")}
        if str(task) not in TASKS:
            entry.dropped.append(f"{entry.path}.task: {task} has no counterpart by that name: causal-lm stands for it")
    data, optimizer, model = (entry.section(f"{name}_config") for name in ("data", "optimizer", "model"))
    changes["data"] = {key: int(value) for key in ("batch_size", "seq_len") if (value := data.take(key)) is not None}
    changes["optimizer"] = {key: value for key in ("lr", "weight_decay") if (value := optimizer.take(key)) is not None}
    if (count := model.take("n_stacks")) is not None:
        depth = int(model.take("blocks_per_stack", 1))
        changes["model"] = {"rack": {"stacks": [{f"stack{i}": depth} for i in range(int(count))]}}
        changes["enter"] = {"growth": {"use": "transformer.identity"}}
    for section in (data, optimizer, model):
        section.end()
    return {name: value for name, value in changes.items() if value}


def _plain(value: float) -> str:
    return f"{value:.10g}"
