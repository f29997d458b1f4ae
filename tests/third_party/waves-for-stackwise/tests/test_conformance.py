"""Every component of this provider against the contract of its kind, and the rack at a second set of options."""

from attrs import evolve
from waves_for_stackwise import provider

from stackwise import conformance

test_conforms = conformance.parametrize(provider)

conv, *_ = provider.stackwise_racks()
deep = evolve(conv, example={"width": 4, "kernel": 1, "stacks": [{"base": 1}, {"top": 3}]})
test_deep_conforms = conformance.parametrize({"rack": [deep]})
