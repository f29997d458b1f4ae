"""The decoder with copied weights gives the logits of GPT-2, Llama and Qwen3 as another library computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

if TYPE_CHECKING:  # seconds, which every process that collects tests would pay; the tests below import it themselves
    from transformers import PreTrainedModel

from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.options import DecoderOptions, LMOptions, TokenOptions

State = dict[str, torch.Tensor]
VOCAB, WIDTH, HEADS, KV_HEADS, FF, LENGTH, EPS = 50, 32, 4, 2, 48, 11, 1e-6
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": FF,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH // HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": EPS,
    "initializer_range": 0.3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
EMBEDDINGS = {
    "LlamaForCausalLM": "model.embed_tokens.weight",
    "Qwen3ForCausalLM": "model.embed_tokens.weight",
    "GPT2LMHeadModel": "transformer.wte.weight",
}
NAMES_OF_LLAMA = {
    "input_layernorm.weight": "attention_norm.weight",
    "self_attn.o_proj.weight": "attention.output.weight",
    "self_attn.q_norm.weight": "attention.query_norm.weight",
    "self_attn.k_norm.weight": "attention.key_norm.weight",
    "post_attention_layernorm.weight": "mlp_norm.weight",
    "mlp.gate_proj.weight": "mlp.gate.weight",
    "mlp.up_proj.weight": "mlp.up.weight",
    "mlp.down_proj.weight": "mlp.down.weight",
}
NAMES_OF_GPT2 = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.output",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}


def _drawn(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every vector drawn too, so that no norm or bias is without effect."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, float("bias" not in name), 0.3)
    return model.eval()


def _from_llama(state: State) -> State:
    ours = {"norm.weight": state["model.norm.weight"]}
    for i in range(2):
        block = {name.removeprefix(f"model.layers.{i}."): tensor for name, tensor in state.items() if f".layers.{i}." in name}
        parts = [block.pop(f"self_attn.{part}_proj.weight") for part in "qkv"]
        ours[f"stacks.base.{i}.attention.qkv.weight"] = torch.cat(parts)
        ours |= {f"stacks.base.{i}.{NAMES_OF_LLAMA[name]}": tensor for name, tensor in block.items()}
    return ours


def _from_gpt2(state: State) -> State:
    ours = {"positions.weight": state["transformer.wpe.weight"]}
    ours |= {f"norm.{kind}": state[f"transformer.ln_f.{kind}"] for kind in ("weight", "bias")}
    for i in range(2):
        for theirs, name in NAMES_OF_GPT2.items():
            for kind in ("weight", "bias"):
                tensor = state[f"transformer.h.{i}.{theirs}.{kind}"]
                ours[f"stacks.base.{i}.{name}.{kind}"] = tensor.T if tensor.dim() == 2 else tensor  # theirs are [in, out]
    return ours


def _logits(state: State, table: torch.Tensor, output: torch.Tensor, tokens: torch.Tensor, **options: object) -> torch.Tensor:
    rack = Decoder(DecoderOptions(**{"width": WIDTH, "heads": HEADS, "stacks": [{"base": 2}], "ff": FF, **options})).to(table.dtype)
    rack.load_state_dict(state)
    embedding, head = TokenEmbedding(TokenOptions(vocab=VOCAB, width=WIDTH)), LMHead(LMOptions(vocab=VOCAB, width=WIDTH))
    embedding.weight, head.weight = nn.Parameter(table), nn.Parameter(output)
    return head(rack(embedding(tokens=tokens)))["logits"]


def _agree(model: PreTrainedModel, translated: Callable[[State], State], **options: object) -> None:
    """Logits to 1e-5 in float64, where nothing but a difference is left, and in float32 to 1e-5 beside the rounding of both."""
    for dtype, relative in ((torch.float64, 0.0), (torch.float32, 1e-5)):
        theirs = model.to(dtype)
        state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
        ours = _logits(translated(state), state[EMBEDDINGS[type(model).__name__]], state["lm_head.weight"], _tokens(), **options)
        assert ours.dtype is dtype
        torch.testing.assert_close(ours, theirs(_tokens()).logits, rtol=relative, atol=1e-5)


def _tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS, 1])
def test_agrees_with_llama(kv_heads: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = _drawn(LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": kv_heads})))
    _agree(model, _from_llama, kv_heads=kv_heads, rope_base=500.0)


def test_agrees_with_qwen3() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = _drawn(Qwen3ForCausalLM(Qwen3Config(**SIZES)))
    _agree(model, _from_llama, kv_heads=KV_HEADS, rope_base=500.0, qk_norm=True)


def test_agrees_with_gpt2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_head": HEADS, "n_layer": 2, "n_inner": FF, "n_positions": 16}
    config = GPT2Config(**sizes, activation_function="gelu", layer_norm_epsilon=EPS, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    model = _drawn(GPT2LMHeadModel(config))
    _agree(model, _from_gpt2, norm="layernorm", bias=True, mlp="gelu", positions="learned", max_positions=16)
