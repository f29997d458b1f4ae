"""What users bring code first: each input trains as a plain loop would, or is refused with a sentence (tests/faults/README.md)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import stackwise
from stackwise import Built, ConfigError, DataError, Evaluated, Loss, RunStarted, StepDone, UserError
from stackwise.runs.run import resume

ROWS = torch.randn(10, 4, generator=torch.Generator().manual_seed(3))
UNEVEN = [(x, x.flip(1) ** 2) for x in ROWS.split(4)]
"""Batches of 4, 4 and 2 rows."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def machine_of(data: Any, steps: int = 4, task: Any = None, model: Any = None, **declared: Any) -> stackwise.TrainingMachine:
    if not isinstance(data, dict):
        data = {"sources": {"pairs": data}, "fields": ["x", "y"]}
    sections = {
        "run": {"seed": 5, "horizon": f"{steps} steps", "device": "cpu"},
        "task": task or Loss(mse_loss, "y"),
        "data": data,
        "model": model or Built(Net),
        "optimizer": Built(torch.optim.SGD, lr=0.1),
    }
    return stackwise.assemble(stackwise.experiment(**{**sections, **declared}))


def losses(machine: stackwise.TrainingMachine) -> list[float]:
    return [event.loss for event in machine.train() if isinstance(event, StepDone)]


def pairs(rows: int = 20) -> TensorDataset:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(4))
    return TensorDataset(x, x.flip(1))


# -- losses ------------------------------------------------------------------------------------------------------------

ONE_NUMBER = {
    "a number": mse_loss,
    "a tensor of one entry": lambda y, target: mse_loss(y, target).reshape(1),
    "one for each row": lambda y, target: (y - target).square().mean(1),
    "a pair": lambda y, target: ((y - target).square().sum(), target.numel()),
}


@pytest.mark.parametrize("form", ONE_NUMBER)
def test_uneven_micro_batches_make_the_update_of_one_batch(form: str) -> None:
    plain = Net()
    model = deepcopy(plain)
    mse_loss(plain(ROWS), ROWS.flip(1) ** 2).backward()
    data = {"sources": {"pairs": UNEVEN}, "fields": ["x", "y"], "accumulate": 3}
    losses(machine_of(data, 1, Loss(ONE_NUMBER[form], "y"), model))
    for name, parameter in plain.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad  # type: ignore[operator]
        assert torch.allclose(model.get_parameter(name), expected, atol=1e-6), name


NO_LOSS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "a Python number": lambda y, target: mse_loss(y, target).item(),
    "nothing": lambda y, target: None,
    "a map": lambda y, target: {"loss": mse_loss(y, target)},
    "three": lambda y, target: (mse_loss(y, target), 1, {}),
    "a pair of tensors": lambda y, target: ((y - target).square(), torch.ones_like(y)),
    "without a gradient": lambda y, target: mse_loss(y.detach(), target),
    "a negative denominator": lambda y, target: (mse_loss(y, target), -4),
    "no denominator": lambda y, target: (mse_loss(y, target), None),
    "complex": lambda y, target: mse_loss(y, target) * 1j,
}


@pytest.mark.parametrize("form", NO_LOSS)
def test_what_is_no_loss_is_the_users_to_change(form: str) -> None:
    with pytest.raises(UserError):
        losses(machine_of(UNEVEN, 1, Loss(NO_LOSS[form], "y")))


@pytest.mark.parametrize("function", [nn.MSELoss(reduction="sum"), nn.MSELoss, None])
def test_what_cannot_be_a_loss_is_refused_where_it_is_written(function: Any) -> None:
    with pytest.raises(UserError):
        Loss(function, "y")
    with pytest.raises(UserError):
        Loss(mse_loss, "y", metrics={"m": function})
    with pytest.raises(UserError):
        Loss(mse_loss, "y", metrics={"loss": mse_loss})


