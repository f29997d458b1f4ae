"""Sequence to sequence: cut spans, prefixes that are seen whole, a memory, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fresh_draws import chi_square, fresh_generator
from tiny_walks import VOCAB, base, drive, losses, machine_of, memory, plan_of, problems_of
from torch import nn

from stackwise import Built, Model, Moment, RackSpec, UserError
from stackwise.assembly.pricing import price
from stackwise.curriculum.bridges import Bridge
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.documents import attention_mask
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.encoder_decoder import EncoderDecoder
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.options import CausalLMOptions, DecoderOptions, LMOptions, TokenOptions
from stackwise_providers_transformer.pair_options import Seq2SeqOptions
from stackwise_providers_transformer.rack_options import EncoderDecoderOptions
from stackwise_providers_transformer.seq2seq import Seq2Seq
from stackwise_providers_transformer.span_corruption import SpanSizes, cut, hidden_spans

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)


# -- spans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raw", "source", "target"), [(568, 512, 114), (284, 256, 58), (141, 128, 29)])
def test_the_lengths_of_t5(raw: int, source: int, target: int) -> None:
    sizes = SpanSizes.of(raw, density=0.15, mean_span=3.0)
    assert (sizes.source, sizes.target) == (source, target)
    tokens = torch.randint(100, (3, raw), generator=torch.Generator().manual_seed(0))
    task = Seq2Seq(Seq2SeqOptions(pairs="spans", form="encoder-decoder", symbols=100))
    prepared = task.prepare({"tokens": tokens}, MOMENT, torch.Generator())
    assert prepared["source"].shape == (3, source) and prepared["tokens"].shape == prepared["targets"].shape == (3, target)


def _restored(source: list[int], target: list[int], sentinel: int, end: int) -> list[int]:
    """The text, from both parts, as one would read it."""
    assert source[-1] == target[-1] == end
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= sentinel:
            spans[token] = []
            last = spans[token]
        else:
            last.append(token)
    assert list(spans) == list(range(sentinel, sentinel + len(spans)))
    return [token for mark in source[:-1] for token in (spans[mark] if mark >= sentinel else [mark])]


@pytest.mark.parametrize(
    ("raw", "density", "mean_span"), [(568, 0.15, 3.0), (50, 0.5, 1.0), (7, 0.15, 3.0), (2, 0.9, 1.0), (60, 0.9, 20.0)]
)
def test_merging_source_and_target_restores_the_text(raw: int, density: float, mean_span: float) -> None:
    generator = fresh_generator()
    tokens, sizes = torch.randint(100, (40, raw), generator=generator), SpanSizes.of(raw, density=density, mean_span=mean_span)
    hidden = hidden_spans(40, sizes, generator)
    assert (hidden.sum(1) == sizes.hidden).all() and not hidden[:, 0].any()
    source, target = cut(tokens, hidden, sizes, sentinel=100, end=300)
    assert source.shape == (40, sizes.source) and target.shape == (40, sizes.target)
    for row in range(40):
        assert _restored(source[row].tolist(), target[row].tolist(), 100, 300) == tokens[row].tolist()


def test_all_cuts_are_equally_likely() -> None:
    """Five shown and three hidden tokens in two spans: 4 ways times 2."""
    sizes = SpanSizes(8, 3, 2)
    hidden = hidden_spans(80_000, sizes, fresh_generator())
    found, counts = (hidden * 2 ** torch.arange(8)).sum(1).unique(return_counts=True)
    assert len(found) == 8
    assert chi_square(counts, torch.full((8,), 10_000.0)) < 40.5  # the χ² of seven degrees of freedom exceeds this once in a million


def test_too_few_sentinels_and_rows_that_are_not_whole_are_refused() -> None:
    task = Seq2Seq(Seq2SeqOptions(pairs="spans", symbols=10, sentinels=2))
    with pytest.raises(UserError, match="sentinels: rows of 60 tokens are cut into 3 spans, and there are 2"):
        task.prepare({"tokens": torch.zeros(1, 60, dtype=torch.int64)}, MOMENT, torch.Generator())
    with pytest.raises(UserError, match="rows: stream"):
        fields = {"tokens": torch.zeros(1, 9, dtype=torch.int64), "segments": torch.zeros(1, 9, dtype=torch.int64)}
        task.prepare(fields, MOMENT, torch.Generator())
    with pytest.raises(UserError, match="density: it has no effect on given pairs"):
        Seq2SeqOptions(density=0.3)


# -- prefixes -------------------------------------------------------------------------------------------------------


def test_the_mask_of_a_prefix_entry_by_entry() -> None:
    prefix, segments = torch.tensor([0, 2, 5]), torch.tensor([[0, 0, 0, 1, 1]] * 3)
    for parts in (None, segments):
        mask = attention_mask(torch.zeros(3, 5, 8), parts, causal=True, prefix_B=prefix)
        for b in range(3):
            for s in range(5):
                for t in range(5):
                    seen = (t <= s or t < prefix[b]) and (parts is None or parts[b, s] == parts[b, t])
                    assert mask[b, 0, s, t] == (0.0 if seen else -math.inf)


def test_prefix_0_is_the_causal_language_model() -> None:
    torch.manual_seed(0)
    options = {"width": 16, "heads": 2, "stacks": [{"base": 2}], "init_std": 0.3}
    rack, causal = (Decoder(DecoderOptions(attention=attention, **options)) for attention in ("prefix", "causal"))
    causal.load_state_dict(rack.state_dict())
    hidden = torch.randn(2, 9, 16)
    none = torch.zeros(2, dtype=torch.int64)
    as_segments = causal(hidden, segments=torch.zeros(2, 9, dtype=torch.int64))
    assert torch.equal(rack(hidden, prefix=none), as_segments)  # by the same way of computing, every bit
    torch.testing.assert_close(rack(hidden, prefix=none), causal(hidden), rtol=1e-5, atol=1e-6)
    tokens = torch.randint(9, (2, 10), generator=torch.Generator().manual_seed(1))
    ours = Seq2Seq(Seq2SeqOptions()).prepare({"tokens": tokens, "prefix": none}, MOMENT, torch.Generator())
    theirs = CausalLM(CausalLMOptions()).prepare({"tokens": tokens}, MOMENT, torch.Generator())
    assert torch.equal(ours["tokens"], theirs["tokens"]) and torch.equal(ours["targets"], theirs["targets"]) and ours["counted"].all()
    logits = {"logits": torch.randn(2, 9, 9)}
    assert torch.equal(Seq2Seq(Seq2SeqOptions()).loss(logits, ours)[0], CausalLM(CausalLMOptions()).loss(logits, theirs)[0])


def test_the_loss_is_on_the_target_only_and_the_prefix_is_seen_whole() -> None:
    tokens = torch.arange(1, 9).expand(3, 8)
    mask = torch.arange(8) < torch.tensor([[8], [8], [6]])
    prepared = Seq2Seq(Seq2SeqOptions()).prepare(
        {"tokens": tokens, "prefix": torch.tensor([3, 8, 1]), "mask": mask}, MOMENT, torch.Generator()
    )
    assert prepared["counted"].tolist() == [[False] * 2 + [True] * 5, [False] * 7, [True] * 5 + [False] * 2]
    torch.manual_seed(0)
    rack = Decoder(DecoderOptions(attention="prefix", width=16, heads=2, stacks=[{"base": 1}], init_std=0.3))
    hidden = torch.randn(1, 8, 16)
    changed = hidden.clone()
    changed[0, 2] += torch.randn(16)
    moved = [(rack(hidden, prefix=p) != rack(changed, prefix=p)).any(-1)[0].tolist() for p in map(torch.tensor, ([4], [2]))]
    assert moved == [[True] * 8, [False] * 2 + [True] * 6]


# -- a memory -------------------------------------------------------------------------------------------------------


def _rack(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(
        EncoderDecoderOptions(**{"width": 16, "heads": 2, "stacks": [{"s": 2}, {"t": 2}], "encoder": ("s",), "init_std": 0.3, **options})
    ).eval()


FORMS: list[dict[str, Any]] = [{}, {"positions": "learned", "max_positions": 9, "bias": True, "norm": "layernorm"}, {"kv_heads": 1}]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_who_sees_what(form: dict[str, Any]) -> None:
    rack = _rack(**form)
    target, source = torch.randn(1, 6, 16), torch.randn(1, 8, 16)
    mask = torch.arange(8)[None] < 5
    made = rack(target, memory=source, memory_mask=mask)
    for place in range(8):
        changed = source.clone()
        changed[0, place] += torch.randn(16)
        assert (rack(target, memory=changed, memory_mask=mask) != made).any(-1).all() == (place < 5)
    for place in range(6):
        changed = target.clone()
        changed[0, place] += torch.randn(16)
        moved = (rack(changed, memory=source, memory_mask=mask) != made).any(-1)[0]
        assert moved.tolist() == [t >= place for t in range(6)]
    torch.testing.assert_close(rack(target, memory=source[:, :5]), made, rtol=1e-5, atol=1e-5)


def test_cross_attention_is_that_of_torch() -> None:
    rack = _rack(bias=True)
    cross = rack.stacks["t"][0].cross
    other = nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([cross.query.weight, cross.kv.weight]))
        other.in_proj_bias.copy_(torch.cat([cross.query.bias, cross.kv.bias]))
        other.out_proj.load_state_dict(cross.output.state_dict())
    target, memory_BSD = torch.randn(3, 4, 16), torch.randn(3, 7, 16)
    seen = torch.rand(3, 7) < 0.7
    seen[:, 0] = True
    expected, _ = other(target, memory_BSD, memory_BSD, key_padding_mask=~seen, need_weights=False)
    torch.testing.assert_close(cross(target, memory_BSD, seen[:, None, None]), expected, rtol=1e-5, atol=1e-5)


def test_the_encoder_is_the_bidirectional_decoder_with_its_weights() -> None:
    rack = _rack()
    other = Decoder(DecoderOptions(width=16, heads=2, stacks=[{"s": 2}], attention="bidirectional"))
    own = rack.state_dict()
    state = {name: own[name] for name in own if name.startswith("stacks.s.")} | {"norm.weight": own["source_norm.weight"]}
    other.load_state_dict(state)
    source = torch.randn(2, 5, 16)
    torch.testing.assert_close(rack.read(source, None), other(source))


def test_a_source_of_nothing_gives_numbers() -> None:
    made = _rack()(torch.randn(2, 3, 16), memory=torch.randn(2, 4, 16), memory_mask=torch.zeros(2, 4, dtype=torch.bool))
    assert made.isfinite().all()


def test_options_of_the_rack_that_cannot_be() -> None:
    with pytest.raises(UserError, match="encoder: there is no stack 'x'; the stacks are s, t"):
        _rack(encoder=("x",))
    with pytest.raises(UserError, match="leave at least one that writes"):
        _rack(encoder=("s", "t"))
    with pytest.raises(UserError, match="attention: the target of an encoder-decoder is written causally"):
        _rack(attention="bidirectional")


def _model(form: str) -> Model:
    """A whole model of ten ids, of which 9 ends and begins."""
    torch.manual_seed(0)
    options = {"width": 16, "heads": 2, "init_std": 0.3}
    prefix = Decoder(DecoderOptions(attention="prefix", stacks=[{"base": 2}], **options)) if form == "prefix" else None
    head = LMHead(LMOptions(vocab=10, width=16, tied=False, init_std=0.5))
    embeds = [Bridge("task-rack", "embed", "source as tokens", "rack", "memory", "source", "tokens")] if prefix is None else []
    return Model(TokenEmbedding(TokenOptions(vocab=10, width=16, init_std=1.0)), prefix or _rack(), head, bridges=embeds)


@pytest.mark.parametrize("form", ["prefix", "encoder-decoder"])
def test_padded_pairs_are_what_they_are_alone(form: str) -> None:
    """Loss, its gradients and every metric: the padding of sources is not read, that of targets is not counted."""
    generator, lengths = fresh_generator(), [(5, 2), (1, 6), (7, 7), (3, 1)]
    task, model = Seq2Seq(Seq2SeqOptions(form=form, symbols=9)), _model(form)
    pairs = [tuple(torch.randint(9, (1, n), generator=generator) for n in both) for both in lengths]

    def padded(rows: list[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        real = torch.arange(length) < torch.tensor([[row.shape[1]] for row in rows])
        filled = torch.randint(9, real.shape, generator=generator)  # padding that would be seen if it were read
        for i, row in enumerate(rows):
            filled[i, : row.shape[1]] = row[0]
        return filled, real

    def batch_of(some: list[Any], source: int, target: int) -> dict[str, torch.Tensor]:
        if form == "prefix":
            tokens, mask = padded([torch.cat(pair, dim=1) for pair in some], source + target)
            return {"tokens": tokens, "mask": mask, "prefix": torch.tensor([pair[0].shape[1] for pair in some])}
        (prompt, prompt_mask), (response, response_mask) = (padded([pair[i] for pair in some], n) for i, n in ((0, source), (1, target)))
        return {"prompt": prompt, "prompt_mask": prompt_mask, "response": response, "response_mask": response_mask}

    def judged(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        prepared = task.prepare(batch, MOMENT, generator)
        total, count, metrics = task.loss(model(prepared), prepared)
        gradients = torch.autograd.grad(total, list(model.parameters()))
        return [total.detach(), torch.as_tensor(count), *(torch.as_tensor(n) for pair in metrics.values() for n in pair), *gradients]

    together = judged(batch_of(pairs, 8, 8))
    alone = [judged(batch_of([pair], *both)) for pair, both in zip(pairs, lengths, strict=True)]
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found.double(), torch.stack(parts).sum(0).double(), rtol=1e-4, atol=1e-4)
    assert int(together[1]) == sum(target for _, target in lengths)


# -- from a config --------------------------------------------------------------------------------------------------

DECODER = {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 2}]}
WITH_MEMORY = {"use": "transformer.encoder-decoder", "width": 16, "heads": 2, "stacks": [{"s": 1}, {"t": 1}], "encoder": ["s"]}


def _pairs() -> dict[str, torch.Tensor]:
    """Sources of six symbols; the target is the source backwards."""
    prompt = torch.randint(1, 9, (2000, 6), generator=torch.Generator().manual_seed(0))
    return {"prompt": prompt, "response": prompt.flip(1)}


def _joined() -> dict[str, torch.Tensor]:
    pairs = _pairs()
    tokens = torch.cat((pairs["prompt"], pairs["response"]), dim=1)
    return {"tokens": tokens, "prefix": torch.full((2000,), 6)}


def _config(form: str, pairs: str, **sections: Any) -> dict[str, Any]:
    given = {"prefix": _joined, "encoder-decoder": _pairs}[form]()
    arrays = {"use": "data.memory", "arrays": given, "heldout": 0.1}
    source, length = (memory(vocab=VOCAB), 24) if pairs == "spans" else (arrays, 11 if form == "prefix" else 6)
    vocab = {} if pairs == "spans" else {"vocab": 10}
    return base(
        run={"name": "pairs", "seed": 1, "horizon": "12 steps", "device": "cpu"},
        task={"use": "transformer.seq2seq", "form": form, "pairs": pairs},
        data={"sources": {"a": source}, "batch_size": 16, "seq_len": length},
        model={
            "embedding": {"use": "transformer.token", **vocab},
            "rack": DECODER if form == "prefix" else WITH_MEMORY,
            "head": {"use": "transformer.lm"},
        },
        optimizer={"use": "optim.adamw", "lr": 0.01},
        **sections,
    )


@pytest.mark.parametrize("form", ["prefix", "encoder-decoder"])
@pytest.mark.parametrize("pairs", ["given", "spans"])
def test_every_form_is_planned_priced_and_trained(form: str, pairs: str) -> None:
    plan = plan_of(_config(form, pairs))
    assert price(plan)[0].flops
    found = losses(drive(machine_of(_config(form, pairs))))
    assert len(found) == 12 and all(math.isfinite(loss) for _, loss, _, _ in found)
    vocab = plan.joined[0].drafts.embedding.options.vocab
    assert vocab == (VOCAB + 101 if pairs == "spans" else 10)
    embeds = [bridge for bridge in plan.bridges if bridge.kind == "embed"]
    assert [str(bridge) for bridge in embeds] == (["task-rack: embed source → memory as tokens"] if form == "encoder-decoder" else [])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["prefix", "encoder-decoder"])
def test_turning_a_row_around_is_learnt(form: str) -> None:
    config = _config(form, "given", evaluate={"held": {"batches": 4}})
    config["run"]["horizon"], config["data"]["batch_size"] = "700 steps", 32
    config["optimizer"]["lr"] = {"wsd": {"peak": 0.01, "warmup": "5%", "decay": "50%"}}
    last = [event for event in drive(machine_of(config)) if type(event).__name__ == "Evaluated"][-1]
    assert last.metrics["accuracy"] > 0.75  # one in eight by chance


def test_the_memory_is_embedded_by_the_model_s_own_embedding() -> None:
    machine = machine_of(_config("encoder-decoder", "given"))
    drive(machine)
    model = machine.model.model
    batch = {"tokens": torch.randint(9, (2, 5)), "source": torch.randint(9, (2, 7))}
    expected = model.head(model.rack(model.embedding(tokens=batch["tokens"]), memory=model.embedding(tokens=batch["source"])))
    assert torch.equal(model(batch)["logits"], expected["logits"])


def test_a_rack_without_a_prefix_or_a_memory_is_refused() -> None:
    conv = {"use": "transformer.conv", "width": 16, "stacks": [{"base": 1}]}
    told = "\n".join(problem.message for problem in problems_of(_config("prefix", "given"), model={"rack": conv}))
    for part in (
        "task 'transformer.seq2seq' (stackwise-providers-t",
        "needs a rack that takes the side input 'prefix'",
        "rack 'transformer.conv'",
    ):
        assert part in told
    told = "\n".join(problem.message for problem in problems_of(_config("encoder-decoder", "given"), model={"rack": DECODER}))
    assert "needs a rack that takes the side input 'memory', but rack 'transformer.decoder' (stackwise-providers-transformer" in told
    plain = Built(lambda width: nn.Linear(width, width), spec=RackSpec(), width=16)
    sizes = {"embedding": {"width": 16}, "head": {"width": 16}}
    assert "'prefix'" in problems_of(_config("prefix", "given"), model={"rack": plain, **sizes})[0].message


def test_a_causal_task_on_a_rack_with_a_memory_is_refused_before_the_run() -> None:
    config = _config("encoder-decoder", "given")
    config |= {"task": {"use": "transformer.causal-lm"}, "data": {"sources": {"a": memory()}, "batch_size": 4, "seq_len": 8}}
    (problem,) = problems_of(config, model={"embedding": {"vocab": VOCAB}})
    for part in ("does not run without the side input 'memory'", "rack 'transformer.encoder-decoder' (", "task 'transformer.causal-lm' ("):
        assert part in problem.message


def test_noise_never_falls_below_ln_v() -> None:
    """The hidden symbols of uniform noise cost ln 16 each; sentinels and the end are what may be learnt."""
    config = _config("prefix", "spans")
    tokens = torch.randint(16, (24 * 16 * 80,), generator=fresh_generator())
    config["data"]["sources"] = {"a": {"use": "data.memory", "arrays": {"tokens": tokens}, "vocab": 16}}
    config["run"]["horizon"] = "80 steps"
    sizes = SpanSizes.of(24, density=0.15, mean_span=3.0)
    floor = sizes.hidden * math.log(16) / sizes.target
    last = torch.tensor([loss for _, loss, _, _ in losses(drive(machine_of(config)))][-20:])
    assert floor - 5 * float(last.std()) / 20**0.5 < float(last.mean())
