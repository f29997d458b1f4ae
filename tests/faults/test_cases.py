"""Small inputs that once went wrong in silence, each with the test that holds its right value; what no other test holds is tested here."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stackwise
from stackwise import Built, Evaluated, PhaseEntered, StepDone

TESTS = Path(__file__).parents[1]

CASES: Mapping[str, tuple[str, ...]] = {
    "constructor_values": ("core/planes/model/test_initialisation.py::test_what_a_constructor_assigns_is_what_every_block_holds",),
    "shuffled_loader_resume": ("walks/test_torch_loaders.py::test_one_seed_is_one_run_and_a_stop_anywhere_changes_nothing",),
    "shuffled_loader_evaluation": ("walks/test_torch_loaders.py::test_an_evaluation_of_a_loader_stands_still",),
    "lazy_cache": (
        "core/machine/test_no_trace.py::test_an_evaluation_leaves_values_modes_and_a_cache_that_can_be_trained_with",
        "core/machine/test_no_trace.py::test_a_loss_that_differentiates_can_be_evaluated_and_others_build_no_graph",
    ),
    "lazy_cache_probe": ("faults/test_cases.py::test_a_cache_that_a_rack_makes_when_it_is_first_called_survives_the_probe_of_a_growth",),
    "bfloat16_norm_gains": ("walks/test_sixteen_bits.py::test_small_updates_of_norm_gains_are_not_lost",),
    "bfloat16_average": ("core/planes/optimizer/test_average.py::test_it_is_its_recursion_in_float32_whatever_the_weights_are_held_in",),
    "low_precision_optimizers": ("walks/test_sixteen_bits.py::test_an_overflow_skips_its_step_halves_the_scale_and_training_goes_on",),
    "low_precision_accumulation": ("walks/test_sixteen_bits.py::test_micro_batches_in_float16_give_the_gradient_of_the_whole_batch",),
    "module_state": (
        "core/planes/model/test_state.py::test_a_resume_is_the_uninterrupted_run",
        "core/planes/model/test_state.py::test_module_state_of_a_block_that_goes_on_goes_on_through_growth",
    ),
    "average_with_batch_norm": (
        "faults/test_cases.py::test_averaged_weights_are_judged_beside_averaged_statistics",
        "core/planes/optimizer/test_average.py::test_statistics_of_norm_layers_are_averaged_with_the_weights_and_follow_their_layer",
    ),
    "completion_loss": ("transformer/test_completion_loss.py::test_pairs_train_on_their_responses_alone",),
    "completion_loss_pairs": ("transformer/test_completion_loss.py::test_pairs_train_on_their_responses_alone",),
    "events": (
        "core/machine/test_no_trace.py::test_a_step_tells_every_learning_rate_where_there_are_several",
        "core/machine/test_no_trace.py::test_the_metrics_of_a_step_are_means_over_its_batches",
    ),
    "tied_head_selectors": ("core/planes/model/test_module.py::test_a_selector_of_a_tied_head_is_told_the_name_of_the_one_parameter",),
    "class_as_option": ("faults/test_cases.py::test_a_callable_takes_any_value_as_it_is",),
    "unusual_optimizers": (
        "walks/test_sixteen_bits.py::test_sparse_gradients_closures_and_functions_of_time_are_refused_with_what_to_write",
        "core/planes/model/test_initialisation.py::test_a_lazy_layer_is_refused_with_its_name",
    ),
}
"""Case → the tests that hold its right value."""


@pytest.mark.parametrize("place", sorted({place for places in CASES.values() for place in places}))
def test_the_test_of_a_case_is_there(place: str) -> None:
    file, _, name = place.partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


class Embed(nn.Module):
    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.table(tokens)
        return vectors


class Stacks(nn.Module):
    """Linear blocks behind each other; `act` is whatever the user gives."""

    def __init__(self, width: int, stacks: Mapping[str, int], act: Any = nn.Identity) -> None:
        super().__init__()
        self.act = act
        self.stacks = nn.ModuleDict({name: nn.ModuleList(nn.Linear(width, width) for _ in range(n)) for name, n in stacks.items()})

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for stack in self.stacks.values():
            assert isinstance(stack, nn.ModuleList)
            for block in stack:
                hidden = hidden + block(hidden)
        return hidden


class Cached(Stacks):
    """Makes a table of positions when it is first called, which may be in an evaluation or a probe, and trains through it."""

    def __init__(self, width: int, stacks: Mapping[str, int]) -> None:
        super().__init__(width, stacks)
        self.cache: torch.Tensor | None = None
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.cache is None:
            self.cache = torch.sin(torch.arange(hidden.shape[1])[:, None] / torch.arange(1, hidden.shape[2] + 1))
        return super().forward(hidden + self.scale * self.cache)


class Logits(nn.Module):
    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vocab)

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.linear(hidden)}


class NextToken:
    def get_spec(self) -> stackwise.TaskSpec:
        tokens, logits = stackwise.TensorSpec("batch time", "int64"), stackwise.TensorSpec("batch time vocab")
        return stackwise.TaskSpec(batch={"tokens": tokens}, inputs={"tokens": tokens}, outputs={"logits": logits})

    def prepare(self, batch: Any, moment: Any, generator: Any) -> dict[str, torch.Tensor]:
        return {"tokens": batch["tokens"][:, :-1], "targets": batch["tokens"][:, 1:]}

    def loss(self, outputs: Any, batch: Any) -> tuple[torch.Tensor, int, dict[str, Any]]:
        losses = nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), batch["targets"].flatten(), reduction="sum")
        return losses, batch["targets"].numel(), {}


_GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [{"tokens": torch.randint(8, (2, 5), generator=_GENERATOR)} for _ in range(4)]


def assembled(rack: Built, steps: int, **more: Any) -> stackwise.TrainingMachine:
    sections: dict[str, Any] = {
        "run": {"name": "case", "seed": 1, "horizon": f"{steps} steps", "device": "cpu"},
        "task": NextToken(),
        "data": BATCHES,
        "model": {"embedding": Built(Embed, vocab=8, width=4), "rack": rack, "head": Built(Logits, width=4, vocab=8)},
        "optimizer": Built(torch.optim.AdamW, lr=1e-2),
    }
    return stackwise.assemble(stackwise.experiment(**{**sections, **more}))


def trained(rack: Built, steps: int = 2, **more: Any) -> tuple[stackwise.TrainingMachine, int]:
    """A machine after its steps, and how many were done without being skipped."""
    machine = assembled(rack, steps, **more)
    return machine, sum(isinstance(event, StepDone) and not event.skipped for event in machine.train())


@pytest.mark.parametrize(
    "act",
    [nn.ReLU, nn.functional.gelu, torch.ones(3), torch.float32, (0.9, 0.95), None, partial(nn.LeakyReLU, 0.1)],
    ids=["class", "function", "tensor", "dtype", "tuple", "None", "partial"],
)
def test_a_callable_takes_any_value_as_it_is(act: object) -> None:
    machine, steps = trained(Built(Stacks, width=4, stacks=[{"base": 1}], act=act))
    rack = machine.model.model.rack
    assert steps == 2 and isinstance(rack, Stacks) and type(rack.act) is type(act)
    assert rack.act is act or isinstance(act, torch.Tensor | tuple)


def test_a_cache_that_a_rack_makes_when_it_is_first_called_survives_the_probe_of_a_growth() -> None:
    phases = [
        stackwise.Phase("a", until="50%"),
        stackwise.Phase("b", model={"rack": {"stacks": [{"base": 2}]}}, enter={"growth": {"use": "transformer.stack"}}),
    ]
    _, steps = trained(Built(Cached, width=4, stacks=[{"base": 1}]), steps=4, phases=phases)
    assert steps == 4


def mean_nats(model: nn.Module, batches: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    nats = [
        nn.functional.cross_entropy(model({"tokens": each["tokens"][:, :-1]})["logits"].flatten(0, 1), each["tokens"][:, 1:].flatten())
        for each in batches
    ]
    return torch.stack(nats).mean()


class Normed(Stacks):
    """Linear blocks, each behind a batch norm of its output; without biases, which a norm takes away again."""

    def __init__(self, width: int, stacks: Mapping[str, int]) -> None:
        super().__init__(width, {})
        for name, count in stacks.items():
            self.stacks[name] = nn.ModuleList(
                nn.Sequential(nn.Linear(width, width, bias=False), nn.Flatten(0, 1), nn.BatchNorm1d(width), nn.Unflatten(0, (2, 4)))
                for _ in range(count)
            )


def test_averaged_weights_are_judged_beside_averaged_statistics() -> None:
    """Twelve steps of AdamW and of the two averages in plain torch, from the weights that the run begins with."""
    held = {"batches": 3, "every": "100%", "sources": {"held": [{"tokens": each["tokens"].flip(1)} for each in BATCHES]}}
    machine = assembled(
        Built(Normed, width=4, stacks=[{"base": 2}]),
        12,
        optimizer={"use": "optim.adamw", "lr": 3e-2, "weight_decay": 0.0, "beta2": 0.999, "ema": {"decay": 0.7}},
        evaluate={"live": held, "average": {**held, "weights": "ema"}},
    )
    judged: dict[str, float] = {}
    plain = averaged = nn.Module()
    for event in machine.train():
        if isinstance(event, PhaseEntered):
            plain, averaged = deepcopy(machine.model.model), deepcopy(machine.model.model)
        if isinstance(event, Evaluated):
            judged[event.name] = event.metrics["loss"]
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-2, betas=(0.9, 0.999), weight_decay=0.0)
    for step in range(12):
        optimizer.zero_grad()
        mean_nats(plain.train(), [BATCHES[step % 4]]).backward()
        optimizer.step()
        for average, live in zip(averaged.state_dict().values(), plain.state_dict().values(), strict=True):
            average.copy_(0.7 * average + 0.3 * live)
    beside_live = deepcopy(averaged)
    beside_live.load_state_dict(dict(plain.named_buffers()), strict=False)
    batches = held["sources"]["held"][:3]
    live, average, mixed = (float(mean_nats(model.eval(), batches).detach()) for model in (plain, averaged, beside_live))
    assert judged == {"live": pytest.approx(live, rel=1e-5), "average": pytest.approx(average, rel=1e-5)}
    assert abs(mixed - average) > 1e-3  # what averaged weights beside live statistics would come to
