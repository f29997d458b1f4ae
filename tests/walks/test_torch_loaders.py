"""A torch DataLoader as data: one seed is one run, a resume goes on with the next batch, an evaluation stands still."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_loaders as brought
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

import stackwise
from stackwise import Built, ConfigError, DataError, Evaluated, RunStarted, StepDone

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata's own call

Make = Callable[[], Any]

BATCHES = 6
"""Of an epoch: 30 samples by 5."""


def machine_of(data: Any, steps: int = 20, seed: int = 1, task: Any = None, lr: float = 0.1, **declared: Any) -> Any:
    """A machine as a user with three modules and a loader assembles it."""
    rack = Built(lambda stacks: brought.Rack(), stacks=[{"base": 1}])
    model = {"embedding": Built(brought.Embed), "rack": rack, "head": Built(brought.Logits)}
    return stackwise.assemble(
        stackwise.experiment(
            run={"seed": seed, "horizon": f"{steps} steps", "device": "cpu", **declared.pop("run", {})},
            task=task or brought.NextToken(),
            data=data,
            model=model,
            optimizer={"use": "optim.sgd", "lr": lr},
            **declared,
        )
    )


def seen_by(make: Make, steps: int = 13, stop: int | None = None, seed: int = 1, **declared: Any) -> tuple[list[Any], list[float]]:
    """What reached the task, batch by batch, and every loss; with `stop` the run ends after that step and another machine goes on."""
    task = brought.NextToken()
    machine, losses = machine_of(make(), steps, seed, task, **declared), []
    walk = machine.train()
    for event in walk:
        if isinstance(event, StepDone):
            losses.append(event.loss)
            if event.step + 1 == stop:
                state = deepcopy(machine.state())
                walk.close()
                later = machine_of(make(), steps, seed, task, **declared)
                later.restore(state)
                return task.seen, losses + [event.loss for event in drained(later) if isinstance(event, StepDone)]
    return task.seen, losses


def drained(machine: Any) -> list[Any]:
    return list(machine.train())


def ids(seen: list[Any]) -> list[int]:
    return [i for batch in seen for i in batch["id"]]


def sampled(**options: Any) -> Make:
    return lambda: DataLoader(brought.Augmented(), batch_size=5, **options)


LOADERS: dict[str, Make] = {
    "in order": sampled(),
    "shuffled": sampled(shuffle=True),
    "own generator": lambda: sampled(shuffle=True, generator=torch.Generator().manual_seed(3))(),
    "weighted": lambda: sampled(sampler=WeightedRandomSampler(torch.arange(1.0, 31.0), 30))(),
    "sampler with a generator": lambda: sampled(sampler=RandomSampler(range(30), generator=torch.Generator().manual_seed(4)))(),
    "own sampler": lambda: sampled(sampler=brought.Walking())(),
    "iterable with a length": lambda: DataLoader(brought.Stream(), batch_size=5),
    "stateful": lambda: pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader(
        brought.Augmented(), batch_size=5, shuffle=True
    ),
    "list": lambda: list(DataLoader(brought.Numbered(), batch_size=5)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_one_seed_is_one_run_and_a_stop_anywhere_changes_nothing(name: str) -> None:
    whole = seen_by(LOADERS[name])
    torch.manual_seed(99)
    np.random.seed(99)
    assert seen_by(LOADERS[name]) == whole
    for stop in (BATCHES, 9):
        assert seen_by(LOADERS[name], stop=stop) == whole, stop
    if name != "weighted":
        assert sorted(ids(whole[0])[:30]) == sorted(ids(whole[0])[30:60]) == list(range(30))


@pytest.mark.parametrize("name", ["shuffled", "weighted", "own sampler", "stateful"])
def test_another_seed_is_another_order(name: str) -> None:
    assert ids(seen_by(LOADERS[name], steps=6)[0]) != ids(seen_by(LOADERS[name], steps=6, seed=2)[0])


@pytest.mark.parametrize("name", ["own generator", "sampler with a generator", "in order"])
def test_an_order_that_is_the_users_own_is_that_of_a_plain_loop(name: str) -> None:
    plain = LOADERS[name]()
    expected = [i for _ in range(3) for batch in plain for i in batch["id"].tolist()]
    assert ids(seen_by(LOADERS[name], steps=3 * BATCHES)[0]) == expected
    assert ids(seen_by(LOADERS[name], steps=3 * BATCHES, seed=2)[0]) == expected


def test_what_the_user_hands_over_stays_as_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    loader, before = sampled(shuffle=True, generator=generator)(), generator.get_state()
    first = seen_by(lambda: loader)
    assert torch.equal(generator.get_state(), before)
    assert seen_by(lambda: loader) == first


@pytest.mark.parametrize("own", [True, False], ids=["own generator", "of the run's seed"])
def test_a_stateful_loader_whose_generator_has_moved_on_says_so_in_the_next_run(own: bool) -> None:
    make = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    generator = torch.Generator().manual_seed(3) if own else None

    def told(loader: Any) -> tuple[int, list[int]]:
        machine = machine_of(loader, 3, task=(task := brought.NextToken()))
        (started,) = (event for event in drained(machine) if isinstance(event, RunStarted))
        assert all(note.startswith("source ") for note in started.notes)
        return len(started.notes), ids(task.seen)

    loader = make(brought.Numbered(), batch_size=5, shuffle=True, generator=generator)
    first, again = told(loader), told(loader)
    assert (first[0], again[0]) == (0, int(own)) and (first[1] != again[1]) is own
    if generator is not None:
        generator.manual_seed(3)
        assert told(loader) == first


def test_of_what_was_delivered_only_the_first_batch_is_read_again_to_be_compared() -> None:
    dataset = brought.Numbered()
    whole = ids(seen_by(lambda: DataLoader(dataset, batch_size=5, shuffle=True), stop=9)[0])
    assert dataset.read == [*whole[:45], *whole[:5], *whole[45:]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    """In the fork of a process, as on Linux, and after a stop."""
    options: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork"}
    whole = seen_by(sampled(shuffle=True), steps=9)
    assert seen_by(sampled(shuffle=True, **options), steps=9, stop=4) == whole


@pytest.mark.slow
def test_a_dataloader_in_reader_processes_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"data\.sources\.data: run\.workers .* this one is a DataLoader: .* num_workers"):
        drained(machine_of({"sources": {"data": Built(brought.loader_of)}, "batch_size": 5}, run={"workers": 1}))


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run_in_a_sentence() -> None:
    loader = DataLoader(brought.Dying(17, True), batch_size=5, num_workers=1, timeout=2, multiprocessing_context="fork")
    with pytest.raises(DataError, match=r"source 'data': batch 3 of epoch 0 did not come .*timed out after 2"):
        drained(machine_of(loader))


def test_numpy_and_python_are_seeded_for_what_the_task_draws() -> None:
    def losses() -> list[float]:
        return [
            event.loss
            for event in drained(machine_of(LOADERS["in order"](), 6, task=brought.NextToken(noisy=True)))
            if isinstance(event, StepDone)
        ]

    first = losses()
    np.random.seed(5)
    assert losses() == first


# -- what cannot be exact --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: DataLoader(brought.Endless(), batch_size=5), lambda: iter([{"tokens": torch.zeros(2, 3).long()}])]
)
def test_without_state_and_length_a_word_is_needed_and_the_log_repeats_it(make: Make) -> None:
    with pytest.raises(DataError, match=r"source 'data': .* neither a state nor a length.*accept_inexact_resume: true"):
        machine_of(make())
    machine = machine_of({"sources": {"data": make()}, "accept_inexact_resume": True})
    started = next(iter(machine.train()))
    assert isinstance(started, RunStarted)
    assert any("source:data: a resume may not be exact" in told for told in started.bridges)


def test_an_iterable_that_begins_otherwise_each_time_is_found_out() -> None:
    class Shuffling:
        def __init__(self) -> None:
            self.draw = np.random.default_rng(0)

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Any:
            for i in self.draw.permutation(4):
                yield {"tokens": torch.full((2, 4), int(i)), "id": torch.zeros(2)}

    data = list(DataLoader(brought.Numbered(), batch_size=5))
    with pytest.raises(DataError, match="delivers another first batch than before"):
        drained(machine_of(data, evaluate={"h": {"batches": 2, "every": "1 steps", "sources": {"h": Shuffling()}}}))


class Sized:
    """Batches that are another number than their length."""

    def __init__(self, length: int, count: int) -> None:
        self.length, self.count = length, count

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        return iter([{"tokens": torch.full((2, 4), i), "id": torch.zeros(2)} for i in range(self.count)])


class Placed(Sized):
    """The same with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


