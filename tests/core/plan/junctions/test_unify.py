"""Specs joined at every junction: sizes filled, lossless differences bridged, everything else refused with both sides named."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise.contracts.specs import HIDDEN, AdapterSpec, BatchSpec, Beyond, EmbeddingSpec, HeadSpec, RackSpec, TaskSpec, TensorSpec
from stackwise.plan.junctions.fields import Passage
from stackwise.plan.junctions.sides import Side
from stackwise.plan.junctions.unify import Unified, unify

IDS = TensorSpec("batch time", "int64", bounds=(0, "vocab"))
LOGITS = TensorSpec("batch time vocab")
TASK = TaskSpec(batch={"tokens": IDS}, inputs={"tokens": IDS}, outputs={"logits": LOGITS})
PROJECT = AdapterSpec(input=TensorSpec("batch time width_in"), output=TensorSpec("batch time width_out"))


def bytes_loader(vocab: int = 256, dtype: str = "int64", name: str = "tokens") -> BatchSpec:
    return BatchSpec(fields={name: TensorSpec("batch time", dtype, bounds=(0, vocab))})


def side(role: str, spec, *, dims=None, open=None, **_) -> Side:
    return Side(role=role, label=f"<{role}>", spec=spec, dims=dims or {}, open=open or {})


def language_model(**changes: Side) -> dict[str, Side]:
    """The usual language model: only the rack's width is given."""
    parts = {
        "source:bytes": side("source:bytes", bytes_loader()),
        "task": side("task", TASK),
        "embedding": side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), open={"vocab": "vocab", "width": "width"}),
        "rack": side("rack", RackSpec(attention=("causal",)), dims={"width": 32}),
        "head": side("head", HeadSpec(outputs={"logits": LOGITS}), open={"vocab": "vocab", "width": "width"}),
    }
    return {**parts, **{part.role: part for part in changes.values()}}


def messages(unified: Unified) -> str:
    return "\n".join(map(str, unified.problems))


def kinds(unified: Unified) -> list[str]:
    return [bridge.kind for bridge in unified.bridges]


def test_open_sizes_are_filled_from_wherever_they_are_known():
    unified = unify(language_model(), {})
    assert unified.problems == () and unified.bridges == ()
    assert unified.values["embedding", "width"] == unified.values["head", "width"] == 32
    assert unified.values["embedding", "vocab"] == unified.values["task", "vocab"] == unified.values["head", "vocab"] == 256


def test_a_declared_vocabulary_is_what_the_head_follows():
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"vocab": 512}, open={"width": "width"})
    unified = unify(language_model(embedding=embedding))
    assert unified.problems == ()
    assert unified.values["head", "vocab"] == 512


def test_several_loaders_fill_the_largest_vocabulary():
    unified = unify(language_model(more=side("source:more", bytes_loader(300))))
    assert unified.problems == ()
    assert unified.values["embedding", "vocab"] == 300


def test_a_vocabulary_below_the_loaders_ids_is_refused():
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"vocab": 128}, open={"width": "width"})
    unified = unify(language_model(embedding=embedding))
    (problem,) = unified.problems
    assert problem.path == "model.embedding.vocab"
    for part in ("<source:bytes>", "<embedding>", "256", "128", "set model.embedding.vocab to at least 256"):
        assert part in problem.message


def test_an_open_loader_bound_takes_what_the_model_accepts():
    loader = side("source:bytes", BatchSpec(fields={"tokens": IDS}), open={"vocab": "vocab"})
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"vocab": 64, "width": 32})
    assert unify(language_model(loader=loader, embedding=embedding)).values["source:bytes", "vocab"] == 64


def test_negative_ids_are_refused():
    loader = side("source:bytes", BatchSpec(fields={"tokens": TensorSpec("batch time", "int64", bounds=(-1, 256))}))
    assert "takes none below 0" in messages(unify(language_model(loader=loader)))


def test_ids_without_bounds_are_noted():
    loader = side("source:bytes", BatchSpec(fields={"tokens": TensorSpec("batch time", "int64")}))
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"vocab": 64, "width": 32})
    unified = unify(language_model(loader=loader, embedding=embedding))
    assert unified.problems == () and [(bridge.kind, bridge.limits) for bridge in unified.bridges] == [("bounds", (0, 64))]
    assert unified.values["head", "vocab"] == 64


