"""Sizes of named dimensions: equalities and upper bounds between them, settled to a fixpoint.

A variable is (role, dimension), because a dimension's name belongs to its component; a term is a variable or a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Variable = tuple[str, str]
Term = Variable | int


class Sizes:
    """A union-find over variables; each class has at most one size."""

    def __init__(self) -> None:
        self._parent: dict[Variable, Variable] = {}
        self._size: dict[Variable, int] = {}
        self._origin: dict[Variable, Variable] = {}
        self._limits: list[tuple[Term, Term, int]] = []
        self._reaches: list[tuple[Term, Term, int]] = []

    def fix(self, variable: Variable, size: int) -> None:
        """Declare the size of a variable before it is joined to others."""
        self._set(self._root(variable), size, variable)

    def equate(self, left: Term, right: Term) -> bool:
        """Join two terms; False, and nothing joined, when their sizes contradict each other."""
        a, b = self.size(left), self.size(right)
        if a is not None and b is not None and a != b:
            return False
        if isinstance(left, int) and isinstance(right, int):
            return True
        if isinstance(left, int) or isinstance(right, int):
            number, variable = (left, right) if isinstance(left, int) else (right, left)
            assert isinstance(number, int) and not isinstance(variable, int)
            self._set(self._root(variable), number, variable)
            return True
        one, other = self._root(left), self._root(right)
        if one != other:
            self._parent[other] = one
            if a is None and b is not None:
                self._set(one, b, self._origin[other])
        return True

    def limit(self, delivered: Term, accepted: Term) -> None:
        """Ask that `delivered` <= `accepted`."""
        self._limits.append((delivered, accepted, 0))

    def reach(self, lower: Term, upper: Term, margin: int) -> None:
        """Ask that `lower` + `margin` <= `upper`; the upper one says the lower one's size only where nothing else does."""
        self._reaches.append((lower, upper, margin))

    def settle(self) -> None:
        """Fill what only bounds say: a delivered bound takes the smallest accepted one (a task speaks of the whole vocabulary that
        the embedding was given), failing that an accepted bound the largest delivered one."""
        downward = [(below, above, -margin) for below, above, margin in self._limits]
        upward = [(above, below, margin) for below, above, margin in (*self._limits, *self._reaches)]
        last = [(below, above, -margin) for below, above, margin in self._reaches]
        while (
            self._fill(downward, min, whole=False)
            or self._fill(upward, max, whole=True)
            or self._fill(upward, max, whole=False)
            or self._fill(last, min, whole=False)
        ):
            pass

    def size(self, term: Term) -> int | None:
        """The size of a term, as far as it is known."""
        return term if isinstance(term, int) else self._size.get(self._root(term))

    def origin(self, term: Term) -> Variable | None:
        """The variable whose declaration gave the term its size."""
        return None if isinstance(term, int) else self._origin.get(self._root(term))

    def joined(self, variable: Variable, others: Iterable[Variable]) -> list[Variable]:
        """Those of `others` that have one size with `variable`."""
        return [other for other in others if self._root(other) == self._root(variable)]

    def reached(self, variable: Variable, others: Iterable[Variable]) -> list[Variable]:
        """Those of `others` whose sizes could say something about `variable`, through equalities and bounds."""
        pairs = [
            (self._root(a), self._root(b))
            for a, b, _ in (*self._limits, *self._reaches)
            if not isinstance(a, int) and not isinstance(b, int)
        ]
        roots, grown = {self._root(variable)}, True
        while grown:
            near = {root for pair in pairs if roots.intersection(pair) for root in pair}
            grown = not near <= roots
            roots |= near
        return [other for other in others if self._root(other) in roots]

    def _fill(self, pairs: list[tuple[Term, Term, int]], choose: Callable[[list[int]], int], *, whole: bool) -> bool:
        """Size one class from the terms on the other side of its bounds; `whole` waits until all of them are known."""
        wanted: dict[Variable, list[tuple[Term, int]]] = {}
        for open_term, other, shift in pairs:
            if not isinstance(open_term, int) and self.size(open_term) is None:
                wanted.setdefault(self._root(open_term), []).append((other, shift))
        for root, others in wanted.items():
            known = {size + shift: other for other, shift in others if (size := self.size(other)) is not None}
            if known and not (whole and any(self.size(other) is None for other, _ in others)):
                size = choose(list(known))
                self._set(root, size, self.origin(known[size]) or root)
                return True
        return False

    def _set(self, root: Variable, size: int, origin: Variable) -> None:
        self._size[root], self._origin[root] = size, origin

    def _root(self, variable: Variable) -> Variable:
        while (parent := self._parent.get(variable, variable)) != variable:
            variable = parent
        return variable
