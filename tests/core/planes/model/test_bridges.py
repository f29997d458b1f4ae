"""Lossless bridges at work: what unification finds is what they do, and none of them holds a parameter."""

from __future__ import annotations

import pytest
import torch

from stackwise.contracts.specs import AdapterSpec, BatchSpec, RackSpec, TaskSpec, TensorSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.plan.junctions.sides import Side
from stackwise.plan.junctions.unify import unify
from stackwise.planes.model.bridges import Permute, fields_across, hidden_bridges, take, torch_dtype


def test_renames_keep_identity_and_may_swap():
    a, b = torch.zeros(1), torch.ones(1)
    swap = [Bridge("j", "rename", "", field="a", before="b", after="a"), Bridge("j", "rename", "", field="b", before="a", after="b")]
    taken = take(fields_across(["a", "b"], swap), {"a": a, "b": b})
    assert taken["a"] is b and taken["b"] is a


def test_a_field_the_batch_does_not_have_is_left_out():
    assert take(fields_across(["a", "b"], []), {"b": torch.zeros(1)}).keys() == {"b"}


def test_the_bridges_of_unification_make_the_batch_the_task_asked_for():
    task = TaskSpec(batch={"tokens": TensorSpec("batch time", "int64", bounds=(0, 256))}, inputs={}, outputs={})
    source = BatchSpec(fields={"bytes": TensorSpec("batch time", "uint8", bounds=(0, 256))})
    unified = unify({"source:s": Side(role="source:s", label="s", spec=source), "task": Side(role="task", label="t", spec=task)})
    batch = take(fields_across(["tokens"], unified.bridges), {"bytes": torch.tensor([[0, 255]], dtype=torch.uint8)})
    assert batch["tokens"].dtype == torch.int64
    assert batch["tokens"].tolist() == [[0, 255]]


def test_the_bridges_of_the_hidden_state_hold_no_parameters():
    giver = AdapterSpec(input=TensorSpec("batch time width"), output=TensorSpec("batch time width", "float32"))
    rack = RackSpec(input=TensorSpec("time batch width", "float64"))
    sides = {
        "adapter:embedding-rack:0": Side(role="adapter:embedding-rack:0", label="a", spec=giver),
        "rack": Side(role="rack", label="r", spec=rack),
    }
    bridge = hidden_bridges(unify(sides).bridges)
    assert bridge is not None
    hidden = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    crossed = bridge(hidden)
    assert crossed.shape == (3, 2, 4) and crossed.dtype == torch.float64
    assert all(crossed[t, b, d] == hidden[b, t, d] for b in range(2) for t in range(3) for d in range(4))
    assert not list(bridge.parameters())
    assert hidden_bridges([]) is None


def test_a_permutation_and_its_inverse_are_the_identity():
    there, back = Permute("batch time width", "width batch time"), Permute("width batch time", "batch time width")
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back(there(hidden)), hidden)
    assert there.get_spec().input.dims == ("batch", "time", "width")


@pytest.mark.parametrize("after", ["batch time", "batch time depth", "batch batch time"])
def test_a_permutation_needs_the_same_dimensions(after: str):
    with pytest.raises(ValueError, match="no two orders"):
        Permute("batch time width", after)


def test_a_dtype_that_torch_does_not_have_is_refused():
    assert torch_dtype("bfloat16") is torch.bfloat16
    for name in ("float31", "nn"):
        with pytest.raises(ValueError, match="not a dtype"):
            torch_dtype(name)
