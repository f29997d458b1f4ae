"""Progress on a terminal and on a pipe; the clock moves only when a test says so."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stackwise.contracts.events import Evaluated, Event, PhaseEntered, RunFinished, RunStarted, StepDone
from stackwise.curriculum.schedule import CompiledPhase, PhaseSchedule
from stackwise.reports import progress
from stackwise.reports.progress import LINE_EVERY_S, Progress
from stackwise.timeline.duration import Duration
from stackwise.timeline.layout import compile_clock

STEPS = 1200
NAMES = ("shallow", "grown", "annealed")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, a list of one entry."""
    clock = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: clock[0])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return clock


def schedule(names: Sequence[str] = NAMES, until: Sequence[str] = ("50%", "75%", "100%")) -> PhaseSchedule:
    ends = [Duration.parse(text) for text in until]
    clock = compile_clock(Duration.parse(f"{STEPS} steps"), names, ends, [8] * len(names))
    phases = [CompiledPhase(name=name, index=i, start=clock.starts[i], stop=clock.starts[i + 1]) for i, name in enumerate(names)]
    return PhaseSchedule(clock, tuple(phases))


def events() -> Iterator[Event]:
    yield RunStarted(STEPS, "cpu", "float32", ("a → b",))
    for k in range(STEPS):
        index = (k >= 600) + (k >= 900)
        if k in (0, 600, 900):
            yield PhaseEntered(k, NAMES[index], index, 1000, 900, 3, 2, 1, 0, 3, 2, 0, 0.04)
        yield StepDone(k, NAMES[index], 5.0 - k / STEPS, 1.0, 1e-3, 8 * (k + 1), 0.05, False)
    yield Evaluated(STEPS, "annealed", "held", "exit", {"bits_per_byte": 2.5}, 0.1)
    yield RunFinished(STEPS, 8 * STEPS, 60.0, 0, {})


def play(observer: Progress, now: list[float], seconds: float = 0.05) -> None:
    for event in events():
        now[0] += seconds
        observer(event)


class Terminal:
    """A pseudo-terminal of a width; what was written to it is read in the end."""

    def __init__(self, columns: int, encoding: str, folder: Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding=encoding)
        self.encoding = encoding
        self.text = ""
        os.set_blocking(self.master, False)

    def drain(self) -> None:
        self.stream.flush()
        while True:
            try:
                self.text += os.read(self.master, 65536).decode(self.encoding, "replace")
            except BlockingIOError:
                return


def show(columns: int, now: list[float], tmp_path: Path, encoding: str = "utf-8", phases: PhaseSchedule | None = None) -> str:
    terminal = Terminal(columns, encoding, tmp_path)
    observer = Progress(phases or schedule(), terminal.stream)
    for event in events():
        now[0] += 0.05
        observer(event)
        terminal.drain()
    terminal.stream.close()
    os.close(terminal.master)
    return terminal.text


def test_a_terminal_that_says_no_width_is_taken_for_one_of_80_columns(now: list[float], tmp_path: Path) -> None:
    unsaid = show(0, now, tmp_path)
    now[0] = 100.0
    assert unsaid == show(80, now, tmp_path)


def redraws(text: str) -> list[str]:
    """What stood on the live line at each moment, without colours."""
    plain = re.sub(r"\x1b\[\d+m", "", text)
    return [part for part in re.split(r"\r\x1b\[2K", plain) if "/" in part and "\n" not in part]


@pytest.mark.parametrize("columns", [20, 40, 61, 72, 80, 100, 200])
def test_a_live_line_never_wraps(columns: int, now: list[float], tmp_path: Path) -> None:
    drawn = redraws(show(columns, now, tmp_path))
    assert len(drawn) > 100
    assert max(map(len, drawn)) < columns


@pytest.mark.parametrize("columns", [40, 61, 72, 80])
def test_what_a_live_line_shows_is_whole(columns: int, now: list[float], tmp_path: Path) -> None:
    drawn = redraws(show(columns, now, tmp_path))
    assert all(re.search(r"\d\ds left$", line) for line in drawn)
    assert all("lr" not in line or re.search(r"  lr \d\.\d\de-\d\d  ", line) for line in drawn)


def test_a_bar_of_more_phases_than_fit_is_left_out(now: list[float], tmp_path: Path) -> None:
    hundred = schedule([f"p{i}" for i in range(100)], [f"{i + 1}%" for i in range(100)])
    drawn = redraws(show(80, now, tmp_path, phases=hundred))
    assert drawn
    assert max(map(len, drawn)) < 80


def test_the_bar_has_a_segment_a_phase_as_wide_as_its_share(now: list[float], tmp_path: Path) -> None:
    bars = [line.split(" ")[0] for line in redraws(show(200, now, tmp_path))]
    assert [len(part) for part in bars[0].split("┃")] == [20, 10, 10]
    filled = [bar.count("━") for bar in bars]
    assert filled == sorted(filled) and filled[0] == 0 and filled[-1] >= 39


