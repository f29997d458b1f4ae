"""Which loader reads what a user brings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import FunctionType, MethodType

from torch.utils.data import DataLoader, Dataset, IterableDataset

from stackwise.contracts.protocols import Loader
from stackwise.errors import DataError
from stackwise.planes.data.iterable_loader import ListLoader, ReplayedLoader, StatefulLoader
from stackwise.planes.data.sampled_loader import SampledLoader


def as_loader(source: object, seed: int = 0, fields: Sequence[str] = ()) -> Loader:
    """A loader stays itself; any other iterable is adapted.

    Args:
        source: a loader, or an iterable of batches.
        seed: of the stream that its code draws from.
        fields: names of the entries of batches that are tuples.

    Raises:
        DataError: neither.
    """
    if isinstance(source, Loader):
        return source
    if isinstance(source, DataLoader) and type(source).__iter__ is DataLoader.__iter__ and not isinstance(source.dataset, IterableDataset):
        return SampledLoader(source, seed, fields)
    if isinstance(source, list | tuple):
        return ListLoader(source, seed, fields)
    if isinstance(source, Iterable):
        stateful = callable(getattr(source, "state_dict", None)) and callable(getattr(source, "load_state_dict", None))
        return (StatefulLoader if stateful else ReplayedLoader)(source, seed, fields)
    if isinstance(source, Dataset):
        raise DataError(
            f"a {type(source).__name__} delivers samples and no batches: give DataLoader({type(source).__name__}(…), batch_size=…)"
        )
    if isinstance(source, FunctionType | MethodType):
        name = source.__name__
        raise DataError(
            f"{name} is a function and no data: give what it returns, {name}(), a list of batches or a DataLoader where it is to be "
            f"resumed, or Built({name}), which calls it"
        )
    raise DataError(f"a {type(source).__name__} is not data: give a loader (take, state_dict) or an iterable of batches")
