"""The door for a provider's own tests: one pytest test a component and check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stackwise.conformance.catalogue import CATALOGUE, Check
from stackwise.conformance.runner import Outcome, Runner, checks_for, test_id
from stackwise.conformance.subject import Source, Subject, subjects_of
from stackwise.errors import UserError, did_you_mean


def parametrize(source: Source, expected_failures: Mapping[str, str] | None = None) -> Callable[..., None]:
    """A test function for every component of a provider and every check of its kind: `test_conforms = parametrize("waves")`.

    Args:
        source: an installed provider by name, one component by id, a module with hooks, or kind → components.
        expected_failures: check → reason, for every component (`check_totals`) or for one (`task:waves.forecast/check_totals`).
            A check that is expected to fail and passes is a failure.

    Raises:
        UserError: a name that is no check of these components, or a reason that is empty; nothing of that name is installed.
        ProviderError: the provider is broken.
    """
    import pytest

    subjects = subjects_of(source)
    cases = [(subject, check) for subject in subjects for check in checks_for(subject)]
    expected = _expected(dict(expected_failures or {}), cases)
    runner = Runner(expected)

    @pytest.mark.parametrize(("subject", "check"), cases, ids=[test_id(*case) for case in cases])
    def test_conforms(subject: Subject, check: Check) -> None:
        outcome = runner.run(subject, check)
        reason = expected.get(outcome.id)
        if reason is not None:
            if outcome.verdict == "failed":
                pytest.xfail(reason)
            pytest.fail(
                f"{check.name} was expected to fail ({reason}), but it {_words(outcome)}: take it off expected_failures", pytrace=False
            )
        if outcome.verdict == "failed":
            pytest.fail(f"{subject.id}: {outcome.reason}\n\n{check.explanation()}", pytrace=False)
        if outcome.verdict != "passed":
            pytest.skip(_words(outcome))

    return test_conforms


def _words(outcome: Outcome) -> str:
    return outcome.verdict if not outcome.reason else f"{outcome.verdict}: {outcome.reason}"


def _expected(reasons: Mapping[str, str], cases: list[tuple[Subject, Check]]) -> dict[str, str]:
    """Test id → reason.

    Raises:
        UserError: an unknown name, or no reason.
    """
    expected: dict[str, str] = {}
    known: dict[str, Any] = {test_id(*case): None for case in cases}
    for name, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise UserError(f"expected_failures: '{name}' has no reason: say in a sentence why it may fail")
        hits = [id for id in known if name in (id, id.partition("/")[2])]
        if not hits:
            hint = did_you_mean(name, known if "/" in name else CATALOGUE)
            raise UserError(f"expected_failures: '{name}' is no check of these components{hint}")
        expected |= dict.fromkeys(hits, reason)
    return expected
