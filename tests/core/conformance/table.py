"""The sound components, and every check with the component that breaks exactly it. Imports nothing but records."""

from __future__ import annotations

from stackwise.contracts.components import Component, Kind

_EXAMPLES: dict[Kind, dict[str, object]] = {
    "embedding": {"width": 4},
    "rack": {"width": 4, "stacks": [{"base": 2}], "dropout": 0.1},
    "head": {"width": 4},
    "adapter": {"narrow": 4, "wide": 6},
    "task": {"noise": 0.1},
    "optimizer": {"lr": 0.1},
    "transform": {"amount": 0.1},
}
_OPTIONS: dict[Kind, str] = {"weight-adapter": "WeightAdapterOptions"}


def component(kind: Kind, name: str, factory: str | None = None, options: str | None = None, **example: object) -> Component:
    """A component of the victims' package; what is not said is that of the sound one."""
    title = _OPTIONS.get(kind, f"{kind.capitalize()}Options")
    hot = {"growth": "growing:build", "schedule": "sloping:build"}.get(kind) or f"sound:build_{kind.replace('-', '_')}"
    return Component(
        name=name,
        options=f"victims.{options or f'sound_options:{title}'}",
        factory=f"victims.{factory or hot}",
        example=example or ({} if options and kind == "observer" else _EXAMPLES.get(kind, {})),
    )


SOUND: dict[Kind, list[Component]] = {
    kind: [component(kind, "sound")]
    for kind in (
        "embedding",
        "rack",
        "head",
        "task",
        "optimizer",
        "loader",
        "transform",
        "adapter",
        "weight-adapter",
        "growth",
        "reaction",
        "schedule",
        "observer",
        "format",
    )
}


def judging(factory: str) -> Component:
    """A task that tells two kinds of rows apart, new ones too."""
    return Component(name="v", options="victims.broken_options:Labels", factory=f"victims.asked:{factory}")


def writing(factory: str) -> Component:
    """A task that continues ids and scores them."""
    return component("task", "v", f"asked:{factory}", "asked_options:WritingOptions", ids=5)