def test_a_contradiction_names_both_sides_both_sizes_and_the_fix():
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"width": 64}, open={"vocab": "vocab"})
    (problem,) = unify(language_model(embedding=embedding)).problems
    for part in ("<embedding>", "<rack>", "64", "32", "`width: 64` at model.rack", "{use: core.project}", "model.adapters.embedding-rack"):
        assert part in problem.message
    assert problem.path == "model.rack"


def test_a_contradiction_in_the_vocabulary_suggests_no_adapter():
    head = side("head", HeadSpec(outputs={"logits": LOGITS}), dims={"vocab": 300}, open={"width": "width"})
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"vocab": 299, "width": 32})
    unified = unify(language_model(head=head, embedding=embedding))
    assert "300" in messages(unified) and "299" in messages(unified) and "core.project" not in messages(unified)


def test_a_number_written_in_a_spec_counts_as_a_size():
    rack = side("rack", RackSpec(input=TensorSpec("batch time 48"), output=TensorSpec("batch time 24")))
    unified = unify(language_model(rack=rack))
    assert unified.values["embedding", "width"] == 48 and unified.values["head", "width"] == 24
    head = side("head", HeadSpec(input=TensorSpec("batch time 25"), outputs={"logits": LOGITS}), open={"vocab": "vocab"})
    assert "24" in messages(unify(language_model(rack=rack, head=head)))


def test_projections_between_two_widths_are_sized_from_both_ends():
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"width": 8}, open={"vocab": "vocab"})
    first = side("adapter:embedding-rack:0", PROJECT, dims={"width_out": 16}, open={"width_in": "width_in"})
    second = side("adapter:embedding-rack:1", PROJECT, open={"width_in": "width_in", "width_out": "width_out"})
    unified = unify(language_model(embedding=embedding, second=second, first=first))
    assert unified.problems == ()
    sizes = [unified.values[f"adapter:embedding-rack:{i}", f"width_{end}"] for i in (0, 1) for end in ("in", "out")]
    assert sizes == [8, 16, 16, 32]


def test_a_size_that_nothing_says_is_asked_for_once_for_all_that_share_it():
    rack = side("rack", RackSpec(), open={"width": "width"})
    (problem,) = unify(language_model(rack=rack)).problems
    assert problem.path == "model.embedding.width"
    assert "set one of model.embedding.width, model.rack.width, model.head.width" in problem.message


def test_an_unfilled_option_beside_a_refused_field_is_not_complained_of_twice():
    loader = side("source:bytes", BatchSpec(fields={"pixels": TensorSpec("batch 28 28", "uint8")}))
    unified = unify(language_model(loader=loader))
    (problem,) = unified.problems
    assert problem.path == "data.rename"
    assert "'tokens'" in problem.message and "pixels uint8[batch 28 28]" in problem.message


@pytest.mark.parametrize(
    ("delivered", "needed"),
    [("uint8", "int16"), ("uint8", "int64"), ("int16", "int32"), ("int32", "int64"), ("bfloat16", "float64"), ("float16", "float32")],
)
def test_lossless_widening_is_bridged_and_reported(delivered: str, needed: str):
    task = TaskSpec(batch={"x": TensorSpec("batch time", needed)}, inputs={}, outputs={})
    source = side("source:a", BatchSpec(fields={"x": TensorSpec("batch time", delivered)}))
    unified = unify({"source:a": source, "task": side("task", task)})
    (bridge,) = unified.bridges
    assert (bridge.kind, bridge.field, bridge.before, bridge.after, bridge.into) == ("cast", "x", delivered, needed, "task")
    assert str(bridge) == f"source:a-task: cast x {delivered} → {needed}"
    assert unified.problems == ()


@pytest.mark.parametrize(
    ("delivered", "needed"),
    [
        ("int64", "int32"),
        ("int8", "uint8"),
        ("float32", "bfloat16"),
        ("bfloat16", "float16"),
        ("int32", "float32"),
        ("floating", "float32"),
    ],
)
def test_a_lossy_cast_is_refused(delivered: str, needed: str):
    task = TaskSpec(batch={"x": TensorSpec("batch time", needed)}, inputs={}, outputs={})
    source = side("source:a", BatchSpec(fields={"x": TensorSpec("batch time", delivered)}))
    unified = unify({"source:a": source, "task": side("task", task)})
    assert unified.bridges == () and delivered in messages(unified) and needed in messages(unified)


