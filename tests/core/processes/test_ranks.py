"""What a process says when an exchange with the others fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import distributed
from torch.distributed import TCPStore
from torch.distributed.distributed_c10d import PrefixStore

from stackwise.errors import EndedTogether, RankLost
from stackwise.processes.board import Failure
from stackwise.processes.place import Place
from stackwise.processes.ranks import Ranks


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """One process, and torch's group of it."""
    store = TCPStore("127.0.0.1", 0, 1, is_master=True)
    distributed.init_process_group("gloo", store=PrefixStore("torch", store), rank=0, world_size=1)
    made = Ranks(Place(rank=0, ranks=1), store)
    yield made
    made.watch.close()
    distributed.destroy_process_group()


@pytest.mark.parametrize(("poster", "expected"), [(0, RankLost), (1, EndedTogether)])
def test_a_loss_is_said_by_the_process_that_found_it_whichever_thread_fails_next(
    ranks: Ranks, poster: int, expected: type[Exception]
) -> None:
    """A thread that saves and the one that trains fail together; the second finds what the first has posted, and may alone be heard."""
    assert ranks.board.post(Failure(poster, "rank 1 is gone", RankLost.exit_code))
    with pytest.raises(expected) as raised, ranks.explaining():
        raise RuntimeError("connection closed")
    assert poster or str(raised.value) == "rank 1 is gone"