def test_a_metric_may_be_a_python_number() -> None:
    machine = machine_of({"sources": {"pairs": UNEVEN}, "fields": ["x", "y"], "accumulate": 3}, 1)
    task = Loss(mse_loss, "y", metrics={"m": lambda y, target: mse_loss(y, target).item(), "one": lambda y, target: True})
    machine = machine_of({"sources": {"pairs": UNEVEN}, "fields": ["x", "y"], "accumulate": 3}, 1, task)
    (done,) = [event for event in machine.train() if isinstance(event, StepDone)]
    assert done.metrics == {"m": pytest.approx(done.loss, rel=1e-6), "one": 1.0}


class Named(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": self.layer(x)}


def test_a_map_of_outputs_in_a_loss_of_one_tensor_is_told_what_to_write() -> None:
    with pytest.raises(UserError, match=r"mse_loss\(output\['logits'\], target\)"):
        losses(machine_of(UNEVEN, 1, model=Built(Named)))
    apart = Loss(lambda output, y: mse_loss(output["logits"], y), "y")
    assert losses(machine_of(UNEVEN, 1, apart, Built(Named))) == losses(machine_of(UNEVEN, 1))


def test_a_module_without_values_is_refused() -> None:
    with pytest.raises(UserError, match=r"layer\.weight is on the device meta"):
        losses(machine_of(UNEVEN, 1, model=Net().to("meta")))


def test_a_rate_that_is_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lr: '0\.1' is not a number"):
        machine_of(UNEVEN, 1, optimizer=Built(torch.optim.SGD, lr="0.1"))


@pytest.mark.parametrize("rate", [float("inf"), float("nan")])
def test_a_rate_that_is_not_finite_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError) as caught:
        machine_of(UNEVEN, 1, optimizer=Built(torch.optim.SGD, lr=rate))
    assert [problem.path for problem in caught.value.problems] == ["optimizer"]


def test_integers_for_a_linear_map_are_told_as_such() -> None:
    with pytest.raises(UserError, match="Net holds float32 and the field 'x' is int64"):
        losses(machine_of([(x.long(), y) for x, y in UNEVEN], 1))


# -- batches -----------------------------------------------------------------------------------------------------------


