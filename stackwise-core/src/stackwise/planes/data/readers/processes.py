"""A loader that runs in several processes and delivers the stream it would deliver in one.

Request k goes to process k mod n; the others skip it. So every process is at the same position of the stream, the state sent with batch k
is the state after batch k, and neither rows nor order depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from stackwise.contracts.protocols import Batch, Loader
from stackwise.contracts.specs import BatchSpec
from stackwise.errors import ProviderError
from stackwise.planes.data.readers.child import Answer, Delivery, Failure, receive_batch, serve

UNDER_WAY = 2
"""Batches of one process that may wait to be collected."""

PATIENCE_S = 600.0
"""How long a batch is waited for."""

_JOIN_S = 5.0


class ReaderStopped(ProviderError):
    """A reader process ended by itself, or hangs."""


class ProcessLoader:
    """The loader that `build` makes, read by `workers` processes.

    It has `epoch_size`, `apply_values` and `fingerprint` if that loader has them; new values hold for the requests that follow.

    Args:
        build: makes the loader; picklable, called once in each process.
        workers: processes, at least 1.
        patience_s: how long a batch is waited for.

    Raises:
        ProviderError: `build` cannot be sent to another process.
        ReaderStopped: a process ended by itself.
        Exception: whatever `build` raises.
    """

    epoch_size: Callable[[], Any]
    apply_values: Callable[[Mapping[str, float]], None]
    fingerprint: Callable[[], Mapping[str, Any]]

    def __init__(self, build: Callable[[], Loader], workers: int, patience_s: float = PATIENCE_S) -> None:
        if workers < 1:
            raise ValueError(f"{workers} reader processes read nothing: give 1 or more")
        self._requests: deque[tuple[_Reader, int | None, int | None]] = deque()
        self._count = 0
        self._state: dict[str, Any] = {}
        self._readers: list[_Reader] = []
        self._end = weakref.finalize(self, _end_all, self._readers)
        """Also called when the interpreter exits."""
        try:
            self._start(build, workers, patience_s)
        except BaseException:
            self.close()
            raise

    def get_batch_spec(self) -> BatchSpec:
        """The loader's own."""
        return self._spec

    def ask(self, rows: int | None, length: int | None) -> None:
        """Request a batch for a later `take` to collect."""
        readers = self._open_readers()
        turn = readers[self._count % len(readers)]
        for reader in readers:
            reader.tell("take" if reader is turn else "skip", rows, length)
        self._requests.append((turn, rows, length))
        self._count += 1

    def take(self, rows: int | None, length: int | None) -> Batch:
        """The oldest requested batch; requests one if there is no request.

        Raises:
            ReaderStopped: a process ended by itself, or delivers nothing for too long.
            RuntimeError: the oldest request was another one, or the loader is closed.
            Exception: whatever the loader raises at this request.
        """
        if not self._requests:
            self.ask(rows, length)
        reader, *request = self._requests[0]
        if request != [rows, length]:
            raise RuntimeError(f"rows={rows}, length={length} is taken where rows={request[0]}, length={request[1]} was asked for first")
        self._requests.popleft()
        batch, self._state = reader.collect()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch taken, however many are requested."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Drop all requests and restore a state.

        Raises:
            Exception: whatever the loader raises at a state that is not its own.
        """
        readers = self._open_readers()
        self._requests.clear()
        for reader in readers:
            reader.drop()
        for reader in readers:
            reader.call("load_state_dict", dict(state))
        self._state, *_ = _values([reader.answer() for reader in readers])

    def close(self) -> None:
        """End the processes; nothing can be taken afterwards."""
        self._requests.clear()
        self._end()

    def _start(self, build: Callable[[], Loader], workers: int, patience_s: float) -> None:
        try:
            pickled = pickle.dumps(build)
        except Exception as error:  # pickling runs code of the object, which may raise anything
            raise ProviderError(
                f"the loader cannot be read by {workers} processes, because what builds it cannot be sent to them ({error}): "
                "build it by a function or class at the top of a module"
            ) from error
        for index in range(workers):
            self._readers.append(_Reader(pickled, f"{index + 1} of {workers}", patience_s))
        offers, *_ = _values([reader.answer() for reader in self._readers])
        self._spec: BatchSpec = offers["spec"]
        self._state = offers["state"]
        if "epoch_size" in offers["methods"]:
            self.epoch_size = lambda: self._ask_first("epoch_size")
        if "fingerprint" in offers["methods"]:
            self.fingerprint = lambda: self._ask_first("fingerprint")
        if "apply_values" in offers["methods"]:
            self.apply_values = self._apply_values

    def _apply_values(self, values: Mapping[str, float]) -> None:
        for reader in self._open_readers():
            reader.tell("apply_values", dict(values))

    def _ask_first(self, method: str) -> Any:
        first = self._open_readers()[0]
        first.call(method)
        return _values([first.answer()])[0]

    def _open_readers(self) -> list[_Reader]:
        if not self._readers:
            raise RuntimeError("the reader processes of this loader are closed")
        return self._readers


class _Reader:
    """The parent's side of one process. At most `UNDER_WAY` batches are in flight; later orders wait until one is collected."""

    def __init__(self, build: bytes, place: str, patience_s: float) -> None:
        self._place, self._patience_s = place, patience_s
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, build, place), name=f"stackwise-reader-{place}", daemon=True)
        self._process.start()
        other.close()
        self._orders: deque[tuple[Any, ...]] = deque()
        self._deliveries: deque[tuple[Batch, dict[str, Any]] | Failure] = deque()
        self._under_way = 0
        self._has_answered = False

    def tell(self, order: str, *arguments: Any) -> None:
        """Queue an order."""
        self._orders.append((order, *arguments))
        self._send_orders()

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method ahead of the queued orders; `answer` receives its result."""
        self._send((method, *arguments))

    def collect(self) -> tuple[Batch, dict[str, Any]]:
        """The oldest ordered batch, and the state after it."""
        if not self._deliveries:
            self._keep(self._receive())
        delivery = self._deliveries.popleft()
        if isinstance(delivery, Failure):
            raise delivery.as_error()
        return delivery

    def answer(self) -> Answer:
        """The answer to the oldest call; batches ordered before it are received first and kept."""
        before = self._under_way if self._has_answered else 0
        for _ in range(before):
            self._keep(self._receive())
        answer = self._receive()
        assert isinstance(answer, Answer)
        self._has_answered = True
        return answer

    def drop(self) -> None:
        """Drop every ordered batch, after receiving those in flight."""
        self._orders.clear()
        while self._under_way:
            self._keep(self._receive())
        self._deliveries.clear()

    def hang_up(self) -> None:
        """Ask the process to end after the orders already sent."""
        self._orders.clear()
        with contextlib.suppress(OSError):
            self._connection.send_bytes(pickle.dumps(("end",)))

    def end(self) -> None:
        """Wait for the process to end; kill it if it takes long."""
        with contextlib.suppress(EOFError, OSError):
            while self._connection.poll(_JOIN_S):
                self._connection.recv_bytes()
            self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()

    def _keep(self, message: tuple[Batch, dict[str, Any]] | Answer) -> None:
        """Keep a received batch, or the failure in its place, and send the next order."""
        if isinstance(message, Answer):
            assert message.failure is not None
            self._deliveries.append(message.failure)
        else:
            self._deliveries.append(message)
        self._under_way -= 1
        self._send_orders()

    def _send_orders(self) -> None:
        while self._orders and (self._orders[0][0] != "take" or self._under_way < UNDER_WAY):
            order = self._orders.popleft()
            self._under_way += order[0] == "take"
            self._send(order)

    def _send(self, order: tuple[Any, ...]) -> None:
        try:
            self._connection.send_bytes(pickle.dumps(order))
        except OSError as error:
            raise self._exit_error() from error

    def _receive(self) -> tuple[Batch, dict[str, Any]] | Answer:
        try:
            if self._has_answered and not self._connection.poll(self._patience_s):  # a loader may take as long as it needs to be built
                raise self._timeout_error()
            message: Delivery | Answer = pickle.loads(self._connection.recv_bytes())
            if isinstance(message, Answer):
                return message
            return receive_batch(self._connection, message.layout), message.state
        except (EOFError, OSError) as error:
            raise self._exit_error() from error

    def _exit_error(self) -> ReaderStopped:
        self._process.join(_JOIN_S)
        return ReaderStopped(
            f"reader process {self._place} (pid {self._process.pid}) ended with exit code {self._process.exitcode} while it was needed: "
            "its loader ended the process, or something killed it (short of memory?); resume from the last checkpoint"
        )

    def _timeout_error(self) -> ReaderStopped:
        return ReaderStopped(
            f"reader process {self._place} (pid {self._process.pid}) has delivered nothing for {self._patience_s:g} s: its loader waits "
            "for something (a file system that is gone?); resume from the last checkpoint, or read without run.workers"
        )


def _values(answers: list[Answer]) -> list[Any]:
    """The results of the calls; raises the first failure among them."""
    for answer in answers:
        if answer.failure is not None:
            raise answer.failure.as_error()
    return [answer.value for answer in answers]


def _end_all(readers: list[_Reader]) -> None:
    ending = list(readers)
    readers.clear()
    for reader in ending:
        reader.hang_up()
    for reader in ending:
        reader.end()
