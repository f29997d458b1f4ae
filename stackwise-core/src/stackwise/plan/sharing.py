"""How many first steps two plans have in common, so that these can be trained once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stackwise.curriculum.schedule import CompiledPhase
from stackwise.plan import Plan
from stackwise.plan.amendments import declared, differences, is_shape, within

_OF_NO_CONSEQUENCE = ("run.name", "run.checkpoint", "run.stop.after", "run.read_ahead", "run.workers")
"""Keys outside the phases that change no step of a run."""

_REACH = ("max_length", "lookahead")
"""What a plan tells every loader about its whole timeline: pages are as long as the longest row, so the order of the data depends on it."""


def shared_steps(one: Plan, other: Plan) -> int:
    """The number of first steps in which two plans train the same, to the bit.

    For configs from files, whose values can be compared. The number is never too large, but may be too small. Runs of different length
    or with a different longest row share nothing. Neither do runs with different evaluations, because what watches an evaluation may act
    on it, or runs that rewind, because they go on from whatever was saved. A phase that may end early is shared up to its start.
    Call `Plan.with_tokenizers` first: a vocabulary may be learnt from the sources of all phases. In a phase that ends at another step
    `Moment.phase_t` differs; what a task or a transform does with it is not seen here.
    """
    clocks = one.schedule.clock, other.schedule.clock
    if clocks[0].horizon != clocks[1].horizon or clocks[0].steps != clocks[1].steps or one.tokenizers != other.tokenizers:
        return 0
    if any(getattr(one, name) != getattr(other, name) for name in _REACH) or one.experiment.run.non_finite == "rewind":
        return 0
    for key, _, _ in differences(_around_phases(one), _around_phases(other)):
        if not any(within(key, path) for path in _OF_NO_CONSEQUENCE):
            return 0
    return min(_differing_steps(one, other), default=clocks[0].steps)


def first_own_step(parent: Plan, child: Plan) -> int:
    """The last step at which one run can begin in the middle of another: all steps that they share, or one less.

    The state before a step belongs to the phase that begins there; it is one less for a child that has no such phase there.
    """
    shared = shared_steps(parent, child)
    begun = parent.schedule.phase_at(shared)
    own = next((phase for phase in child.schedule if phase.index == begun.index), None)
    stands = begun.start < shared or (own is not None and (own.name, own.start) == (begun.name, begun.start))
    return shared if stands else shared - 1


def _around_phases(plan: Plan) -> dict[str, object]:
    """The config without its phases and the planes, which are compared as each phase declares them."""
    return _flat({name: value for name, value in plan.experiment.resolved.items() if name in ("run", "evaluate", "observers")})


def _differing_steps(one: Plan, other: Plan) -> Iterator[int]:
    """Steps from which on something is declared otherwise, phase by phase up to the first."""
    for was, now in zip(one.schedule.phases, other.schedule.phases, strict=False):
        if was.start != now.start or was.name != now.name:
            yield min(was.start, now.start)
            return
        if any(plan.experiment.phases[was.index].stalls is not None for plan in (one, other)):
            yield was.start
        yield from _in_phase(one, other, was, now)
        if was.stop != now.stop:
            yield from _stretched(one, was, now)
        if was.stop != now.stop:
            yield min(was.stop, now.stop)
            return
    if len(one.schedule.phases) != len(other.schedule.phases):
        yield min(plan.schedule.phases[-1].stop for plan in (one, other))


def _in_phase(one: Plan, other: Plan, was: CompiledPhase, now: CompiledPhase) -> Iterator[int]:
    trees = [plan.experiment.phases[was.index].tree.printable() for plan in (one, other)]
    steps = range(was.start, min(was.stop, now.stop))
    curves = declared(was.state).curves, declared(now.state).curves
    for key, _, _ in differences(*trees):
        path = next((path for path in curves[0] if within(key, path) and path in curves[1]), None)
        if key == "until":
            continue
        differing: Iterator[int]
        if is_shape(key):
            name = key.split(".")[1]
            differing = (s for s in steps if one.schedule.clock.values(s)[name] != other.schedule.clock.values(s)[name])
        elif path is not None:
            t, before, after = one.schedule.clock.t, curves[0][path], curves[1][path]
            differing = (s for s in steps if before(t(s)) != after(t(s)))
        else:
            differing = iter([was.start])
        yield from _first(differing)


def _stretched(plan: Plan, was: CompiledPhase, now: CompiledPhase) -> Iterator[int]:
    """What follows the length of a phase that ends elsewhere: its curves, compared by value, and else everything that it enters with."""
    tree, curves = plan.experiment.phases[was.index].tree.printable(), (declared(was.state).curves, declared(now.state).curves)
    over_phase = [key for key, value in _flat(tree).items() if key.endswith(".over") and value == "phase"]
    if tree.get("enter") or any(not any(within(key, path) for path in curves[0]) for key in over_phase):
        yield was.start
    t = plan.schedule.clock.t
    for path in set(curves[0]) & set(curves[1]):
        yield from _first(
            step for step in range(was.start, min(was.stop, now.stop)) if curves[0][path](t(step)) != curves[1][path](t(step))
        )


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Dotted key → value, lists entered too; an empty map is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = {str(i): entry for i, entry in enumerate(value)} if isinstance(value, list | tuple) else value
        flat |= _flat(inner, (*path, str(key))) if isinstance(inner, Mapping) and inner else {".".join((*path, str(key))): inner}
    return flat


def _first(steps: Iterator[int]) -> Iterator[int]:
    yield from [step for step in [next(steps, None)] if step is not None]