def test_any_dtype_of_a_kind_needs_no_bridge():
    loader = side("source:bytes", bytes_loader(dtype="int64"))
    task = side("task", TaskSpec(batch={"tokens": TensorSpec("batch time", "integer")}, inputs={"tokens": IDS}, outputs={"logits": LOGITS}))
    assert kinds(unify(language_model(loader=loader, task=task))) == []


def test_a_narrower_rack_asks_for_the_precision_adapter_and_is_content_with_it():
    half = TensorSpec("batch time width", "bfloat16")
    rack = side("rack", RackSpec(input=half, output=half), dims={"width": 32})
    assert "`{use: core.precision, dtype: bfloat16}` at model.adapters.embedding-rack" in messages(unify(language_model(rack=rack)))
    adapter = side("adapter:embedding-rack:0", AdapterSpec(input=TensorSpec("batch time width"), output=half))
    unified = unify(language_model(rack=rack, adapter=adapter))
    assert unified.problems == () and unified.values["embedding", "width"] == 32


def test_the_only_fitting_field_is_renamed_and_reported():
    unified = unify(language_model(loader=side("source:bytes", bytes_loader(name="bytes"))))
    (bridge,) = unified.bridges
    assert (bridge.kind, bridge.before, bridge.after) == ("rename", "bytes", "tokens")
    assert unified.problems == () and unified.values["embedding", "vocab"] == 256


def test_two_fitting_fields_are_for_the_user_to_choose_from():
    field = bytes_loader().fields["tokens"]
    loader = side("source:bytes", BatchSpec(fields={"a": field, "b": field}))
    unified = unify(language_model(loader=loader))
    assert "more than one of it would fit" in messages(unified) and "data.rename: {tokens: FIELD}" in messages(unified)
    chosen = unify(language_model(loader=loader), {"tokens": "b"}, Passage(drop=("a",)))
    assert chosen.problems == () and [b.before for b in chosen.bridges if b.kind == "rename"] == ["b"]


def test_one_number_a_row_is_never_taken_for_another():
    """The length of a prefix is not a label, though both are one integer a row."""
    task = TaskSpec(batch={"label": TensorSpec("batch", "int64", bounds=(0, "classes"))}, inputs={}, outputs={})
    source = side("source:a", BatchSpec(fields={"prefix": TensorSpec("batch", "int64")}))
    unified = unify({"source:a": source, "task": side("task", task)})
    assert unified.bridges == () and "one number a row is never taken for another" in messages(unified)
    assert "data.rename: {label: FIELD}" in messages(unified)
    asked = unify({"source:a": source, "task": side("task", task)}, {"label": "prefix"})
    assert (asked.bridges[0].kind, asked.bridges[0].before, asked.bridges[0].after) == ("rename", "prefix", "label")


def test_one_delivered_field_is_never_guessed_for_two_needed_ones():
    task = TaskSpec(batch={"x": TensorSpec("batch", "int64"), "y": TensorSpec("batch", "int64")}, inputs={}, outputs={})
    source = side("source:a", BatchSpec(fields={"z": TensorSpec("batch", "int64")}))
    unified = unify({"source:a": source, "task": side("task", task)})
    assert len(unified.problems) == 2 and unified.bridges == ()


def test_renames_that_have_no_effect_are_refused():
    assert "data.rename.token: <task> needs no field 'token' — did you mean 'tokens'?" in messages(
        unify(language_model(), {"token": "tokens"})
    )
    loader = side("source:bytes", bytes_loader(name="bytes"))
    assert "delivers no field 'byte' — did you mean 'bytes'?" in messages(unify(language_model(loader=loader), {"tokens": "byte"}))


def test_another_order_of_the_same_dimensions_is_permuted_and_reported():
    turned = TensorSpec("batch width time")
    unified = unify(language_model(rack=side("rack", RackSpec(input=turned, output=turned), dims={"width": 32})))
    assert [(b.kind, b.before, b.after, b.into) for b in unified.bridges] == [
        ("permute", "batch time width", "batch width time", "rack"),
        ("permute", "batch width time", "batch time width", "head"),
    ]
    assert unified.problems == () and unified.values["head", "width"] == 32


