"""Curves made short: against the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from stackwise.reports.sampling import extremes, smoothed


def test_the_highest_and_lowest_of_each_stretch_stay():
    values = np.random.default_rng(0).normal(size=1000)
    values[[137, 720]] = 50.0, -50.0
    values[500:520] = np.nan
    kept = extremes(values, 20)
    known = np.flatnonzero(np.isfinite(values))
    for stretch in np.array_split(known, 20):
        assert {stretch[np.argmin(values[stretch])], stretch[np.argmax(values[stretch])]} <= set(kept)
    assert {0, 137, 720, 999} <= set(kept) and len(kept) <= 42
    assert list(kept) == sorted(set(kept)) and np.isfinite(values[kept]).all()


def test_a_short_column_stays_whole():
    assert extremes(np.array([3.0, np.nan, 1.0]), 2).tolist() == [0, 2]


def test_the_smoothed_curve_is_a_weighted_mean_from_its_very_start():
    """Of the values up to each place since the last start, each half as heavy a half-life later."""
    values, half_life, starts = np.array([4.0, 2.0, np.nan, 8.0, 1.0, 3.0]), 2.0, [0, 4]
    for place, mean in enumerate(smoothed(values, half_life, np.array(starts))):
        first = max(start for start in starts if start <= place)
        weights = {i: 0.5 ** ((place - i) / half_life) for i in range(first, place + 1) if not np.isnan(values[i])}
        if 2 in range(first, place + 1):  # a nan takes no time either
            weights = {i: 0.5 ** ((sum(1 for j in weights if j > i)) / half_life) for i in weights}
        assert mean == pytest.approx(sum(w * values[i] for i, w in weights.items()) / sum(weights.values()))
