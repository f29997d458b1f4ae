"""What comes from outside cannot act on a terminal: no cursor is moved, no title set, no text turned round."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stackwise.cli import main
from stackwise.cli.escaping import escaped_streams
from stackwise.errors import printable
from stackwise.reports.progress import Progress

EVIL = "a\x1b]0;title\x07\x1b[2K\r\x9b1m\u202egnp.exe\u2066\u2028\x00"
SHOWN = r"a\x1b]0;title\x07\x1b[2K\r\x9b1m\u202egnp.exe\u2066\u2028\x00"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_and_bidi_marks_are_shown_and_the_rest_is_left() -> None:
    assert printable(EVIL) == SHOWN
    plain = "täglich 日本語 עברית العربية\tσ → ×\n💥"
    assert printable(plain) == plain


def test_errors_are_escaped_wherever_they_go(tmp_path: Path) -> None:
    path = tmp_path / f"{EVIL.replace(chr(0), '')}.yaml"
    path.write_text("run: {name: 3}\n")
    done = CliRunner().invoke(main, ["validate", str(path), "--cold"])
    assert done.exit_code == 2 and r"]0;title\x07" in done.stderr and r"\u202egnp.exe" in done.stderr
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(done.stderr)


def test_standard_output_is_escaped_on_a_terminal_and_exact_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, text in ((Terminal(), SHOWN), (io.StringIO(), EVIL)):
        monkeypatch.setattr(sys, "stdout", stream)
        with escaped_streams():
            print(EVIL, end="")
        assert stream.getvalue() == text and sys.stdout is stream


def test_progress_escapes_what_it_says_and_keeps_its_own_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    from stackwise.curriculum.schedule import PhaseSchedule

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with escaped_streams():
        Progress(PhaseSchedule.single(steps=3)).say(EVIL)
    assert terminal.getvalue() == "\r\x1b[2K" + SHOWN.encode("ascii", "replace").decode() + "\n"