def test_runtime_dimensions_meet_only_themselves():
    rack = side("rack", RackSpec(input=TensorSpec("batch width"), output=TensorSpec("batch time width")), dims={"width": 32})
    assert "floating[batch time width]" in messages(unify(language_model(rack=rack)))
    pinned = side("rack", RackSpec(input=TensorSpec("batch 16 width")), dims={"width": 32})
    assert "floating[batch 16 width]" in messages(unify(language_model(rack=pinned)))


def test_a_needed_side_input_must_be_taken():
    task = side("task", TaskSpec(batch={"tokens": IDS}, inputs={"tokens": IDS}, outputs={"logits": LOGITS}, side=("segments",)))
    assert "side input 'segments', but <rack> takes none" in messages(unify(language_model(task=task)))


def test_side_inputs_are_unified_like_other_tensors():
    inputs = {"tokens": IDS, "memory": TensorSpec("batch time 7")}
    task = side("task", TaskSpec(batch={"tokens": IDS}, inputs=inputs, outputs={"logits": LOGITS}, side=("memory",)))
    rack = side(
        "rack", RackSpec(side={"memory": TensorSpec("batch time memory_width")}), dims={"width": 32}, open={"memory_width": "memory_width"}
    )
    unified = unify(language_model(task=task, rack=rack))
    assert unified.problems == () and unified.values["rack", "memory_width"] == 7


ENTRY = TensorSpec("batch time", "int64")
REAL = TensorSpec("batch time", "bool")
DOCUMENTS = TaskSpec(
    batch={"tokens": IDS},
    optional={"segments": ENTRY, "positions": ENTRY, "mask": REAL},
    inputs={"tokens": IDS, "segments": ENTRY, "positions": ENTRY},
    outputs={"logits": LOGITS},
)
TAKES_BOTH = RackSpec(side={"segments": TensorSpec("batch time", "integer"), "positions": TensorSpec("batch time", "integer")})


def reader(**fields: TensorSpec) -> BatchSpec:
    return BatchSpec(fields={**bytes_loader().fields, **fields})


def documents_model(*sources: Side, rack: RackSpec = TAKES_BOTH, **parts: Side) -> dict[str, Side]:
    """A language model whose task uses documents where loaders deliver them."""
    model = language_model(task=side("task", DOCUMENTS), rack=side("rack", rack, dims={"width": 32}), **parts)
    if sources:
        del model["source:bytes"]
    return {**model, **{source.role: source for source in sources}}


def test_optional_fields_that_nobody_delivers_are_not_asked_for():
    for rack in (TAKES_BOTH, RackSpec()):
        unified = unify(documents_model(rack=rack))
        assert unified.problems == () and unified.bridges == () and unified.optional == frozenset()
        assert unified.values["head", "vocab"] == 256


def test_delivered_optional_fields_reach_task_and_rack():
    packed = side("source:a", reader(segments=ENTRY, positions=ENTRY))
    unified = unify(documents_model(packed))
    assert unified.problems == () and unified.bridges == () and unified.optional == {"segments", "positions"}
    padded = unify(documents_model(side("source:a", reader(mask=REAL)), rack=RackSpec()))
    assert padded.problems == () and padded.optional == {"mask"}


def test_delivered_optional_fields_are_bridged_like_needed_ones():
    unified = unify(documents_model(side("source:a", reader(segments=TensorSpec("batch time", "int32")))))
    assert [(b.kind, b.field, b.before, b.after, b.into) for b in unified.bridges] == [("cast", "segments", "int32", "int64", "task")]
    assert unified.problems == ()
    floats = unify(documents_model(side("source:a", reader(mask=TensorSpec("batch time", "float32")))))
    assert "gives 'mask' as float32, but <task> takes bool" in messages(floats)
    one_a_row = unify(documents_model(side("source:a", reader(segments=TensorSpec("batch", "int64")))))
    assert "gives 'segments' as int64[batch], but <task> takes int64[batch time]" in messages(one_a_row)


def test_sizes_of_delivered_optional_fields_are_joined():
    task = TaskSpec(
        batch={"tokens": IDS}, optional={"extra": TensorSpec("batch features")}, inputs={"tokens": IDS}, outputs={"logits": LOGITS}
    )
    loader = side("source:bytes", reader(extra=TensorSpec("batch 7")))
    unified = unify(language_model(loader=loader, task=side("task", task)))
    assert unified.problems == () and unified.values["task", "features"] == 7
    assert ("task", "features") not in unify(language_model(task=side("task", task))).values