@pytest.mark.parametrize("kind", [Sized, Placed])
@pytest.mark.parametrize(("count", "said", "read"), [(3, "3 batches", 3), (5, "more batches", 4)])
def test_a_length_that_is_not_kept_is_told_by_the_end_of_the_epoch(kind: Any, count: int, said: str, read: int) -> None:
    task = brought.NextToken()
    with pytest.raises(DataError, match=f"source 'data': a {kind.__name__} has a length of 4 and delivers {said} an epoch"):
        drained(machine_of(kind(4, count), task=task))
    assert len(task.seen) == read
    drained(machine_of(kind(4, 4)))


# -- fields, epochs, evaluations -------------------------------------------------------------------------------------


def tuples() -> Any:
    rows = torch.arange(40).reshape(8, 5) % brought.VOCAB
    return DataLoader(TensorDataset(rows, torch.arange(8)), batch_size=4)


def test_entries_of_tuples_are_named_by_the_config() -> None:
    task = brought.NextToken()
    drained(machine_of({"sources": {"data": tuples()}, "fields": ["tokens", "id"]}, 3, task=task))
    assert ids(task.seen) == [*range(8), *range(4)]
    with pytest.raises(DataError, match=r"a list of 2 without names: name its entries in order by data\.fields"):
        drained(machine_of(tuples()))
    with pytest.raises(DataError, match=r"2 entries, and data\.fields names 1: tokens"):
        drained(machine_of({"sources": {"data": tuples()}, "fields": ["tokens"]}))


