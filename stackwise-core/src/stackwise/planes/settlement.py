"""Sources that leave a mixture with a row begun: who gets it before leaving, and who waits until coming back.

While sources are away, those present share every row, so together they are off by what the absent ones are owed, with the other sign.
For no step may that be a whole row or more. Absences are intervals of steps, and a matrix of intervals is totally unimodular: rounding
each begun row to all or nothing can keep every sum of them within one, and a circulation finds it (L. R. Ford and D. R. Fulkerson,
"Flows in Networks", 1962, chapter II, section 3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache

from attrs import frozen


@frozen
class Absence:
    """One source away from step `leave` on, until it is back.

    `owed` counts the row that is begun at `leave`, in `UNIT` to a row; when `open` is False it is what it is, and nothing is to be decided.
    """

    name: str
    leave: int
    back: int | None
    owed: int
    open: bool


@lru_cache(maxsize=64)
def settle(absences: tuple[Absence, ...], unit: int) -> frozenset[tuple[str, int]]:
    """The (name, leave) of those open absences whose begun row is given before leaving.

    Where what is already decided leaves no way to keep every sum below one row, as many steps as possible keep it.
    """
    steps = sorted({step for absence in absences for step in (absence.leave, absence.back) if step is not None})
    place = {step: index for index, step in enumerate(steps)}
    spans = [(place[a.leave], len(steps) if a.back is None else place[a.back]) for a in absences]
    owed = [0] * len(steps)
    for absence, (first, stop) in zip(absences, spans, strict=True):
        for index in range(first, stop):
            owed[index] += absence.owed
    choices = sorted(
        (i for i, absence in enumerate(absences) if absence.open), key=lambda i: (-absences[i].owed, spans[i], absences[i].name)
    )
    least, most = [(total - unit) // unit + 1 for total in owed], [-((-total - unit) // unit) - 1 for total in owed]
    chosen = _circulate([spans[i] for i in choices], least, most)
    return frozenset((absences[i].name, absences[i].leave) for i, taken in zip(choices, chosen, strict=True) if taken)


def _circulate(spans: Sequence[tuple[int, int]], least: Sequence[int], most: Sequence[int]) -> list[bool]:
    """Choose spans so that every place is covered at least and at most so often."""
    chosen, covered = [False] * len(spans), [0] * len(least)
    for place, wanted in enumerate(least):
        while covered[place] < wanted:
            path = _path(place, spans, chosen, covered, least, most)
            if path is None:
                break
            for span in path:
                chosen[span] = not chosen[span]
                for index in range(*spans[span]):
                    covered[index] += 1 if chosen[span] else -1
    return chosen


def _path(
    place: int, spans: Sequence[tuple[int, int]], chosen: Sequence[bool], covered: Sequence[int], least: Sequence[int], most: Sequence[int]
) -> list[int] | None:
    """The spans to turn over so that `place` is covered once more and no other place leaves its limits: the shortest way round."""
    came: dict[int, tuple[int, int | None]] = {place: (place, None)}
    queue = deque([place])
    while queue and place + 1 not in came:
        node = queue.popleft()
        for index, (first, stop) in enumerate(spans):
            start, end = (stop, first) if chosen[index] else (first, stop)
            if start == node and end not in came:
                came[end] = (node, index)
                queue.append(end)
        if node and covered[node - 1] < most[node - 1] and node - 1 != place and node - 1 not in came:
            came[node - 1] = (node, None)
            queue.append(node - 1)
        if node < len(covered) and covered[node] > least[node] and node != place and node + 1 not in came:
            came[node + 1] = (node, None)
            queue.append(node + 1)
    if place + 1 not in came:
        return None
    path: list[int] = []
    node = place + 1
    while node != place:
        node, index_or_none = came[node]
        if index_or_none is not None:
            path.append(index_or_none)
    return path
