"""The kit is tested by its victims: sound components pass every check, and every check has one that fails it and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from stackwise.conformance import CATALOGUE, Outcome, Runner, parametrize, subjects_of
from stackwise.conformance.observers import LaterKind, events
from stackwise.contracts.components import Component, Kind
from stackwise.contracts.events import Event
from stackwise.host.provider import KINDS

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from table import RIGHT, SOUND, SUBTLE, VICTIMS, component  # noqa: E402  # of this folder, which is on the path only now


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HERE))
    yield


test_sound = parametrize(SOUND)


def test_every_check_has_a_victim() -> None:
    assert set(VICTIMS) == set(CATALOGUE)


def test_every_kind_has_a_sound_component() -> None:
    assert set(SOUND) == set(KINDS)


@pytest.mark.filterwarnings("ignore::stackwise.host.provider.StateChanged")  # a run puts right what the victim does, and says so
@pytest.mark.parametrize("name", VICTIMS)
def test_a_victim_fails_its_check(name: str) -> None:
    failed = failures(*VICTIMS[name], name)
    assert failed[name].strip()


@pytest.mark.rare  # every check of every victim; what fails too much, the sound components fail as well
@pytest.mark.filterwarnings("ignore::stackwise.host.provider.StateChanged")
@pytest.mark.parametrize("name", VICTIMS)
def test_a_victim_fails_exactly_its_check(name: str) -> None:
    failed = failures(*VICTIMS[name])
    assert set(failed) == {name}, failed
    assert failed[name].strip()


def test_the_kit_has_an_event_of_every_kind() -> None:
    assert {type(event) for event in events()} == {*get_args(Event), LaterKind}


@pytest.mark.parametrize("wrong", SUBTLE)
def test_what_is_wrong_in_a_subtle_way_is_found(wrong: str) -> None:
    check, kind, made = SUBTLE[wrong]
    assert failures(kind, made, check).keys() == {check}


@pytest.mark.parametrize("right", RIGHT)
def test_what_only_looks_wrong_is_left_alone(right: str) -> None:
    assert failures(*RIGHT[right]) == {}


def failures(kind: Kind, made: Component, check: str | None = None) -> dict[str, str]:
    """Every check that fails, or the one asked for if it does → why."""
    near: dict[Kind, list[Component]] = {role: SOUND[role] for role in ("embedding", "rack", "head")} if kind == "growth" else {}
    (subject,) = (found for found in subjects_of({**near, kind: [made]}) if found.kind == kind)
    outcomes = Runner().run_all(subject) if check is None else [Runner().run(subject, CATALOGUE[check])]
    return {outcome.check.name: outcome.reason for outcome in outcomes if outcome.verdict == "failed"}


def outcome(kind: Kind, name: str, made: Component) -> Outcome:
    (subject,) = subjects_of({kind: [made]})
    return Runner().run(subject, CATALOGUE[name])


@pytest.mark.parametrize(
    ("factory", "options", "verdict"),
    [
        ("labelled", "Labels", "passed"),
        ("unshifted", "Tokens", "failed"),
        ("leaking_density", "sound_options:DensityOptions", "failed"),
        ("telling", "Labels", "failed"),
        ("telling", "Restoring", "not applicable"),
    ],
)
def test_the_noise_floor_holds_for_tasks_of_other_kinds(factory: str, options: str, verdict: str) -> None:
    made = component("task", "v", f"broken:{factory}", options if ":" in options else f"broken_options:{options}")
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


def test_a_module_that_does_not_know_its_spec_is_refused_unless_it_is_a_plain_rack() -> None:
    found = outcome("head", "check_builds", component("head", "v", "broken:speechless"))
    assert found.verdict == "failed" and "has no 'get_spec', which a head has" in found.reason
    (subject,) = subjects_of({"rack": [component("rack", "v", "sound:build_plain")]})
    assert {found.verdict for found in Runner().run_all(subject)} <= {"passed", "not applicable"}


@pytest.mark.parametrize(
    ("kind", "name", "made", "verdict"),
    [
        ("rack", "check_boundaries_are_honoured", ("sound:build_masked", "MaskedOptions"), "passed"),
        ("rack", "check_boundaries_are_honoured", ("sound:build_row_masked", "RowMaskedOptions"), "not applicable"),
        ("head", "check_rows_stand_alone", ("sound:build_balanced", "BalancedOptions"), "passed"),
        ("task", "check_mask_is_honoured", ("sound:build_task", "PairMaskedOptions"), "not applicable"),
        ("task", "check_noise_floor", ("sound:build_density", "DensityOptions"), "passed"),
        ("optimizer", "check_moments", ("sound:build_accumulating", "AccumulatingOptions"), "passed"),
    ],
    ids=lambda value: value[0].partition(":")[2] if isinstance(value, tuple) else None,
)
def test_what_is_right_in_another_way_is_not_refused(kind: Kind, name: str, made: tuple[str, str], verdict: str) -> None:
    factory, options = made
    found = outcome(kind, name, component(kind, "v", factory, f"sound_options:{options}"))
    assert found.verdict == verdict, found.reason


def test_padding_that_real_positions_see_is_told() -> None:
    found = outcome("rack", "check_boundaries_are_honoured", component("rack", "v", "broken:seeing_padding", "sound_options:MaskedOptions"))
    assert found.verdict == "failed" and "'mask'" in found.reason


@pytest.mark.parametrize("choice", [("optimizer", "build_looking_ahead", "Nesterov"), ("loader", "build_shuffled", "Shuffled")])
def test_choices_are_tried_where_no_spec_is_stated(choice: tuple[Kind, str, str]) -> None:
    kind, factory, options = choice
    found = outcome(kind, "check_every_choice", component(kind, "v", f"broken:{factory}", f"broken_options:{options}"))
    assert found.verdict == "failed" and "ZeroDivisionError" in found.reason


def test_a_choice_whose_library_is_not_installed_is_not_counted_as_tried() -> None:
    found = outcome("optimizer", "check_every_choice", component("optimizer", "v", "broken:build_unavailable", "broken_options:Nesterov"))
    assert found.verdict == "not applicable", found.reason


def test_a_moment_that_is_there_after_some_steps_only_is_told() -> None:
    found = outcome("optimizer", "check_moments", component("optimizer", "v", "broken:build_clipping"))
    assert found.verdict == "failed" and "'momentum' is declared for" in found.reason and "is None in its state" in found.reason


@pytest.mark.parametrize("check", CATALOGUE.values(), ids=CATALOGUE)
def test_a_check_says_its_promise_and_the_usual_cause(check: object) -> None:
    text = check.explanation()  # type: ignore[attr-defined]  # the ids and values of pytest are untyped
    promise, _, cause = text.partition("\n\n")
    assert promise.endswith(".") and cause.startswith("Usual cause: ") and cause.endswith(".")
