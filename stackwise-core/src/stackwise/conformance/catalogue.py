"""Which checks there are, and for which kinds of component. A check is a function of its module; it is imported when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from attrs import frozen

from stackwise.contracts.components import SPEC_OF, Kind
from stackwise.host.provider import KINDS

if TYPE_CHECKING:
    from stackwise.conformance.subject import Subject


@frozen(kw_only=True)
class Check:
    """One promise of the contract, checked on one component."""

    name: str
    """`check_…`."""
    module: str
    kinds: frozenset[Kind]
    """Kinds of component that make the promise."""

    def load(self) -> Callable[[Subject], None]:
        """The function, imported now: it returns, or raises `Broken` or `NotApplicable`."""
        function: Callable[[Subject], None] = getattr(import_module(f"stackwise.conformance.{self.module}"), self.name)
        return function

    def explanation(self) -> str:
        """The promise and the usual cause of breaking it."""
        return inspect.cleandoc(self.load().__doc__ or "")


_MODULES: frozenset[Kind] = frozenset({"embedding", "rack", "head", "adapter"})
"""Kinds that are parts of the model."""

_SPECIFIED: frozenset[Kind] = frozenset(SPEC_OF)
"""Kinds whose options say a spec."""

_VALUED: frozenset[Kind] = _MODULES | {"task", "loader", "transform"}
"""Kinds that take values in force through `apply_values`."""

_EVERY: frozenset[Kind] = frozenset(KINDS)


_TABLE: Mapping[str, Mapping[str, frozenset[Kind]]] = {
    "declarations": {
        "check_example": _EVERY,
        "check_loads_cold": _EVERY,
        "check_import_budget": _EVERY,
        "check_options_documented": _EVERY,
        "check_yaml_round_trip": _EVERY,
        "check_mistakes_are_told": _EVERY,
        "check_spec_is_cold": _SPECIFIED,
        "check_dimensions_are_joined": _SPECIFIED,
    },
    "building": {
        "check_builds": _EVERY,
        "check_leaves_the_process_alone": _EVERY,
        "check_values_arrive": _VALUED,
    },
    "modules": {
        "check_same_seed_same_weights": _MODULES | {"weight-adapter"},
        "check_state_round_trip": _MODULES | {"weight-adapter"},
        "check_builds_on_meta": _MODULES | {"weight-adapter"},
        "check_measured_shapes": _MODULES,
        "check_finite_loss": _MODULES | {"task"},
        "check_gradients_reach_every_parameter": _MODULES,
        "check_reported_sums": _MODULES - {"adapter"},
    },
    "influences": {
        "check_leaves_its_inputs": _MODULES,
        "check_evaluation_is_still": _MODULES,
        "check_rows_stand_alone": _MODULES,
        "check_causal": frozenset({"rack"}),
        "check_boundaries_are_honoured": frozenset({"rack"}),
    },
    "racks": {
        "check_side_inputs": frozenset({"rack"}),
        "check_blocks_keep_their_names": frozenset({"rack"}),
        "check_runs_in_parts": frozenset({"rack"}),
        "check_zero_residual_is_identity": frozenset({"rack"}),
    },
    "optimizers": {
        "check_holds_each_parameter_once": frozenset({"optimizer"}),
        "check_groups_follow_their_values": frozenset({"optimizer"}),
        "check_lowers_a_bowl": frozenset({"optimizer"}),
        "check_state_elements": frozenset({"optimizer"}),
        "check_step_flops": frozenset({"optimizer"}),
        "check_missing_gradients": frozenset({"optimizer"}),
        "check_moments": frozenset({"optimizer"}),
        "check_same_next_step": frozenset({"optimizer"}),
        "check_state_survives_growth": frozenset({"optimizer"}),
    },
    "loaders": {
        "check_seeded_rows": frozenset({"loader"}),
        "check_rows_stay": frozenset({"loader"}),
        "check_resumed_rows": frozenset({"loader"}),
        "check_rows_come_once": frozenset({"loader"}),
        "check_batch_spec": frozenset({"loader"}),
        "check_splits_are_disjoint": frozenset({"loader"}),
        "check_worker_count": frozenset({"loader"}),
        "check_fingerprint": frozenset({"loader"}),
        "check_tokenizer": frozenset({"loader"}),
    },
    "tasks": {
        "check_prepared_batch": frozenset({"task"}),
        "check_totals": frozenset({"task"}),
        "check_loss_in_float32": frozenset({"task"}),
        "check_mask_is_honoured": frozenset({"task"}),
        "check_noise_floor": frozenset({"task"}),
    },
    "linear_outputs": {
        "check_linear_head_agrees": frozenset({"head"}),
        "check_takes_linear_outputs": frozenset({"task"}),
    },
    "batches": {
        "check_own_stream": frozenset({"task", "transform"}),
        "check_leaves_the_batch": frozenset({"task", "transform"}),
        "check_transformed_fields": frozenset({"transform"}),
    },
    "growth": {
        "check_map_is_complete": frozenset({"growth"}),
        "check_map_is_pure": frozenset({"growth"}),
        "check_refusals": frozenset({"growth"}),
        "check_function_preserved": frozenset({"growth"}),
    },
    "parameter_growth": {
        "check_parameter_map": frozenset({"growth"}),
        "check_parameter_map_preserves_function": frozenset({"growth"}),
        "check_gradients_follow_the_map": frozenset({"growth"}),
    },
    "weight_adapters": {
        "check_adds_nothing_at_first": frozenset({"weight-adapter"}),
        "check_merged_agrees": frozenset({"weight-adapter"}),
        "check_every_parameter_learns": frozenset({"weight-adapter"}),
    },
    "reactions": {
        "check_starts_at_one": frozenset({"reaction"}),
        "check_envelope": frozenset({"reaction"}),
        "check_changes_are_told": frozenset({"reaction"}),
        "check_reaction_resumes": frozenset({"reaction"}),
    },
    "schedules": {
        "check_every_step_has_a_number": frozenset({"schedule"}),
        "check_schedule_is_pure": frozenset({"schedule"}),
    },
    "observers": {
        "check_takes_every_event": frozenset({"observer"}),
        "check_leaves_events": frozenset({"observer"}),
    },
    "formats": {
        "check_format_round_trip": frozenset({"format"}),
        "check_format_leaves_others_alone": frozenset({"format"}),
    },
    "afterwards": {
        "check_predicts": frozenset({"task"}),
        "check_makes_rows": frozenset({"task"}),
        "check_continues_prompts": frozenset({"task"}),
        "check_scores": frozenset({"task"}),
        "check_reads_rows": frozenset({"loader"}),
        "check_notes": frozenset({"format"}),
    },
    "choices": {
        "check_every_choice": _EVERY,
    },
    "whole_runs": {
        "check_trains": _EVERY - {"format"},
        "check_interrupted_equals_uninterrupted": _MODULES | {"task", "transform"},
    },
}
"""Module → check → kinds, in the order in which checks run."""

CATALOGUE: Mapping[str, Check] = {
    name: Check(name=name, module=module, kinds=kinds) for module, checks in _TABLE.items() for name, kinds in checks.items()
}
"""Every check by name, in running order."""

PREREQUISITES = (
    "check_example",
    "check_spec_is_cold",
    "check_builds",
    "check_measured_shapes",
    "check_prepared_batch",
    "check_batch_spec",
    "check_transformed_fields",
)
"""What the other checks build on, where their kind has it: an example, a spec, an artifact, and that it does alone what its spec
says. Where one of these fails and was not expected to, the others are blocked, but declarations only by declarations before them."""