def test_colours_only_where_they_are_wanted(now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[36m" in show(100, now, tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[\d+m", show(100, now, tmp_path))


def test_a_terminal_that_knows_only_ascii_gets_ascii(now: list[float], tmp_path: Path) -> None:
    text = show(100, now, tmp_path, "ascii")
    assert "=" in text and "|" in text and text.isascii()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_pipe_gets_plain_lines_now_and_then(encoding: str, now: list[float]) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    play(Progress(schedule(), stream), now)
    stream.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert not any("\x1b" in line or "\r" in line for line in lines)
    steps = [line for line in lines if line.split()[0] in NAMES]
    assert len(steps) in (11, 12)  # a minute, a line every 5 s
    assert sum(line.startswith("enter ") for line in lines) == 3
    assert "adopted 3, copied 2, fresh 1, dropped 0; moments kept 3, copied 2, dropped 0; 0.04 s" in "\n".join(lines)
    assert lines[0] == "run   1,200 steps on cpu, float32" and "bits per byte 2.5000" in lines[-1]


def test_speed_and_time_left_are_those_of_the_clock(now: list[float]) -> None:
    stream = io.StringIO()
    play(Progress(schedule(), stream), now)
    line = next(line for line in stream.getvalue().splitlines() if line.startswith("shallow 5"))
    done = int(line.split()[1].split("/")[0])
    left = round((STEPS - done) * 0.05)
    assert f"160 tokens/s  0m{left:02d}s left" in line


def test_a_step_that_was_not_finite_is_told_at_once(now: list[float]) -> None:
    stream = io.StringIO()
    Progress(schedule(), stream)(StepDone(3, "shallow", float("nan"), 1.0, 1e-3, 8, 0.1, True, "its loss is not finite"))
    assert "step 3 is skipped, as its loss is not finite" in stream.getvalue() and "nothing was changed" in stream.getvalue()


def test_a_dumb_terminal_is_no_terminal(now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in show(80, now, tmp_path)


def test_lines_above_the_bar_stay_within_the_terminal(now: list[float], tmp_path: Path) -> None:
    lines = [line.rpartition("\x1b[2K")[2] for line in show(80, now, tmp_path).split("\r\n")]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("    ") and line.strip() for line in lines)


def test_quiet_shows_only_what_goes_otherwise_than_planned(now: list[float]) -> None:
    stream = io.StringIO()
    observer = Progress(schedule(), stream, quiet=True)
    play(observer, now)
    observer.evaluating("held", 0, 9)
    now[0] += 60
    observer.evaluating("held", 3, 9)
    assert stream.getvalue() == ""
    observer(StepDone(3, "shallow", float("nan"), 1.0, 1e-3, 8, 0.1, True, "its loss is not finite"))
    observer.say("a checkpoint is passed over")
    assert len(stream.getvalue().splitlines()) == 2


def test_a_long_evaluation_says_how_far_it_is(now: list[float]) -> None:
    stream = io.StringIO()
    observer = Progress(schedule(), stream)
    for done in range(20):
        observer.evaluating("held", done, 20)
        now[0] += 1.0
    assert re.findall(r"held: (\d+) of 20", stream.getvalue()) == ["5", "10", "15"]


def test_what_is_left_takes_the_price_of_the_phases_into_account(now: list[float]) -> None:
    stream = io.StringIO()
    observer = Progress(schedule(), stream, costs=[600.0, 3000.0, 3000.0])  # a step of the later phases costs ten times one of the first
    observer(RunStarted(STEPS, "cpu", "float32", ()))
    for k in range(301):
        observer(StepDone(k, NAMES[0], 5.0, 1.0, 1e-3, 8 * (k + 1), 0.1, False))
        now[0] += 0.1 if k < 300 else 0.0
    now[0] += LINE_EVERY_S
    observer(StepDone(301, NAMES[0], 5.0, 1.0, 1e-3, 8, 0.1, False))
    took, done = 30.0 + LINE_EVERY_S, 301
    left = took / done * (6600 - 302)
    assert re.findall(r"(\d+)m(\d+)s left", stream.getvalue())[-1] == (str(int(left + 0.5) // 60), f"{int(left + 0.5) % 60:02d}")


def test_the_first_step_of_a_phase_counts_once_for_each_phase_to_come(now: list[float]) -> None:
    stream, firsts = io.StringIO(), {0: 30.0, 600: 10.0, 900: 10.0}
    observer = Progress(schedule(), stream, compiles=True)
    for event in events():
        seconds = firsts.get(event.step, 0.05) if isinstance(event, StepDone) else 0.0
        now[0] += seconds
        observer(event._replace(seconds=seconds) if isinstance(event, StepDone) else event)
    lines = stream.getvalue().splitlines()
    assert sum("compiles" in line for line in lines) == 3
    left = {int(m[1]): 60 * int(m[2]) + int(m[3]) for line in lines if (m := re.search(r" (\d+)/1200 .* (\d+)m(\d+)s left", line))}
    before, after = max(step for step in left if step < 600), min(step for step in left if step > 610)
    assert left[before] == pytest.approx((STEPS - before) * 0.05 + 2 * 29.95, abs=1)
    assert left[after] == pytest.approx((STEPS - after) * 0.05 + 9.95, abs=1)
