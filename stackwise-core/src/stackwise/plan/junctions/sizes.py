"""Sizes of named dimensions: equalities between them, and one rule for upper bounds.

A variable is (role, dimension), because a dimension's name belongs to its component; a term is a variable or a number.

The rule: a bound whose lower end has no size is an equality, because both ends then speak of one vocabulary. Any other bound
raises an open upper end just far enough. So a task speaks of all the ids that its embedding was given, and an embedding whose
vocabulary is left out takes that of the largest loader.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

Variable = tuple[str, str]
Term = Variable | int


class Classes:
    """A union-find: variables in disjoint classes; one member stands for each class."""

    def __init__(self) -> None:
        self._parent: dict[Variable, Variable] = {}

    def root(self, variable: Variable) -> Variable:
        """The member that stands for the class of a variable."""
        while (parent := self._parent.get(variable, variable)) != variable:
            variable = parent
        return variable

    def join(self, one: Variable, other: Variable) -> None:
        """Make one class of two; the member that stood for the first stands for both."""
        if (kept := self.root(one)) != (root := self.root(other)):
            self._parent[root] = kept

    def share(self, variable: Variable, others: Iterable[Variable]) -> list[Variable]:
        """Those of `others` that are in the class of `variable`."""
        return [other for other in others if self.root(other) == self.root(variable)]


class Sizes:
    """The sizes of variables as far as they are known; equal variables have one size."""

    def __init__(self) -> None:
        self.equal = Classes()
        self.linked = Classes()
        """Variables whose sizes say something about each other, through equalities and bounds."""
        self._known: dict[Variable, tuple[int, Variable]] = {}
        """Root of a class → its size, and the variable whose declaration gave it."""
        self._limits: list[tuple[Term, Term]] = []
        self._reaches: list[tuple[Term, Term, int]] = []

    def fix(self, variable: Variable, size: int) -> None:
        """Declare the size of a variable before it is joined to others."""
        self._known[self.equal.root(variable)] = (size, variable)

    def size(self, term: Term) -> int | None:
        """The size of a term, as far as it is known."""
        return term if isinstance(term, int) else self._known.get(self.equal.root(term), (None, None))[0]

    def origin(self, term: Term) -> Variable | None:
        """The variable whose declaration gave the term its size."""
        return None if isinstance(term, int) else self._known.get(self.equal.root(term), (None, None))[1]

    def equate(self, left: Term, right: Term) -> bool:
        """Join two terms; if their sizes contradict each other, join nothing and return False."""
        a, b = self.size(left), self.size(right)
        if a is not None and b is not None and a != b:
            return False
        if isinstance(left, int) or isinstance(right, int):
            for term, size in ((left, b), (right, a)):
                if not isinstance(term, int) and size is not None:
                    self.fix(term, size)
            return True
        known = self._known.get(self.equal.root(left if a is not None else right))
        self.equal.join(left, right)
        if known is not None:
            self._known[self.equal.root(left)] = known
        self._link(left, right)
        return True

    def limit(self, lower: Term, upper: Term) -> None:
        """Require `lower` <= `upper`, for two bounds on the same values."""
        self._limits.append((lower, upper))
        self._link(lower, upper)

    def reach(self, lower: Term, upper: Term, margin: int) -> None:
        """Require `lower` + `margin` <= `upper`; this is never read as an equality."""
        self._reaches.append((lower, upper, margin))
        self._link(lower, upper)

    def settle(self) -> None:
        """Derive sizes from the bounds."""
        for lower, upper in sorted(self._limits, key=lambda limit: self._size_or(limit[1], inf)):  # of two upper ends the smaller
            if self.size(lower) is None:
                self.equate(lower, upper)
        declared = set(self._known)
        self._raise_open(declared)
        for lower, upper, margin in sorted(self._reaches, key=lambda reach: self._size_or(reach[1], inf) - reach[2]):
            if self.size(lower) is None and (size := self.size(upper)) is not None:
                self._take(lower, size - margin, upper)
        self._raise_open(declared)

    def _raise_open(self, declared: set[Variable]) -> None:
        """Give every undeclared variable the least size that all bounds allow.

        One pass carries each size over one bound. No chain has more links than there are bounds, so that many passes reach every variable;
        sizes only grow, and a pass in which none grows changes nothing.
        """
        bounds = [*((lower, upper, 0) for lower, upper in self._limits), *self._reaches]
        for _ in bounds:
            for lower, upper, margin in bounds:
                size = self.size(lower)
                if size is None or isinstance(upper, int) or self.equal.root(upper) in declared or self._are_equal(lower, upper):
                    continue
                if size + margin > self._size_or(upper, -inf):
                    self._take(upper, size + margin, lower)

    def _take(self, term: Term, size: int, source: Term) -> None:
        if not isinstance(term, int):
            self._known[self.equal.root(term)] = (size, self.origin(source) or self.equal.root(term))

    def _size_or(self, term: Term, otherwise: float) -> float:
        size = self.size(term)
        return otherwise if size is None else size

    def _are_equal(self, one: Term, other: Term) -> bool:
        return not isinstance(one, int) and not isinstance(other, int) and self.equal.root(one) == self.equal.root(other)

    def _link(self, one: Term, other: Term) -> None:
        if not isinstance(one, int) and not isinstance(other, int):
            self.linked.join(one, other)