def test_an_optional_field_may_be_renamed_by_request_but_is_never_guessed():
    source = side("source:a", reader(documents=ENTRY))
    guessed = unify(documents_model(source), None, Passage(drop=("documents",)))
    assert guessed.problems == () and kinds(guessed) == ["drop"] and guessed.optional == frozenset()
    asked = unify(documents_model(source), {"segments": "documents"})
    assert asked.problems == () and asked.optional == {"segments"}
    assert [(b.kind, b.field, b.before) for b in asked.bridges] == [("rename", "segments", "documents")]
    assert "delivers no field 'document' — did you mean 'documents'?" in messages(unify(documents_model(source), {"segments": "document"}))
    unknown = unify(documents_model(source), {"segment": "documents"})
    assert "<task> needs no field 'segment' — did you mean 'segments'?" in messages(unknown)


def test_optional_fields_leave_the_only_fitting_one_to_what_is_needed():
    fields = reader(segments=ENTRY, positions=ENTRY).fields
    source = side("source:a", BatchSpec(fields={"bytes" if name == "tokens" else name: spec for name, spec in fields.items()}))
    embedding = side("embedding", EmbeddingSpec(inputs={"ids": IDS}), open={"vocab": "vocab", "width": "width"})
    unified = unify(documents_model(source, embedding=embedding))
    assert unified.problems == ()
    assert [(b.junction, b.before, b.after) for b in unified.bridges] == [
        ("source:a-task", "bytes", "tokens"),
        ("task-embedding", "tokens", "ids"),
    ]


def test_an_embedding_may_read_a_delivered_optional_field_but_not_an_absent_one():
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS, "positions": ENTRY}), open={"vocab": "vocab", "width": "width"})
    assert unify(documents_model(side("source:a", reader(positions=ENTRY)), embedding=embedding)).problems == ()
    (problem,) = unify(documents_model(embedding=embedding)).problems
    assert "<embedding> needs 'positions'" in problem.message


@pytest.mark.parametrize(
    ("rack", "taken"),
    [(RackSpec(), "takes no side input"), (RackSpec(side={"memory": HIDDEN, "positions": ENTRY}), "takes only 'memory' and 'positions'")],
)
def test_a_delivered_boundary_that_the_rack_does_not_take_is_refused(rack: RackSpec, taken: str):
    (problem,) = unify(documents_model(side("source:a", reader(segments=ENTRY, positions=ENTRY)), rack=rack)).problems
    assert problem.path == "model.rack"
    for part in ("<source:a> delivers 'segments'", "<task>", "<rack>", taken, "`rows: stream` at data.sources.a", "choose a rack"):
        assert part in problem.message


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_sources_of_a_mixture_deliver_the_same_optional_fields(order: tuple[str, str]):
    sources = {"a": side("source:a", reader(segments=ENTRY, positions=ENTRY)), "b": side("source:b", reader())}
    (problem,) = unify(documents_model(*(sources[name] for name in order))).problems
    assert problem.path == "data.sources.b"
    for part in ("<source:a>, delivers 'segments' and 'positions'", "data.sources.b, <source:b>", "give both the same `rows:`"):
        assert part in problem.message
    alike = unify(documents_model(sources["a"], side("source:b", reader(positions=ENTRY, segments=ENTRY))))
    assert alike.problems == ()


def test_dropped_fields_may_differ_between_sources():
    sources = side("source:a", reader(line=ENTRY)), side("source:b", reader())
    unified = unify(documents_model(*sources), None, Passage(drop=("line",)))
    assert unified.problems == () and [(b.junction, b.kind, b.field) for b in unified.bridges] == [("source:a-task", "drop", "line")]


def test_a_field_that_nobody_reads_is_refused_with_the_line_to_write():
    (problem,) = unify(documents_model(side("source:a", reader(line=ENTRY, mask=REAL)))).problems
    assert problem.path == "data.sources.a"
    for part in ("<source:a> delivers 'line'", "<task> does not read", "`data: {drop: [line]}`"):
        assert part in problem.message


