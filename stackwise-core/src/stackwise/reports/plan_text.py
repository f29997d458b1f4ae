"""A priced plan as text for people and as JSON for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isinf
from typing import Any

from stackwise.assembly.pricing import PhasePrice
from stackwise.assembly.references import digest_of
from stackwise.contracts.specs import AT_ENTRY
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.curriculum.transitions import Transition
from stackwise.plan import EvaluationPlan, Plan
from stackwise.reports.lanes import lanes_of
from stackwise.reports.memory_text import memory_as_json, memory_lines
from stackwise.reports.parallel_text import parallel_as_json, parallel_lines
from stackwise.reports.remarks import memory_here, remarks
from stackwise.reports.terminal import table, wrap
from stackwise.timeline.clock import Clock
from stackwise.timeline.schedules import Curve


def plan_as_json(plan: Plan, prices: tuple[PhasePrice, ...]) -> dict[str, Any]:
    """Everything `stackwise plan --json` prints and the run directory keeps as `plan.json`."""
    clock = plan.schedule.clock
    return {
        "name": plan.experiment.run.name,
        "horizon": str(clock.horizon),
        "steps": clock.steps,
        "tokens": clock.tokens(clock.steps),
        "training_flops": None if any(cost.flops is None for cost in prices) else sum(cost.flops or 0 for cost in prices),
        "phases": [_phase_as_json(phase, cost, clock) for phase, cost in zip(plan.schedule, prices, strict=True)],
        "lanes": lanes_of(plan, prices),
        "evaluations": {name: list(steps) for name, steps in plan.schedule.evaluate_at.items()},
        "evaluation_sources": {each.name: list(each.state.sources) for each in plan.evaluations},
        "remarks": remarks(plan, prices, memory_here()),
        "parallel": parallel_as_json(plan, prices),
        "bridges": [str(bridge) for bridge in plan.bridges],
        "providers": [provider.provenance() for provider in plan.providers],
        "read_by_schedules": {key: dict(fingerprint) for key, fingerprint in plan.read_by_schedules.items()},
    }


def _phase_as_json(phase: CompiledPhase, cost: PhasePrice, clock: Clock) -> dict[str, Any]:
    return {
        "name": phase.name,
        "start": phase.start,
        "stop": phase.stop,
        "steps": cost.steps,
        "tokens": cost.tokens,
        "stacks": dict(cost.stacks),
        "parameters": cost.parameters,
        "trainable": cost.trainable,
        "optimizer_state_bytes": cost.optimizer_bytes,
        "training_flops": cost.flops,
        "optimizer_flops": cost.optimizer_flops,
        "recompute_flops": cost.recompute_flops,
        "step_flops": [[start, None if flops is None else flops.as_json()] for start, flops in cost.stretches],
        "kept_bytes": cost.kept_bytes,
        "memory": memory_as_json(cost),
        "sources": {name: {"rows": round(read.rows), "epochs": read.epochs} for name, read in cost.sources.items()},
        "reference": _reference(phase),
        "auxiliary": {name: _ends(phase, clock, curve) for name, curve in (phase.state.auxiliary if phase.state else {}).items()},
        "lr": None if cost.lr is None else {"entry": cost.lr[0], "exit": cost.lr[1]},
        "lr_envelope": None if cost.envelope is None else [None if isinf(edge) else edge for edge in cost.envelope],
        "transition": None if phase.transition is None else _transition_as_json(phase, phase.transition, cost),
    }


def _reference(phase: CompiledPhase) -> dict[str, str] | None:
    """The reference model of the task; for a model from outside the run its digest too."""
    source = None if phase.state is None else phase.state.reference
    if source is None:
        return None
    return {"from": source} if source == AT_ENTRY else {"from": source, "sha256": digest_of(source)}


def _ends(phase: CompiledPhase, clock: Clock, curve: Curve) -> dict[str, float]:
    """A value at the first and at the last step of a phase."""
    return {"entry": curve(clock.t(phase.start)), "exit": curve(clock.t(phase.stop - 1))}


def _transition_as_json(phase: CompiledPhase, crossing: Transition, cost: PhasePrice) -> dict[str, Any]:
    receipt = cost.receipt
    return {
        "step": phase.start,
        "changes": [{"path": c.path, "before": c.before, "after": c.after} for c in crossing.changes],
        "blocks": {
            f"{stack}.{i}": None if origin.source is None else "{}.{}".format(*origin.source)
            for (stack, i), origin in crossing.blocks.items()
        },
        "growth": phase.enter.growth.id if phase.enter.growth is not None else None,
        "moments": phase.enter.moments,
        "preserves_function": crossing.preserves_function,
        "adopted": len(receipt.adopted),
        "copied": len(receipt.copied),
        "combined": sum(len(origin.sources) > 1 for origin in receipt.copied.values()),
        "fresh": len(receipt.fresh),
        "dropped": len(receipt.dropped),
        "notes": list(crossing.notes),
    }


def plan_as_text(plan: Plan, prices: tuple[PhasePrice, ...], columns: int | None = None) -> str:
    """The phases as a table, then every transition in words.

    Args:
        plan: the compiled experiment.
        prices: one for each phase.
        columns: width of the terminal; None: lines are not wrapped.
    """
    clock = plan.schedule.clock
    tokens = f", {clock.tokens(clock.steps):,} tokens" if clock.tokens(clock.steps) else ""
    lines = [f"plan  {plan.experiment.run.name}: {clock.steps:,} steps{tokens}, {len(prices)} phase{'s' if len(prices) > 1 else ''}", ""]
    rows = [["phase", "steps", "tokens", "stacks", "parameters", "trained", "optimizer state", "training FLOPs", "lr entry → exit"]]
    rows += [_row(phase, cost) for phase, cost in zip(plan.schedule, prices, strict=True)]
    lines += table(rows, columns)
    lines += _flops_lines(prices)
    lines += _source_lines(prices)
    lines += _reaction_lines(plan, prices)
    lines += _stall_lines(plan)
    lines += _auxiliary_lines(plan)
    lines += _reference_lines(plan)
    lines += _kept_lines(plan, prices)
    lines += parallel_lines(plan, prices)
    for phase, cost in zip(plan.schedule, prices, strict=True):
        if phase.transition is not None:
            lines += ["", *_transition_lines(plan, phase, phase.transition, cost)]
    lines += memory_lines(prices, columns)
    if plan.bridges:
        lines += ["", *(f"bridge  {bridge}" for bridge in plan.bridges)]
    for evaluation in plan.evaluations:
        lines += ["", *_evaluation_lines(plan, evaluation)]
    lines += ["", *notes] if (notes := [f"note  {remark}" for remark in remarks(plan, prices, memory_here())]) else []
    return wrap("\n".join(lines), columns)


def _evaluation_lines(plan: Plan, evaluation: EvaluationPlan) -> list[str]:
    """When an evaluation runs, and what it reads each time."""
    steps, shape = plan.schedule.evaluate_at[evaluation.name], evaluation.state.shape(0)
    config = next(each for each in plan.experiment.evaluate if each.name == evaluation.name)
    own, starts = config.sources is not None, set(plan.schedule.clock.starts)
    where = "on both sides of every boundary" + (" and in between" if set(steps) - starts else "") if config.at is None else "as listed"
    shares = {name: curve(0.0) for name, curve in evaluation.state.mix.items()}
    length = "" if shape.seq_len is None else f" × {shape.seq_len:,} positions"
    rows = "as they come" if shape.rows is None else f"of {shape.rows:,} rows{length}"
    what = "sources of its own" if own else "held-out rows of the training sources"
    return [
        f"evaluate  {evaluation.name}: at {len(steps)} steps, {where} (first at step {steps[0]}, last at {steps[-1]})",
        f"  reads {evaluation.batches:,} batches {rows} from {what}: {_mixture(shares)}",
    ]


def _mixture(weights: Mapping[str, float]) -> str:
    """`a 75%, b 25%`."""
    if len(weights) == 1:
        return next(iter(weights))
    total = sum(weights.values()) or 1.0
    return ", ".join(f"{name} {100 * weight / total:.3g}%" for name, weight in weights.items())


def _mixture_line(plan: Plan, phase: CompiledPhase) -> list[str]:
    """The shares of the sources before and after a boundary, where they differ."""
    before, clock = plan.schedule.phases[phase.index - 1].state, plan.schedule.clock
    if before is None or phase.state is None:
        return []
    last, first = clock.t(phase.start - 1), clock.t(phase.start)
    old = _mixture({name: curve(last) for name, curve in before.data.mix.items()})
    new = _mixture({name: curve(first) for name, curve in phase.state.data.mix.items()})
    return [] if old == new else [f"  mixture: {old} → {new}"]


def _flops_lines(prices: tuple[PhasePrice, ...]) -> list[str]:
    """`spends  3.00e+12 training FLOPs, of them 1.2% by the optimizer; 0.9e+12 more to compute blocks again`."""
    flops = [cost.flops for cost in prices if cost.flops is not None]
    if len(flops) < len(prices) or not sum(flops):
        return []
    by_optimizer = [cost.optimizer_flops for cost in prices if cost.optimizer_flops is not None]
    share = f"{100 * sum(by_optimizer) / sum(flops):.2g}% by the optimizer"
    counted = f", of them {share}" if len(by_optimizer) == len(prices) else "; an optimizer that does not say what it costs is not counted"
    again = sum(cost.recompute_flops for cost in prices)
    more = f"; {again:.2e} more to compute blocks again" if again else ""
    return ["", f"spends  {sum(flops):.2e} training FLOPs{counted}{more}"]


def _source_lines(prices: tuple[PhasePrice, ...]) -> list[str]:
    """`reads   web 3,100 rows (0.31 epochs), wiki …` over the whole run."""
    rows: Counter[str] = Counter()
    epochs: dict[str, float | None] = {}
    for cost in prices:
        for name, read in cost.sources.items():
            rows[name] += read.rows  # type: ignore[assignment]  # a Counter of floats counts as well
            so_far = epochs.get(name, 0.0)
            epochs[name] = None if read.epochs is None or so_far is None else so_far + read.epochs
    if not rows:
        return []
    words = [f"{name} {count:,.0f} rows" + ("" if (e := epochs[name]) is None else f" ({e:.2f} epochs)") for name, count in rows.items()]
    return ["", f"reads  {', '.join(words)}"]


def _reaction_lines(plan: Plan, prices: tuple[PhasePrice, ...]) -> list[str]:
    """`reacts  optim.plateau in shallow, deep: every learning rate × 0.01 to 1`."""
    phases_of: dict[tuple[str, tuple[float, float]], list[str]] = {}
    for phase, cost in zip(plan.schedule, prices, strict=True):
        if cost.envelope is not None and phase.state is not None and phase.state.optimizer.reaction is not None:
            phases_of.setdefault((phase.state.optimizer.reaction.id, cost.envelope), []).append(phase.name)
    lines = [
        f"reacts  {id} in {', '.join(phases)}: every learning rate × {low:g} to {high:g}" for (id, (low, high)), phases in phases_of.items()
    ]
    return ["", *lines] if lines else []


def _stall_lines(plan: Plan) -> list[str]:
    """`stalls  shallow ends when heldout.loss is not better for 3 evaluations, at step 420 at the latest`."""
    lines = []
    for phase, declared in zip(plan.schedule, plan.experiment.phases, strict=True):
        if (rule := declared.stalls) is not None:
            by = f" by more than {rule.least:g}" if rule.least else ""
            when = f"when {rule.stalls} has not been better{by} for {rule.patience} evaluations"
            lines.append(f"stalls  {phase.name} ends {when}, at step {phase.stop:,} at the latest; what follows then begins earlier")
    return ["", *lines] if lines else []


def _reference_lines(plan: Plan) -> list[str]:
    """`compares  with runs/teacher (sha256 1f2e…) in distilled`."""
    phases_of: dict[str, list[str]] = {}
    for phase in plan.schedule:
        if (reference := _reference(phase)) is not None:
            digest = f" (sha256 {reference['sha256'][:12]}…)" if "sha256" in reference else ""
            what = "the model at phase entry" if reference["from"] == AT_ENTRY else f"{reference['from']}{digest}"
            phases_of.setdefault(what, []).append(phase.name)
    lines = [f"compares  with {what} in {', '.join(phases)}" for what, phases in phases_of.items()]
    return ["", *lines] if lines else []


def _auxiliary_lines(plan: Plan) -> list[str]:
    """`adds  rack.balance × 0.01 in shallow, × 0.01 → 0 in deep`."""
    words: dict[str, dict[str, list[str]]] = {}
    for phase in plan.schedule:
        for name, curve in ({} if phase.state is None else phase.state.auxiliary).items():
            ends = _ends(phase, plan.schedule.clock, curve)
            weight = f"{ends['entry']:.3g}" + ("" if curve.is_constant else f" → {ends['exit']:.3g}")
            words.setdefault(name, {}).setdefault(weight, []).append(phase.name)
    lines = [
        f"adds  {name} " + ", ".join(f"× {w} in {', '.join(phases)}" for w, phases in weights.items()) for name, weights in words.items()
    ]
    return ["", *lines] if lines else []


def _kept_lines(plan: Plan, prices: tuple[PhasePrice, ...]) -> list[str]:
    """`keeps  hidden states of frozen blocks in top: at most 1.2 GB on disk`."""
    words = []
    for phase, cost in zip(plan.schedule, prices, strict=True):
        if phase.state is not None and phase.state.model.cache is not None:
            words.append(
                f"in {phase.name} " + ("as much as its rows need" if cost.kept_bytes is None else f"at most {_bytes(cost.kept_bytes)}")
            )
    return ["", f"keeps  hidden states of frozen blocks, on disk: {', '.join(words)}"] if words else []


def _row(phase: CompiledPhase, cost: PhasePrice) -> list[str]:
    stacks = " ".join(f"{name} {blocks}" for name, blocks in cost.stacks.items()) or "–"
    lr = "–" if cost.lr is None else f"{cost.lr[0]:.2g} → {cost.lr[1]:.2g}"
    return [
        phase.name,
        f"{phase.start:,}–{phase.stop:,}",
        f"{cost.tokens:,}",
        stacks,
        f"{cost.parameters:,}",
        f"{cost.trainable:,}",
        "–" if cost.optimizer_bytes is None else _bytes(cost.optimizer_bytes),
        "–" if cost.flops is None else f"{cost.flops:.2e}",
        lr,
    ]


def _transition_lines(plan: Plan, phase: CompiledPhase, crossing: Transition, cost: PhasePrice) -> list[str]:
    before = plan.schedule.phases[phase.index - 1].name
    t = plan.schedule.clock.t(phase.start)
    lines = [f"{before} → {phase.name} at step {phase.start:,} (t {t:.1%})"]
    lines += [f"  {change.path}: {change.before} → {change.after}" for change in crossing.changes]
    lines += _mixture_line(plan, phase)
    if crossing.blocks:
        growth = f" by {phase.enter.growth.id}" if phase.enter.growth is not None else ""
        lines.append(f"  blocks{growth}: {_block_map(crossing)}")
    receipt = cost.receipt
    combined = sum(len(origin.sources) > 1 for origin in receipt.copied.values())
    of_several = f" (of them combined from several: {combined})" if combined else ""
    counts = f"adopted {len(receipt.adopted)}, copied {len(receipt.copied)}{of_several}, "
    counts += f"fresh {len(receipt.fresh)}, dropped {len(receipt.dropped)}"
    moments = f"; moments of copied parameters: {phase.enter.moments}" if cost.receipt.copied else ""
    lines.append(f"  parameters: {counts}{moments}")
    lines.append("  the function is preserved" if crossing.preserves_function else "  the function is NOT preserved")
    lines += [f"  {note}" for note in crossing.notes]
    return lines


def _block_map(crossing: Transition) -> str:
    """`base 2←0 3←1 top 0←fresh`; blocks that stay in place are counted."""
    stays = Counter(stack for (stack, i), origin in crossing.blocks.items() if origin.source == (stack, i))
    words: dict[str, list[str]] = {}
    for (stack, index), origin in crossing.blocks.items():
        if origin.source == (stack, index):
            continue
        source = (
            "fresh" if origin.source is None else str(origin.source[1]) if origin.source[0] == stack else "{}.{}".format(*origin.source)
        )
        words.setdefault(stack, []).append(f"{index}←{source}")
    counts = [f"{stack} keeps {count}" for stack, count in stays.items()]
    return ", ".join([*counts, *(f"{stack} {' '.join(moves)}" for stack, moves in words.items())])


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
