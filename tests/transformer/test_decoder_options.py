"""Every form the decoder can take, against one written with einsum, explicit softmax and explicit masks.

Subscripts: b row, s and t time, d width, n query head, k key head, h feature of a head.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stackwise import BuildContext, UserError
from stackwise_providers_transformer.block_options import RotaryOptions, RotaryScaling
from stackwise_providers_transformer.decoder import Decoder, build_decoder
from stackwise_providers_transformer.options import DecoderOptions

ROWS, TIME, WIDTH = 2, 9, 24
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1, 1]])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 0, 1]])
FORMS: list[dict[str, object]] = [
    {},
    {"norm": "layernorm"},
    {"norm": "layernorm", "bias": True},
    {"bias": True, "mlp": "gelu"},
    {"qk_norm": True},
    {"qk_norm": True, "norm": "layernorm", "bias": True},
    {"kv_heads": 1},
    {"kv_heads": 2, "qk_norm": True, "rope_base": 100.0},
    {"positions": "learned", "max_positions": 12},
    {"positions": "none", "heads": 8},
    {"norm": "layernorm", "bias": True, "mlp": "gelu", "positions": "learned", "max_positions": TIME},
    {"norm": "layernorm", "bias": True, "qk_norm": True, "kv_heads": 2, "positions": "none"},
]
NAMES = ["-".join(f"{key}={value}" for key, value in form.items()) or "plain" for form in FORMS]


def make(**changes: object) -> Decoder:
    """A decoder whose every parameter is drawn, so that none is without effect."""
    options = DecoderOptions(**{"width": WIDTH, "heads": 4, "stacks": [{"base": 2}, {"top": 1}], "init_std": 0.3, **changes})
    torch.manual_seed(0)
    decoder = build_decoder(options, BuildContext(seed=0))
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, float(name.endswith("weight")), 0.3)
    return decoder


def draw(rows: int = ROWS, time: int = TIME) -> torch.Tensor:
    return torch.randn(rows, time, WIDTH, generator=torch.Generator().manual_seed(1))


def norm(form: str, x: torch.Tensor, p: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    if form == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * p[f"{name}.weight"] + p.get(f"{name}.bias", torch.zeros(()))


def linear(x: torch.Tensor, p: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return torch.einsum("bsd,ed->bse", x, p[f"{name}.weight"]) + p.get(f"{name}.bias", torch.zeros(()))


def turned(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions by complex multiplication, x [b, s, n, h]."""
    pairs = x.shape[-1] // 2
    angle = positions[:, :, None, None] * base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    z = torch.complex(x[..., :pairs].double(), x[..., pairs:].double()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), -1).float()


def attention(o: DecoderOptions, x: torch.Tensor, p: dict[str, torch.Tensor], seen: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    rows, time, _ = x.shape
    n, k, h = o.heads, o.kv_heads or o.heads, o.width // o.heads
    query, key, value = (part.reshape(rows, time, -1, h) for part in linear(x, p, "attention.qkv").split([n * h, k * h, k * h], dim=-1))
    if o.qk_norm:
        query, key = norm(o.norm, query, p, "attention.query_norm"), norm(o.norm, key, p, "attention.key_norm")
    if o.positions == "rope":
        query, key = (turned(part, positions, 10000.0 if o.rope_base is None else o.rope_base) for part in (query, key))
    shared = torch.arange(n) // (n // k)
    scores = torch.einsum("bsnh,btnh->bnst", query, key[:, :, shared]) / h**0.5
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)) * seen[:, None]
    weights = weights / weights.sum(-1, keepdim=True)
    mixed = torch.einsum("bnst,btnh->bsnh", weights, value[:, :, shared])
    return linear(mixed.reshape(rows, time, -1), p, "attention.output")


def mlp(o: DecoderOptions, x: torch.Tensor, p: dict[str, torch.Tensor]) -> torch.Tensor:
    up = linear(x, p, "mlp.up")
    if o.mlp == "gelu":
        return linear(up * torch.distributions.Normal(0, 1).cdf(up), p, "mlp.down")
    gate = linear(x, p, "mlp.gate")
    return linear(gate / (1 + torch.exp(-gate)) * up, p, "mlp.down")