class OneBuffer:
    """Fills the same two tensors for every batch."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        x, y = torch.empty(4, 4), torch.empty(4, 4)
        for i in range(4):
            x.fill_(i)
            y.fill_(2 * i)
            yield x, y


def test_a_buffer_that_is_filled_again_is_read_in_time() -> None:
    """All micro-batches of a step are read before the first is used."""
    apart = [(x.clone(), y.clone()) for x, y in OneBuffer()]
    filled, given = ({"sources": {"pairs": source}, "fields": ["x", "y"], "accumulate": 2} for source in (OneBuffer(), apart))
    assert losses(machine_of(filled)) == losses(machine_of(given))


def test_a_batch_whose_first_field_has_no_rows_is_refused() -> None:
    batch = {"scale": torch.tensor(2.0), "x": ROWS, "y": ROWS}
    with pytest.raises(DataError, match="'scale'"):
        losses(machine_of({"sources": {"pairs": [batch]}, "drop": ["scale"]}))


def test_a_field_that_neither_module_nor_loss_reads_is_refused_or_dropped() -> None:
    batches = [{"x": x, "y": y, "weight": torch.ones(len(x))} for x, y in UNEVEN]
    with pytest.raises(DataError, match="delivers weight, which nothing reads"):
        losses(machine_of({"sources": {"pairs": batches}}))
    renamed = [{"points": x, "y": y, "weight": torch.ones(len(x))} for x, y in UNEVEN]
    data = {"sources": {"pairs": renamed}, "drop": ["weight"], "rename": {"x": "points"}}
    assert losses(machine_of(data)) == losses(machine_of(UNEVEN))


def test_a_field_that_comes_later_is_refused_too() -> None:
    batches = [{"x": x, "y": y} for x, y in UNEVEN]
    batches[2]["mask"] = torch.ones(2)
    with pytest.raises(DataError, match="delivers mask, which nothing reads"):
        losses(machine_of({"sources": {"pairs": batches}}))
    losses(machine_of({"sources": {"pairs": batches}, "drop": ["mask"]}))


# -- other data on a resume -----------------------------------------------------------------------------------------------

OTHERS: dict[str, Callable[[], Any]] = {
    "more samples": lambda: DataLoader(pairs(24), 4, shuffle=True),
    "fewer samples": lambda: DataLoader(pairs(8), 4, shuffle=True),
    "another batch size": lambda: DataLoader(pairs(), 5, shuffle=True),
    "no shuffling": lambda: DataLoader(pairs(), 4),
    "a generator": lambda: DataLoader(pairs(), 4, shuffle=True, generator=torch.Generator()),
    "a list": lambda: list(DataLoader(pairs(), 4)),
}


def after(data: Any, steps: int, of: int = 6) -> dict[str, Any]:
    machine = machine_of(data, of)
    for event in machine.train():
        if isinstance(event, StepDone) and event.step + 1 == steps:
            return deepcopy(machine.state())
    raise AssertionError


def test_a_place_in_other_data_is_refused() -> None:
    state = after(DataLoader(pairs(), 4, shuffle=True), 3)
    for name, make in OTHERS.items():
        with pytest.raises(DataError, match="source 'pairs': the data changed"):
            machine_of(make(), 6).restore(state)
        assert name
    machine_of(DataLoader(pairs(), 4, shuffle=True, num_workers=0), 6).restore(state)
    batches = list(DataLoader(pairs(), 4))
    state = after(batches, 3)
    for others in (batches[:4], batches * 2, list(DataLoader(pairs(30), 6))[:5], DataLoader(pairs(), 4)):
        with pytest.raises(DataError, match="source 'pairs': the data changed"):
            machine_of(others, 6).restore(state)


def of_values(x: torch.Tensor) -> dict[str, Any]:
    """The same samples in every form whose values lie open, by name."""
    named = TensorDataset(x, x.flip(1))
    both: ConcatDataset[Any] = ConcatDataset([Subset(named, range(8)), Subset(named, range(8, 20))])
    return {
        "list": list(DataLoader(named, 4)),
        "samples": DataLoader([named[i] for i in range(20)], 4),  # type: ignore[arg-type]
        "tensors": DataLoader(named, 4),
        "parts": DataLoader(both, 4, shuffle=True),
    }


@pytest.mark.parametrize("name", ["list", "samples", "tensors", "parts"])
def test_other_values_in_as_many_samples_are_refused(name: str) -> None:
    x = pairs().tensors[0]
    state = after(of_values(x)[name], 3)
    machine_of(of_values(x.clone())[name], 6).restore(state)
    last = torch.cat([x[:-1], x[-1:] + 1])
    for other in (x * 1.5, last):
        with pytest.raises(DataError, match=r"source 'pairs': the data changed .*values"):
            machine_of(of_values(other)[name], 6).restore(state)
    del state["data"]["sources"]["pairs"]["of"]["values"]  # as an older version saved it
    machine_of(of_values(x)[name], 6).restore(state)


class Own(Dataset[Any]):
    """A data set of the user's, whose values nobody sees but by reading it; with noise drawn for each sample by some generator."""

    def __init__(self, x: torch.Tensor, noise: Callable[[], torch.Tensor] = lambda: torch.zeros(4)) -> None:
        self.x, self.noise = x, noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + self.noise(), self.x[index].flip(0)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", [lambda: torch.zeros(4), lambda: torch.randn(4)], ids=["fixed", "augmented"])
