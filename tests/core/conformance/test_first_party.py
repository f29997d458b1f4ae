"""The project's own four distributions come through the same door as everybody's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stackwise import conformance

WHOLE_RUNS = "check_interrupted_equals_uninterrupted"
OFTEN = ("rack:transformer.decoder", "task:transformer.causal-lm", "head:transformer.lm", "embedding:transformer.token")
"""Whose runs are interrupted in every `make test`; those of the others are three each, and rare."""


def seldom(conforms: Callable[..., None]) -> Callable[..., None]:
    """A test of conformance, its longest check rare but for a component of each kind."""
    (mark,) = conforms.pytestmark  # type: ignore[attr-defined]  # what pytest.mark.parametrize leaves there
    cases = [
        pytest.param(subject, check, marks=pytest.mark.rare if check.name == WHOLE_RUNS and subject.id not in OFTEN else ())
        for subject, check in mark.args[1]
    ]
    conforms.pytestmark = [pytest.mark.parametrize(mark.args[0], cases, **mark.kwargs).mark]  # type: ignore[attr-defined]
    return conforms


test_core_conforms = conformance.parametrize("core")
test_transformer_conforms = seldom(conformance.parametrize("transformer"))
test_optim_conforms = conformance.parametrize("optim")
test_data_conforms = conformance.parametrize("data")


@pytest.mark.slow
@pytest.mark.rare  # what test_transformer_conforms skips where there is nothing to try, and tries otherwise
@pytest.mark.parametrize("operator", ["add-experts", "upcycle", "vocabulary", "widen", "widen-ff"])
def test_an_operator_by_tensor_is_really_tried(operator: str) -> None:
    cases = test_transformer_conforms.pytestmark[0].args[1]  # type: ignore[attr-defined]  # its subjects know already which change it makes
    (subject,) = {id(each): each for each, _ in (case.values for case in cases) if each.id == f"growth:transformer.{operator}"}.values()
    for check in ("check_parameter_map", "check_trains"):
        assert conformance.Runner().run(subject, conformance.CATALOGUE[check]).verdict == "passed", check
