"""The adapters that a config may ask the core for: what they compute, and that they are what their spec says."""

from __future__ import annotations

import pytest
import torch

from stackwise.builtin import provider as builtin
from stackwise.builtin.adapters import Project, build_precision, build_project
from stackwise.contracts.components import BuildContext
from stackwise.errors import UserError

CONTEXT = BuildContext(seed=0)


@pytest.mark.parametrize("bias", [False, True])
def test_projection_is_the_matrix_product_of_its_weight(bias: bool):
    project = build_project(builtin.ProjectOptions(width_in=5, width_out=3, bias=bias), CONTEXT)
    hidden = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("btd,ed->bte", hidden, project.weight)
    torch.testing.assert_close(project(hidden), expected + project.bias if bias else expected)
    assert (project.bias is not None) == bias and isinstance(project, Project)
    assert project.get_spec().output.dims == ("batch", "time", 3)


def test_precision_converts_forward_and_returns_the_gradient_in_the_dtype_it_came_in():
    precision = build_precision(builtin.PrecisionOptions(dtype="bfloat16"), CONTEXT)
    hidden = torch.tensor([[[1.0, 1.001953125]]], requires_grad=True)
    narrowed = precision(hidden)
    assert narrowed.dtype == torch.bfloat16
    assert narrowed.tolist() == [[[1.0, 1.0]]]  # bfloat16 keeps 8 significant bits: 1 + 2^-9 rounds to 1
    narrowed.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    assert precision.get_spec().output.dtype == "bfloat16"


def test_a_dtype_that_torch_does_not_have_is_refused():
    with pytest.raises(UserError, match="float31"):
        builtin.PrecisionOptions(dtype="float31")


def test_the_core_offers_exactly_these_adapters_and_their_examples_build():
    records = {record.name: record for record in builtin.stackwise_adapters()}
    assert set(records) == {"project", "precision"}
    for name, build, options in (
        ("project", build_project, builtin.ProjectOptions),
        ("precision", build_precision, builtin.PrecisionOptions),
    ):
        assert records[name].options == f"stackwise.builtin.provider:{options.__name__}"
        assert records[name].factory == f"stackwise.builtin.adapters:{build.__name__}"
        declared = options(**records[name].example)
        assert len(build(declared, CONTEXT).get_spec().input.dims) == len(declared.to_spec().input.dims)
