"""Transforms of batches: what they change, how often, and that they draw from their own generator alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stackwise import BatchSpec, BuildContext, DataError, Moment, TensorSpec, UserError
from stackwise_providers_data.transform_options import FeatureNoiseOptions, TokenNoiseOptions, TruncateOptions
from stackwise_providers_data.transforms import build_feature_noise, build_token_noise, build_truncate

NOW = Moment(step=0, t=0.0, phase="only", phase_index=0, phase_t=0.0, tokens=0)
CONTEXT = BuildContext(seed=1)
BUILDERS = {TokenNoiseOptions: build_token_noise, TruncateOptions: build_truncate, FeatureNoiseOptions: build_feature_noise}


def _apply(options: Any, batch: dict[str, torch.Tensor], values: dict[str, float] | None = None, seed: int = 0) -> Any:
    transform = BUILDERS[type(options)](options, CONTEXT)
    if values:
        transform.apply_values(values)
    before = torch.get_rng_state()
    kept = {name: tensor.clone() for name, tensor in batch.items()}
    out = transform(batch, NOW, torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(batch[name], tensor) for name, tensor in kept.items())
    return out


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_token_noise_replaces_its_share(dtype: torch.dtype) -> None:
    """Of 10⁵ entries at rate 0.2, (1 - 1/5) of the draws change something: mean 16000, deviation √(10⁵ · .16 · .84) = 116."""
    tokens = torch.full((100, 1000), 3, dtype=dtype)
    out = _apply(TokenNoiseOptions(rate=0.2, vocab=5), {"tokens": tokens, "other": tokens})
    assert out["tokens"].dtype == dtype
    assert abs(int((out["tokens"] != 3).sum()) - 16000) < 5 * 116
    assert set(out["tokens"].unique().tolist()) == set(range(5))
    assert torch.equal(out["other"], tokens)
    counts = torch.bincount(out["tokens"].flatten().long())[torch.tensor([0, 1, 2, 4])].double()
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 16.3  # chi-square, 3 degrees, p = 0.001


def test_rates_at_the_ends_and_over_time() -> None:
    tokens = torch.arange(1000).view(10, 100)
    options = TokenNoiseOptions(rate=0.0, vocab=5000)
    assert torch.equal(_apply(options, {"tokens": tokens})["tokens"], tokens)
    out = _apply(options, {"tokens": tokens}, {"rate": 1.0})["tokens"]
    assert int((out == tokens).sum()) < 10  # expected: 1000 / 5000
    assert torch.equal(out, _apply(options, {"tokens": tokens}, {"rate": 1.0})["tokens"])
    assert not torch.equal(out, _apply(options, {"tokens": tokens}, {"rate": 1.0}, seed=1)["tokens"])


def test_the_vocabulary_of_the_source_is_taken() -> None:
    spec = BatchSpec(fields={"tokens": TensorSpec("batch time", "int64", bounds=(0, 3))})
    noise = build_token_noise(TokenNoiseOptions(rate=1.0), BuildContext(seed=1, specs={"batch": spec}))
    out = noise({"tokens": torch.zeros(10, 100, dtype=torch.int64)}, NOW, torch.Generator().manual_seed(0))
    assert set(out["tokens"].unique().tolist()) == {0, 1, 2}
    with pytest.raises(UserError, match="vocab: no source says how many ids 'tokens' has"):
        build_token_noise(TokenNoiseOptions(rate=1.0), CONTEXT)


def test_truncate_makes_a_mask() -> None:
    out = _apply(TruncateOptions(keep=0.5), {"tokens": torch.zeros(2, 5, dtype=torch.int64)})
    assert out["mask"].tolist() == [[True, True, True, False, False]] * 2  # ceil(2.5)


@pytest.mark.parametrize(("keep", "kept"), [(1.0, [4, 1, 0]), (0.5, [2, 1, 0]), (0.25, [1, 1, 0]), (0.26, [2, 1, 0]), (0.0, [1, 1, 0])])
def test_truncate_counts_real_entries_only(keep: float, kept: list[int]) -> None:
    mask = torch.tensor([[True, True, False, True, True], [False, True, False, False, False], [False] * 5])
    out = _apply(TruncateOptions(keep=1.0), {"tokens": torch.zeros(3, 5), "mask": mask}, {"keep": keep})["mask"]
    assert out.sum(1).tolist() == kept
    assert not bool((out & ~mask).any())
    assert out[0].tolist() == [bool(real) and int(mask[0, : i + 1].sum()) <= kept[0] for i, real in enumerate(mask[0])]


def test_feature_noise_has_the_deviation_asked_for() -> None:
    """Of 10⁵ draws the mean has a deviation of 2/√10⁵ = 0.0063, the deviation one of 2/√(2·10⁵) = 0.0045."""
    features = torch.full((1000, 100), 7.0)
    out = _apply(FeatureNoiseOptions(std=0.0), {"features": features}, {"std": 2.0})["features"]
    assert out.dtype == torch.float32
    assert abs(float(out.mean()) - 7) < 5 * 0.0063
    assert abs(float(out.std()) - 2) < 5 * 0.0045
    assert torch.equal(_apply(FeatureNoiseOptions(std=0.0), {"features": features})["features"], features)


@pytest.mark.parametrize(
    ("options", "batch", "words"),
    [
        (TokenNoiseOptions(rate=0.1, vocab=3), {"x": torch.zeros(1, 1)}, "token-noise: the batch has no field 'tokens' but x"),
        (TokenNoiseOptions(rate=0.1, vocab=3), {"tokens": torch.zeros(1, 1)}, "holds torch.float32: name a field of whole numbers"),
        (FeatureNoiseOptions(std=0.1), {"features": torch.zeros(1, 1, dtype=torch.int64)}, "name a field of floating numbers"),
        (TruncateOptions(keep=0.5), {"x": torch.zeros(1, 1)}, "truncate: the batch has no field 'tokens'"),
        (TruncateOptions(keep=0.5), {"tokens": torch.zeros(3)}, r"a mask is bool \[batch, time\]"),
        (TruncateOptions(keep=0.5), {"mask": torch.zeros(3, 3)}, r"a mask is bool \[batch, time\]"),
    ],
)
def test_batches_that_do_not_fit(options: Any, batch: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(DataError, match=words):
        _apply(options, batch)
