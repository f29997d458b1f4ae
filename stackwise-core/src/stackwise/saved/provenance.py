"""What a checkpoint records beside the machine's state, and the checks before training goes on from it."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import field, frozen
from attrs.validators import deep_iterable, deep_mapping, instance_of, optional

import stackwise
from stackwise.contracts.protocols import TrainsElsewhere
from stackwise.errors import DataError, StackwiseError, UserError
from stackwise.host.registry import blaming
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan
from stackwise.saved.clock import clock_as_json, clock_from_json
from stackwise.storage.checkpoints.store import Checkpoint
from stackwise.timeline.layout import Past

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
    """What a checkpoint records of its run beside the state."""

    config: Mapping[str, Any] = field(validator=_MAP)
    past: Past
    reason: str = field(validator=_TEXT)
    """Why it was saved; `cadence` where that was not recorded."""
    versions: Mapping[str, str] = field(validator=deep_mapping(_TEXT, _TEXT, _MAP))
    fingerprints: Mapping[str, Any] = field(validator=deep_mapping(_TEXT, _MAP, _MAP))
    evaluated: Mapping[str, Any] = field(factory=dict, validator=deep_mapping(_TEXT, deep_mapping(_TEXT, _MAP, _MAP), _MAP))
    """Evaluation → the fingerprints of its sources; empty where that was not recorded."""
    read_by_schedules: Mapping[str, Any] = field(factory=dict, validator=deep_mapping(_TEXT, _MAP, _MAP))
    """Config key of a schedule → the fingerprint of what it reads; empty where that was not recorded."""
    parent: Mapping[str, Any] | None = field(default=None, validator=optional(_MAP))
    providers: Sequence[Mapping[str, Any]] = field(default=(), validator=deep_iterable(_names_its_files, instance_of((list, tuple))))
    """Name, version and file digest of the providers in use."""
    trains_elsewhere: bool = True
    """Whether the optimizer may evaluate at other weights than it trains."""
    threads: int | None = None
    """Threads of torch; None where not recorded."""

    @classmethod
    def read(cls, about: Mapping[str, Any], step: int) -> Described:
        """Read what `describe` wrote of a checkpoint of that step.

        Raises:
            UserError: another format, or a record that cannot be understood.
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
                evaluated=about.get("evaluated", {}),
                read_by_schedules=about.get("read_by_schedules", {}),
                parent=about["parent"],
                providers=about.get("providers", ()),
                trains_elsewhere=about.get("trains_elsewhere", True),
                threads=about.get("threads"),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            sentence = error.args[0] if error.args else error
            raise UserError(f"what the checkpoint of step {step} says of its run cannot be understood: {sentence}") from None


@contextmanager
def loading(checkpoint: Checkpoint, plan: Plan) -> Iterator[None]:
    """Load the state of a checkpoint: its digests are right, and what it says may still be no state of this declaration.

    Raises:
        UserError: it is none.
        ProviderError: a component fails on its own part of it.
    """
    try:
        with blaming(plan.providers):
            yield
    except StackwiseError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"the state in {checkpoint.path} is not one of the run that its config declares ({type(error).__name__}: {error}): somebody "
            "changed it, and its digests, after it was written, or this is a bug in StackWise; remove that directory to go on from the "
            "checkpoint before it"
        ) from error


