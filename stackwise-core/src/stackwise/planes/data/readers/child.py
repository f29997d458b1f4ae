"""The process on the other side of a `ProcessLoader`: it builds the loader, follows orders in turn, and hands batches back."""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from attrs import frozen

from stackwise.contracts.protocols import Batch, Loader, Skippable
from stackwise.errors import DataError, ProviderError

OPTIONAL_METHODS = ("epoch_size", "apply_values", "fingerprint")

Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
"""Name, dtype and shape of each tensor whose bytes follow a message."""


@frozen
class Failure:
    """An exception on its way to the other process, which need not be able to pickle it whole."""

    kind: type[BaseException]
    arguments: tuple[Any, ...]
    fields: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, error: BaseException, place: str) -> Failure:
        """A failure that can be sent: the exception itself, or else a `ProviderError` with its name and message."""
        where = f"in reader process {place}:\n{''.join(traceback.format_exception(error))}"
        fields = {name: value for name, value in vars(error).items() if name != "__notes__"}
        failure = cls(type(error), error.args, fields, where)
        try:
            pickle.loads(pickle.dumps(failure)).as_error()
        except Exception:  # a class of the loader's own may do anything when it is pickled or made
            return cls(ProviderError, (f"{type(error).__name__}: {error}",), {"provider": "", "distribution": ""}, where)
        return failure

    def as_error(self) -> BaseException:
        """An exception of the same class, message and fields, without calling its constructor."""
        error = self.kind.__new__(self.kind, *self.arguments)
        error.args = self.arguments
        vars(error).update(self.fields)
        error.add_note(self.where)
        return error


@frozen
class Delivery:
    """Header of a batch, whose bytes follow: its layout, and the loader's state after it."""

    layout: Layout
    state: dict[str, Any]


@frozen
class Answer:
    """What a call returned, or its failure; a failure also stands in for a batch."""

    value: Any
    failure: Failure | None = None


def send_batch(connection: Connection, batch: Batch, state: dict[str, Any]) -> None:
    """Send a batch and the state after it."""
    tensors = {name: tensor.contiguous() for name, tensor in batch.items()}
    layout = tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    connection.send_bytes(pickle.dumps(Delivery(layout, state)))
    for tensor in tensors.values():
        if tensor.numel():
            connection.send_bytes(tensor.reshape(-1).view(torch.uint8).numpy().data)


def receive_batch(connection: Connection, layout: Layout) -> dict[str, torch.Tensor]:
    """Receive the tensors that a layout announced."""
    batch = {}
    for name, dtype, shape in layout:
        batch[name] = tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            connection.recv_bytes_into(tensor.view(-1).view(torch.uint8).numpy().data)
    return batch


def serve(connection: Connection, build: bytes, place: str) -> None:
    """Follow orders until the order to end, or until the other end is gone.

    Args:
        connection: orders in, batches and answers out.
        build: the pickled callable that makes the loader.
        place: which process this is, for messages.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is sent to the whole group, and the training process decides on it
    torch.set_num_threads(1)
    try:
        loader = pickle.loads(build)()
        if not isinstance(loader, Loader):
            raise DataError(
                f"run.workers are processes that read a loader (take, state_dict, …), and this one is a {type(loader).__name__}: leave "
                "run.workers out, and give a DataLoader its own num_workers"
            )
        methods = [name for name in OPTIONAL_METHODS if callable(getattr(loader, name, None))]
        offers = {"spec": loader.get_batch_spec(), "state": loader.state_dict(), "methods": methods}
    except BaseException as error:  # also a SystemExit of the loader: the training process must learn of it
        _send(connection, Answer(None, Failure.of(error, place)))
        return
    child = _Child(connection, loader, place)
    try:
        _send(connection, Answer(offers))
        while (order := pickle.loads(connection.recv_bytes()))[0] != "end":
            child.follow(order[0], order[1:])
    except (EOFError, OSError):  # the training process is gone: there is nobody to tell
        return


class _Child:
    """One loader."""

    def __init__(self, connection: Connection, loader: Loader, place: str) -> None:
        self._connection, self._loader, self._place = connection, loader, place
        self._pending_error: BaseException | None = None
        """Raised by an order without an answer; reported in place of the next batch."""

    def follow(self, order: str, arguments: tuple[Any, ...]) -> None:
        """Carry out one order; all but `skip` and `apply_values` are answered."""
        if order == "take":
            self._take(*arguments)
        elif order in ("skip", "apply_values"):
            self._follow_silently(order, arguments)
        else:
            _send(self._connection, self._call(order, arguments))

    def _take(self, rows: int | None, length: int | None) -> None:
        late, self._pending_error = self._pending_error, None
        try:
            if late is not None:
                raise late
            batch = self._loader.take(rows, length)
            if not isinstance(batch, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in batch.values()):
                raise ProviderError(f"a loader delivered a {type(batch).__name__} that is not a mapping of field name → tensor")
            state = self._loader.state_dict()
        except BaseException as error:  # SystemExit of a loader included
            _send(self._connection, Answer(None, Failure.of(error, self._place)))
        else:
            send_batch(self._connection, batch, state)

    def _follow_silently(self, order: str, arguments: tuple[Any, ...]) -> None:
        try:
            if order == "apply_values":
                self._loader.apply_values(*arguments)  # type: ignore[attr-defined]  # ordered only of loaders that have it
            elif isinstance(self._loader, Skippable):
                self._loader.skip(*arguments)
            else:
                self._loader.take(*arguments)
        except BaseException as error:
            if order == "apply_values" or isinstance(self._loader, Skippable):
                self._pending_error = error
            # a batch that cannot be taken is reported by the process whose turn it is

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Answer:
        try:
            value = getattr(self._loader, method)(*arguments)
            if method == "load_state_dict":
                self._pending_error = None
                value = self._loader.state_dict()
            return Answer(value)
        except BaseException as error:
            return Answer(None, Failure.of(error, self._place))


def _send(connection: Connection, message: Answer) -> None:
    connection.send_bytes(pickle.dumps(message))