def test_a_field_that_a_transform_reads_is_read_and_a_silent_transform_may_read_any():
    model = documents_model(side("source:a", reader(line=ENTRY)))
    for reading in (frozenset({"line"}), None):
        assert unify(model, None, Passage(transforms=reading)).problems == ()
    assert unify(model, None, Passage(transforms=frozenset({"line"}))).reads == {"tokens", "segments", "positions", "mask", "line"}


def test_an_optional_field_may_be_dropped_and_a_needed_one_may_not():
    packed = side("source:a", reader(segments=ENTRY, positions=ENTRY))
    unified = unify(documents_model(packed, rack=RackSpec()), None, Passage(drop=("segments", "positions")))
    assert unified.problems == () and unified.optional == frozenset()
    (problem,) = unify(documents_model(packed), None, Passage(drop=("tokens",))).problems
    assert problem.path == "data.drop" and "<task> needs it" in problem.message
    (renamed,) = unify(language_model(loader=side("source:bytes", bytes_loader(name="a"))), {"tokens": "a"}, Passage(drop=("a",))).problems
    assert renamed.path == "data.drop"


def test_attention_the_rack_does_not_offer_is_refused_and_an_undeclared_one_noted():
    task = side("task", TaskSpec(batch={"tokens": IDS}, inputs={"tokens": IDS}, outputs={"logits": LOGITS}, attention="bidirectional"))
    causal = language_model(task=task)
    assert "needs bidirectional attention, but <rack> offers causal: choose a rack that does" in messages(unify(causal))
    causal["rack"] = attrs.evolve(causal["rack"], pinned="context")
    assert "offers causal: leave model.rack.context out" in messages(unify(causal))
    plain = unify(language_model(task=task, rack=side("rack", RackSpec(), dims={"width": 32})))
    assert plain.problems == () and kinds(plain) == ["note"] and "declares no attention mode" in str(plain.bridges[0])


def test_an_output_the_head_lacks_is_refused():
    head = side("head", HeadSpec(outputs={"pooled": TensorSpec("batch 4")}), open={"width": "width"})
    assert "<task> needs 'logits'" in messages(unify(language_model(head=head)))


def test_all_mistakes_come_in_one_pass():
    task = TaskSpec(
        batch={"tokens": IDS}, inputs={"tokens": IDS}, outputs={"logits": LOGITS}, side=("segments",), attention="bidirectional"
    )
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"width": 64, "vocab": 10})
    assert len(unify(language_model(task=side("task", task), embedding=embedding)).problems) == 4


@given(order=st.sampled_from(list(itertools.permutations(language_model()))), width=st.integers(1, 4096), vocab=st.integers(1, 100_000))
def test_the_outcome_does_not_depend_on_the_order_of_the_parts(order: tuple[str, ...], width: int, vocab: int):
    parts = language_model(loader=side("source:bytes", bytes_loader(vocab)), rack=side("rack", RackSpec(), dims={"width": width}))
    values = unify({role: parts[role] for role in order}).values
    assert set(values.values()) <= {width, vocab}
    assert dict(values) == dict(unify(parts).values) and len(values) == 6


# -- tasks that add symbols, side inputs that are made or needed ----------------------------------------------------


def masking(*beyond: Beyond) -> Side:
    """A task that adds a symbol to the loader's ids."""
    seen = TensorSpec("batch time", "int64", bounds=(0, "symbols"))
    spec = TaskSpec(batch={"tokens": seen}, inputs={"tokens": IDS}, outputs={"logits": LOGITS}, beyond=beyond)
    return side("task", spec, open={"symbols": "symbols"})


def test_a_vocabulary_reaches_beyond_the_loader_s_ids():
    unified = unify(language_model(task=masking(Beyond("vocab", "symbols", 1))))
    assert unified.problems == ()
    assert (unified.values["task", "symbols"], unified.values["embedding", "vocab"], unified.values["head", "vocab"]) == (256, 257, 257)


def test_a_larger_vocabulary_does_not_change_how_many_ids_the_loader_has():
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"vocab": 300}, open={"width": "width"})
    unified = unify(language_model(task=masking(Beyond("vocab", "symbols", 1)), embedding=embedding))
    assert unified.problems == () and unified.values["task", "symbols"] == 256 and unified.values["head", "vocab"] == 300


