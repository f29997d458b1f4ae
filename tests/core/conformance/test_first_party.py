"""The project's own four distributions come through the same door as everybody's."""

from __future__ import annotations

import pytest

from stackwise import conformance

test_core_conforms = conformance.parametrize("core")
test_transformer_conforms = conformance.parametrize("transformer")
test_optim_conforms = conformance.parametrize("optim")
test_data_conforms = conformance.parametrize("data")


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["add-experts", "upcycle", "vocabulary", "widen", "widen-ff"])
def test_an_operator_by_tensor_is_really_tried(operator: str) -> None:
    cases = test_transformer_conforms.pytestmark[0].args[1]  # type: ignore[attr-defined]  # its subjects know already which change it makes
    (subject,) = {id(each): each for each, _ in cases if each.id == f"growth:transformer.{operator}"}.values()
    for check in ("check_parameter_map", "check_trains"):
        assert conformance.Runner().run(subject, conformance.CATALOGUE[check]).verdict == "passed", check