def test_other_values_behind_a_class_of_the_users_are_refused(noise: Callable[[], torch.Tensor], workers: int) -> None:
    def loader(x: torch.Tensor) -> Any:
        return DataLoader(Own(x, noise), 4, shuffle=True, num_workers=workers, multiprocessing_context="fork" if workers else None)

    x = pairs().tensors[0]
    state = after(loader(x), 7, of=12)
    rest = losses(machine_of(loader(x), 12))[7:]
    again = machine_of(loader(x.clone()), 12)
    again.restore(state)
    events = list(again.train())
    assert [event.loss for event in events if isinstance(event, StepDone)] == rest
    assert isinstance(events[0], RunStarted) and events[0].notes == ()
    with pytest.raises(DataError, match=r"source 'pairs': the data changed .* first batch"):
        machine_of(loader(x * 1.5), 12).restore(state)
    del state["data"]["sources"]["pairs"]["first"]  # as an older version saved it
    machine_of(loader(x), 12).restore(state)


def test_a_class_with_a_hidden_generator_goes_on_uncompared_which_is_said() -> None:
    own = torch.Generator().manual_seed(0)
    x = pairs().tensors[0]
    state = after(DataLoader(Own(x, lambda: torch.randn(4, generator=own)), 4), 3)
    machine = machine_of(DataLoader(Own(x, lambda: torch.randn(4, generator=own)), 4), 6)
    machine.restore(state)
    events = list(machine.train())
    assert sum(isinstance(event, StepDone) for event in events) == 3
    assert isinstance(events[0], RunStarted)
    (note,) = events[0].notes
    assert note.startswith("source 'pairs'")


class Growing(Dataset[Any]):
    """Has one sample more, or less, each time that one is read."""

    def __init__(self, by: int) -> None:
        self.count, self.by = 8, by

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.count += self.by
        return torch.ones(4), torch.ones(4)


@pytest.mark.parametrize("by", [1, -1])
def test_data_that_grow_or_shrink_in_training_are_refused(by: int) -> None:
    with pytest.raises(DataError, match=f"has {8 + 8 * by} samples, and had 8"):
        losses(machine_of(DataLoader(Growing(by), 4, sampler=range(8)), 6))
    batches = list(UNEVEN)
    with pytest.raises(DataError, match="a list has 4 batches, and had 3"):
        for event in machine_of(batches, 6).train():
            batches += UNEVEN[:1] if isinstance(event, StepDone) else []


def test_a_place_of_another_kind_or_of_an_older_version_is_refused() -> None:
    state = after(DataLoader(pairs(), 4), 3)
    place = state["data"]["sources"]["pairs"]
    del place["of"], place["number"]
    with pytest.raises(DataError, match="'number'"):
        machine_of(DataLoader(pairs(), 4), 6).restore(state)


