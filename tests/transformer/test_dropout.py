"""Dropout: its law, whose mode it follows, and that compiled code takes another share as it comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.dropout import Dropout
from stackwise_providers_transformer.options import DecoderOptions


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_is_zeroed_and_the_rest_scaled(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 100_000
    dropped = Dropout(share)(torch.ones(count, dtype=dtype))
    assert dropped.dtype == dtype
    zeros = int((dropped == 0).sum())
    assert abs(zeros - share * count) < 5 * (count * share * (1 - share)) ** 0.5
    kept = dropped[dropped != 0].float().unique()
    torch.testing.assert_close(
        kept, torch.tensor([1 / (1 - share)]).to(dtype).float(), rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0
    )


def test_the_gradient_passes_where_the_value_does() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    out = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * gradient)
    assert set((gradient * 0.7).round(decimals=5).tolist()) == {0.0, 1.0}


def test_a_share_of_one_leaves_zeros_and_finite_gradients() -> None:
    x = torch.randn(50, requires_grad=True)
    out = Dropout(1.0)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert not out.any() and not gradient.any()


def _decoder(dropout: float) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderOptions(width=8, heads=2, stacks=[{"under": 1}, {"base": 2}], init_std=0.3, dropout=dropout))


def _drops(decoder: Decoder, hidden: torch.Tensor) -> list[bool]:
    """Whether each block leaves entries of the hidden state exactly as they were."""
    found: list[bool] = []

    def watch(_: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.append(bool((output == inputs[0]).any()))

    hooks = [block.register_forward_hook(watch) for stack in decoder.stacks.children() for block in stack.children()]
    decoder(hidden)
    for hook in hooks:
        hook.remove()
    return found


def test_each_block_follows_its_own_mode() -> None:
    decoder = _decoder(0.9)
    hidden = torch.randn(4, 6, 8)
    assert _drops(decoder, hidden) == [True, True, True]
    decoder.get_submodule("stacks.under.0").eval()
    assert _drops(decoder, hidden) == [False, True, True]
    decoder.eval()
    decoder.get_submodule("stacks.base.1").train()
    assert _drops(decoder, hidden) == [False, False, True]


class CountingBackend:
    """A compiler of graphs that runs them as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return graph.forward


def test_twenty_shares_compile_two_graphs() -> None:
    torch._dynamo.reset()
    decoder, backend = _decoder(0.0), CountingBackend()
    block = decoder.get_submodule("stacks.base.0")
    block.compile(backend=backend)
    hidden = torch.randn(4, 6, 8)
    zeros = []
    for step in range(20):
        decoder.apply_values({"dropout": step / 20})
        out = block(hidden, None, None)
        zeros.append(int((out == hidden).sum()))
        out.sum().backward()
    assert backend.graphs == 2
    assert zeros[0] == 0 and zeros[19] > zeros[10] > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at the hidden state's, which is not a leaf
def test_a_compiled_block_serves_every_position_and_its_own_mode() -> None:
    """What a rack hands its blocks are tensors: other values of them compile nothing."""
    torch._dynamo.reset()
    decoder, backend = _decoder(0.0), CountingBackend()
    expected = [decoder(torch.full((2, 6, 8), float(i)), positions=torch.arange(6).expand(2, 6) * (i + 1)) for i in range(5)]
    for stack in decoder.stacks.children():
        for block in stack.children():
            block.compile(backend=backend)
    for i in range(5):
        found = decoder(torch.full((2, 6, 8), float(i)), positions=torch.arange(6).expand(2, 6) * (i + 1))
        torch.testing.assert_close(found, expected[i])
    assert backend.graphs <= 3


def test_the_share_is_no_part_of_the_saved_state() -> None:
    assert Dropout(0.1).state_dict() == {}