VICTIMS: dict[str, tuple[Kind, Component]] = {
    "check_example": (
        "transform",
        Component(name="v", options="victims.sound_options:TransformOptions", factory="victims.sound:build_transform"),
    ),
    "check_loads_cold": ("observer", component("observer", "v", "broken:nothing", "hot_options:Hot")),
    "check_import_budget": ("observer", component("observer", "v", "broken:nothing", "slow_options:Slow")),
    "check_options_documented": ("observer", component("observer", "v", "broken:nothing", "broken_options:Undocumented")),
    "check_yaml_round_trip": ("observer", component("observer", "v", "broken:nothing", "broken_options:Nested", pair={1, 2})),
    "check_mistakes_are_told": ("observer", component("observer", "v", "broken:nothing", "broken_options:Crashing")),
    "check_spec_is_cold": ("rack", component("rack", "v", None, "broken_options:Hasty")),
    "check_dimensions_are_joined": ("embedding", component("embedding", "v", None, "broken_options:Misnamed")),
    "check_builds": ("task", component("task", "v", "broken:without_prepare")),
    "check_leaves_the_process_alone": ("head", component("head", "v", "broken:reseeding")),
    "check_values_arrive": ("transform", component("transform", "v", "broken:deaf")),
    "check_same_seed_same_weights": ("embedding", component("embedding", "v", "broken:entropic")),
    "check_state_round_trip": ("head", component("head", "v", "broken:stateless")),
    "check_builds_on_meta": ("adapter", component("adapter", "v", "broken:reading")),
    "check_measured_shapes": ("head", component("head", "v", "broken:unsqueezed")),
    "check_finite_loss": ("embedding", component("embedding", "v", "broken:exploding")),
    "check_gradients_reach_every_parameter": ("embedding", component("embedding", "v", "broken:unused")),
    "check_leaves_its_inputs": ("adapter", component("adapter", "v", "broken:overwriting")),
    "check_evaluation_is_still": ("head", component("head", "v", "broken:restless")),
    "check_reported_sums": ("rack", component("rack", "v", "broken:shifting", "broken_options:Reporting")),
    "check_rows_stand_alone": ("rack", component("rack", "v", "broken:crosswise")),
    "check_causal": ("rack", component("rack", "v", "broken:foreseeing", "broken_options:Causal")),
    "check_boundaries_are_honoured": ("rack", component("rack", "v", "broken:blurring", "broken_options:Segmented")),
    "check_side_inputs": ("rack", component("rack", "v", None, "broken_options:SideBySide")),
    "check_blocks_keep_their_names": ("rack", component("rack", "v", "broken:gated")),
    "check_runs_in_parts": ("rack", component("rack", "v", "broken:normed_twice")),
    "check_zero_residual_is_identity": ("rack", component("rack", "v", "broken:loud")),
    "check_holds_each_parameter_once": ("optimizer", component("optimizer", "v", "broken:build_unnamed")),
    "check_groups_follow_their_values": ("optimizer", component("optimizer", "v", "broken:build_stubborn")),
    "check_lowers_a_bowl": ("optimizer", component("optimizer", "v", "broken:build_ascending")),
    "check_state_elements": ("optimizer", component("optimizer", "v", None, "broken_options:Boastful")),
    "check_step_flops": ("optimizer", component("optimizer", "v", None, "broken_options:Effortless")),
    "check_missing_gradients": ("optimizer", component("optimizer", "v", "broken:build_insisting")),
    "check_moments": ("optimizer", component("optimizer", "v", "broken:build_squared")),
    "check_same_next_step": ("optimizer", component("optimizer", "v", "broken:build_forgetful")),
    "check_state_survives_growth": ("optimizer", component("optimizer", "v", "broken:build_shared")),
    "check_seeded_rows": ("loader", component("loader", "v", "broken:Chancy")),
    "check_rows_stay": ("loader", component("loader", "v", "broken:Reusing")),
    "check_resumed_rows": ("loader", component("loader", "v", "broken:CountingTakes")),
    "check_rows_come_once": ("loader", component("loader", "v", "subtle:Overlapping")),
    "check_batch_spec": ("loader", component("loader", "v", "broken:Rounding")),
    "check_splits_are_disjoint": ("loader", component("loader", "v", "broken:Everywhere")),
    "check_worker_count": ("loader", component("loader", "v", "broken:Overshooting")),
    "check_fingerprint": ("loader", component("loader", "v", "broken:Stamped")),
    "check_tokenizer": ("loader", component("loader", "v", None, "broken_options:Nameless")),
    "check_prepared_batch": ("task", component("task", "v", "broken:padding")),
    "check_totals": ("task", component("task", "v", "broken:averaging")),
    "check_loss_in_float32": ("task", component("task", "v", "broken:coarse")),
    "check_mask_is_honoured": ("task", component("task", "v", None, "broken_options:Padded")),
    "check_noise_floor": ("task", component("task", "v", "broken:leaking")),
    "check_linear_head_agrees": ("head", component("head", "v", "broken:unbiased")),
    "check_takes_linear_outputs": ("task", component("task", "v", "broken:doubling", "broken_options:Linear")),
    "check_own_stream": ("task", component("task", "v", "broken:rolling")),
    "check_leaves_the_batch": ("transform", component("transform", "v", "broken:grasping")),
    "check_transformed_fields": ("transform", component("transform", "v", "broken:miscast")),
    "check_map_is_complete": ("growth", component("growth", "v", "growing:build_short")),
    "check_map_is_pure": ("growth", component("growth", "v", "growing:build_moody")),
    "check_refusals": ("growth", component("growth", "v", "growing:build_abrupt")),
    "check_function_preserved": ("growth", component("growth", "v", "growing:build_liar")),
    "check_parameter_map": ("growth", component("growth", "v", "growing:build_lopsided")),
    "check_parameter_map_preserves_function": ("growth", component("growth", "v", "growing:build_doubled")),
    "check_gradients_follow_the_map": ("growth", component("growth", "v", "growing:build_understated")),
    "check_adds_nothing_at_first": ("weight-adapter", component("weight-adapter", "v", "broken:loaded")),
    "check_merged_agrees": ("weight-adapter", component("weight-adapter", "v", "broken:halved")),
    "check_every_parameter_learns": ("weight-adapter", component("weight-adapter", "v", "broken:idle")),
    "check_starts_at_one": ("reaction", component("reaction", "v", "broken:warm")),
    "check_envelope": ("reaction", component("reaction", "v", "broken:sinking")),
    "check_changes_are_told": ("reaction", component("reaction", "v", "broken:chatty")),
    "check_reaction_resumes": ("reaction", component("reaction", "v", "broken:amnesic")),
    "check_every_step_has_a_number": ("schedule", component("schedule", "v", "sloping:build_unfounded")),
    "check_schedule_is_pure": ("schedule", component("schedule", "v", "sloping:build_counting")),
    "check_takes_every_event": ("observer", component("observer", "v", "broken:closed")),
    "check_leaves_events": ("observer", component("observer", "v", "broken:greedy")),
    "check_format_round_trip": ("format", component("format", "v", "broken:turning")),
    "check_format_leaves_others_alone": ("format", component("format", "v", "broken:trusting")),
    "check_predicts": ("task", judging("judging_together")),
    "check_makes_rows": ("task", component("task", "v", "asked:making_by_chance")),
    "check_continues_prompts": ("task", writing("swallowing")),
    "check_scores": ("task", writing("scoring_in_bits")),
    "check_reads_rows": ("loader", component("loader", "v", None, "asked_options:CutLines")),
    "check_notes": ("format", component("format", "v", "asked:noting_one_text")),
    "check_every_choice": ("adapter", component("adapter", "v", "broken:choosy", "broken_options:TwoSided", narrow=4, wide=6)),
    "check_trains": ("loader", component("loader", "v", "broken:Ending")),
    "check_interrupted_equals_uninterrupted": ("rack", component("rack", "v", "broken:counting")),
}
"""Check → kind and component."""

