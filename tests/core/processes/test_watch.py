"""The thread that notices a process that hangs."""

from __future__ import annotations

from threading import Event

import pytest
from torch.distributed import HashStore

from stackwise.processes import watch as module
from stackwise.processes.board import Board
from stackwise.processes.place import Place
from stackwise.processes.watch import Watch


def board_of(*begun: int) -> Board:
    """A board on which the processes behind the first one have said how many exchanges they have begun."""
    board = Board(HashStore(), 1 + len(begun))
    for rank, count in enumerate(begun, 1):
        board.beat(rank, f"7 {count}")
    return board


def test_whoever_has_begun_the_fewest_exchanges_is_waited_for() -> None:
    for begun, behind in (((4, 5), [1]), ((5, 4), [2]), ((4, 4), [1, 2]), ((5, 5), []), ((6, 6), [0])):
        watch = Watch(board := board_of(*begun), Place(0, 3), ["a", "b", "c"], 60.0, lambda: 5)
        watch.close()
        board.beat(0, "7 5")
        assert watch.behind() == behind, begun


class Late(Board):
    """A board on which the wait that is looked into ends meanwhile."""

    looked, left = Event(), Event()

    def beats(self) -> list[str | None]:
        self.looked.set()
        self.left.wait()
        return super().beats()


def test_a_wait_that_ends_after_all_leaves_the_next_one_watched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Event()

    def leave(code: int) -> None:
        ended.set()

    monkeypatch.setattr(module.os, "_exit", leave)
    watch = Watch(Late(HashStore(), 2), Place(0, 2, host="a"), ["a", "b"], 0.1, lambda: 0)
    with watch.waiting():
        assert Late.looked.wait(60)
    assert not ended.is_set()
    with watch.inside("in the boundary into phase 'two'"), watch.waiting():
        Late.left.set()
        assert ended.wait(60)
    watch.close()
    said = capsys.readouterr().err
    assert said.startswith("rank 0 of 2 on a: rank 1 on b has not come") and said.rstrip().endswith("in the boundary into phase 'two'")
