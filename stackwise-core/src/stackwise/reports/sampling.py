"""Reduces long columns for a picture: extremes are kept, and every point is a point of the log."""

from __future__ import annotations

import numpy as np


def extremes(values: np.ndarray, buckets: int) -> np.ndarray:
    """Indices of the lowest and highest value of each bucket, and of the first and last value, in order; all where there are few.

    Args:
        values: a column; nan entries are left out.
        buckets: number of stretches of equal length, about one for each pixel.
    """
    known = np.flatnonzero(np.isfinite(values))
    if len(known) <= 2 * buckets:
        return known
    kept = {int(known[0]), int(known[-1])}
    for stretch in np.array_split(known, buckets):
        kept.add(int(stretch[np.argmin(values[stretch])]))
        kept.add(int(stretch[np.argmax(values[stretch])]))
    return np.array(sorted(kept), dtype=np.int64)


def smoothed(values: np.ndarray, half_life: float, starts: np.ndarray) -> np.ndarray:
    """The exponential moving average of a column, with bias correction as in Adam (Kingma & Ba 2015, section 3).

    Args:
        values: a column; entries that are not finite are passed over.
        half_life: number of steps after which a value counts half.
        starts: indices at which the average starts anew.
    """
    decay, begin = 0.5 ** (1.0 / half_life), set(starts.tolist())
    means, total, weight = np.full(len(values), np.nan), 0.0, 0.0
    for index, value in enumerate(values.tolist()):
        if index in begin:
            total = weight = 0.0
        if value == value and abs(value) != float("inf"):
            total, weight = decay * total + value, decay * weight + 1.0
        means[index] = total / weight if weight else np.nan
    return means
