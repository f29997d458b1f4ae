"""Every component of this provider against the contract of its kind, without being installed."""

from __future__ import annotations

from waves_for_stackwise import provider

from stackwise import conformance

test_conforms = conformance.parametrize(provider)
