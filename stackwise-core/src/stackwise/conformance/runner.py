"""The one runner behind both doors: a check against a component, each alone, in a folder of its own, with the process guarded."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from attrs import define, field, frozen

from stackwise.conformance.catalogue import CATALOGUE, PREREQUISITES, Check
from stackwise.conformance.subject import Broken, NotApplicable, Subject, reported
from stackwise.errors import UserError, did_you_mean
from stackwise.host.isolation import guarded
from stackwise.host.provider import StateChanged

Verdict = Literal["passed", "failed", "not applicable", "blocked", "expected"]


@frozen(kw_only=True)
class Outcome:
    """What a check found out."""

    subject: Subject
    check: Check
    verdict: Verdict
    reason: str = ""
    """Why it did not pass."""

    @property
    def id(self) -> str:
        """`<kind>:<provider>.<component>/<check>`."""
        return test_id(self.subject, self.check)


def test_id(subject: Subject, check: Check) -> str:
    """The stable name of one check of one component."""
    return f"{subject.id}/{check.name}"


def checks_for(subject: Subject) -> Iterator[Check]:
    """The checks that its kind has to pass, in running order."""
    return (check for check in CATALOGUE.values() if subject.kind in check.kinds)


def expected_of(reasons: Mapping[str, str], subjects: Sequence[Subject]) -> dict[str, str]:
    """Which checks of which components are expected to fail: test id → reason.

    Args:
        reasons: check → reason, for every component (`check_totals`), for one (`task:waves.forecast/check_totals`, or, as a command line
            may say it, `waves.forecast.check_totals`).
        subjects: the components.

    Raises:
        UserError: a name that is not a check of these components, or no reason.
    """
    names: dict[str, tuple[str, ...]] = {}
    for subject in subjects:
        for check in checks_for(subject):
            short = f"{subject.registered.id}.{check.name}"
            names[test_id(subject, check)] = (test_id(subject, check), check.name, short, f"{subject.kind}:{short}")
    expected: dict[str, str] = {}
    for name, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise UserError(f"expected failures: '{name}' has no reason: say in a sentence why it may fail")
        hits = [id for id, known in names.items() if name in known]
        if not hits:
            hint = did_you_mean(name, names if "/" in name else CATALOGUE)
            raise UserError(f"expected failures: '{name}' is not a check of these components{hint}")
        expected |= dict.fromkeys(hits, reason)
    return expected


@define
class Runner:
    """Runs checks and remembers the prerequisites that failed."""

    expected: Container[str] = ()
    """Ids of checks that are expected to fail, so that no other is blocked by them."""
    _known: dict[tuple[str, str], Outcome] = field(factory=dict)

    def run(self, subject: Subject, check: Check) -> Outcome:
        """One check of one component; a prerequisite that was not run yet is run first."""
        key = (subject.id, check.name)
        if key not in self._known:
            outcome = self._blocked(subject, check) or _run(subject, check)
            if check.name not in PREREQUISITES:
                return outcome
            self._known[key] = outcome
        return self._known[key]

    def run_all(self, subject: Subject) -> Iterator[Outcome]:
        """Every check of a component, in order."""
        return (self.run(subject, check) for check in checks_for(subject))

    def _blocked(self, subject: Subject, check: Check) -> Outcome | None:
        order = list(CATALOGUE)
        for name in PREREQUISITES:
            later = check.module == "declarations" and order.index(name) > order.index(check.name)
            if name == check.name or later:
                return None
            if subject.kind not in CATALOGUE[name].kinds:
                continue
            outcome = self.run(subject, CATALOGUE[name])
            if outcome.verdict in ("failed", "blocked") and outcome.id not in self.expected:
                return Outcome(subject=subject, check=check, verdict="blocked", reason=f"{name} failed")
            if outcome.verdict == "not applicable" and name == "check_builds":
                return Outcome(subject=subject, check=check, verdict="not applicable", reason=outcome.reason)
        return None


def _run(subject: Subject, check: Check) -> Outcome:
    verdict: Verdict = "passed"
    reason = ""
    with _absolute_path(), TemporaryDirectory(prefix="stackwise-check-") as folder, guarded(), warnings.catch_warnings():
        os.chdir(folder)
        warnings.simplefilter("ignore", StateChanged)  # check_leaves_the_process_alone reports it
        try:
            with reported(subject):
                check.load()(subject)
        except Broken as error:
            verdict, reason = "failed", str(error)
            if _is_wrong_guess(subject, error):
                verdict, reason = (
                    "not applicable",
                    f"its spec names no inputs, and it does not work on what nearby loaders deliver: {error.__cause__}",
                )
        except NotApplicable as error:
            verdict, reason = "not applicable", str(error)
    return Outcome(subject=subject, check=check, verdict=verdict, reason=reason)


@contextmanager
def _absolute_path() -> Iterator[None]:
    """Modules of a component are found also while the working directory is another."""
    before = list(sys.path)
    sys.path[:] = [str(Path(entry).resolve()) for entry in before]
    try:
        yield
    finally:
        sys.path[:] = before


def _is_wrong_guess(subject: Subject, error: Broken) -> bool:
    """Whether a transform that does not say which fields it needs was right to refuse those that were tried."""
    if subject.kind != "transform" or not isinstance(error.__cause__, UserError):
        return False
    return not getattr(subject.spec(), "inputs", None)
