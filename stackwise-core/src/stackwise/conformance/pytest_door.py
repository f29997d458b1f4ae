"""The door for a provider's own tests: one pytest test a component and check."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stackwise.conformance.catalogue import Check
from stackwise.conformance.runner import Outcome, Runner, checks_for, expected_of, test_id
from stackwise.conformance.subject import Source, Subject, subjects_of


def parametrize(source: Source, expected_failures: Mapping[str, str] | None = None) -> Callable[..., None]:
    """A test function for every component of a provider and every check of its kind: `test_conforms = parametrize("waves")`.

    Args:
        source: an installed provider by name, one component by id, a module with hooks, or kind → components.
        expected_failures: check → reason, for every component (`check_totals`) or for one (`task:waves.forecast/check_totals`).
            A check that is expected to fail and passes is a failure.

    Raises:
        UserError: a name that is not a check of these components, or a reason that is empty; nothing of that name is installed.
        ProviderError: the provider is broken.
    """
    import pytest

    subjects = subjects_of(source)
    cases = [(subject, check) for subject in subjects for check in checks_for(subject)]
    expected = expected_of(expected_failures or {}, subjects)
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
