"""The decoder rack: what it computes, what it declares, how it starts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, RackSpec, Stack, TensorSpec, UserError
from stackwise_providers_transformer.decoder import Decoder, build_decoder
from stackwise_providers_transformer.options import DecoderOptions


def _options(**changes: object) -> DecoderOptions:
    return DecoderOptions(**{"width": 16, "heads": 2, "stacks": [{"base": 2}, {"top": 1}], **changes})


def _decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    decoder = build_decoder(_options(**{"init_std": 0.3, **changes}), BuildContext(seed=0))
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return decoder


def _hidden(rows: int = 2, time: int = 7) -> torch.Tensor:
    return torch.randn(rows, time, 16, generator=torch.Generator().manual_seed(1))


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def _turned(x: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    """Rotary positions by complex multiplication, x [rows, heads, time, features]."""
    pairs = x.shape[-1] // 2
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    z = torch.complex(x[..., :pairs].double(), x[..., pairs:].double()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), -1).float()


def _by_hand(decoder: Decoder, hidden: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """The same rack written with matrix products and explicit softmax."""
    state = dict(decoder.named_parameters())
    rows, time, width = hidden.shape
    for stack in decoder.options.stacks:
        for i in range(stack.blocks):
            p = {
                name: state[f"stacks.{stack.name}.{i}.{name}"]
                for name, _ in decoder.get_submodule(f"stacks.{stack.name}.{i}").named_parameters()
            }
            q, k, v = (
                part.view(rows, time, 2, width // 2).transpose(1, 2)
                for part in (_norm(hidden, p["attention_norm.weight"]) @ p["attention.qkv.weight"].T).split(width, -1)
            )
            scores = _turned(q) @ _turned(k).transpose(-1, -2) / math.sqrt(width // 2)
            if causal:
                scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), -math.inf)
            mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(rows, time, width)
            hidden = hidden + mixed @ p["attention.output.weight"].T
            x = _norm(hidden, p["mlp_norm.weight"])
            up = x @ p["mlp.up.weight"].T
            if "mlp.gate.weight" in p:
                gate = x @ p["mlp.gate.weight"].T
                up = gate * torch.sigmoid(gate) * up
            else:
                up = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
            hidden = hidden + up @ p["mlp.down.weight"].T
    return _norm(hidden, state["norm.weight"])


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_agrees_with_attention_written_by_hand(mlp: str, attention: str) -> None:
    decoder = _decoder(mlp=mlp, attention=attention)
    torch.testing.assert_close(decoder(_hidden()), _by_hand(decoder, _hidden(), causal=attention == "causal"), rtol=1e-5, atol=1e-5)


def test_a_later_entry_changes_nothing_before_it() -> None:
    decoder, hidden = _decoder(attention="causal"), _hidden()
    changed = hidden.clone()
    changed[:, 4] += 1
    before, after = decoder(hidden), decoder(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_bidirectional_attention_sees_later_entries() -> None:
    decoder, hidden = _decoder(attention="bidirectional"), _hidden()
    changed = hidden.clone()
    changed[:, 6] += 1
    assert (decoder(hidden)[:, 0] != decoder(changed)[:, 0]).any()


def test_only_distances_between_positions_matter() -> None:
    decoder, hidden = _decoder(), _hidden()
    positions = torch.arange(7).expand(2, 7)
    torch.testing.assert_close(decoder(hidden, positions=positions + 23), decoder(hidden), rtol=1e-5, atol=2e-5)
    assert not torch.allclose(decoder(hidden, positions=2 * positions), decoder(hidden), atol=1e-3)


def test_given_positions_of_0_to_T_are_the_default() -> None:
    decoder, hidden = _decoder(), _hidden()
    assert torch.equal(decoder(hidden, positions=torch.arange(7).expand(2, 7)), decoder(hidden))


@pytest.mark.parametrize("changes", [{}, {"norm": "layernorm", "bias": True, "qk_norm": True, "kv_heads": 1, "mlp": "gelu"}])
def test_zero_residual_outputs_make_a_block_the_identity(changes: dict[str, object]) -> None:
    decoder = _decoder(**changes)
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias") and "norm" not in name:
            nn.init.normal_(parameter)
    for name, parameter in decoder.named_parameters():
        if name.endswith(decoder.to_spec().residual_outputs):
            nn.init.zeros_(parameter)
    assert torch.equal(decoder(_hidden()), decoder.norm(_hidden()))


def test_the_dropout_in_force_arrives() -> None:
    decoder = _decoder(dropout=0.0)
    still = decoder(_hidden())
    assert torch.equal(decoder(_hidden()), still)
    decoder.apply_values({"dropout": 1.0})
    torch.testing.assert_close(decoder(_hidden()), decoder.norm(_hidden()), rtol=0, atol=0)
    decoder.eval()
    assert torch.equal(decoder(_hidden()), still)


def test_zero_dropout_draws_nothing() -> None:
    decoder = _decoder(dropout=0.0)
    before = torch.get_rng_state()
    decoder(_hidden())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{}, {"positions": "none"}, {"qk_norm": True}, {"norm": "layernorm", "qk_norm": True, "bias": True}])
def test_attention_stays_in_float32_under_autocast_on_a_cpu(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, seen = _decoder(**changes), []
    kernel = F.scaled_dot_product_attention

    def watched(*args: torch.Tensor, **how: Any) -> torch.Tensor:
        mixed = kernel(*args, **how)
        seen.extend([*(tensor.dtype for tensor in args), mixed.dtype])
        return mixed

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = decoder(_hidden())
    assert set(seen) == {torch.float32}
    full = decoder(_hidden())
    assert float((low.float() - full).detach().norm() / full.detach().norm()) < 0.05


def test_parameters_have_the_names_that_growth_and_selectors_rely_on() -> None:
    block = {
        "attention_norm.weight",
        "attention.qkv.weight",
        "attention.output.weight",
        "mlp_norm.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    }
    normed = {name for name, _ in _decoder(qk_norm=True, stacks=[{"s": 1}]).named_parameters()}
    assert {"stacks.s.0.attention.query_norm.weight", "stacks.s.0.attention.key_norm.weight"} <= normed
    assert "positions.weight" in {name for name, _ in _decoder(positions="learned", max_positions=7).named_parameters()}
    gated = {f"stacks.{place}.{name}" for place in ("base.0", "base.1", "top.0") for name in block | {"mlp.gate.weight"}}
    assert {name for name, _ in _decoder().named_parameters()} == gated | {"norm.weight"}
    assert {name.removeprefix("stacks.s.0.") for name, _ in _decoder(mlp="gelu", stacks=[{"s": 1}]).named_parameters()} == block | {
        "norm.weight"
    }


@pytest.mark.parametrize("changes", [{}, {"norm": "layernorm", "bias": True, "qk_norm": True, "positions": "learned", "max_positions": 5}])
def test_every_module_with_parameters_draws_its_own_anew(changes: dict[str, object]) -> None:
    decoder = _decoder(depth_for_init="current", **changes)
    fresh = _decoder(depth_for_init="current", **changes)
    for name, module in decoder.named_modules():
        if own := list(module.parameters(recurse=False)):
            for parameter in own:
                nn.init.constant_(parameter, 9.0)
            twin = fresh.get_submodule(name)
            for redrawn in (module, twin):
                torch.manual_seed(3)
                redrawn.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(("depth", "expected"), [("none", 0.2), ("current", 0.2 / math.sqrt(8)), (8, 0.2 / 4)])
def test_residual_outputs_start_at_the_declared_depth(depth: object, expected: float) -> None:
    torch.manual_seed(0)
    decoder = Decoder(_options(width=128, stacks=[{"base": 3}, {"top": 1}], init_std=0.2, depth_for_init=depth))
    block = decoder.get_submodule("stacks.base.1")
    for name in decoder.to_spec().residual_outputs:  # at 16384 draws or more the deviation is known to 0.6 % (one sigma)
        assert float(block.get_parameter(name).detach().std()) == pytest.approx(expected, rel=0.03)
    assert float(block.get_parameter("attention.qkv.weight").detach().std()) == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize(("mlp", "width", "features"), [("swiglu", 128, 344), ("swiglu", 96, 256), ("gelu", 128, 512)])
def test_hidden_features_left_out(mlp: str, width: int, features: int) -> None:
    assert _options(mlp=mlp, width=width).ff_features == features
    assert _options(mlp=mlp, width=width, ff=40).ff_features == 40


def test_builds_and_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        decoder = Decoder(_options())
        out = decoder(torch.empty(2, 7, 16))
    assert out.shape == (2, 7, 16)
    assert {parameter.device.type for parameter in decoder.parameters()} == {"meta"}
    assert set(decoder.state_dict()) == {name for name, _ in decoder.named_parameters()}


def test_options_and_rack_declare_the_same_boundary() -> None:
    assert _decoder().to_spec() == _options().to_spec()
    assert _options().to_spec() == RackSpec(
        side={
            "positions": TensorSpec("batch time", "integer"),
            "segments": TensorSpec("batch time", "integer"),
            "mask": TensorSpec("batch time", "bool"),
            "prefix": TensorSpec("batch", "integer"),
        },
        attention=("causal", "bidirectional", "prefix"),
        stacks={"base": 2, "top": 1},
        residual_outputs=("attention.output.weight", "mlp.down.weight"),
    )
    assert _options().stacks == (Stack("base", 2), Stack("top", 1))
    for attention in ("causal", "bidirectional", "prefix"):
        spec = _options(attention=attention).to_spec()
        assert spec.attention == (attention,) and ("prefix" in spec.side) == (attention == "prefix")
    biases = ("attention.output.bias", "mlp.down.bias")
    assert {*_options(bias=True).to_spec().residual_outputs} == {*_options().to_spec().residual_outputs, *biases}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 18, "heads": 4}, "heads: 4 heads do not divide a width of 18"),
        ({"width": 18, "heads": 6}, "3 features each"),
        ({"depth_for_init": "final"}, "depth_for_init: 'final'"),
        ({"depth_for_init": 0}, "depth_for_init: 0"),
        ({"depth_for_init": True}, "depth_for_init: True"),
        ({"dropout": 1.5}, "dropout: 1.5 is above"),
        ({"mlp": "tanh"}, "mlp: 'tanh' is none of"),
        ({"attention": "sparse"}, "attention: 'sparse' is none of"),
        ({"norm": "batchnorm"}, "norm: 'batchnorm' is none of"),
        ({"positions": "alibi"}, "positions: 'alibi' is none of"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads: 3 do not divide 4 heads"),
        ({"positions": "learned"}, "max_positions: learned positions need a table"),
        ({"max_positions": 9}, "max_positions: 9 has no effect on positions: rope"),
        ({"positions": "none", "rope_base": 500.0}, "rope_base: 500 has no effect on positions: none"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _options(**changes)


def test_a_width_is_checked_only_once_it_is_known() -> None:
    assert _options(width=None, heads=5).width is None
    with pytest.raises(UserError, match="width: it has no size yet"):
        Decoder(_options(width=None))


def test_a_stack_name_that_torch_keeps() -> None:
    with pytest.raises(UserError, match="keeps the name 'values'"):
        Decoder(_options(stacks=[{"values": 1}]))