class Placed:
    """Keeps its own place."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        while self.place < len(UNEVEN):
            self.place += 1
            yield UNEVEN[self.place - 1]
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def test_an_evaluation_does_not_share_a_place_with_training() -> None:
    data, apart = Placed(), Placed()
    with pytest.raises(ConfigError) as refusal:
        machine_of(data, evaluate={"h": {"batches": 2, "sources": {"h": data}}})
    assert [problem.path for problem in refusal.value.problems] == ["evaluate.h.sources.h"]
    machine_of(data, evaluate={"h": {"batches": 2, "sources": {"h": apart}}})


# -- going on with another experiment ------------------------------------------------------------------------------------


def run(directory: Path, steps: int, **changes: Any) -> dict[str, torch.Tensor]:
    sections = {
        "run": {"name": "own", "seed": 5, "horizon": f"{steps} steps", "device": "cpu"},
        "task": Loss(mse_loss, "y"),
        "data": {"sources": {"pairs": DataLoader(pairs(), 4, shuffle=True)}, "fields": ["x", "y"]},
        "model": {"module": Built(Net)},
        "optimizer": {"use": Built(torch.optim.SGD, lr=0.1, momentum=0.9), "clip": 1.0},
    }
    stackwise.run(stackwise.experiment(**{**sections, **changes}), output=directory, stream=io.StringIO(), resume="auto")
    return load_file(directory / "final" / "weights.safetensors")


def test_a_run_in_code_is_trained_further(tmp_path: Path) -> None:
    run(tmp_path / "short", 3)
    further, whole = run(tmp_path / "short", 7), run(tmp_path / "whole", 7)
    assert all(torch.equal(further[name], whole[name]) for name in whole)


OTHER_PARTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "loss": ({"task": Loss(nn.functional.l1_loss, "y")}, ["task.function"]),
    "target": ({"task": Loss(mse_loss, "x")}, ["task.targets"]),
    "optimizer": ({"optimizer": {"use": Built(torch.optim.Adam, lr=0.1), "clip": 1.0}}, ["optimizer.use"]),
    "option": ({"optimizer": {"use": Built(torch.optim.SGD, lr=0.1), "clip": 1.0}}, ["optimizer.momentum"]),
    "rate": ({"optimizer": {"use": Built(torch.optim.SGD, lr=0.2, momentum=0.9), "clip": 1.0}}, ["optimizer.lr"]),
    "module": ({"model": {"module": Net()}}, ["model.module.use"]),
}


def test_a_part_in_code_that_is_another_one_is_named(tmp_path: Path) -> None:
    run(tmp_path / "run", 3)
    for changes, paths in OTHER_PARTS.values():
        with pytest.raises(ConfigError) as refusal:
            run(tmp_path / "run", 7, **changes)
        assert [problem.path for problem in refusal.value.problems] == paths
    with pytest.raises(ConfigError) as refusal:
        resume(tmp_path / "run", ["run.horizon=7 steps"], io.StringIO())
    (problem,) = refusal.value.problems  # one sentence for all of them
    assert [path for path in ("task.use", "data.sources.pairs", "model.module.use", "optimizer.use") if path not in str(problem)] == []


# -- modules -----------------------------------------------------------------------------------------------------------


class Late(Net):
    """Makes in its first forward what a constructor should make, or counts in a buffer from its sixth step on."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.own = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(1)
        self.register_buffer("mean", None)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if not self.training:
            return y
        self.steps += 1
        if self.kind == "parameter" and not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.ones(4))
        if self.kind == "buffer" and not hasattr(self, "seen"):
            self.register_buffer("seen", torch.zeros(4))
        if self.kind == "generator":
            return y + torch.randn(4, generator=self.own)
        if self.kind == "seeded generator":
            return y + torch.randn(4, generator=self.own.manual_seed(2))
        if self.kind == "numpy generator":
            return y + float(self.numpy.random())
        if self.kind == "mean":
            self.mean = (torch.zeros(4) if self.mean is None else self.mean) * 0.5 + x.mean(0)
            return y + self.mean
        if self.kind == "count" and self.steps > 5:
            self.count += 1
        return y


@pytest.mark.parametrize("kind", ["parameter", "buffer", "generator", "numpy generator"])
def test_what_no_checkpoint_could_hold_is_told_by_the_first_steps(kind: str) -> None:
    with pytest.raises(UserError, match={"parameter": "rack.gain", "buffer": "rack.seen", "generator": "rack.own"}.get(kind, "rack.numpy")):
        losses(machine_of(UNEVEN, 4, model=Built(Late, kind=kind)))
    losses(machine_of(UNEVEN, 4, model=Built(Late, kind="seeded generator")))


def test_a_buffer_that_the_first_step_fills_goes_on_after_a_stop_and_stays_persistent() -> None:
    whole = machine_of(UNEVEN, 6, model=Built(Late, kind="mean"))
    expected = losses(whole)
    machine = machine_of(UNEVEN, 6, model=Built(Late, kind="mean"))
    state = next(deepcopy(machine.state()) for event in machine.train() if isinstance(event, StepDone) and event.step == 2)
    later = machine_of(UNEVEN, 6, model=Built(Late, kind="mean"))
    later.restore(state)
    assert losses(later) == expected[3:]
    assert torch.equal(later.model.model.state_dict()["rack.mean"], whole.model.model.state_dict()["rack.mean"])


def test_a_skipped_step_puts_back_a_buffer_that_changed_late() -> None:
    batches = [(x, x) for x in torch.randn(8, 4, 4)]
    batches[6] = (batches[6][0] * float("nan"), batches[6][1])
    model = Late("count")
    losses(machine_of(batches, 8, model=model))
    assert (int(model.steps), int(model.count)) == (7, 2)


