"""The kit is tested by its victims: sound components pass every check, and every check has one that fails it and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackwise.conformance import CATALOGUE, Outcome, Runner, parametrize, subjects_of
from stackwise.contracts import Component, Kind
from stackwise.registry import KINDS

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from table import SOUND, VICTIMS, component  # noqa: E402  # of this folder, which is on the path only now


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HERE))
    yield


test_sound = parametrize(SOUND)


def test_every_check_has_a_victim() -> None:
    assert set(VICTIMS) == set(CATALOGUE)


def test_every_kind_has_a_sound_component() -> None:
    assert set(SOUND) == set(KINDS)


@pytest.mark.filterwarnings("ignore::stackwise.registry.StateChanged")  # a run puts right what the victim does, and says so
@pytest.mark.parametrize("name", VICTIMS)
def test_a_victim_fails_exactly_its_check(name: str) -> None:
    kind: Kind = VICTIMS[name][0]
    near: dict[Kind, list[Component]] = {role: SOUND[role] for role in ("embedding", "rack", "head")} if kind == "growth" else {}
    (subject,) = (found for found in subjects_of({**near, kind: [VICTIMS[name][1]]}) if found.kind == kind)
    failed = {outcome.check.name: outcome.reason for outcome in Runner().run_all(subject) if outcome.verdict == "failed"}
    assert set(failed) == {name}, failed
    assert failed[name].strip()


def outcome(kind: Kind, name: str, made: Component) -> Outcome:
    (subject,) = subjects_of({kind: [made]})
    return Runner().run(subject, CATALOGUE[name])


@pytest.mark.parametrize(
    ("factory", "options", "verdict"),
    [
        ("labelled", "Labels", "passed"),
        ("telling", "Labels", "failed"),
        ("telling", "Restoring", "not applicable"),
    ],
)
def test_the_noise_floor_holds_for_tasks_that_do_not_look_ahead(factory: str, options: str, verdict: str) -> None:
    made = component("task", "v", f"broken:{factory}", f"broken_options:{options}")
    assert outcome("task", "check_noise_floor", Component(name="v", options=made.options, factory=made.factory)).verdict == verdict


def test_a_seed_that_was_set_before_hides_no_reseeding() -> None:
    import torch

    torch.manual_seed(0)  # the one that the victim sets
    found = outcome("head", "check_leaves_the_process_alone", component("head", "v", "broken:reseeding"))
    assert found.verdict == "failed" and "seeds torch's generator" in found.reason


def test_what_does_not_run_at_all_is_told_once_with_its_place() -> None:
    made = component("embedding", "v", "broken:misspelt")
    (subject,) = subjects_of({"embedding": [made]})
    outcomes = {o.check.name: o for o in Runner().run_all(subject)}
    assert [name for name, o in outcomes.items() if o.verdict == "failed"] == ["check_measured_shapes"]
    assert "unexpected keyword argument 'levels'" in outcomes["check_measured_shapes"].reason
    assert outcomes["check_trains"].verdict == "blocked" and outcomes["check_trains"].reason == "check_measured_shapes failed"


def test_an_exception_is_told_with_the_line_of_the_components_own_code() -> None:
    found = outcome("head", "check_measured_shapes", component("head", "v", "broken:dividing"))
    assert found.reason.startswith("it raised ZeroDivisionError: division by zero (broken.py:") and found.reason.endswith(", in forward)")


def test_a_module_that_does_not_know_its_spec_is_refused() -> None:
    found = outcome("rack", "check_builds", component("rack", "v", "broken:speechless"))
    assert found.verdict == "failed" and "has no 'to_spec', which a rack has" in found.reason


@pytest.mark.parametrize("check", CATALOGUE.values(), ids=CATALOGUE)
def test_a_check_says_its_promise_and_the_usual_cause(check: object) -> None:
    text = check.explanation()  # type: ignore[attr-defined]  # the ids and values of pytest are untyped
    promise, _, cause = text.partition("\n\n")
    assert promise.endswith(".") and cause.startswith("Usual cause: ") and cause.endswith(".")
