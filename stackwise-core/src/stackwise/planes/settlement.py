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
    place = {step: 2 * index for index, step in enumerate(steps)}
    places = 2 * len(steps)
    spans = [(place[a.leave], places if a.back is None else place[a.back] + 1) for a in absences]
    owed = [0] * places
    for absence, (first, stop) in zip(absences, spans, strict=True):
        for index in range(first, stop):
            owed[index] += absence.owed
    choices = sorted((i for i, absence in enumerate(absences) if absence.open), key=lambda i: (spans[i], absences[i].name))
    least, most = [(total - unit) // unit + 1 for total in owed], [-((-total - unit) // unit) - 1 for total in owed]
    chosen = _circulate([spans[i] for i in choices], [2 * absences[i].owed > unit for i in choices], least, most)
    return frozenset((absences[i].name, absences[i].leave) for i, taken in zip(choices, chosen, strict=True) if taken)


def _circulate(spans: Sequence[tuple[int, int]], chosen: list[bool], least: Sequence[int], most: Sequence[int]) -> list[bool]:
    """Turn over as few of the chosen spans as needed for every place to be covered at least and at most so often."""
    covered = [
        sum(taken and first <= place < stop for taken, (first, stop) in zip(chosen, spans, strict=True)) for place in range(len(least))
    ]
    for place in range(len(least)):
        while not least[place] <= covered[place] <= most[place]:
            ends = (place, place + 1) if covered[place] < least[place] else (place + 1, place)
            path = _path(*ends, spans, chosen, covered, least, most)
            if path is None:
                break
            for span in path:
                chosen[span] = not chosen[span]
                for index in range(*spans[span]):
                    covered[index] += 1 if chosen[span] else -1
    return chosen


def _path(
    start: int,
    end: int,
    spans: Sequence[tuple[int, int]],
    chosen: Sequence[bool],
    covered: Sequence[int],
    least: Sequence[int],
    most: Sequence[int],
) -> list[int] | None:
    """The spans to turn over so that the place between `start` and `end` is covered once more (once less, when they run backwards) and
    no other one leaves its limits: the shortest way round."""
    came: dict[int, tuple[int, int | None]] = {start: (start, None)}
    queue = deque([start])
    place = min(start, end)
    while queue and end not in came:
        node = queue.popleft()
        ways: list[tuple[int, int | None]] = []
        for index, (first, stop) in enumerate(spans):
            if node == (stop if chosen[index] else first):
                ways.append((first if chosen[index] else stop, index))
        if node and node - 1 != place and covered[node - 1] < most[node - 1]:
            ways.append((node - 1, None))
        if node < len(covered) and node != place and covered[node] > least[node]:
            ways.append((node + 1, None))
        for other, span in ways:
            if other not in came:
                came[other] = (node, span)
                queue.append(other)
    if end not in came:
        return None
    path: list[int] = []
    while end != start:
        end, turned = came[end]
        if turned is not None:
            path.append(turned)
    return path
