"""The project's own four distributions come through the same door as everybody's."""

from __future__ import annotations

from stackwise import conformance

test_core_conforms = conformance.parametrize("core")
test_transformer_conforms = conformance.parametrize("transformer")
test_optim_conforms = conformance.parametrize(
    "optim",
    expected_failures={"optimizer:optim.muon/check_state_elements": "AdamW moves the embedding's matrix, and the spec sees its shape only"},
)
test_data_conforms = conformance.parametrize("data")
