"""Processes that each hold a part of the model train what one process trains, and anything goes on from what they save."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import Ended, ForkServer
from hypothesis import given
from hypothesis.strategies import SearchStrategy
from random_curricula import walks
from safetensors.torch import load_file
from several import ENTER, MOMENTS, SHORT, STEP, Place, apart, dies, evaluations_of, steps_of
from shared_curricula import DIVIDING, IN_EACH, LINEAR, Trained, curricula, farthest, train, wobbled
from shared_curricula import apart as distance
from whole_runs import saved_steps, status

from stackwise.storage.checkpoints.store import CheckpointStore, verify

HALVES = ("--set", "run.parallel.shard=2")
AVERAGED = SHORT.replace("clip: 0.5}", "clip: 0.5, ema: {decay: 0.9}}")
BY_MUON = SHORT.replace("{use: optim.adamw, lr: 1e-2, clip: 0.5}", "{use: optim.muon, lr: 1e-2}")


def start(server: ForkServer, folder: Path, *more: str, config: str = AVERAGED, ranks: int = 2, patch: str = "") -> list[Ended]:
    folder.mkdir(exist_ok=True)
    (folder / "exp.yaml").write_text(config)
    return server.together("run", "exp.yaml", "--output", "run", *HALVES, *more, cwd=folder, ranks=ranks, patch=patch)


@pytest.fixture(scope="module")
def alone(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "exp.yaml").write_text(AVERAGED)
    assert server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder).code == 0
    return folder / "run"


def state(run: Path) -> dict[str, Any]:
    newest, skipped = CheckpointStore(run / "checkpoints").newest()
    assert newest is not None and not skipped
    return {**newest.load_state(), "observers": None}


def equal_but_for_sums(run: Path, other: Path) -> None:
    assert len(steps_of(run)) == len(steps_of(other)) == status(run)["steps"]
    for place, rounding in ((0, 1e-6), (1, 1e-4)):  # losses, gradient norms
        assert [step[place] for step in steps_of(run)] == pytest.approx([step[place] for step in steps_of(other)], rel=rounding)
    assert evaluations_of(run)[0] == evaluations_of(other)[0]  # of the same weights: batches are added in their order, to the bit
    assert evaluations_of(run) == pytest.approx(evaluations_of(other), rel=1e-6)
    assert apart(state(run), state(other)) == []
    for final in ("final", "final-ema"):
        assert apart(load_file(run / final / "weights.safetensors"), load_file(other / final / "weights.safetensors")) == []


NOTED = """\
import json
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.planes.shards import own
step = OptimizerPlane.step
def noted(plane, t):
    step(plane, t)
    moments = [each for entries in plane.state_by_name().values() for each in entries.values() if hasattr(each, 'shape') and each.shape]
    gradients = [p.grad for p in plane.parameters if p.grad is not None]
    held = [sum(own(each.detach()).nbytes for each in kind) for kind in (plane.parameters, gradients, moments)]
    open('held-' + os.environ.get('RANK', 'alone'), 'w').write(json.dumps(held))
OptimizerPlane.step = noted
"""


@pytest.fixture(scope="module")
def halves(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short run in two processes that each hold a half, and what they held of what they trained when the last step was done."""
    folder = tmp_path_factory.mktemp("halves")
    ended = start(server, folder, patch=NOTED)
    assert [each.code for each in ended] == [0, 0], ended
    assert ended[1].err == ended[1].out == ""
    return folder / "run"


