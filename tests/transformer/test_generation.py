"""Generation: with the cache as without it, drawn from the model's own distribution, and masks that all come off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from fresh_draws import chi_square, fresh_generator
from products import covered
from torch import nn

from stackwise import GenerationSettings, Model, Moment, UserError
from stackwise.curriculum.bridges import Bridge
from stackwise_providers_transformer.causal_lm import CausalLM
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.encoder_decoder import EncoderDecoder
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.mask_diffusion import MaskDiffusion
from stackwise_providers_transformer.masking_options import MaskDiffusionOptions
from stackwise_providers_transformer.options import CausalLMOptions, DecoderOptions, LMOptions, TokenOptions
from stackwise_providers_transformer.pair_options import Seq2SeqOptions
from stackwise_providers_transformer.rack_options import EncoderDecoderOptions
from stackwise_providers_transformer.seq2seq import Seq2Seq

VOCAB, WIDTH = 13, 24
CAUSAL = CausalLM(CausalLMOptions())
FORMS: list[dict[str, Any]] = [
    {},
    {"kv_heads": 1},
    {"kv_heads": 2, "qk_norm": True, "rope_base": 100.0},
    {"positions": "learned", "max_positions": 40},
    {"positions": "learned", "max_positions": 64, "norm": "layernorm", "bias": True, "mlp": "gelu"},
    {"positions": "none", "heads": 8, "qk_norm": True},
    {"attention": "prefix", "kv_heads": 2},
    {"dropout": 0.5},
]
SAMPLED: list[dict[str, Any]] = [{"temperature": 0}, {}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}]


def model(**form: Any) -> Model:
    """A decoder whose every parameter is drawn, in evaluation mode."""
    torch.manual_seed(0)
    rack = Decoder(DecoderOptions(**{"width": WIDTH, "heads": 4, "stacks": [{"base": 2}, {"top": 1}], "init_std": 0.3, **form}))
    for name, parameter in rack.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, float(name.endswith("weight")), 0.3)
    sizes = {"vocab": VOCAB, "width": WIDTH}
    return Model(TokenEmbedding(TokenOptions(init_std=1.0, **sizes)), rack, LMHead(LMOptions(tied=False, init_std=0.5, **sizes))).eval()


def lengths(found: Model) -> list[int]:
    """Entries that the embedding is given by each call from now on."""
    seen: list[int] = []
    found.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    return seen


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("form", "sampled"), covered(FORMS, SAMPLED, together=1))
def test_the_cache_changes_no_token(form: dict[str, Any], sampled: dict[str, Any]) -> None:
    """In float64, where no tie is broken by rounding."""
    found, prompt = model(**form).double(), torch.tensor([3, 1, 4, 1, 5])
    seen = lengths(found)
    kept = CAUSAL.generate(found, prompt, GenerationSettings(tokens=36, **sampled), seeded())
    assert seen == [5, *[1] * 35]
    del seen[:]
    anew = CAUSAL.generate(found, prompt, GenerationSettings(tokens=36, cache=False, **sampled), seeded())
    assert seen == list(range(5, 41))
    assert torch.equal(kept, anew) and torch.equal(kept[:5], prompt) and len(kept) == 41
    assert len(set(kept.tolist())) > 2


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_pieces_of_any_size_give_the_logits_of_the_whole_row(form: dict[str, Any]) -> None:
    found, tokens = model(**form), torch.randint(VOCAB, (2, 17), generator=seeded(1))
    with torch.no_grad():
        whole = found({"tokens": tokens})["logits"]
        with found.rack.caching(17):
            pieces = [found({"tokens": tokens[:, a:b]})["logits"] for a, b in itertools.pairwise([0, 4, 5, 9, 16, 17])]
        again = found({"tokens": tokens})["logits"]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, whole)  # nothing is kept behind the context


def test_a_cache_holds_what_it_was_made_for() -> None:
    found = model()
    with torch.no_grad(), found.rack.caching(3), pytest.raises(ValueError, match="4 positions do not fit into a cache of 3"):
        found({"tokens": torch.zeros(1, 4, dtype=torch.long)})
    with torch.no_grad(), found.rack.caching(8), pytest.raises(ValueError, match="no side input"):
        found({"tokens": torch.zeros(1, 4, dtype=torch.long)})
        found({"tokens": torch.zeros(1, 1, dtype=torch.long), "segments": torch.zeros(1, 1, dtype=torch.long)})
    with pytest.raises(ValueError, match="bidirectional"), model(attention="bidirectional").rack.caching(3):
        pass


def test_parts_that_may_look_at_the_whole_row_are_given_it() -> None:
    class Shifted(nn.Module):
        """An adapter over time."""

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + hidden.cumsum(dim=1)

    plain = model()
    mixed = Model(plain.embedding, plain.rack, plain.head, adapters={"embedding-rack": [Shifted()]}).eval()
    seen, settings = lengths(mixed), GenerationSettings(tokens=6, temperature=0)
    kept = CAUSAL.generate(mixed, torch.tensor([2]), settings, seeded())
    assert seen == [1, 2, 3, 4, 5, 6]
    with torch.no_grad():
        assert all(int(mixed({"tokens": kept[None, :i]})["logits"][0, -1].argmax()) == int(kept[i]) for i in range(1, 7))


def test_a_seed_says_every_token_and_another_says_others() -> None:
    found, prompt, settings = model(), torch.tensor([2]), GenerationSettings(tokens=30)
    first, again, other = (CAUSAL.generate(found, prompt, settings, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_learned_positions_are_filled_to_the_last_and_no_further() -> None:
    found, prompt = model(positions="learned", max_positions=8), torch.tensor([2, 3, 4])
    for cache in (True, False):
        assert len(CAUSAL.generate(found, prompt, GenerationSettings(tokens=6, cache=cache), seeded())) == 9  # the last is not read
        with pytest.raises(UserError, match="3 tokens and 7 to generate take 9 positions, and the model has learned 8"):
            CAUSAL.generate(found, prompt, GenerationSettings(tokens=7, cache=cache), seeded())


def test_what_has_no_meaning_for_a_causal_model_is_refused() -> None:
    with pytest.raises(UserError, match="steps have no effect"):
        CAUSAL.generate(model(), torch.tensor([1]), GenerationSettings(tokens=2, steps=1), seeded())
    with pytest.raises(UserError, match="give at least one token"):
        CAUSAL.generate(model(), torch.tensor([], dtype=torch.long), GenerationSettings(tokens=2), seeded())


# -- targets ------------------------------------------------------------------------------------------------------------


def writer(form: str, **options: Any) -> Model:
    """A model for either form of a target from a source, in float64."""
    if form == "prefix":
        return model(attention="prefix", **options).double()
    torch.manual_seed(0)
    sides = {"stacks": [{"read": 2}, {"write": 2}], "encoder": ("read",)}
    rack = EncoderDecoder(EncoderDecoderOptions(width=WIDTH, heads=4, init_std=0.3, **sides, **options))
    sizes = {"vocab": VOCAB, "width": WIDTH}
    embedding, head = TokenEmbedding(TokenOptions(init_std=1.0, **sizes)), LMHead(LMOptions(tied=False, init_std=0.5, **sizes))
    bridge = Bridge("task-rack", "embed", "source as tokens", "rack", "memory", "source", "tokens")
    return Model(embedding, rack, head, bridges=[bridge]).eval().double()


@pytest.mark.parametrize("form", ["prefix", "encoder-decoder"])
@pytest.mark.parametrize("pairs", ["given", "spans"])
def test_a_target_is_written_as_training_reads_it(form: str, pairs: str) -> None:
    """Every token is the likeliest at its place in the batch that the task makes of source and target."""
    source, count, symbols = torch.tensor([3, 1, 4, 1, 5, 9, 2]), 8, VOCAB - 3
    spans = {"density": count / 15, "mean_span": float(count), "sentinels": 2} if pairs == "spans" else {}  # one span, at the end
    task, found = Seq2Seq(Seq2SeqOptions(form=form, pairs=pairs, symbols=symbols, **spans)), writer(form)
    seen = lengths(found)
    made = task.generate(found, source, GenerationSettings(tokens=count, temperature=0), seeded())
    assert torch.equal(made[:7], source) and len(made) == 15 and len(set(made[7:].tolist())) > 2
    own = seen[1:] if form == "prefix" else seen[2:]  # an encoder-decoder embeds its source beside the first entry
    assert own == [1] * (count - 1)  # keys and values are kept
    assert torch.equal(task.generate(found, source, GenerationSettings(tokens=count, temperature=0, cache=False), seeded()), made)
    if pairs == "spans":
        batch = {"tokens": made[None]}
    elif form == "prefix":
        batch = {"tokens": made[None], "prefix": torch.tensor([7])}
    else:
        batch = {"prompt": source[None], "response": made[None, 7:]}
    prepared = task.prepare(batch, Moment(0, 0.0, "only", 0, 0.0, 0), seeded())
    with torch.no_grad():
        logits = found(prepared)["logits"][..., : symbols if task.options.adds_symbols else VOCAB]
    counted = prepared["counted"]
    if pairs == "spans":
        counted = counted & (prepared["targets"] < symbols)  # neither the sentinel nor the end
    assert torch.equal(prepared["targets"][counted], made[7:]) and torch.equal(logits.argmax(-1)[counted], made[7:])


def test_a_target_is_seeded_and_never_holds_a_symbol_of_the_task() -> None:
    task, source = Seq2Seq(Seq2SeqOptions(form="encoder-decoder", symbols=5)), torch.tensor([3, 1])
    found, settings = writer("encoder-decoder"), GenerationSettings(tokens=200, temperature=100.0)
    one, again, other = (task.generate(found, source, settings, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other) and set(one.tolist()) == {*range(5)}
    with pytest.raises(UserError, match="give at least one token"):
        task.generate(found, source[:0], settings, seeded())


def test_a_source_longer_than_its_table_of_positions_is_refused() -> None:
    task = Seq2Seq(Seq2SeqOptions(form="encoder-decoder", symbols=5))
    found = writer("encoder-decoder", positions="learned", max_positions=4)
    for source, tokens, fits in ((4, 4, True), (5, 1, False), (1, 5, False)):
        given, settings = torch.ones(source, dtype=torch.long), GenerationSettings(tokens=tokens)
        if fits:
            assert len(task.generate(found, given, settings, seeded())) == source + tokens
        else:
            with pytest.raises(UserError, match="take 5 positions, and the model has learned 4"):
                task.generate(found, given, settings, seeded())


# -- several prompts, ends, and who listens -------------------------------------------------------------------------------

PROMPTS = [torch.tensor(ids) for ids in ([3, 1, 4], [1, 5, 9, 2, 6], [5, 3, 5], [8])]


@pytest.mark.parametrize("sampled", SAMPLED, ids=str)
@pytest.mark.parametrize("cache", [True, False])
def test_a_prompt_goes_on_as_it_does_alone_whatever_stands_beside_it(sampled: dict[str, Any], cache: bool) -> None:
    found, settings = model(kv_heads=2).double(), GenerationSettings(tokens=9, cache=cache, **sampled)
    seen: list[torch.Size] = []
    found.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    together = CAUSAL.generate_rows(found, PROMPTS, settings, [seeded(i) for i in range(4)])
    assert {rows for rows, _ in seen} == {2, 1}
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(together[i], CAUSAL.generate(found, prompt, settings, seeded(i)))


def test_an_id_ends_a_continuation_and_is_its_last() -> None:
    found = model().double()
    whole = CAUSAL.generate(found, PROMPTS[0], GenerationSettings(tokens=30), seeded())
    stop = int(whole[12])
    first = next(i for i, id in enumerate(whole.tolist()) if i >= 3 and id == stop)
    ended = CAUSAL.generate(found, PROMPTS[0], GenerationSettings(tokens=30, stop=(stop,)), seeded())
    assert torch.equal(ended, whole[: first + 1])
    rows = CAUSAL.generate_rows(found, PROMPTS, GenerationSettings(tokens=30, stop=(stop,)), [seeded(i) for i in range(4)])
    assert torch.equal(rows[0], ended)
    assert len({len(row) for row in rows}) > 1


def test_whoever_hears_is_told_every_id_and_may_end_a_row() -> None:
    found, heard = model().double(), []

    def hear(number: int, id: int) -> bool:
        heard.append((number, id))
        return number == 2 and sum(each == 2 for each, _ in heard) == 4

    rows = CAUSAL.generate_rows(found, PROMPTS, GenerationSettings(tokens=9, hear=hear), [seeded(i) for i in range(4)])
    assert [len(row) for row in rows] == [12, 14, 7, 10]
    for i, prompt in enumerate(PROMPTS):
        assert [id for number, id in heard if number == i] == rows[i][len(prompt) :].tolist()
    for settings in ({"stop": (1,)}, {"hear": hear}):
        with pytest.raises(UserError, match="no order"):
            DIFFUSION.generate(model(attention="bidirectional"), PROMPTS[0], GenerationSettings(tokens=5, **settings), seeded())


def test_only_the_last_logits_are_made() -> None:
    found, seen = model(), []
    found.head.register_forward_pre_hook(lambda *_: seen.append(0))
    CAUSAL.generate(found, PROMPTS[1], GenerationSettings(tokens=3, temperature=0), seeded())
    assert not seen  # the head says its product


# -- distributions ------------------------------------------------------------------------------------------------------

BOUND = {8: 42.70, 7: 40.52}
"""Degrees of freedom → what χ² exceeds once in a million."""
DRAWS = 4000


def _counts(made: list[torch.Tensor], symbols: int, length: int) -> torch.Tensor:
    powers = symbols ** torch.arange(length)
    return torch.bincount(torch.stack([(row[-length:] * powers).sum() for row in made]), minlength=symbols**length)


def test_causal_texts_have_the_probability_that_the_model_gives_them() -> None:
    """Every text of two tokens out of three: χ² over 4,000 texts."""
    generator = fresh_generator()
    table = torch.randn(3, 3, generator=generator)  # logits of the next token by the one before

    def markov(batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {"logits": table[batch["tokens"]]}

    made = [CAUSAL.generate(markov, torch.tensor([1]), GenerationSettings(tokens=2), generator) for _ in range(DRAWS)]
    log_p = table.log_softmax(-1)
    expected = torch.zeros(9)
    for first, second in itertools.product(range(3), repeat=2):
        expected[first + 3 * second] = math.exp(float(log_p[1, first] + log_p[first, second]))
    assert chi_square(_counts(made, 3, 2), expected * DRAWS) < BOUND[8]


def test_diffusion_texts_follow_the_any_order_distribution_of_the_model() -> None:
    """An arbitrary model of three tokens of two symbols: the mean over all orders of p, against 4,000 texts made one token a step."""
    generator, length, mask = fresh_generator(), 3, 2
    table = 1.5 * torch.randn(3**length, length, 3, generator=generator)
    powers = 3 ** torch.arange(length)

    def arbitrary(batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {"logits": table[(batch["tokens"] * powers).sum(-1)]}

    task, empty = MaskDiffusion(MaskDiffusionOptions(symbols=2)), torch.tensor([], dtype=torch.long)
    made = [task.generate(arbitrary, empty, GenerationSettings(tokens=length), generator) for _ in range(DRAWS)]
    log_p = table[..., :2].log_softmax(-1)
    expected = torch.zeros(2**length)
    for row in itertools.product(range(2), repeat=length):
        for order in itertools.permutations(range(length)):
            shown, nats = torch.full((length,), mask), 0.0
            for place in order:
                nats -= float(log_p[int((shown * powers).sum()), place, row[place]])
                shown[place] = row[place]
            expected[sum(token * 2**i for i, token in enumerate(row))] += math.exp(-nats) / math.factorial(length)
    assert chi_square(_counts(made, 2, length), expected * DRAWS) < BOUND[7]


# -- unmasking ----------------------------------------------------------------------------------------------------------

DIFFUSION = MaskDiffusion(MaskDiffusionOptions(symbols=VOCAB - 2))
MASK = VOCAB - 2


@pytest.mark.parametrize(("tokens", "steps"), [(10, None), (10, 10), (10, 3), (10, 1), (1, 1), (7, 5)])
@pytest.mark.parametrize("sampled", [{}, {"temperature": 0}], ids=str)
def test_every_step_unmasks_and_nothing_that_is_shown_changes(tokens: int, steps: int | None, sampled: dict[str, Any]) -> None:
    found, prompt, shown = model(attention="bidirectional"), torch.tensor([3, 1, 4]), []
    found.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]["tokens"][0].clone()))
    made = DIFFUSION.generate(found, prompt, GenerationSettings(tokens=tokens, steps=steps, **sampled), seeded())
    assert len(made) == 3 + tokens and torch.equal(made[:3], prompt) and not (made >= MASK).any()
    rows = [*shown, made]
    assert len(shown) == (steps or tokens)
    masks = [int((row == MASK).sum()) for row in rows]
    assert masks[0] == tokens and masks[-1] == 0
    unmasked = [a - b for a, b in itertools.pairwise(masks)]
    assert min(unmasked) >= 1 and max(unmasked) - min(unmasked) <= 1
    for before, after in itertools.pairwise(rows):
        assert torch.equal(after[before != MASK], before[before != MASK])
    again = DIFFUSION.generate(found, prompt, GenerationSettings(tokens=tokens, steps=steps, **sampled), seeded())
    assert torch.equal(made, again)


def test_what_cannot_be_unmasked_is_refused() -> None:
    found, prompt = model(attention="bidirectional", positions="learned", max_positions=8), torch.tensor([3, 1, 4])
    assert len(DIFFUSION.generate(found, prompt, GenerationSettings(tokens=5), seeded())) == 8
    for settings, message in (
        ({"tokens": 5, "steps": 6}, "6 steps for 5 tokens"),
        ({"tokens": 6}, "take 9 positions, and the model has learned 8"),
        ({"tokens": 5, "cache": False}, "keeps nothing"),
    ):
        with pytest.raises(UserError, match=message):
            DIFFUSION.generate(found, prompt, GenerationSettings(**settings), seeded())
    with pytest.raises(UserError, match="is the mask symbol"):
        DIFFUSION.generate(found, torch.tensor([3, MASK]), GenerationSettings(tokens=5), seeded())
