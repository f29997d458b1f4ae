"""Schedules of providers: their components are found, built once, asked for every step of their window, and held to the contract."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from attrs import define, field

from stackwise.config import Ref
from stackwise.contracts.answers import WrongAnswer, expect, expect_artifact
from stackwise.contracts.components import BuildContext
from stackwise.errors import ProviderError, ScheduleError, UserError
from stackwise.plan.parts import Draft, Drafts
from stackwise.timeline.provided import ProvidedSchedule, SampledCurve, ScheduleWindow
from stackwise.timeline.schedules import Curve, Window

ASKED_AGAIN = 64
"""Steps of a schedule that are asked for twice, so that one that is not pure shows before the run."""


@define
class ProvidedSchedules:
    """Makes curves of schedules that are components.

    Args:
        drafts: finds components and checks their options; collects faults of providers.
    """

    drafts: Drafts
    fingerprints: dict[str, Mapping[str, Any]] = field(factory=dict)
    """Config key → what a schedule there says of the data that it reads."""

    def curve(self, declared: ProvidedSchedule, window: Window, entry: float | None, path: str) -> Curve | None:
        """The curve; None if the component cannot be used, with the reason among the problems or faults of the drafts.

        Raises:
            ScheduleError: the schedule cannot fill this window, or a value breaks the rule of the option that follows it.
        """
        ref = Ref(use=declared.use, options=declared.options, path=path)
        draft = self.drafts.of("schedule", ref)
        if draft is None:
            return None
        options = draft.part(self.drafts.constants(draft)).options_at(0.0)
        view = ScheduleWindow.of(window, entry)
        try:
            values = _values(draft, options, view)
            self._note(draft, options, path)
        except ProviderError as error:
            self.drafts.faults.append(error)
            return None
        except UserError as error:
            raise ScheduleError(f"{draft.label}: {error}") from error
        for step, value in enumerate(values):
            if declared.rule is not None and (broken := declared.rule(value)) is not None:
                raise ScheduleError(f"{draft.label} gives {value:g} at step {step} of its {view.steps}: {broken}")
        return SampledCurve.of_values(values, window)

    def _note(self, draft: Draft, options: Any, path: str) -> None:
        if hasattr(options, "fingerprint"):
            try:
                said = options.fingerprint()
                expect(isinstance(said, Mapping), said, "a map of plain values")
                self.fingerprints[path] = dict(said)
            except WrongAnswer as error:
                raise _fault(draft, f"fingerprint(): {error}") from error
            except UserError:
                raise
            except Exception as error:
                raise _fault(draft, f"fingerprint() failed: {type(error).__name__}: {error}") from error


def _values(draft: Draft, options: Any, view: ScheduleWindow) -> list[float]:
    """One value for every step of the window and its end.

    Raises:
        UserError: what the component says of its options or its window.
        ProviderError: anything else that is not a number, or another one the second time.
    """
    assert draft.registered is not None, "only a component is named by `use`"
    asked = "its factory"
    try:
        schedule = draft.registered.build(options, BuildContext(seed=0))
        expect_artifact("schedule", schedule)
        asked = "value(step, window)"
        values = [_number(draft, schedule.value(step, view), step) for step in range(view.steps + 1)]
        every = max(view.steps // ASKED_AGAIN, 1)
        for step in range(0, view.steps + 1, every):
            again = _number(draft, schedule.value(step, view), step)
            if again != values[step]:
                raise _fault(draft, f"value({step}) gave {values[step]!r}, and {again!r} the next time: a schedule is a pure function")
    except WrongAnswer as error:
        raise _fault(draft, f"{asked}: {error}") from error
    except (UserError, ProviderError):
        raise
    except Exception as error:
        raise _fault(draft, f"{asked} failed: {type(error).__name__}: {error}") from error
    return values


def _number(draft: Draft, value: Any, step: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise _fault(draft, f"value({step}) gave {value!r}: a finite number is expected")
    return float(value)


def _fault(draft: Draft, what: str) -> ProviderError:
    assert draft.registered is not None, "only a component is named by `use`"
    return ProviderError(f"{draft.label}: {what}", provider=draft.registered.provider, distribution=draft.registered.distribution)
