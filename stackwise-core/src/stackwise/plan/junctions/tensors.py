"""One tensor across a junction: its dimensions, its dtype, and the bounds on its values."""

from __future__ import annotations

from attrs import frozen

from stackwise.contracts.specs import RUNTIME_DIMS, Dim, TensorSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.plan.junctions.comparison import kind_of, pair_dims, widenings
from stackwise.plan.junctions.sides import Sheet, Side, choose_another

MODEL_JUNCTIONS = ("embedding-rack", "rack-head")
"""Where a config may put adapters."""


@frozen(kw_only=True)
class Meeting:
    """Two tensors at a junction."""

    junction: str
    giver: Side
    taker: Side
    name: str
    delivered: TensorSpec
    needed: TensorSpec

    @property
    def in_model(self) -> bool:
        """Whether an adapter may stand here."""
        return self.junction in MODEL_JUNCTIONS

    def adapter(self, use: str) -> str:
        """The advice to put one here."""
        return f"add an adapter `{{use: {use}}}` at model.adapters.{self.junction}"

    def bridge(self, kind: str, detail: str, before: str = "", after: str = "", limits: tuple[int, int] | None = None) -> Bridge:
        """A bridge into the taker."""
        return Bridge(self.junction, kind, detail, self.taker.role, self.name, before, after, limits)  # type: ignore[arg-type]  # a literal


def join_tensors(m: Meeting, sheet: Sheet) -> bool:
    """Join two tensors; True if their bounds are to be compared once every size is known."""
    if not _join_dims(m, sheet):
        return False
    _join_dtype(m, sheet)
    return _join_bounds(m, sheet)


def _join_dims(m: Meeting, sheet: Sheet) -> bool:
    pairs = pair_dims(m.delivered.dims, m.needed.dims, reorder=m.in_model)
    if pairs is None:
        fix = "let an adapter of your own stand between them" if m.in_model else choose_another(m.giver, m.taker)
        message = f"{m.giver.label} gives '{m.name}' as {m.delivered}, but {m.taker.label} takes {m.needed}: {fix}"
        sheet.refuse(message, m.taker.path, m.giver, m.taker)
        return False
    if m.in_model and m.delivered.dims != m.needed.dims and {*m.delivered.dims} == {*m.needed.dims}:
        before, after = (" ".join(map(str, dims)) for dims in (m.delivered.dims, m.needed.dims))
        sheet.bridges.append(m.bridge("permute", f"{before} → {after}", before, after))
    for left, right in pairs:
        if left not in RUNTIME_DIMS and not sheet.sizes.equate(m.giver.term(left), m.taker.term(right)):
            _refuse_sizes(m, left, right, sheet)
    return True


def _refuse_sizes(m: Meeting, left: Dim, right: Dim, sheet: Sheet) -> None:
    sizes, delivered, needed = sheet.sizes, m.giver.term(left), m.taker.term(right)
    fix = f"make both the same (`{right}: {sizes.size(delivered)}` at {m.taker.path})"
    if m.in_model and _is_sequence(m.delivered) and _is_sequence(m.needed):
        fix += f", or {m.adapter('core.project')}"
    message = (
        f"'{m.name}' has {left} {sizes.size(delivered)} where {m.giver.label} gives it{sheet.because(delivered, m.giver)}, but "
        f"{right} {sizes.size(needed)} where {m.taker.label} takes it{sheet.because(needed, m.taker)}: {fix}"
    )
    sheet.refuse(message, m.taker.path, m.giver, m.taker)


def _join_dtype(m: Meeting, sheet: Sheet) -> None:
    delivered, needed = m.delivered.dtype, m.needed.dtype
    if delivered == needed or kind_of(delivered) == needed:
        return
    if needed in widenings(delivered):
        sheet.bridges.append(m.bridge("cast", f"{m.name} {delivered} → {needed}", delivered, needed))
        return
    floats = m.in_model and kind_of(delivered) == kind_of(needed) == "floating"
    fix = m.adapter(f"core.precision, dtype: {needed}") if floats else f"{choose_another(m.giver, m.taker)}, or convert it in a transform"
    message = f"{m.giver.label} gives '{m.name}' as {delivered}, but {m.taker.label} takes {needed}, which loses information: {fix}"
    sheet.refuse(message, m.taker.path, m.giver, m.taker)


def _join_bounds(m: Meeting, sheet: Sheet) -> bool:
    delivered, needed = m.delivered.bounds, m.needed.bounds
    if needed is None or delivered is None:
        return needed is not None
    if delivered[0] < needed[0]:
        message = f"{m.giver.label} gives '{m.name}' from {delivered[0]} on, but {m.taker.label} takes none below {needed[0]}"
        sheet.refuse(message, m.taker.path, m.giver, m.taker)
    if delivered[1] in RUNTIME_DIMS or needed[1] in RUNTIME_DIMS:
        return False
    sheet.sizes.limit(m.giver.term(delivered[1]), m.taker.term(needed[1]))
    return True


def check_upper_bound(m: Meeting, sheet: Sheet) -> None:
    """Compare the bounds of two tensors, once every size is known."""
    assert m.needed.bounds is not None  # `join_tensors` returned True for it
    needed = m.taker.term(m.needed.bounds[1])
    if m.delivered.bounds is None:
        _note_bounds(m, (m.needed.bounds[0], sheet.sizes.size(needed)), sheet)
        return
    delivered = m.giver.term(m.delivered.bounds[1])
    low, high = sheet.sizes.size(delivered), sheet.sizes.size(needed)
    if low is None or high is None or low <= high:
        return
    where = sheet.declared_at(needed)
    fix = f"set {where} to at least {low}" if where else choose_another(m.giver, m.taker)
    message = (
        f"{m.giver.label} gives '{m.name}' below {low}{sheet.because(delivered, m.giver)}, but {m.taker.label} takes only values below "
        f"{high}{sheet.because(needed, m.taker)}: {fix}"
    )
    sheet.refuse(message, where or m.taker.path, m.giver, m.taker)


def _note_bounds(m: Meeting, limits: tuple[int, int | None], sheet: Sheet) -> None:
    """Note that the giver states no bounds; values of a loader are checked as they come."""
    low, high = limits
    detail = f"'{m.name}' comes from {m.giver.label} without bounds: values outside those of {m.taker.label} "
    if high is None or not m.giver.is_source:
        sheet.bridges.append(m.bridge("note", f"{detail}show only when met"))
    else:
        sheet.bridges.append(m.bridge("bounds", f"{detail}are refused when they come", limits=(low, high)))


def _is_sequence(hidden: TensorSpec) -> bool:
    return len(hidden.dims) == 3 and hidden.dims[:2] == ("batch", "time")
