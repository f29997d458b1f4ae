"""The kit is tested by its victims: sound components pass every check, and every check has one that fails it and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackwise.conformance import CATALOGUE, Runner, parametrize, subjects_of
from stackwise.contracts import Component, Kind
from stackwise.registry import KINDS

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from table import SOUND, VICTIMS  # noqa: E402  # of this folder, which is on the path only now


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HERE))
    yield


test_sound = parametrize(SOUND)


def test_every_check_has_a_victim() -> None:
    assert set(VICTIMS) == set(CATALOGUE)


def test_every_kind_has_a_sound_component() -> None:
    assert set(SOUND) == set(KINDS)


@pytest.mark.parametrize("name", VICTIMS)
def test_a_victim_fails_exactly_its_check(name: str) -> None:
    kind: Kind = VICTIMS[name][0]
    near: dict[Kind, list[Component]] = {role: SOUND[role] for role in ("embedding", "rack", "head")} if kind == "growth" else {}
    (subject,) = (found for found in subjects_of({**near, kind: [VICTIMS[name][1]]}) if found.kind == kind)
    failed = {outcome.check.name: outcome.reason for outcome in Runner().run_all(subject) if outcome.verdict == "failed"}
    assert set(failed) == {name}, failed
    assert failed[name].strip()


@pytest.mark.parametrize("check", CATALOGUE.values(), ids=CATALOGUE)
def test_a_check_says_its_promise_and_the_usual_cause(check: object) -> None:
    text = check.explanation()  # type: ignore[attr-defined]  # the ids and values of pytest are untyped
    promise, _, cause = text.partition("\n\n")
    assert promise.endswith(".") and cause.startswith("Usual cause: ") and cause.endswith(".")
