"""The process-wide generators: torch's, numpy's and Python's, seeded for code of the user's and put back."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand  # np.random has both functions, its stubs do not

from stackwise.timeline.streams import FIRST, GOLDEN, SECOND, step_seed


def seed_process(seed: int) -> None:
    """Seed the generators that user code draws from without naming one (torch's on the CPU)."""
    torch.default_generator.manual_seed(seed)
    seed_others(seed)


def seed_others(seed: int) -> None:
    """Seed the generators of numpy and Python."""
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


_OWN_BITS = np.random.MT19937()
"""Takes the place of numpy's generator while user code runs: much cheaper than copying its state out and in again."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run user code on generators of its own: what it draws depends on the seed alone, and nobody else's draws change."""
    before = torch.default_generator.get_state(), random.getstate(), mtrand.get_bit_generator()
    mtrand.set_bit_generator(_OWN_BITS)
    seed_process(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        random.setstate(before[1])
        mtrand.set_bit_generator(before[2])


class StepSeeds:
    """The seeds of one stream at the micro-batches of its steps; that of the first micro-batch is the seed of the step.

    Those of many steps are made at once, in 64 bits: one by one each takes a dozen operations on long integers.

    Args:
        key: of the stream.
    """

    _AT_ONCE = 256

    def __init__(self, key: int) -> None:
        self._key, self._first = key, 0
        self._seeds: list[int] = []
        """Of the steps from the first on."""

    def __call__(self, step: int, index: int = 0) -> int:
        """The seed of a micro-batch of a step."""
        place = step - self._first
        if not 0 <= place < len(self._seeds):
            self._first, self._seeds, place = step, _step_seeds(self._key, step, self._AT_ONCE), 0
        seed = self._seeds[place]
        return step_seed(seed, index) if index else seed


def _step_seeds(key: int, step: int, count: int) -> list[int]:
    """`step_seed` of `count` steps from one on."""
    z = np.uint64(key) + np.uint64(GOLDEN) * np.arange(step + 1, step + 1 + count, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    seeds: list[int] = ((z ^ (z >> np.uint64(31))) >> np.uint64(1)).tolist()
    return seeds


GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_MOST_OBJECTS, _DEPTH = 500, 4


def own_generators(given: object) -> dict[str, object]:
    """Path → generator for those that an object keeps in attributes, lists and maps, or parts of it do; the first 500 are looked at."""
    generators, seen, waiting = dict[str, object](), {id(given)}, [("", given, 0)]
    while waiting and len(seen) < _MOST_OBJECTS:
        path, holder, depth = waiting.pop(0)
        if isinstance(holder, GENERATORS):
            generators[path] = holder
            continue
        for name, value in _parts(holder) if depth < _DEPTH else ():
            if id(value) not in seen and (isinstance(value, (*GENERATORS, list, tuple, dict)) or hasattr(value, "__dict__")):
                seen.add(id(value))
                waiting.append((f"{path}.{name}".lstrip("."), value, depth + 1))
    return generators


def _parts(holder: object) -> list[tuple[object, object]]:
    if isinstance(holder, type | ModuleType | torch.Tensor):
        return []
    if isinstance(holder, list | tuple):
        return list(enumerate(holder[:_MOST_OBJECTS]))
    return list((holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})).items())[:_MOST_OBJECTS]


def generator_state(generator: object) -> bytes:
    """A generator's place."""
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().tolist())
    return pickle.dumps(generator)


class OwnDraws:
    """Training's own place in the generators of numpy and Python: what it draws depends on the seed and on its own draws alone.

    `with draws:` is training's turn. numpy's bit generator is exchanged for the turn. Python's cannot be exchanged, and copying its state
    is expensive. So training's place stays in it between turns, and a twin that draws along shows by the next 64 bits whether anybody
    else drew; only then is the state copied, and other users of Python's generator go on with numbers of their own.

    A normal number that a generator holds back for the next call is dropped at the end of a turn.
    """

    def __init__(self, seed: int) -> None:
        self._bits, self._twin = np.random.MT19937(), random.Random(seed)
        np.random.RandomState(self._bits).seed(seed & 0xFFFFFFFF)
        self._their_bits: Any = None
        self._their_state: Any = None
        """The state of Python's generator for everybody else; None as long as nobody else draws."""
        self._python_drew, self._start = False, self._place()

    def begin(self) -> None:
        """Put training's place into Python's generator, so that turns cost nothing until somebody draws."""
        if self._their_state is None:
            random.setstate(self._twin.getstate())

    def __enter__(self) -> None:
        self._their_bits = mtrand.get_bit_generator()
        mtrand.set_bit_generator(self._bits)
        if random.getrandbits(64) != self._twin.getrandbits(64):
            self._their_state = random.getstate()
            random.setstate(self._twin.getstate())

    def __exit__(self, *error: object) -> None:
        mtrand.set_bit_generator(self._their_bits)
        if random.getrandbits(64) != self._twin.getrandbits(64):
            self._python_drew = True
            version, words, _ = random.getstate()
            self._twin.setstate((version, words, None))
            random.setstate((version, words, None))
        if self._their_state is not None:
            random.setstate(self._their_state)

    def has_drawn(self) -> bool:
        """Whether any turn so far drew from either of them."""
        return self._python_drew or self._place() != self._start

    def _place(self) -> int:
        place: int = self._bits.state["state"]["pos"]
        return place

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Both places, as the 624 words and the position of each Mersenne twister."""
        place = self._bits.state["state"]
        return {"python": torch.tensor(self._twin.getstate()[1]), "numpy": torch.tensor([*place["key"].tolist(), place["pos"]])}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on where `state_dict` was taken."""
        self._twin.setstate((random.Random.VERSION, tuple(state["python"].tolist()), None))
        *key, position = state["numpy"].tolist()
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": np.array(key, np.uint32), "pos": position}}
        self._start = self._place()
        self.begin()
