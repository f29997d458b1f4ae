"""Vocabulary growth: old rows and old logits stay, new rows are as declared, moments of the old rows follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grown_models import ASKED, VOCAB, gradients, grow, language_model, logits, tokens

from stackwise import BuildContext, GrowthRequest, Model
from stackwise.planes.model.parameter_map import fill_moment
from stackwise_providers_transformer.growth_options import VocabularyOptions
from stackwise_providers_transformer.vocabulary_growth import build_vocabulary

MORE = 26


def grown(rows: str, tied: bool) -> tuple[Model, Model, Model, Any]:
    """Before, after, as the module drew it, and the maps."""
    old, new, drawn = (language_model(vocab=v, tied=tied, seed=s) for v, s in ((VOCAB, 0), (MORE, 5), (MORE, 5)))
    return old, new, drawn, grow(old, new, build_vocabulary(VocabularyOptions(rows=rows), BuildContext(seed=0)))


@pytest.mark.parametrize("rows", ["fresh", "zeros"])
@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_stay_and_new_ones_are_as_declared(rows: str, tied: bool) -> None:
    old, new, drawn, maps = grown(rows, tied)
    tables = ["embedding.weight"] if tied else ["embedding.weight", "head.weight"]
    assert sorted(maps) == sorted(tables)
    for name in tables:
        table, rest = new.get_parameter(name), drawn.get_parameter(name)[VOCAB:]
        assert torch.equal(table[:VOCAB], old.get_parameter(name))
        assert torch.equal(table[VOCAB:], rest if rows == "fresh" else torch.zeros_like(rest))
    assert rest.any()
    if tied:
        assert new.get_parameter("head.weight") is new.get_parameter("embedding.weight")


@pytest.mark.parametrize("tied", [True, False])
def test_old_tokens_have_the_logits_they_had(tied: bool) -> None:
    old, new, _, _ = grown("fresh", tied)
    torch.testing.assert_close(logits(new, tokens())[..., :VOCAB], logits(old, tokens()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_means_leave_at_least_the_old_tokens_share_of_the_probability(tied: bool) -> None:
    """Every new logit is the mean of the old ones, so that m new tokens beside n take at most m/(n + m) (Jensen's inequality)."""
    old, new, _, _ = grown("mean", tied)
    for name in ("embedding.weight", "head.weight"):
        rows = new.get_parameter(name)[VOCAB:]
        torch.testing.assert_close(rows, old.get_parameter(name).mean(0).expand_as(rows), rtol=0, atol=1e-7)
    before, after = logits(old, tokens()), logits(new, tokens())
    torch.testing.assert_close(after[..., :VOCAB], before, rtol=0, atol=1e-6)
    torch.testing.assert_close(after[..., VOCAB:], before.mean(-1, keepdim=True).expand(4, 9, MORE - VOCAB), rtol=0, atol=1e-6)
    taken = after.softmax(-1)[..., VOCAB:].sum(-1)
    assert (taken > 0).all() and (taken <= (MORE - VOCAB) / MORE + 1e-6).all()


def test_moments_of_old_rows_are_theirs_and_new_rows_begin_at_the_mean() -> None:
    old, _, _, maps = grown("zeros", tied=False)
    gradient = gradients(old, tokens())["embedding.weight"]
    first, second = torch.empty(MORE, 8), torch.empty(MORE, 8)
    fill_moment(first, {"embedding.weight": gradient}, maps["embedding.weight"], 1)
    fill_moment(second, {"embedding.weight": gradient**2}, maps["embedding.weight"], 2)
    assert torch.equal(first[:VOCAB], gradient) and not first[VOCAB:].any()
    assert torch.equal(second[:VOCAB], gradient**2)
    torch.testing.assert_close(second[VOCAB:], (gradient**2).mean().expand(MORE - VOCAB, 8))


def test_a_new_token_can_be_read_and_learnt() -> None:
    _, new, _, _ = grown("zeros", tied=True)
    found = gradients(new, tokens(vocab=MORE))["embedding.weight"][VOCAB:]
    assert found.abs().sum(1).all()


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ({"vocab": VOCAB}, r"'vocabulary' has nothing to do: set 'vocab' of the embedding above what it was"),
        ({"vocab": 12}, r"embedding.weight would go from 19 to 12: set 'vocab' to 19 or more"),
        ({"vocab": MORE, "width": 16}, r"'vocabulary' can only add token ids"),
    ],
)
def test_what_cannot_be_done_is_refused(after: dict[str, int], says: str) -> None:
    operator = build_vocabulary(VocabularyOptions(), BuildContext(seed=0))
    old, new = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (language_model(), language_model(**after)))
    with pytest.raises(ValueError, match=says):
        operator.map_parameters(old, new, ASKED)
    with pytest.raises(ValueError, match="adds no blocks"):
        operator.map_blocks(GrowthRequest(old_stacks={"a": 1}, new_stacks={"a": 2}))


def test_it_does_not_claim_to_keep_the_function() -> None:
    assert build_vocabulary(VocabularyOptions(), BuildContext(seed=0)).preserves_function is False