SUBTLE: dict[str, tuple[str, Kind, Component]] = {
    "sees the future in training": ("check_causal", "rack", component("rack", "v", "subtle:ahead_in_training", "broken_options:Causal")),
    "sees far ahead": ("check_causal", "rack", component("rack", "v", "subtle:far_ahead", "broken_options:Causal")),
    "mixes rows in training": ("check_rows_stand_alone", "rack", component("rack", "v", "subtle:mixing_in_training")),
    "mixes rows of large batches": ("check_rows_stand_alone", "embedding", component("embedding", "v", "subtle:mixing_many")),
    "keeps a mean in no state": ("check_interrupted_equals_uninterrupted", "head", component("head", "v", "subtle:averaged")),
    "counts to twenty": ("check_interrupted_equals_uninterrupted", "task", component("task", "v", "subtle:impatient")),
    "divides by padding": ("check_mask_is_honoured", "task", component("task", "v", "subtle:dividing", "subtle_options:MaskedTaskOptions")),
    "means a metric": ("check_totals", "task", component("task", "v", "subtle:mean_metric")),
    "counts to fifty": ("check_same_next_step", "optimizer", component("optimizer", "v", "subtle:build_tiring")),
    "forgets the epoch": ("check_resumed_rows", "loader", component("loader", "v", "subtle:ForgettingEpochs")),
    "repeats the end of an epoch": ("check_rows_come_once", "loader", component("loader", "v", "subtle:RepeatingEpochEnds")),
    "leaks three rows of a hundred": ("check_splits_are_disjoint", "loader", component("loader", "v", "subtle:LeakingSplits")),
    "throws dice": ("check_seeded_rows", "loader", component("loader", "v", "subtle:Dicing")),
    "blends with the batch before": ("check_interrupted_equals_uninterrupted", "transform", component("transform", "v", "subtle:blending")),
    "writes into the batch at times": ("check_leaves_the_batch", "transform", component("transform", "v", "subtle:halving")),
    "takes the metrics of a step": ("check_leaves_events", "observer", component("observer", "v", "subtle:clearing")),
    "is wrong for deep stacks": ("check_function_preserved", "growth", component("growth", "v", "growing:build_wrong_when_deep")),
    "copies the first expert": ("check_parameter_map", "growth", component("growth", "v", "growing:build_first_only")),
    "needs a label to predict": ("check_predicts", "task", judging("peeking")),
    "predicts by the label": ("check_predicts", "task", judging("echoing")),
    "makes rows of another form": ("check_makes_rows", "task", component("task", "v", "asked:making_turned")),
    "goes on behind a stop": ("check_continues_prompts", "task", writing("deaf")),
    "draws for all prompts at once": ("check_continues_prompts", "task", writing("drawing_together")),
    "scores one position late": ("check_scores", "task", writing("scoring_early")),
    "scores the mean of a text": ("check_scores", "task", writing("scoring_means")),
    "tells tensors": ("check_reads_rows", "loader", component("loader", "v", None, "asked_options:TensorLines")),
    "forgets an option with its tokenizer": (
        "check_tokenizer",
        "loader",
        component("loader", "v", "subtle:Loud", "subtle_options:ForgetfulWordOptions", louder=True),
    ),
    "notes into the folder": ("check_notes", "format", component("format", "v", "asked:noting_aloud")),
    "forgets the lowest loss": ("check_reaction_resumes", "reaction", component("reaction", "v", "subtle:forgetting")),
}
"""What is wrong → the check that finds it, kind and component."""

RIGHT: dict[str, tuple[Kind, Component]] = {
    "one number a row": ("loader", component("loader", "v", "subtle:Table", "subtle_options:TableOptions")),
    "an order for every epoch": ("loader", component("loader", "v", "subtle:Shuffling")),
    "a task that counts and says so": ("task", component("task", "v", "subtle:remembering")),
    "a task that counts real positions": ("task", component("task", "v", "subtle:counting", "subtle_options:MaskedTaskOptions")),
    "options before and after": ("growth", component("growth", "v", "growing:build_by_width")),
    "a window that does not fit": ("schedule", component("schedule", "v", "sloping:build_long")),
    "a task that predicts": ("task", judging("judging")),
    "a task that makes rows": ("task", component("task", "v", "asked:making")),
    "a task that writes and scores": ("task", writing("writing")),
    "a loader that reads any file": ("loader", component("loader", "v", None, "asked_options:Lines")),
    "a format that notes": ("format", component("format", "v", "asked:noting")),
    "a loader that needs the tokenizer of its run": ("loader", component("loader", "v", "subtle:Worded", "subtle_options:WordOptions")),
    "one evaluation": ("reaction", component("reaction", "v", "subtle:heldout", "subtle_options:HeldoutOptions")),
}
"""What is right, and looks wrong to a careless check → kind and component."""
