"""What to write instead of a key that is not known: a near name, the field's other word for it, or the section it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import attrs

from stackwise.config.nodes import describe
from stackwise.config.planes import DataConfig, ModelConfig, OptimizerConfig
from stackwise.config.run import CheckpointConfig, ParallelConfig, RunConfig, StopConfig
from stackwise.contracts.options import config_key
from stackwise.errors import did_you_mean, near_names

_OTHER_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("learning_rate", "learningrate", "max_lr", "peak_lr"), "lr"),
    **dict.fromkeys(("max_steps", "total_steps", "num_steps", "train_steps", "iterations"), "steps"),
    **dict.fromkeys(("num_epochs", "max_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("block_size", "context_length", "max_length", "sequence_length", "max_seq_len"), "seq_len"),
    **dict.fromkeys(("batch", "bs", "micro_batch_size", "per_device_train_batch_size", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "grad_accumulation"), "accumulate"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), "workers"),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "gradient_clipping", "clip_grad_norm"), "clip"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("dtype", "mixed_precision"), "precision"),
}
"""Words of other trainers → the key they stand for."""

_RATE = "the rate follows time by a schedule of the config, optimizer={…, 'lr': {'cosine': {'from': 1e-3, 'warmup': '5%'}}}"
SCHEDULED_RATE: Mapping[str, str] = dict.fromkeys(("lr_scheduler", "scheduler", "lr_schedule", "schedule", "lr_schedulers"), _RATE)
"""Words for a schedule of the learning rate → what to write instead."""

_AMOUNTS = ("steps", "epochs", "tokens", "samples")
"""What the length of a run is counted in; as keys there are none of them."""


def unknown_key(key: str, known: Iterable[str], value: Any = None, *, elsewhere: bool = True) -> str:
    """The message on an unknown key: what it may have been meant as.

    Args:
        key: as written.
        known: the keys that may stand there.
        value: what was written for it, for the form to write instead.
        elsewhere: whether it may have been meant for another section; an option of a component is not.
    """
    names = [*known]
    if key in SCHEDULED_RATE and key not in names:
        return f"unknown key: {SCHEDULED_RATE[key]}"
    word = _OTHER_WORDS.get(key.lower(), key)
    if word in names:
        return f"unknown key — did you mean '{word}'?"
    if near_names(key, names):
        return f"unknown key{did_you_mean(key, names)}"
    if not elsewhere:
        return f"unknown key{did_you_mean(key, names)}"
    written = "…" if value is None else describe(value)
    if word in _AMOUNTS:
        amount = written if isinstance(value, int | float) else "500"
        return f"unknown key: the length of a run is its horizon, write `run: {{horizon: {amount} {word}}}`"
    if home := _homes().get(word):
        return f"unknown key: it belongs under `{home}`, write `{_form(home, word, written)}`"
    return f"unknown key{did_you_mean(key, names)}"


def _form(home: str, key: str, written: str) -> str:
    form = f"{{{key}: {written}}}"
    for section in reversed(home.split(".")):
        form = f"{section}: {form}" if section == home.split(".")[0] else f"{{{section}: {form}}}"
    return form


@cache
def _homes() -> dict[str, str]:
    """Key of the core → the section it stands in; `lr` is an option of most optimizers."""
    homes = {
        "run.checkpoint": CheckpointConfig,
        "run.stop": StopConfig,
        "run.parallel": ParallelConfig,
        "model": ModelConfig,
        "optimizer": OptimizerConfig,
        "data": DataConfig,
        "run": RunConfig,
    }
    table = {config_key(a): home for home, cls in homes.items() for a in attrs.fields(cls) if a.name != "part"}
    return {"lr": "optimizer", "weight_decay": "optimizer", **table}
