"""Every component of this provider against the contract of its kind."""

from names_for_stackwise import provider

from stackwise import conformance

test_conforms = conformance.parametrize(provider)
