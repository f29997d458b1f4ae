"""The project's own four distributions come through the same door as everybody's."""

from __future__ import annotations

from stackwise import conformance

test_core_conforms = conformance.parametrize("core")
test_transformer_conforms = conformance.parametrize("transformer")
test_optim_conforms = conformance.parametrize("optim")
test_data_conforms = conformance.parametrize("data")
