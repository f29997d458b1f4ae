"""What a checkpoint says beside the machine's state, and whether this installation and these data may go on from it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from attrs.validators import deep_iterable, deep_mapping, instance_of, optional

import stackwise
from stackwise.contracts.protocols import TrainsElsewhere
from stackwise.errors import DataError, UserError
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan
from stackwise.timeline.clock import Past
from stackwise.timeline.clock_json import clock_as_json, clock_from_json

FORMAT = 1
_TEXT, _MAP = instance_of(str), instance_of(Mapping)  # type: ignore[type-abstract]  # any map will do


def _names_its_files(row: object, attribute: object, value: Mapping[str, Any]) -> None:
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("provider", "version", "sha256")):
        raise ValueError("a provider has no name, version and digest")


@frozen(kw_only=True)
class Origin:
    """The checkpoint of another run that a run was branched from."""

    run: str
    step: int
    sha256: str
    """Digest of the manifest of that checkpoint."""

    def as_json(self) -> dict[str, Any]:
        """For `status.json` and checkpoints."""
        return {"run": self.run, "step": self.step, "sha256": self.sha256}


@frozen(kw_only=True)
class Described:
    """What a checkpoint says of its run beside the state."""

    config: Mapping[str, Any] = field(validator=_MAP)
    past: Past
    reason: str = field(validator=_TEXT)
    """Why it was saved; a checkpoint that does not say is taken for one of the cadence."""
    versions: Mapping[str, str] = field(validator=deep_mapping(_TEXT, _TEXT, _MAP))
    fingerprints: Mapping[str, Any] = field(validator=_MAP)
    parent: Mapping[str, Any] | None = field(default=None, validator=optional(_MAP))
    providers: Sequence[Mapping[str, Any]] = field(default=(), validator=deep_iterable(_names_its_files, instance_of((list, tuple))))
    """The code of providers that it was saved by."""
    trains_elsewhere: bool = True
    """Whether the optimizer may show other weights to judge than those that it holds."""
    threads: int | None = None
    """How many threads torch computed with; None: it does not say."""

    @classmethod
    def read(cls, about: Mapping[str, Any], step: int) -> Described:
        """Read what `describe` wrote of a checkpoint of that step.

        Raises:
            UserError: a checkpoint of another format, or one that does not say what a checkpoint says.
        """
        if about.get("format") != FORMAT:
            raise UserError(f"the checkpoint is of format {about.get('format')}, this version reads {FORMAT}: resume with its own")
        try:
            return cls(
                config=about["config"],
                past=Past(step, clock_from_json(about["clock"])),
                reason=about.get("reason", "cadence"),
                versions=about["versions"],
                fingerprints=about["fingerprints"],
                parent=about["parent"],
                providers=about.get("providers", ()),
                trains_elsewhere=about.get("trains_elsewhere", True),
                threads=about.get("threads"),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            sentence = error.args[0] if error.args else error
            raise UserError(f"what the checkpoint of step {step} says of its run cannot be understood: {sentence}") from None


def describe(plan: Plan, machine: TrainingMachine, parent: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint says beside the machine's state."""
    return {
        "format": FORMAT,
        "config": named_config(plan),
        "clock": clock_as_json(plan.schedule.clock),
        "versions": versions(plan),
        "providers": [provider.provenance() for provider in plan.providers],
        "fingerprints": machine.data.fingerprints(),
        "trains_elsewhere": isinstance(machine.optimizer.optimizer, TrainsElsewhere),
        "parent": parent,
        "threads": torch.get_num_threads(),
    }


def named_config(plan: Plan) -> dict[str, Any]:
    """The resolved config, the run's name written out: read from another file it would get another one."""
    resolved = plan.experiment.resolved
    return {**resolved, "run": {**resolved["run"], "name": plan.experiment.run.name}}


def versions(plan: Plan) -> dict[str, str]:
    """What the bits of a run depend on: distribution → version."""
    used = {provider.distribution: provider.version for provider in plan.providers}
    return {"python": platform.python_version(), "torch": torch.__version__, "stackwise-core": stackwise.__version__, **used}


def changed_versions(saved: Mapping[str, str], plan: Plan) -> list[str]:
    """Sentences on every version that is another than when the checkpoint was saved.

    Raises:
        UserError: a provider or the core with another leading number (of 0.x: the second), which promises nothing about its state.
    """
    now = versions(plan)
    pairs = [(name, version, now[name]) for name, version in saved.items() if name in now and now[name] != version]
    refused = [pair for pair in pairs if pair[0] not in ("python", "torch") and _leading(pair[1]) != _leading(pair[2])]
    if refused:
        told = "; ".join(f"{name} {was} → {installed}" for name, was, installed in refused)
        raise UserError(f"the checkpoint was saved by incompatible versions ({told}): install the versions it was saved by")
    return [f"{name} {was} → {installed}: the rest need not be equal to the bit" for name, was, installed in pairs]


def changed_files(saved: Sequence[Mapping[str, Any]], plan: Plan) -> list[str]:
    """Sentences on every provider of the same version whose files are others than when the checkpoint was saved."""
    was = {(row["provider"], row["version"]): row["sha256"] for row in saved}
    changed = [found for found in plan.providers if was.get((found.name, found.version), found.file_digest) != found.file_digest]
    return [
        f"provider '{found.name}' ({found.distribution} {found.version}) has other files than then: the rest need not be equal to the bit"
        for found in changed
    ]


def changed_threads(saved: int | None) -> list[str]:
    """A sentence where torch computes with another number of threads than when the checkpoint was saved: sums are split otherwise."""
    now = torch.get_num_threads()
    if saved is None or saved == now:
        return []
    return [f"torch computes with {now} threads, had {saved}: the rest need not be equal to the bit; run.threads sets the number"]


def check_fingerprints(saved: Mapping[str, Any], machine: TrainingMachine) -> None:
    """Hold the data against those that were read before.

    Raises:
        DataError: they changed; every source that did is named.
    """
    if told := list(_changed(saved, machine.data.fingerprints())):
        raise DataError("the data changed since the checkpoint: " + "; ".join(told) + ": put the data back, or begin a new run")


def _changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in saved.keys() & now.keys():
        was, found = (_plain(each) for each in (saved[name], now[name]))
        if was != found:
            parts = [key for key in dict.fromkeys((*was, *found)) if was.get(key) != found.get(key)]
            yield f"source '{name}' has " + ", ".join(f"{key} {found.get(key)}, had {was.get(key)}" for key in parts)


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _leading(version: str) -> Sequence[str]:
    parts = version.split(".")
    return parts[:2] if parts[0] == "0" else parts[:1]