def describe(plan: Plan, machine: TrainingMachine, parent: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint says beside the machine's state."""
    return {
        "format": FORMAT,
        "config": named_config(plan),
        "clock": clock_as_json(plan.schedule.clock),
        "versions": versions(plan),
        "providers": [provider.provenance() for provider in plan.providers],
        "fingerprints": machine.data.fingerprints(),
        "evaluated": {name: evaluation.data.fingerprints() for name, evaluation in machine.evaluations.items()},
        "read_by_schedules": {key: dict(fingerprint) for key, fingerprint in plan.read_by_schedules.items()},
        "trains_elsewhere": isinstance(machine.optimizer.optimizer, TrainsElsewhere),
        "parent": parent,
        "threads": torch.get_num_threads(),
    }


def named_config(plan: Plan) -> dict[str, Any]:
    """The resolved config with the run's name written out, which would else follow the file's name."""
    tree = plan.experiment.resolved
    return {**tree, "run": {**tree["run"], "name": plan.experiment.run.name}}


def versions(plan: Plan) -> dict[str, str]:
    """Distribution → version, for everything that a run's exact values depend on."""
    providers = {provider.distribution: provider.version for provider in plan.providers}
    return {"python": platform.python_version(), "torch": torch.__version__, "stackwise-core": stackwise.__version__, **providers}


def changed_versions(saved: Mapping[str, str], plan: Plan) -> list[str]:
    """One sentence for each version that changed since the checkpoint.

    Raises:
        UserError: a provider or the core changed its major version (for 0.x its minor), so its saved state may not fit.
    """
    now = versions(plan)
    pairs = [(name, version, now[name]) for name, version in saved.items() if name in now and now[name] != version]
    incompatible = [pair for pair in pairs if pair[0] not in ("python", "torch") and _leading(pair[1]) != _leading(pair[2])]
    if incompatible:
        changes = "; ".join(f"{name} {was} → {installed}" for name, was, installed in incompatible)
        raise UserError(f"the checkpoint was saved by incompatible versions ({changes}): install the versions it was saved by")
    return [f"{name} {was} → {installed}: the rest need not be equal to the bit" for name, was, installed in pairs]


def changed_files(saved: Sequence[Mapping[str, Any]], plan: Plan) -> list[str]:
    """One sentence for each provider whose version is the same and whose files changed."""
    was = {(row["provider"], row["version"]): row["sha256"] for row in saved}
    others = [p for p in plan.providers if was.get((p.name, p.version), p.file_digest) != p.file_digest]
    return [
        f"provider '{p.name}' ({p.distribution} {p.version}) has other files than at the checkpoint: the rest need not be equal to the bit"
        for p in others
    ]


def changed_threads(saved: int | None) -> list[str]:
    """A sentence where torch's number of threads changed, as sums are then split otherwise."""
    now = torch.get_num_threads()
    if saved is None or saved == now:
        return []
    change = f"torch computes with {now} threads, and had {saved} at the checkpoint"
    return [f"{change}: the rest need not be equal to the bit; run.threads sets the number"]


def check_fingerprints(saved: Described, machine: TrainingMachine, changed_keys: Collection[str] = ()) -> None:
    """Compare the data of training and of evaluations with those of the checkpoint.

    Args:
        saved: what the checkpoint says.
        machine: reads the data as they are now.
        changed_keys: of the config; an evaluation that is declared in another way than before is not compared.

    Raises:
        DataError: they changed; every changed source is named.
    """
    if changes := list(changed_data(saved.fingerprints, machine.data.fingerprints())):
        raise DataError("the data changed since the checkpoint: " + "; ".join(changes) + ": put the data back, or begin a new run")
    for name, evaluation in machine.evaluations.items():
        if any(f"{key}.".startswith(f"evaluate.{name}.") for key in changed_keys):
            continue
        if changes := list(changed_data(saved.evaluated.get(name, {}), evaluation.data.fingerprints())):
            raise DataError(
                f"what evaluation '{name}' reads changed since the checkpoint, so its numbers would not compare: {'; '.join(changes)}: "
                "put the data back, or declare the evaluation under another name"
            )


def check_schedules(saved: Described, plan: Plan, changed_keys: Collection[str] = ()) -> None:
    """Compare what the schedules of the plan read with what they read when the checkpoint was saved.

    Raises:
        DataError: it changed, although the config says the same as before.
    """
    for key, was in saved.read_by_schedules.items():
        now = plan.read_by_schedules.get(key)
        if now is None or any(f"{key}.".startswith(f"{changed}.") or changed.startswith(f"{key}.") for changed in changed_keys):
            continue
        if parts := [part for part in dict.fromkeys((*was, *now)) if was.get(part) != now.get(part)]:
            what = ", ".join(f"{part} {now.get(part)}, had {was.get(part)}" for part in parts)
            raise DataError(f"what the schedule at {key} reads changed since the checkpoint: {what}: put it back, or begin a new run")


def changed_data(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two fingerprints of a source, a sentence each; sources that only one side has are left out."""
    for name in saved.keys() & now.keys():
        old, new = (_plain(each) for each in (saved[name], now[name]))
        if old != new:
            parts = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
            if parts == ["vocabulary"] and "vocabulary" not in old:
                continue  # saved before fingerprints named it; the digest of the ids is the same
            yield f"source '{name}' has " + ", ".join(f"{key} {new.get(key)}, had {old.get(key)}" for key in parts)


def _plain(value: Any) -> Any:
    """The value as JSON returns it: lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _leading(version: str) -> Sequence[str]:
    parts = version.split(".")
    return parts[:2] if parts[0] == "0" else parts[:1]
