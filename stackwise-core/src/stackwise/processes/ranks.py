"""The group of processes that train one model, and what they exchange besides gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import monotonic, sleep
from typing import Any, TypeVar, cast

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from stackwise.errors import EndedTogether, RankLost, UserError
from stackwise.planes.data.share import Share
from stackwise.processes.board import Board, Failure
from stackwise.processes.place import Place
from stackwise.processes.watch import Watch

T = TypeVar("T")

STARTING_S = 600.0
"""How long a process waits for another one before the first step, as one may read its data more slowly."""

_POST_S = 3.0
"""How long the reason of a failure may take to appear after its process has closed its connections."""

_FIRST_SPEAKS_S = 1.0


class Ranks:
    """All processes of a run, as one of them sees them.

    Args:
        place: which of the processes this one is.
        store: the store of the rendezvous.
    """

    def __init__(self, place: Place, store: Store) -> None:
        self.place = place
        self.board = Board(store, place.ranks)
        hosts: list[Any] = [None] * place.ranks
        distributed.all_gather_object(hosts, place.host)
        self.hosts: list[str] = hosts
        own_store = store.clone()  # type: ignore[attr-defined]  # the stubs do not know it
        self.groups: list[Any] = [distributed.group.WORLD]
        """torch's groups in which this process exchanges something."""
        self.watch = Watch(Board(own_store, place.ranks), place, self.hosts, STARTING_S, self._exchanges)

    @property
    def share(self) -> Share:
        """The micro-batches of a step that belong to this process."""
        return Share(self.place.rank, self.place.ranks)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.place.is_first

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """A context for an exchange with the others; a failed one is explained.

        Raises:
            EndedTogether: another process failed and has said why.
            RankLost: another process is gone without saying why.
        """
        with self.watch.waiting(), self.explaining():
            yield

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """A context for work in which torch exchanges something with the others, and which fails where one of them is gone.

        Raises:
            EndedTogether: another process failed and has said why.
            RankLost: another process is gone without saying why.
        """
        try:
            yield
        except RuntimeError as error:
            if (reason := self._what_happened(error)) is error:
                raise
            raise reason from error

    def gather(self, item: T, group: distributed.ProcessGroup | None = None) -> list[T]:
        """Gather an object from every process, by rank.

        Args:
            item: the object of this process.
            group: the group of a thread, whose exchange may take as long as the slowest disk; None: the group used in training.
        """
        items: list[Any] = [None] * self.place.ranks
        with self.exchanging() if group is None else self.explaining():
            distributed.all_gather_object(items, item, group=group)
        return cast(list[T], items)

    def new_group(self) -> distributed.ProcessGroup:
        """The same processes, for exchanges of a thread; all of them ask for it at the same time."""
        with self.exchanging():
            group: distributed.ProcessGroup = distributed.new_group(backend="gloo", timeout=timedelta(days=1))
        self.groups.append(group)
        return group

    def broadcast(self, item: T | None, source: int = 0) -> T:
        """Send an object of one process to all of them."""
        box = [item]
        with self.exchanging():
            distributed.broadcast_object_list(box, src=source)
        return cast(T, box[0])

    def sum(self, tensor: torch.Tensor) -> None:
        """Add a tensor over all processes, in place; all get the same bits."""
        with self.exchanging():
            distributed.all_reduce(tensor)

    def rows(self, vector: torch.Tensor) -> torch.Tensor:
        """A vector on the CPU from every process, as the rows of a matrix [ranks, entries]."""
        rows = vector.new_empty(self.place.ranks, vector.numel())
        with self.exchanging():
            distributed.all_gather(list(rows.unbind()), vector)
        return rows

    def agree(self, items: Mapping[str, str], when: str, parts: int = 1) -> None:
        """Compare what must be the same in every process.

        Args:
            items: name → a text, often a digest.
            when: end of the sentence that reports a difference.
            parts: of a model that is divided; processes that hold the same part have the same.

        Raises:
            UserError: a process has something else; rank, host and item are named.
        """
        all_items = self.gather(dict(items))
        for rank, theirs in enumerate(all_items):
            like = rank % parts
            for name in {**all_items[like], **theirs}:
                first, other = all_items[like].get(name, "nothing"), theirs.get(name, "nothing")
                if first != other:
                    raise UserError(
                        f"rank {rank} on {self.hosts[rank]} has another {name} than rank {like} on {self.hosts[like]} {when} ({other} and "
                        f"{first}): it must be the same in every process of a run, so the run stops"
                    )

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """The first process works alone, and the others wait for it longer than they would wait for a step."""
        self.board.mark_busy(what)
        try:
            yield
        finally:
            self.board.mark_busy("")

    def _exchanges(self) -> int:
        """How many exchanges this process has begun, torch's own among them; torch counts them, and has no public name for it."""
        begun = 0
        for group in list(self.groups):
            with suppress(RuntimeError):  # a backend that does not count
                begun += group._get_sequence_number_for_group()
        return begun

    def _what_happened(self, error: RuntimeError) -> Exception:
        """Why an exchange failed: another process posted a failure before it left, or is gone without saying why."""
        before, deadline = self.board.beats(), monotonic() + max(_POST_S, self.watch.sign_s)
        with self.watch.waiting():
            while (failure := self.board.failure()) is None and monotonic() < deadline:
                sleep(0.05)
        if failure is None:
            if not (lost := self.watch.lost(before)):
                return error  # nobody is gone: this process itself is at fault
            for rank in lost:
                self.board.acknowledge(rank)  # it will not, and need not be waited for
            sentence = self.watch.sentence(lost, "is gone: something ended it (short of memory? killed?)")
            if self.board.post(Failure(self.place.rank, sentence, RankLost.exit_code)):
                return RankLost(sentence)
            failure = self.board.failure()
        if failure is not None and failure.rank == self.place.rank:
            return RankLost(failure.sentence)  # found by another thread of this process, which may not come to say it
        return EndedTogether(failure.exit_code if failure is not None else RankLost.exit_code)

    def post(self, error: BaseException) -> BaseException:
        """Post why this process fails. Returns the error to raise: that of another process if one failed before."""
        if isinstance(error, EndedTogether | RankLost):
            return error
        self._let_the_first_speak()
        code = getattr(error, "exit_code", 1)
        sentence = str(error) or type(error).__name__
        if self.board.post(Failure(self.place.rank, sentence, code if isinstance(code, int) else 1)):
            return error
        failure = self.board.failure()
        return error if failure is None or failure.rank == self.place.rank else EndedTogether(failure.exit_code)

    def leave(self) -> None:
        """The first process may hold the board in its own memory, and so waits until the others have read what they need."""
        if not self.is_first:
            self.board.acknowledge(self.place.rank)
        deadline = monotonic() + _POST_S
        while self.is_first and not self.board.acknowledged() and monotonic() < deadline:
            sleep(0.02)

    def _let_the_first_speak(self) -> None:
        """Most failures are the same in all processes, and people read the output of the first."""
        deadline = monotonic() + _FIRST_SPEAKS_S
        while not self.is_first and self.board.failure() is None and monotonic() < deadline:
            sleep(0.05)