def test_a_loader_that_says_nothing_gets_what_the_vocabulary_leaves():
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"vocab": 300}, open={"width": "width"})
    loader = side("source:bytes", BatchSpec(fields={"tokens": IDS}), open={"vocab": "vocab"})
    found = unify({**language_model(task=masking(Beyond("vocab", "symbols", 1)), embedding=embedding), "source:bytes": loader})
    assert found.problems == () and found.values["task", "symbols"] == found.values["source:bytes", "vocab"] == 299


@pytest.mark.parametrize(
    ("beyond", "need"), [(Beyond("vocab", "symbols", 1), "1 more than the 256 ids"), (Beyond("vocab", 256, 1), "id 256")]
)
def test_a_vocabulary_without_room_is_refused(beyond: Beyond, need: str):
    embedding = side("embedding", EmbeddingSpec(inputs={"tokens": IDS}), dims={"vocab": 256}, open={"width": "width"})
    unified = unify(language_model(task=masking(beyond), embedding=embedding))
    (problem,) = unified.problems
    assert problem.path == "model.embedding.vocab"
    assert f"<task> needs room for {need}" in problem.message and "<embedding>" in problem.message and "at least 257" in problem.message


def remembering(width: str = "width") -> dict[str, Side]:
    embedded = {"memory": ("tokens", "source")}
    inputs = {"tokens": IDS, "source": TensorSpec("batch source", "int64", bounds=(0, "vocab"))}
    task = TaskSpec(batch={"tokens": IDS}, inputs=inputs, outputs={"logits": LOGITS}, side=("memory",), embedded=embedded)
    rack = RackSpec(side={"memory": TensorSpec(f"batch source {width}")}, needs=("memory",))
    return language_model(task=side("task", task), rack=side("rack", rack, dims={"width": 32}))


def test_a_side_input_that_the_embedding_makes_is_a_bridge():
    unified = unify(remembering())
    assert unified.problems == ()
    (bridge,) = unified.bridges
    assert (bridge.kind, bridge.into, bridge.field, bridge.before, bridge.after) == ("embed", "rack", "memory", "source", "tokens")


def test_what_the_embedding_makes_must_fit_the_rack():
    sides = remembering("other")
    rack = sides["rack"]
    sides["rack"] = side("rack", rack.spec, dims={"width": 32, "other": 7})
    assert "'memory' has width 32" in messages(unify(sides)) and "other 7" in messages(unify(sides))


def test_a_rack_whose_need_nobody_meets_is_refused():
    sides = {**remembering(), "task": side("task", TASK)}
    assert "<rack> does not run without the side input 'memory', which <task> does not give" in messages(unify(sides))


def test_a_head_takes_a_side_input_of_the_task():
    mask = TensorSpec("batch time", "bool")
    task = TaskSpec(batch={"tokens": IDS, "mask": mask}, inputs={"tokens": IDS, "mask": mask}, outputs={"logits": LOGITS})
    loader = BatchSpec(fields={"tokens": TensorSpec("batch time", "int64", bounds=(0, 256)), "mask": mask})
    head = HeadSpec(outputs={"logits": LOGITS}, side={"mask": TensorSpec("batch time", "int64")})
    sides = language_model(task=side("task", task), head=side("head", head, open={"vocab": "vocab", "width": "width"}))
    unified = unify({**sides, "source:bytes": side("source:bytes", loader)})
    assert unified.problems == ()
    assert [(bridge.junction, bridge.kind, bridge.into) for bridge in unified.bridges] == [("task-head", "cast", "head")]


def test_the_one_output_of_a_head_is_taken_for_what_the_task_needs_of_it():
    head = side("head", HeadSpec(outputs={"score": TensorSpec("batch")}), open={"width": "width"})
    task = side("task", attrs.evolve(TASK, outputs={"reward": TensorSpec("batch")}))
    unified = unify(language_model(head=head, task=task))
    assert [(bridge.before, bridge.after) for bridge in unified.bridges] == [("score", "reward")], messages(unified)


def test_sizes_that_an_absent_part_might_give_are_not_missed_where_it_is_told():
    parts = {name: part for name, part in language_model().items() if name != "source:bytes"}
    assert "vocab of <embedding> is left out" in messages(unify(parts))
    assert unify(parts, complete=False).problems == ()