def test_words_that_have_nothing_to_say_are_refused() -> None:
    for words, path in [({"accept_inexact_resume": True}, "data.accept_inexact_resume")]:
        with pytest.raises(ConfigError) as caught:
            machine_of({"sources": {"data": LOADERS["list"]()}, **words})
        assert [problem.path for problem in caught.value.problems] == [path]
    with pytest.raises(DataError, match=r"names its own fields \(tokens, id\)"):
        drained(machine_of({"sources": {"data": LOADERS["list"]()}, "fields": ["tokens", "id"]}))


def test_a_sized_loader_counts_epochs() -> None:
    machine = machine_of(LOADERS["shuffled"](), run={"horizon": "3 epochs"})
    assert machine.schedule.steps == 3 * BATCHES
    with pytest.raises(ConfigError, match="epochs"):
        machine_of(
            {"sources": {"data": DataLoader(brought.Endless(), batch_size=5)}, "accept_inexact_resume": True}, run={"horizon": "3 epochs"}
        )


def heldout(loader: Any, lr: float = 0.0) -> list[float]:
    declared = {"h": {"batches": 3, "every": "1 steps", "sources": {"h": loader}}}
    data = list(DataLoader(brought.Numbered(), batch_size=5))
    return [event.metrics["loss"] for event in drained(machine_of(data, 5, lr=lr, evaluate=declared)) if isinstance(event, Evaluated)]


@pytest.mark.parametrize("name", LOADERS)
def test_an_evaluation_of_a_loader_stands_still(name: str) -> None:
    values = heldout(LOADERS[name]())
    assert len(values) == 6 and len(set(values)) == 1


@pytest.mark.parametrize("name", ["shuffled", "list", "stateful"])
def test_an_evaluation_does_not_read_training_rows_unsaid(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        machine_of(LOADERS[name](), evaluate={"h": {"batches": 2}})
    assert [problem.path for problem in caught.value.problems] == ["evaluate.h"]


def test_an_evaluation_that_says_so_reads_training_rows_and_the_log_repeats_it() -> None:
    events = drained(machine_of(LOADERS["shuffled"](), evaluate={"h": {"batches": 2, "training_rows": True}}))
    assert any("evaluation:h: reads rows that training reads" in told for told in events[0].bridges)
    with pytest.raises(ConfigError, match="is read once, and an evaluation reads the same each time"):
        machine_of(LOADERS["list"](), evaluate={"h": {"batches": 2, "sources": {"h": iter([])}}})


@pytest.mark.slow
def test_a_walk_that_is_left_prints_nothing_at_the_end_of_the_interpreter(tmp_path: Path) -> None:
    code = "machine = machine_of()\nfor event in machine.train():\n    if getattr(event, 'step', 0) == 3:\n        break\nprint('left')\n"
    assert run_program(tmp_path, "brought.Numbered()", code) == (0, "left\n", "")


def run_program(folder: Path, dataset: str, code: str) -> tuple[int, str, str]:
    """A program of a user's own, over a loader with two workers."""
    program = folder / "program.py"
    program.write_text(
        f"""
import sys
sys.path[:0] = [{str(Path(brought.__file__).parent)!r}]
import torch_loaders as brought
from torch.utils.data import DataLoader
import stackwise
from stackwise import Built

def machine_of():
    rack = Built(lambda stacks: brought.Rack(), stacks=[{{"base": 1}}])
    model = {{"embedding": Built(brought.Embed), "rack": rack, "head": Built(brought.Logits)}}
    loader = DataLoader({dataset}, batch_size=5, shuffle=True, num_workers=2, multiprocessing_context="fork")
    return stackwise.assemble(stackwise.experiment(
        run={{"seed": 1, "horizon": "20 steps", "device": "cpu"}}, task=brought.NextToken(), data=loader, model=model,
        optimizer={{"use": "optim.sgd", "lr": 0.1}}))

{code}"""
    )
    quiet = ["-W", "ignore:This DataLoader will create"]  # torch counts the cores of the machine that the tests have
    done = subprocess.run([sys.executable, *quiet, str(program)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_worker_that_dies_is_told_as_that(tmp_path: Path) -> None:
    """torch raises it wherever the signal finds the process, so it may come from the middle of a step."""
    program = """
import os
try:
    list(machine_of().train())
except stackwise.errors.DataError as error:
    os.write(2, str(error).encode())  # at once, as the end of the other worker may break in on a print
    os._exit(7)"""
    code, _, told = run_program(tmp_path, "brought.Dying(17, False)", program)
    assert code == 7 and "worker" in told and "ended from outside" in told, told