def test_two_halves_train_as_one_and_hold_a_half_each(alone: Path, halves: Path) -> None:
    equal_but_for_sums(halves, alone)
    whole = sum(tensor.nbytes for tensor in load_file(alone / "final" / "weights.safetensors").values())  # all of it is trained at the end
    for rank in "01":
        assert json.loads((halves.parent / f"held-{rank}").read_text()) == [whole // 2, whole // 2, 2 * whole // 2]  # two moments
    for checkpoint in sorted((halves / "checkpoints").iterdir()):
        assert verify(checkpoint) == []
        ours, theirs = (
            load_file(folder / checkpoint.name / "tensors.safetensors") for folder in (checkpoint.parent, alone / "checkpoints")
        )
        assert {name: tensor.shape for name, tensor in ours.items()} == {name: tensor.shape for name, tensor in theirs.items()}


def test_one_process_evaluates_generates_and_exports_what_two_halves_left(server: ForkServer, alone: Path, halves: Path) -> None:
    folder = halves.parent
    told = [server.stackwise("evaluate", str(run), "--json", cwd=folder) for run in (halves, alone)]
    assert [each.code for each in told] == [0, 0], told
    (ours,), (theirs,) = (json.loads(each.out) for each in told)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    said = [server.stackwise("generate", str(run), "--ids", "--prompt", "1 2", "--tokens", "4", cwd=folder) for run in (halves, alone)]
    assert said[0].code == 0 and said[0].out == said[1].out and len(said[0].out.split()) == 6, said
    for step in ((), ("--step", "9")):
        exported = [server.stackwise("export", str(run), f"{run.parent.name}{len(step)}", *step, cwd=folder) for run in (halves, alone)]
        assert [each.code for each in exported] == [0, 0], exported
        ours, theirs = (load_file(folder / f"{run.parent.name}{len(step)}" / "weights.safetensors") for run in (halves, alone))
        assert apart(ours, theirs) == []


@pytest.mark.slow
def test_two_halves_branch_as_one_does(server: ForkServer, halves: Path) -> None:
    folder, change = halves.parent, ("--set", "phases.two.optimizer.lr=2e-2")
    one = server.stackwise("branch", "run", "--at", "step 6", "--output", "by-one", *change, "--set", "run.parallel.shard=1", cwd=folder)
    two = server.together("branch", "run", "--at", "50%", "--output", "by-two", *change, cwd=folder, ranks=2)
    assert [one.code, *(each.code for each in two)] == [0, 0, 0], (one, two)
    equal_but_for_sums(folder / "by-two", folder / "by-one")
    assert status(folder / "by-two")["parent"] == status(folder / "by-one")["parent"]
    assert steps_of(folder / "by-two")[:6] == steps_of(halves)[:6] and steps_of(folder / "by-two")[7] != steps_of(halves)[7]


TERM_AT_7 = {7: ["TERM"]}


def test_what_two_halves_saved_goes_on_in_one_process_and_the_other_way_round(server: ForkServer, alone: Path, tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text(AVERAGED)
    run = ("run", "exp.yaml", "--output", "run", *HALVES)
    assert {each.code for each in server.together(*run, cwd=tmp_path, ranks=2, signals={2: ["TERM"]})} == {143}
    assert saved_steps(tmp_path / "run")[-1] < 5
    one = server.stackwise("resume", "run", "--set", "run.parallel.shard=1", cwd=tmp_path, signals=TERM_AT_7)
    assert one.code == 143, one
    more = server.together("resume", "run", "--set", "run.parallel.shard=2", cwd=tmp_path, ranks=2)
    assert [each.code for each in more] == [0, 0], more
    equal_but_for_sums(tmp_path / "run", alone)


@pytest.mark.slow
def test_four_processes_hold_two_halves_twice(server: ForkServer, alone: Path, tmp_path: Path) -> None:
    ended = start(server, tmp_path, "--set", "run.parallel.replicate=2", ranks=4)
    assert [each.code for each in ended] == [0, 0, 0, 0], ended
    equal_but_for_sums(tmp_path / "run", alone)


@pytest.mark.slow
def test_four_quarters_hold_fewer_rows_than_processes(server: ForkServer, alone: Path, tmp_path: Path) -> None:
    """Vectors of 8 and matrices of 8 rows in 4 parts; adapters of rank 2 would leave two processes nothing."""
    ended = start(server, tmp_path, "--set", "run.parallel.shard=4", ranks=4)
    assert [each.code for each in ended] == [0, 0, 0, 0], ended
    equal_but_for_sums(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_halves_that_compute_blocks_again_train_alike(server: ForkServer, alone: Path, tmp_path: Path) -> None:
    ended = start(server, tmp_path, "--set", "run.parallel.recompute=blocks")
    assert [each.code for each in ended] == [0, 0], ended
    equal_but_for_sums(tmp_path / "run", alone)


WIDENED = AVERAGED.replace("rack: {stacks: [{base: 2}]}}", "rack: {width: 16, heads: 4}}").replace(
    "transformer.stack}", "transformer.widen}"
)
NOTES_WHOLE_ONES = """\
import json, weakref
import stackwise.planes.model.parameter_map as maps
whole, alive, most = maps.whole, [], []
def noted(tensor):
    made = whole(tensor)
    if hasattr(tensor, 'full_tensor'):
        alive[:] = [*(each for each in alive if each() is not None), weakref.ref(made)]
        most.append([len(alive), sum(each().nbytes for each in alive)])
        open('whole-' + os.environ['RANK'], 'w').write(json.dumps(most))
    return made
maps.whole = noted
"""


def test_a_boundary_makes_one_parameter_whole_at_a_time(server: ForkServer, tmp_path: Path) -> None:
    """Beside its source; of weights, moments and averages alike."""
    ended = start(server, tmp_path, config=WIDENED, patch=NOTES_WHOLE_ONES)
    assert [each.code for each in ended] == [0, 0], ended
    final = load_file(tmp_path / "run" / "final" / "weights.safetensors")
    made = json.loads((tmp_path / "whole-1").read_text())
    assert len(made) >= 2 * 3 * len(final)  # each with its source; the weight, its two moments or its average
    assert max(count for count, _ in made) == 2
    assert max(held for _, held in made) <= 2 * max(tensor.nbytes for tensor in final.values())


DIES_AT_THE_SECOND_SAVE = """\
if os.environ['RANK'] == '{rank}':
    from stackwise.storage import disk
    write, calls = disk.write_pieces, []
    def write_or_die(*given):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), 9)
        return write(*given)
    disk.write_pieces = write_or_die
"""


IN_THREADS = ("--set", "run.checkpoint.asynchronous=true")
RARELY = [pytest.param(*case, marks=pytest.mark.rare) for case in ((0, ()), (1, ()), (0, IN_THREADS))]


@pytest.mark.parametrize(("rank", "how"), [*RARELY, (1, IN_THREADS)])
def test_a_process_killed_in_a_save_leaves_the_checkpoint_before_it(
    server: ForkServer, alone: Path, tmp_path: Path, rank: int, how: tuple[str, ...]
) -> None:
    ended = start(server, tmp_path, *how, patch=DIES_AT_THE_SECOND_SAVE.format(rank=rank))
    assert (ended[rank].code, ended[1 - rank].code) == (-9, 137), ended
    assert f"rank {rank}" in ended[1 - rank].err.splitlines()[-1], ended
    assert saved_steps(tmp_path / "run") == [3]
    assert [each.code for each in server.together("resume", "run", cwd=tmp_path, ranks=2)] == [0, 0]
    equal_but_for_sums(tmp_path / "run", alone)
    assert all(verify(checkpoint) == [] for checkpoint in (tmp_path / "run" / "checkpoints").iterdir())


WAITS_FOR_STEPS = """\
import time
from stackwise.machine.step import Step
from stackwise.storage import disk
write, run = disk.write_pieces, Step.run
def write_later(*given):
    while not os.path.exists('go-' + os.environ['RANK']):
        time.sleep(0.01)
    return write(*given)
def run_and_let(step, batches, moment):
    if moment.step == 5:
        open('go-' + os.environ['RANK'], 'w').close()
    return run(step, batches, moment)
disk.write_pieces, Step.run = write_later, run_and_let
"""


def test_processes_train_on_while_threads_write_their_parts(server: ForkServer, alone: Path, tmp_path: Path) -> None:
    """The state before step 3 is written once step 5 has begun, and is what one process saved of it."""
    ended = start(server, tmp_path, *IN_THREADS, patch=WAITS_FOR_STEPS)
    assert [each.code for each in ended] == [0, 0], ended
    ours, theirs = (CheckpointStore(run / "checkpoints").at(3).load_state() for run in (tmp_path / "run", alone))
    assert apart({**ours, "observers": None}, {**theirs, "observers": None}) == []


WRITE = Place("stackwise.runs.several", "StoreBeside", "save")
ANYWHERE = [
    (3, STEP, 8, 7, "1"),
    (0, STEP, 12, 11, "2"),
    (1, ENTER, 2, 6, "4"),
    (2, MOMENTS, 2, 6, "1"),
    (3, WRITE, 2, 6, "2"),
]
"""Which of four processes dies where and when, the step after which that is, and in how many parts and processes the run goes on."""


HANGS = [
    (MOMENTS, 2, AVERAGED, "in the boundary into phase 'two'"),
    *(
        pytest.param(*case, marks=pytest.mark.rare)
        for case in (
            (Place("stackwise.planes.objective", "Objective", "loss"), 3, AVERAGED, "(run.parallel.patience)"),
            (Place("stackwise.planes.optimizer.plane", "OptimizerPlane", "step"), 3, BY_MUON, "(run.parallel.patience)"),
            (WRITE, 3, AVERAGED, "while the first process saves a checkpoint"),
        )
    ),
]
"""Where a process hangs, in which call, and how the sentence that names it ends."""


@pytest.mark.parametrize(("where", "call", "config", "words"), HANGS)
def test_a_process_that_hangs_is_named_with_the_place_where_the_others_wait(
    server: ForkServer, tmp_path: Path, where: Place, call: int, config: str, words: str
) -> None:
    """In a boundary, and in a step of Muon, the other one waits inside of an exchange of torch's for what it gathers; in a backward pass
    for gradients, in a save for the file to be whole."""
    patient = "import stackwise.processes.watch as w; w.MOST_BUSY = 1\n"
    hangs = dies(1, where, call).replace("os.kill(os.getpid(), 9)", "__import__('time').sleep(20)")
    ended = start(server, tmp_path, "--set", "run.parallel.patience=2s", config=config, patch=patient + hangs)
    assert [each.code for each in ended] == [137, 137], ended
    assert ended[0].err.splitlines()[-1].endswith(words), ended
    assert f"rank 1 on {platform.node()} has not come" in ended[0].err.splitlines()[-1]


@pytest.mark.rare
@pytest.mark.parametrize(("rank", "where", "call", "step", "left"), ANYWHERE)
def test_two_copies_in_halves_lose_any_process_anywhere_and_go_on_in_one_two_or_four(
    server: ForkServer, alone: Path, tmp_path: Path, rank: int, where: Place, call: int, step: int, left: str
) -> None:
    ended = start(server, tmp_path, "--set", "run.parallel.replicate=2", ranks=4, patch=dies(rank, where, call))
    assert [each.code for each in ended] == [-9 if index == rank else 137 for index in range(4)], ended
    said = "".join(each.err for each in ended)
    assert f"rank {rank} on" in said and not any(f"rank {other} on" in said for other in range(4) if other != rank), said
    logged = len(steps_of(tmp_path / "run"))
    assert logged == step or (rank == 0 and saved_steps(tmp_path / "run")[-1] <= logged < step)  # it had yet to write the last lines
    settings = ("--set", f"run.parallel={{shard: {left}, replicate: 1}}")
    more = server.together("resume", "run", *settings, cwd=tmp_path, ranks=int(left)) if left != "1" else None
    ends = more if more is not None else [server.stackwise("resume", "run", *settings, cwd=tmp_path)]
    assert {each.code for each in ends} == {0}, ends
    equal_but_for_sums(tmp_path / "run", alone)


FULL_AT_THE_SECOND_SAVE = DIES_AT_THE_SECOND_SAVE.replace("os.kill(os.getpid(), 9)", "raise OSError(28, 'No space left on device')")


@pytest.mark.parametrize("how", [(), IN_THREADS])
def test_a_disk_that_is_full_for_one_ends_all_and_leaves_what_was_saved(server: ForkServer, tmp_path: Path, how: tuple[str, ...]) -> None:
    ended = start(server, tmp_path, *how, patch=FULL_AT_THE_SECOND_SAVE.format(rank=1))
    assert [each.code for each in ended] == [2, 2], ended
    assert "No space left" in ended[0].err + ended[1].err
    assert saved_steps(tmp_path / "run") == [3]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-000000003"}


def of_many(server: ForkServer, folder: Path, ranks: int, *configs: dict[str, Any]) -> list[Trained]:
    """What each config comes to in several processes."""
    torch.save(list(configs), folder / "configs.pt")
    (folder / "found.pt").unlink(missing_ok=True)
    ended = server.together("--version", cwd=folder, ranks=ranks, patch=IN_EACH)
    assert [each.code for each in ended] == [0] * ranks, [each.err for each in ended]
    found: list[Trained] = torch.load(folder / "found.pt", weights_only=False)
    return found


def hold(found: Trained, expected: Trained, moved: Trained) -> None:
    """The same rows and masks; losses, parameters, averages and moments to 1e-6, or ten times as far as `wobbled` comes from one process.

    Unfreezing or growth that a process does not see is 0.02 and more.
    """
    assert isinstance(found, Trained), found
    assert found.seen == expected.seen and len(found.seen) >= 2 * len(found.losses)
    for kind in ("losses", "evaluations"):
        own, other, theirs = (getattr(each, kind) for each in (found, moved, expected))
        most = 10 * max((abs(a - b) for a, b in zip(other, theirs, strict=True)), default=0.0)
        assert own == pytest.approx(theirs, rel=1e-6, abs=most), kind
    for kind, least in (("parameters", 1e-6), ("averages", 1e-6), ("moments", 1e-5)):
        one, other, own = (getattr(each, kind) for each in (expected, moved, found))
        bound = 10 * distance(one, other)
        assert bound < 1e-2, f"{kind}: this curriculum says nothing"
        assert distance(one, own) <= max(least, bound), kind
        assert farthest(one, own) < 1e-2, kind


def divided(config: dict[str, Any], **parallel: int) -> dict[str, Any]:
    return {**config, "run": {**config["run"], "parallel": parallel}}


def drawn(count: int, strategy: SearchStrategy[dict[str, Any]]) -> list[dict[str, Any]]:
    """So many configs; all of them are trained by one start of the processes."""
    configs: list[dict[str, Any]] = []

    @walks(count)
    @given(strategy)
    def collect(config: dict[str, Any]) -> None:
        configs.append(config)

    collect()
    return configs


def hold_all(server: ForkServer, folder: Path, ranks: int, configs: list[dict[str, Any]], shards: Sequence[int]) -> None:
    """Train every config in several processes, whole and in each number of parts, and in one."""
    found = of_many(server, folder, ranks, *(divided(config, shard=shard) for config in configs for shard in shards))
    for index, config in enumerate(configs):
        expected, moved = train(config), wobbled(config)
        for each in found[index * len(shards) : (index + 1) * len(shards)]:
            hold(each, expected, moved)


@pytest.mark.slow
def test_random_curricula_come_to_the_same_whole_and_in_halves(server: ForkServer, tmp_path: Path) -> None:
    hold_all(server, tmp_path, 2, drawn(4, curricula(2, LINEAR)), (1, 2))


@pytest.mark.rare
def test_random_curricula_come_to_the_same_in_four(server: ForkServer, tmp_path: Path) -> None:
    """Whole models, two copies in halves each, and quarters; with optimizers that divide by second moments too."""
    hold_all(server, tmp_path, 4, drawn(8, curricula(4, (*LINEAR, *DIVIDING))), (1, 2, 4))


REFUSED = {
    "model.cache": ["model.cache=frozen", "model.freeze=[embedding, rack.stacks.base.0]"],
    "model.precision": ["model.precision={rack: bfloat16}"],
    "optimizer.use": ["optimizer={use: optim.adafactor}"],
    "data.accumulate": ["data.accumulate=3"],
    "run.compile": ["run.compile=true"],
    "run.parallel.offload": ["run.parallel.offload=true"],
    "run.parallel.tensor": ["run.parallel.tensor=2"],
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_no_part_of_a_model_can_do_is_refused_by_the_plan(server: ForkServer, tmp_path: Path, path: str) -> None:
    (tmp_path / "exp.yaml").write_text(SHORT)
    settings = [argument for setting in REFUSED[path] for argument in ("--set", setting)]
    ended = server.stackwise("validate", "exp.yaml", *HALVES, *settings, cwd=tmp_path)
    assert ended.code == 2 and path in ended.err, ended
    assert "run.parallel.shard" in ended.err


def test_processes_that_are_no_multiple_of_the_parts_are_refused(server: ForkServer, tmp_path: Path) -> None:
    ended = start(server, tmp_path, "--set", "data.accumulate=6", ranks=3)
    assert [each.code for each in ended] == [2, 2, 2] and not (tmp_path / "run").exists()
    assert "multiple of 2" in "".join(each.err for each in ended)


TAKEN_OFF = """
import torch
from torch import nn
from stackwise.errors import UserError
from stackwise.processes.ranks import joined
from stackwise.processes.sharding import Sharding

def face(model):
    return [(path, type(module), sorted(module.__dict__), hooks(module)) for path, module in model.named_modules()]

def hooks(module):
    return {name: dict(held) for name, held in module.__dict__.items() if name.endswith("hooks") and held is not None}

with joined() as ranks:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[1].register_forward_hook(lambda *given: None)
    before, output = face(model), model(torch.ones(2, 3))
    sharding = Sharding(ranks, 2, torch.device("cpu"))
    sharding.lay_all(model)
    parts = list(model.parameters())
    assert [part.to_local().shape[0] for part in parts] == [[3, 3, 1, 1], [2, 2, 1, 1]][ranks.place.rank]
    for _ in range(2):
        sharding.wrap(model)
        wrapped = model(torch.ones(2, 3))
        assert torch.equal(wrapped, output)
        wrapped.sum().backward()
        assert all(part.grad is not None for part in parts)
        sharding.unwrap(model)
        assert face(model) == before, [(a, b) for a, b in zip(face(model), before) if a != b]
        assert all(now is part for now, part in zip(model.parameters(), parts, strict=True))
    if ranks.is_first:
        open("held", "w").write("yes")
"""


def test_what_is_laid_around_a_model_comes_off_without_a_trace(server: ForkServer, tmp_path: Path) -> None:
    ended = server.together("--version", cwd=tmp_path, ranks=2, patch=TAKEN_OFF)
    assert [each.code for each in ended] == [0, 0] and (tmp_path / "held").exists(), ended


def test_the_plan_prices_a_part(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text(SHORT)
    shared = ("--set", "run.parallel={shard: 2, replicate: 2}")
    planned = json.loads(server.stackwise("plan", "exp.yaml", "--json", *shared, cwd=tmp_path).out)
    two, cost = planned["phases"][1], planned["parallel"]["phases"]["two"]
    assert cost["bytes_a_process"] == (8 * two["parameters"] + two["optimizer_state_bytes"]) // 2
    assert planned["parallel"]["whole_bytes_at_the_start"] == 4 * two["parameters"]
    said = server.stackwise("plan", "exp.yaml", *shared, cwd=tmp_path).out
    assert "run.parallel.tensor" in said and "run.parallel.offload" in said


def test_halves_start_from_weights_and_compare_with_a_model_from_outside(server: ForkServer, alone: Path, tmp_path: Path) -> None:
    """What a run left begins another one, and stands beside it as what it compares with."""
    chosen, rejected = ([[(i * k + k) % 7 for k in range(4)] for i in range(1, 41)] for _ in range(2))
    pairs = f"{{use: data.memory, arrays: {{chosen: {chosen}, rejected: {rejected[::-1]}, prefix: {[2] * 40}}}}}"
    run = (
        SHORT[SHORT.index("model:") :]
        .replace("freeze: [embedding]", f"start: {{from: {alone / 'final'}}}")
        .replace("stacks: [{base: 1}]", "stacks: [{base: 2}]")
    )
    config = (
        "run: {name: preferring, horizon: 4 steps, seed: 3, device: cpu, probe: false}\n"
        f"task: {{use: transformer.preference, reference: {{from: {alone / 'final'}}}}}\n"
        f"data: {{sources: {{p: {pairs}}}, batch_size: 2, accumulate: 2, seq_len: 3}}\n"
        + run[: run.index("evaluate:")]
        + "optimizer: {use: optim.sgd, lr: 0.05}\n"
    )
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    (one / "exp.yaml").write_text(config)
    ended = server.stackwise("run", "exp.yaml", "--output", "run", cwd=one)
    assert ended.code == 0, ended.err
    both = start(server, two, config=config)
    assert [each.code for each in both] == [0, 0], both
    assert [step[0] for step in steps_of(two / "run")] == pytest.approx([step[0] for step in steps_of(one / "run")], rel=1e-6)
    assert apart(state(two / "run"), state(one / "run")) == []
