"""Learning-rate schedules beside those of the core. Nothing here imports torch: a plan computes every value before the run."""

from __future__ import annotations

import csv
from bisect import bisect_right
from hashlib import sha256
from math import cos, pi, sqrt
from pathlib import Path
from typing import Literal

from attrs import frozen

from stackwise import BuildContext, ScheduleWindow, UserError, option


@frozen(kw_only=True)
class CosineRestartsOptions:
    """Stochastic gradient descent with warm restarts (Loshchilov and Hutter, arXiv 1608.03983, section 3)."""

    peak: float = option(doc="value at the start of the first cycle")
    lowest: float = option(0.0, doc="value at the end of every cycle")
    cycle: str = option(doc="length of the first cycle, such as 10% or 500 steps")
    times: float = option(1.0, doc="how many times as long each cycle is as the one before (T_mult of the paper)", minimum=1)
    decay: float = option(1.0, doc="factor on the peak, over the lowest value, at every restart", minimum=0, maximum=1)
    warmup: str = option("0%", doc="length of the linear rise from 0 before the first cycle")


@frozen
class CosineRestarts:
    """Half a cosine from the peak to the lowest value, again and again (eq. 5)."""

    options: CosineRestartsOptions

    def value(self, step: int, window: ScheduleWindow) -> float:
        """The value before a step of the window.

        Raises:
            UserError: a cycle without a step, or a duration that does not fit.
        """
        options = self.options
        warmup, length = window.steps_in(options.warmup), float(window.steps_in(options.cycle))
        if length < 1:
            raise UserError(f"cycle: {options.cycle} of {window.steps} steps is less than one step: give it a longer one")
        if step < warmup:
            return options.peak * step / warmup
        done, peak = float(step - warmup), options.peak
        while done >= length and step < window.steps:
            done, length = done - length, length * options.times
            peak = options.lowest + (peak - options.lowest) * options.decay
        return options.lowest + (peak - options.lowest) * (1 + cos(pi * min(done / length, 1.0))) / 2


def build_cosine_restarts(options: CosineRestartsOptions, context: BuildContext) -> CosineRestarts:
    """The factory of schedule `optim.cosine-restarts`."""
    return CosineRestarts(options)


@frozen(kw_only=True)
class InverseRootOptions:
    """Linear warm-up, then the inverse square root of the step (Vaswani et al., arXiv 1706.03762, eq. 3)."""

    peak: float = option(doc="value at the end of the warm-up")
    warmup: str = option("10%", doc="length of the linear rise from 0; the fall is counted from its start, and is slower the longer it is")
    cooldown: str = option("0%", doc="length of a straight fall to `lowest` at the end of the window")
    lowest: float = option(0.0, doc="value at the end of the cooldown")


@frozen
class InverseRoot:
    """peak · min(step / warmup, √(warmup / step)), with a straight end if there is a cooldown."""

    options: InverseRootOptions

    def value(self, step: int, window: ScheduleWindow) -> float:
        """The value before a step of the window.

        Raises:
            UserError: a warm-up without a step, or one that overlaps with the cooldown.
        """
        options = self.options
        warmup, cooldown = window.steps_in(options.warmup), window.steps_in(options.cooldown)
        if warmup < 1:
            raise UserError(f"warmup: {options.warmup} of {window.steps} steps is less than one step, and the fall is counted by it")
        fall = window.steps - cooldown
        if warmup > fall:
            raise UserError(f"a warm-up of {options.warmup} and a cooldown of {options.cooldown} overlap")
        if step <= fall or not cooldown:
            return options.peak * min(step / warmup, sqrt(warmup / max(step, 1)))
        top = options.peak * sqrt(warmup / max(fall, 1))
        return top + (options.lowest - top) * (step - fall) / cooldown


def build_inverse_root(options: InverseRootOptions, context: BuildContext) -> InverseRoot:
    """The factory of schedule `optim.inverse-root`."""
    return InverseRoot(options)


@frozen(kw_only=True)
class TableOptions:
    """Values from a file."""

    path: str = option(doc="CSV file of two columns: an instant (500 steps, 30%, or a whole number of steps) and the value there")
    between: Literal["linear", "hold"] = option(
        "linear", doc="what happens between two instants: a straight line, or the value before holds", choices=("linear", "hold")
    )

    def fingerprint(self) -> dict[str, str]:
        """The digest of the file, which the plan keeps."""
        return {"path": self.path, "sha256": sha256(_bytes_of(self.path)).hexdigest()}


@frozen
class Table:
    """Straight lines, or steps, between the rows of a table; before the first and after the last, their values."""

    rows: tuple[tuple[str, float], ...]
    between: str

    def value(self, step: int, window: ScheduleWindow) -> float:
        """The value before a step of the window.

        Raises:
            UserError: an instant outside of the window, or one that is not later than the one before.
        """
        instants = [window.steps_in(instant) for instant, _ in self.rows]
        if instants != sorted(set(instants)):
            raise UserError("the instants of the table are not each at a later step than the one before")
        i = bisect_right(instants, step) - 1
        if i < 0 or i == len(self.rows) - 1 or self.between == "hold":
            return self.rows[max(i, 0)][1]
        share = (step - instants[i]) / (instants[i + 1] - instants[i])
        return self.rows[i][1] + share * (self.rows[i + 1][1] - self.rows[i][1])


def build_table(options: TableOptions, context: BuildContext) -> Table:
    """The factory of schedule `optim.table`.

    Raises:
        UserError: the file cannot be read, or a row is not an instant and a number.
    """
    rows = []
    text = _bytes_of(options.path).decode("utf-8", errors="replace")
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#") or (number == 1 and not cells[0][:1].isdigit()):
            continue  # an empty line, a comment, the names of the columns
        rows.append(_row(options.path, number, cells))
    if not rows:
        raise UserError(f"path: {options.path} has no row of an instant and a value")
    return Table(tuple(rows), options.between)


def _row(path: str, number: int, cells: list[str]) -> tuple[str, float]:
    if len(cells) == 2:
        try:
            return f"{cells[0]} steps" if cells[0].isdigit() else cells[0], float(cells[1])
        except ValueError:
            pass
    raise UserError(f"path: {path}:{number}: {', '.join(cells)!r} is not a row of an instant and a number")


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"path: {path} cannot be read: {error.strerror}") from None
