"""The keys of stack-wise's configs: every one is used, or named with the reason why it has no meaning here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define

from stackwise import UserError

UNREAD = "its training code never read it"
NEVER_READ = {
    "model": ("mask_fraction_min", "mask_fraction_max", "special_mask_id"),
    "training": (
        *("strategy", "end_to_end_scope", "gradient_checkpointing", "device", "cache_mode", "save_stacks", "save_rack", "mask_token_id"),
        *("fine_tune_mode", "joint_tuning_steps", "run_id", "max_steps", "current_block_lr", "quantization_enabled", "quantization_type"),
        *("qlora",),
    ),
    "training.progressive": ("time_interpretation", "training_objective", "new_stack_precision", "blocks_per_stack"),
    "data": ("dataset_path", "tokenizer_path"),
}
ELSEWHERE = {
    "training.cache_dir": "caches are in the user's cache folder here",
    "training.checkpoint_dir": "checkpoints are in the run directory here; --output says where that is",
    "training.log_interval": "every step is logged here",
    "training.use_wandb": "trackers are observers here: see `stackwise list-providers`",
    "data.use_dummy_data": "nothing is trained on random numbers here: the source below is real text, to be replaced by yours",
    "data.num_samples": "it counted rows of random numbers",
    "data.num_workers": "`run.workers` says how many processes read a source here",
    "data.pin_memory": "nothing here asks for it",
    "data.shuffle": "training data are always shuffled here",
    "data.padding": "rows are cut from one stream of tokens here; `rows: padded` keeps documents apart",
    "training.progressive.cache_activations": "`model.cache` of a phase comes nearest",
}


@define
class Old:
    """One section of an old config; keys that are taken out of it are accounted for."""

    path: str
    rest: dict[str, Any]
    dropped: list[str]

    def take(self, key: str, default: Any = None) -> Any:
        """A value, numbers as numbers: YAML 1.1 reads 1e-4 as text."""
        value = self.rest.pop(key, None)
        return default if value is None else number(value)

    def section(self, key: str) -> Old:
        """A section within it."""
        value = self.rest.pop(key, None) or {}
        path = f"{self.path}.{key}" if self.path else key
        if not isinstance(value, Mapping):
            raise UserError(f"{path}: {value!r} is not a map of keys")
        return Old(path, dict(value), self.dropped)

    def drop(self, key: str, why: str) -> None:
        """Account for a key without a meaning here, if it is written."""
        if key in self.rest:
            del self.rest[key]
            self.dropped.append(f"{self.path}.{key}: {why}")

    def end(self) -> None:
        """Account for every key that is left."""
        for key in NEVER_READ.get(self.path, ()):
            self.drop(key, UNREAD)
        for name, why in ELSEWHERE.items():
            section, _, key = name.rpartition(".")
            if section == self.path:
                self.drop(key, why)
        for key in list(self.rest):
            self.drop(key, "no key of it is known by that name")


def number(value: Any) -> Any:
    """Text that is a number, as the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
