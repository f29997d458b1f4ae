"""Generation: a prompt continued by the model of a run, with the task and the tokens of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen
from torch import nn

from stackwise import config
from stackwise.assembly import Workshop
from stackwise.checkpoints import CheckpointStore, load_weights, read_description
from stackwise.contracts import Generates, GenerationSettings, HasTextCodec, TextCodec
from stackwise.discovery import discover
from stackwise.errors import ProviderError, UserError
from stackwise.model import load_named_tensors
from stackwise.phases import CompiledPhase, TrainingState
from stackwise.plan import Plan, make_plan
from stackwise.planes.model import ModelPlane
from stackwise.registry import blaming
from stackwise.resumption import Described
from stackwise.rundir import CHECKPOINTS, CONFIG, FINAL
from stackwise.specs import BatchSpec
from stackwise.state_codec import join_state
from stackwise.streams import step_seed, stream_key


@frozen(kw_only=True)
class Generated:
    """A prompt and what follows it."""

    ids: tuple[int, ...]
    """Token ids, those of the prompt first."""
    prompt_tokens: int
    text: str | None
    """The same as text; None where the prompt was given as ids."""
    step: int
    """The step of the weights."""


@frozen(kw_only=True)
class _Trained:
    """A run at the instant that its weights are of."""

    plan: Plan
    phase: CompiledPhase
    state: TrainingState
    model: nn.Module
    step: int
    fingerprints: Mapping[str, Any]


def generate(run: Path | str, prompt: str | Sequence[int], settings: GenerationSettings, *, seed: int = 0) -> Generated:
    """Continue a prompt with the model of a run: its final weights, or those of its newest whole checkpoint.

    Args:
        run: a run directory; it is only read.
        prompt: text, or token ids.
        settings: how many tokens, and how they are drawn.
        seed: of every draw; the same seed gives the same tokens.

    Raises:
        UserError: no run directory, no weights in it, a task that generates nothing, a source without text for a prompt of text, ids
            that the source does not have; a setting that has no effect on the task, or a prompt that is too long for the model.
        DataError: the vocabulary of the run is gone, or is not what it was.
        ProviderError: a component that cannot be built, or that does not keep to its contract.
    """
    trained = _open(Path(run))
    task = _task(trained)
    codec = _codec(trained) if isinstance(prompt, str) else None
    given = tuple(codec.encode(prompt)) if codec is not None and isinstance(prompt, str) else tuple(map(int, prompt))
    settings = evolve(settings, ids=_limit(trained.state) if settings.ids is None else settings.ids)
    _check_ids(given, settings.ids)
    generator = torch.Generator().manual_seed(step_seed(stream_key(seed, "generate"), 0))
    with blaming(trained.plan.providers):
        made = task.generate(trained.model, torch.tensor(given, dtype=torch.long), settings, generator)
    ids = tuple(made.tolist())
    if ids[: len(given)] != given or len(ids) != len(given) + settings.tokens:
        raise ProviderError(
            f"task '{trained.state.task.id}' gave {len(ids)} ids for a prompt of {len(given)} and {settings.tokens} to generate, or "
            "changed the prompt: its generate returns the prompt with that many behind it"
        )
    return Generated(ids=ids, prompt_tokens=len(given), text=None if codec is None else codec.decode(ids), step=trained.step)


def _open(run: Path) -> _Trained:
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is no run directory: there is no {CONFIG} in it")
    if (run / FINAL).is_dir():
        return _finished(run)
    checkpoint, skipped = CheckpointStore(run / CHECKPOINTS).newest()
    if checkpoint is None:
        damaged = "".join(f"; {each.name} is damaged: {each.reason}" for each in skipped)
        raise UserError(f"{run} holds no weights yet, neither final ones nor a whole checkpoint{damaged}: train it first")
    saved = Described.read(checkpoint.document)
    plan = make_plan(config.experiment(saved.config), discover(), saved.past)
    phase, state, model = _declared(plan, checkpoint.step)
    if differences := load_named_tensors(model, join_state(checkpoint.load_tensors(), saved.machine)["model"]):
        raise UserError(f"the weights in {checkpoint.path} are not its model's:\n  " + "\n  ".join(differences))
    return _Trained(plan=plan, phase=phase, state=state, model=model, step=checkpoint.step, fingerprints=saved.fingerprints)


def _finished(run: Path) -> _Trained:
    about = read_description(run / FINAL)
    plan = make_plan(config.load(run / CONFIG), discover())
    phase, state, model = _declared(plan, plan.schedule.steps)
    load_weights(model, run / FINAL)
    step, fingerprints = about.get("step", plan.schedule.steps), about.get("data", {})
    return _Trained(plan=plan, phase=phase, state=state, model=model, step=step, fingerprints=fingerprints)


def _declared(plan: Plan, step: int) -> tuple[CompiledPhase, TrainingState, nn.Module]:
    """The phase whose last step lies before `step`, and the model as it is declared then, on the CPU and in evaluation mode."""
    phase = plan.schedule.phase_at(max(step - 1, 0))
    assert phase.state is not None  # a plan's phases are declared
    plane = ModelPlane(Workshop(plan).module, seed=plan.experiment.run.seed)
    return phase, phase.state, plane.another(phase, plan.schedule.clock.t(step)).requires_grad_(False).eval()


def _task(trained: _Trained) -> Generates:
    part = trained.state.task
    task = Workshop(trained.plan).task(part)
    if not isinstance(task, Generates):
        label = trained.plan.joined[trained.phase.index].drafts.task.label
        raise UserError(
            f"{label} of phase '{trained.phase.name}' generates nothing: a run that is to continue prompts ends with a task that does, "
            "as a causal language model"
        )
    return task


def _codec(trained: _Trained) -> TextCodec:
    """Text ↔ ids as the first source in force that knows has them: the sources of a mixture share their ids.

    Raises:
        UserError: none does.
    """
    sources = trained.state.data.sources
    for name, part in sources.items():
        if isinstance(part.options, HasTextCodec):
            codec = part.options.text_codec(trained.fingerprints.get(name, {}))
            if codec is not None:
                return codec
    told = ", ".join(f"'{name}' ({part.id})" for name, part in sources.items())
    raise UserError(f"no source in force says what text its ids stand for: {told}; give the prompt as ids (--ids)")


def _limit(state: TrainingState) -> int | None:
    """The number of ids of the sources in force; None where none says it."""
    found = []
    for part in state.data.sources.values():
        spec = part.options.to_spec() if hasattr(part.options, "to_spec") else None
        fields = spec.fields.values() if isinstance(spec, BatchSpec) else ()
        found += [field.bounds[1] for field in fields if "time" in field.dims and field.bounds is not None]
    known = [bound for bound in found if isinstance(bound, int)]
    return max(known, default=None)


def _check_ids(ids: Sequence[int], limit: int | None) -> None:
    unknown = [i for i in ids if i < 0 or (limit is not None and i >= limit)]
    if unknown:
        where = "are not negative" if limit is None else f"lie in [0, {limit})"
        raise UserError(f"prompt: {', '.join(map(str, unknown[:5]))} is no id of the source: ids {where}")