def by_hand(decoder: Decoder, hidden: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rack over documents in rows."""
    o, time = decoder.options, hidden.shape[1]
    seen = torch.stack([torch.tensor([[bool(a == b) for b in row] for a in row]) for row in segments])
    if o.attention != "bidirectional":
        seen = seen & torch.tensor([[j <= i for j in range(time)] for i in range(time)])
    state = dict(decoder.named_parameters())
    if o.positions == "learned":
        hidden = hidden + state["positions.weight"][positions]
    for stack in o.stacks:
        for i in range(stack.blocks):
            prefix = f"stacks.{stack.name}.{i}."
            p = {name.removeprefix(prefix): parameter for name, parameter in state.items() if name.startswith(prefix)}
            hidden = hidden + attention(o, norm(o.norm, hidden, p, "attention_norm"), p, seen, positions)
            hidden = hidden + mlp(o, norm(o.norm, hidden, p, "mlp_norm"), p)
    return norm(o.norm, hidden, state, "norm")


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_agrees_with_a_rack_written_by_hand(form: dict[str, object], attention: str) -> None:
    decoder = make(attention=attention, **form)
    whole, straight = torch.zeros(ROWS, TIME, dtype=torch.int64), torch.arange(TIME).expand(ROWS, TIME)
    torch.testing.assert_close(decoder(draw()), by_hand(decoder, draw(), whole, straight), rtol=1e-5, atol=1e-5)
    packed = decoder(draw(), positions=POSITIONS, segments=SEGMENTS)
    torch.testing.assert_close(packed, by_hand(decoder, draw(), SEGMENTS, POSITIONS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_every_parameter_has_a_gradient(form: dict[str, object]) -> None:
    decoder = make(**form)
    weights = torch.randn(ROWS, TIME, WIDTH, generator=torch.Generator().manual_seed(2))
    (decoder(draw(), segments=SEGMENTS) * weights).sum().backward()
    assert [name for name, parameter in decoder.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_fewer_key_heads_have_fewer_weights() -> None:
    assert make(kv_heads=1).get_parameter("stacks.base.0.attention.qkv.weight").shape == (WIDTH + 2 * WIDTH // 4, WIDTH)


def test_as_many_key_heads_as_heads_is_the_same_rack() -> None:
    full, left_out = make(kv_heads=4), make()
    full.load_state_dict(left_out.state_dict())
    assert torch.equal(full(draw()), left_out(draw()))


def test_biases_start_at_zero() -> None:
    decoder = build_decoder(DecoderOptions(width=8, heads=2, stacks=[{"s": 1}], norm="layernorm", bias=True), BuildContext(seed=0))
    biases = {name: parameter for name, parameter in decoder.named_parameters() if name.endswith("bias")}
    assert len(biases) == 8  # qkv, output, gate, up, down, two norms and the last
    assert not any(bias.any() for bias in biases.values())


def test_without_positions_the_order_of_what_is_seen_has_no_effect() -> None:
    decoder, hidden = make(positions="none", attention="bidirectional"), draw()
    order = torch.tensor([3, 1, 0, 2, 8, 7, 6, 5, 4])
    torch.testing.assert_close(decoder(hidden[:, order]), decoder(hidden)[:, order], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(
        make(attention="bidirectional")(hidden[:, order]), make(attention="bidirectional")(hidden)[:, order], atol=1e-3
    )


def test_a_row_longer_than_the_table_of_positions() -> None:
    decoder = make(positions="learned", max_positions=8)
    assert decoder(draw(time=8)).shape == (ROWS, 8, WIDTH)
    with pytest.raises(UserError, match=r"max_positions: a row has 9 positions, the table 8: raise max_positions or shorten data\.seq_len"):
        decoder(draw())


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_runs_in_other_precisions(form: dict[str, object], dtype: torch.dtype, apart: float) -> None:
    single, other = (make(**form).to(kind)(draw().to(kind), positions=POSITIONS, segments=SEGMENTS) for kind in (torch.float32, dtype))
    assert other.dtype is dtype
    assert float((other.float() - single).detach().norm() / single.detach().norm()) < apart


@pytest.mark.parametrize("kind", ["ntk", "dynamic"])
def test_a_larger_base_needs_more_than_one_pair(kind: str) -> None:
    scaling: dict[str, Any] = {"kind": kind, "factor": 2.0} | ({"original": 8} if kind == "dynamic" else {})
    with pytest.raises(UserError, match="one pair"):
        DecoderOptions(width=8, heads=1, stacks=[{"base": 1}], rotary=RotaryOptions(share=0.25, scaling=RotaryScaling(**scaling)))