@contextmanager
def joined(place: Place | None = None) -> Iterator[Ranks | None]:
    """Join the other processes of a run; None where this one is alone.

    What ends one of them ends all: the first failure is posted, and each process that finds it ends with the same exit code and prints
    nothing.
    """
    place = Place.here() if place is None else place
    if place.ranks == 1:
        yield None
        return
    ranks = Ranks(place, _meet(place))
    try:
        yield ranks
    except BaseException as error:
        fault = ranks.post(error)
        if fault is error:
            raise
        raise fault from error
    finally:
        ranks.leave()
        ranks.watch.close()
        with suppress(RuntimeError):
            distributed.destroy_process_group()


def _meet(place: Place) -> Store:
    """Start torch's group of processes. Exchanges have no timeout of their own: `Watch` decides how long one may last.

    Raises:
        UserError: the environment does not say where, or nobody is there.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    try:
        store, rank, ranks = next(iter(rendezvous("env://", timeout=timedelta(seconds=STARTING_S))))
        distributed.init_process_group(
            backend, store=PrefixStore(f"torch/{place.attempt}", store), rank=rank, world_size=ranks, timeout=timedelta(days=1)
        )
    except (distributed.DistError, ValueError) as error:
        where = f"MASTER_ADDR {os.environ.get('MASTER_ADDR', '(not set)')} and MASTER_PORT {os.environ.get('MASTER_PORT', '(not set)')}"
        raise UserError(
            f"{place} does not meet the others at {where}: {str(error).splitlines()[0]}; start all of them by `stackwise run --ranks N`, "
            "or by torchrun with one address and a port that is free"
        ) from error
    return PrefixStore(f"attempt/{place.attempt}", store)