class Large(nn.Module):
    """Writes to a buffer of 2,000 entries from a step on, in place or by a new one."""

    def __init__(self, first: int, exchanged: bool) -> None:
        super().__init__()
        self.layer, self.first, self.exchanged, self.steps = nn.Linear(4, 4), first, exchanged, 0
        self.register_buffer("seen", torch.zeros(2000))

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        if self.steps > self.first:
            self.seen = self.seen + 1 if self.exchanged else self.seen.add_(1)
        y: torch.Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("first", [5, 6])
def test_a_large_buffer_that_changed_late_is_put_back_or_the_run_ends(first: int, exchanged: bool) -> None:
    """Step 6 is skipped; a buffer that changes first in it has no copy."""
    batches = [(x, x) for x in torch.randn(8, 4, 4)]
    batches[6] = (batches[6][0] * float("nan"), batches[6][1])
    model = Large(first, exchanged)
    if first == 6:
        with pytest.raises(UserError, match=r"rack\.seen"):
            losses(machine_of(batches, 8, model=model))
    else:
        losses(machine_of(batches, 8, model=model))
        assert bool((model.seen == 2).all())


def test_a_state_without_a_place_in_the_generators_is_refused() -> None:
    state = after(DataLoader(pairs(), 4), 3)
    del state["draws"]
    with pytest.raises(UserError, match="'draws'"):
        machine_of(DataLoader(pairs(), 4), 6).restore(state)


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_evaluation_of_a_loader_counts_every_row_once(shuffle: bool) -> None:
    """Three batches of 4, 4 and 2 rows, and an evaluation of 16: the mean over the 10 rows."""
    model, rows = Net(), TensorDataset(ROWS, ROWS.flip(1) ** 2)
    expected = mse_loss(model(ROWS), ROWS.flip(1) ** 2).item()
    heldout = {"h": {"every": "1 steps", "sources": {"h": DataLoader(rows, 4, shuffle=shuffle)}}}
    machine = machine_of(UNEVEN, 2, model=model, optimizer=Built(torch.optim.SGD, lr=0.0), evaluate=heldout)
    values = [event.metrics["loss"] for event in machine.train() if isinstance(event, Evaluated)]
    assert len(values) == 3 and values == pytest.approx([expected] * 3, rel=1e-6)


class Rows(IterableDataset[Any]):
    """Ten rows, and no word on how many."""

    def __iter__(self) -> Iterator[Any]:
        return zip(ROWS, ROWS.flip(1) ** 2, strict=True)


@pytest.mark.parametrize("shuffle", [False, True, None])
def test_an_evaluation_of_what_says_no_length_counts_every_row_once(shuffle: bool | None) -> None:
    model, rows = Net(), TensorDataset(ROWS, ROWS.flip(1) ** 2)
    expected = mse_loss(model(ROWS), ROWS.flip(1) ** 2).item()
    source = DataLoader(Rows(), 4) if shuffle is None else Built(DataLoader, dataset=rows, batch_size=4, shuffle=shuffle)
    heldout = {"h": {"every": "1 steps", "sources": {"h": source}}}
    machine = machine_of(UNEVEN, 2, model=model, optimizer=Built(torch.optim.SGD, lr=0.0), evaluate=heldout)
    values = [event.metrics["loss"] for event in machine.train() if isinstance(event, Evaluated)]
    assert len(values) == 3 and values == pytest.approx([expected] * 3, rel=1e-6)


@pytest.mark.parametrize(
    "given",
    [{"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1)}, {"task": nn.MSELoss()}, {"task": mse_loss}, {"model": lambda: Net()}],
    ids=["optimizer", "loss module", "loss function", "model"],
)
def test_a_function_in_the_place_of_a_part_is_the_users_to_change(given: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        losses(machine_of(UNEVEN, 1, **given))
