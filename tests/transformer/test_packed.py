"""Attention document by document: what a mask over the whole row gives, without the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stackwise_providers_transformer import packed
from stackwise_providers_transformer.block_options import ScoreOptions, WindowOptions
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.options import DecoderOptions
from stackwise_providers_transformer.packed import Documents, find_documents

ROWS = ((5, 3, 8, 24), (24, 12, 3, 1))
"""Lengths of the documents of two rows of 40."""
SEGMENTS = torch.tensor([[i for i, length in enumerate(row) for _ in range(length)] for row in ROWS])
REAL = torch.arange(40).expand(2, 40) < torch.tensor([[38], [40]])

FORMS: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": {"attention": "bidirectional"},
    "learned positions": {"positions": "learned", "max_positions": 40},
    "shared keys": {"heads": 4, "kv_heads": 2, "qk_norm": True},
    "window": {"window": WindowOptions(size=4, blocks=(True, False))},
    "window, both sides": {"window": WindowOptions(size=4, blocks=(True, False)), "attention": "bidirectional"},
    "capped scores": {"scores": ScoreOptions(cap=2.0), "heads": 4, "kv_heads": 2},
}


def decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderOptions(**{"width": 16, "heads": 2, "stacks": {"base": 2}, "init_std": 0.3, **options}))


def hidden() -> torch.Tensor:
    return torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(1))


def made(rack: Decoder, **side: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of real entries, and all gradients."""
    outputs = rack(hidden(), **side)
    real = side.get("mask", torch.ones(2, 40, dtype=torch.bool))
    slopes = torch.autograd.grad(outputs[real].square().sum(), list(rack.parameters()))
    return outputs.detach()[real], torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize(
    "side", [{"segments": SEGMENTS}, {"mask": REAL}, {"segments": SEGMENTS, "mask": REAL}], ids=lambda side: "+".join(side)
)
@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients_are_those_of_a_mask(form: str, side: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    rack = decoder(**FORMS[form])
    expected, slopes = made(rack, **side)
    monkeypatch.setattr(packed, "_LONG", 0)
    monkeypatch.setattr("stackwise_providers_transformer.decoder.attention_mask", None)
    found, own_slopes = made(rack, **side)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (own_slopes - slopes).norm() <= 1e-5 * slopes.norm()


def test_no_scores_between_documents_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LONG", 0)
    calls, kernel = [], F.scaled_dot_product_attention

    def watched(*parts: torch.Tensor, **how: Any) -> torch.Tensor:
        calls.append((parts[0].shape[0], parts[0].shape[2], how["attn_mask"]))
        return kernel(*parts, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    decoder(stacks={"base": 1})(hidden(), segments=SEGMENTS)
    assert calls == [(1, 1, None), (2, 3, None), (1, 5, None), (1, 8, None), (1, 12, None), (2, 24, None)]


def test_a_row_of_one_document_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LONG", 0)
    rack = decoder()
    whole, one = rack(hidden()), rack(hidden(), segments=torch.zeros(2, 40, dtype=torch.int64))
    torch.testing.assert_close(one, whole)


@pytest.mark.parametrize(
    "segments",
    [
        torch.tensor([[0] * 10 + [1] * 20 + [0] * 10, [0] * 40]),
        torch.zeros(2, 40, dtype=torch.int64, device="meta"),
    ],
    ids=["in two pieces", "unknown"],
)
def test_other_documents_have_a_mask(segments: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LONG", 0)
    assert find_documents(hidden().to(segments.device), [segments], causal=True, windows=(None,)) is None


def test_short_rows_have_a_mask() -> None:
    assert find_documents(hidden(), [SEGMENTS], causal=True, windows=(None,)) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at what flows through the break
def test_a_compiled_block_takes_documents_of_any_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LONG", 0)
    torch.compiler.reset()
    rack, graphs = decoder(stacks={"base": 1}), []

    def counting(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    rack.stacks["base"][0].compile(backend=counting)
    made = []
    for lengths in ((20, 20), (1, 39), (7, 13, 20)):
        segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, 40)
        compiled = rack(hidden(), segments=segments)
        torch.testing.assert_close(compiled, decoder(stacks={"base": 1})(hidden(), segments=segments))
        made.append(len(graphs))
    assert made[0] == made[-1] > 0  # whatever the lengths


def test_documents_name_every_entry_once() -> None:
    torch.manual_seed(0)
    segments = torch.randint(5, (3, 400)).sort(dim=1).values
    (found,) = find_documents(torch.zeros(3, 400, 2), [segments], causal=True, windows=(None,)) or [None]
    assert isinstance(found, Documents)
    assert found.order_X.sort().values.tolist() == list(range(1200))
    assert torch.equal(found.order_X[found.places_X], torch.arange(1200))
    assert sum(count * length for count, length, _ in found.groups) == 1200
