"""On a CPU attention runs in float32 whatever the precision of the products around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from stackwise_providers_transformer.attention import Attention
from stackwise_providers_transformer.cross_attention import CrossAttention
from stackwise_providers_transformer.options import DecoderOptions


class Attending(TorchFunctionMode):
    """Notes the dtypes that torch's attention is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.dtypes |= {tensor.dtype for tensor in args[:3]}
        return func(*args, **(kwargs or {}))


def crossing() -> Callable[[torch.Tensor], torch.Tensor]:
    cross = CrossAttention(width=16, heads=4, kv_heads=2, bias=False, std=0.2, output_std=0.2)
    return lambda x: cross(x, x.flip(1), None)


def attending() -> Callable[[torch.Tensor], torch.Tensor]:
    attention = Attention(DecoderOptions(width=16, heads=4, stacks=[{"base": 1}]))
    return lambda x: attention(x, None, None)


@pytest.mark.parametrize("make", [crossing, attending])
def test_attention_on_a_cpu_runs_in_float32(make: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> None:
    torch.manual_seed(0)
    forward, x = make(), torch.randn(2, 6, 16)
    with Attending() as plain:
        exact = forward(x)
    with torch.autocast("cpu", torch.bfloat16), Attending() as lowered:
        rounded = forward(x)
    assert plain.dtypes == lowered.dtypes == {torch.float32}
    assert exact.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.02)
