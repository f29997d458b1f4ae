"""Several processes train what one trains, and end together, with the words of the one at fault."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest
import yaml
from curriculum_of_everything import CONFIG
from fork_server import Ended, ForkServer
from several import ENTER, EVERYTHING, SAVE, SHORT, STEP, Place, apart, dies, evaluations_of, steps_of
from whole_runs import lines, saved_steps, status

from stackwise.storage.checkpoints.store import CheckpointStore

ON_RANK_1 = "if os.environ.get('RANK') == '1':\n"
KILLED_AT_STEP = """\
    from stackwise.machine.step import Step
    run = Step.run
    def run_or_die(step, batches, moment):
        if moment.step == {step}:
            os.kill(os.getpid(), {signal})
        return run(step, batches, moment)
    Step.run = run_or_die
"""


def state(run: Path) -> dict[str, object]:
    newest, skipped = CheckpointStore(run / "checkpoints").newest()
    assert newest is not None and not skipped
    return {**newest.load_state(), "observers": None}  # which add up losses


def write(folder: Path, config: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "exp.yaml").write_text(config)


def start(server: ForkServer, folder: Path, *more: str, config: str = SHORT, ranks: int = 2, patch: str = "") -> list[Ended]:
    write(folder, config)
    return server.together("run", "exp.yaml", "--output", "run", *more, cwd=folder, ranks=ranks, patch=patch)


@pytest.fixture(scope="module")
def alone(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    write(folder, SHORT)
    assert server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder).code == 0
    return folder / "run"


def equal_but_for_sums(run: Path, other: Path) -> None:
    assert len(steps_of(run)) == len(steps_of(other)) == status(run)["steps"]
    for place, rounding in ((0, 1e-6), (1, 1e-4)):  # losses, gradient norms
        assert [step[place] for step in steps_of(run)] == pytest.approx([step[place] for step in steps_of(other)], rel=rounding)
    assert evaluations_of(run)[0] == evaluations_of(other)[0]  # of the same weights: batches are added in their order, to the bit
    assert evaluations_of(run) == pytest.approx(evaluations_of(other), rel=1e-6)
    assert apart(state(run), state(other)) == []


def test_two_processes_train_a_curriculum_of_everything_as_one_does(server: ForkServer, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, EVERYTHING)
    assert server.stackwise("run", "exp.yaml", "--output", "run", cwd=one).code == 0
    ended = start(server, two, config=EVERYTHING)
    assert [each.code for each in ended] == [0, 0] and ended[1].err == ended[1].out == ""
    equal_but_for_sums(two / "run", one / "run")
    heard = [(folder / "tally.txt").read_text().split()[0] for folder in (one, two)]
    assert heard[0] == heard[1]  # events: an observer is in one process alone


def test_a_killed_process_ends_all_and_any_number_goes_on(server: ForkServer, alone: Path, tmp_path: Path) -> None:
    ended = start(server, tmp_path, patch=ON_RANK_1 + KILLED_AT_STEP.format(step=7, signal="9"))
    assert [each.code for each in ended] == [137, -9]
    assert "rank 1" in ended[0].err.splitlines()[-1] and "Traceback" not in ended[0].err
    assert saved_steps(tmp_path / "run") == [3, 6]
    assert server.stackwise("resume", "run", cwd=tmp_path, signals={9: ["TERM"]}).code == 143
    assert [each.code for each in server.together("resume", "run", cwd=tmp_path, ranks=3)] == [0, 0, 0]
    equal_but_for_sums(tmp_path / "run", alone)


def test_several_processes_agree_on_a_time(server: ForkServer, tmp_path: Path) -> None:
    timed = SHORT.replace("12 steps", "1 second").replace("until: 50%", "until: 40% of seconds")
    timed = timed.replace("every: 3 steps", "every: 100%").replace("every: 4 steps, ", "")
    assert [each.code for each in start(server, tmp_path, config=timed)] == [0, 0]
    assert set(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]["step_seconds"]) == {"one", "two"}
    assert status(tmp_path / "run")["status"] == "finished"


def test_a_signal_to_any_process_stops_all_behind_one_step(server: ForkServer, tmp_path: Path) -> None:
    ended = start(server, tmp_path, patch=ON_RANK_1 + KILLED_AT_STEP.format(step=4, signal=int(signal.SIGTERM)))
    assert [each.code for each in ended] == [143, 143]
    assert "SIGTERM" in ended[0].err and ended[1].err == ""
    assert (status(tmp_path / "run")["steps"], saved_steps(tmp_path / "run")[-1]) == (5, 5)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ("RuntimeError('a fault of rank 1')", 1, "a fault of rank 1"),
        ("RuntimeError('[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can\\'t allocate memory')", 2, "memory"),
    ],
)
def test_the_process_at_fault_says_why_and_the_others_nothing(
    server: ForkServer, tmp_path: Path, error: str, code: int, words: str
) -> None:
    fault = f"    from stackwise.machine.step import Step\n    def fail(*given): raise {error}\n    Step._run = fail\n"
    ended = start(server, tmp_path, patch=ON_RANK_1 + fault)
    assert [each.code for each in ended] == [code, code], ended
    assert "rank 1 of 2" in ended[1].err and words in ended[1].err
    assert "error" not in ended[0].err and "bug" not in ended[0].err and not (tmp_path / "run" / "final").exists()


GOES_ITS_OWN_WAY = """\
    from stackwise.planes.model.plane import ModelPlane
    enter = ModelPlane.enter
    def enter_a_little_beside(plane, state, boundary, **named):
        receipt = enter(plane, state, boundary, **named)
        if boundary.step:
            plane.model.get_parameter('head.weight').data.view(-1)[0] *= 1 + 2**-23
        return receipt
    ModelPlane.enter = enter_a_little_beside
"""


def test_a_boundary_that_leaves_one_bit_different_is_refused_by_name(server: ForkServer, tmp_path: Path) -> None:
    ended = start(server, tmp_path, patch=ON_RANK_1 + GOES_ITS_OWN_WAY)
    assert [each.code for each in ended] == [2, 2], ended
    said = f"rank 1 on {platform.node()} has another model: "
    assert said in ended[0].err and "weight than rank 0" in ended[0].err and "after the boundary into phase 'two'" in ended[0].err, ended


READS_FILES = SHORT.replace("horizon: 12 steps", "horizon: 2 epochs of a").replace("vocab: 8", "vocab: 256")
READS_FILES = READS_FILES.replace(READS_FILES[(at := READS_FILES.index("{use: data.memory")) : READS_FILES.index("\n", at)], "SOURCE}")
READS_FILES = READS_FILES.replace("SOURCE", "{use: data.text-files, paths: [notes.txt], heldout: 0.3}")
HEARD = SHORT + "observers: [{use: remembering.tally, path: tally.txt}]\n"
ELSEWHERE = "    os.chdir('other')\n"
ANOTHER_PROVIDER = """\
    import shutil, sys
    place = next(i for i, path in enumerate(sys.path) if os.path.isfile(path + '/fake_remembering.py'))
    shutil.copytree(sys.path[place], 'copy')
    open('copy/fake_remembering.py', 'a').write('# one line more')
    sys.path[place] = os.path.abspath('copy')
"""
ANOTHER_PLAN = """\
    import attrs
    import stackwise.runs.run as runs
    plan = runs.make_plan
    def planned(*given, **named):
        made = plan(*given, **named)
        return attrs.evolve(made, schedule=attrs.evolve(made.schedule, save_at=(5,)))
    runs.make_plan = planned
"""
DIFFERS: dict[str, tuple[str, str, str]] = {
    "config at optimizer": (SHORT, SHORT.replace("lr: 1e-2", "lr: 2e-2"), ELSEWHERE),
    "config at run": (SHORT, SHORT.replace("probe: false", "probe: false, parallel: {shard: 2}"), ELSEWHERE),
    "source 'a'": (READS_FILES, READS_FILES, ELSEWHERE),
    "version of torch": (SHORT, SHORT, "    import torch; torch.__version__ = '2.13.1'\n"),
    "provider 'remembering'": (HEARD, HEARD, ANOTHER_PROVIDER),
    "plan": (SHORT, SHORT, ANOTHER_PLAN),
}
"""What differs → the config, that of rank 1, and what makes rank 1 another one. Processes that divide a model meet while it is built."""


@pytest.mark.parametrize("item", DIFFERS)
def test_what_differs_on_one_process_is_refused_with_rank_host_and_item(server: ForkServer, tmp_path: Path, item: str) -> None:
    config, other, patch = DIFFERS[item]
    write(tmp_path / "other", other)
    for folder, count in ((tmp_path, 40), (tmp_path / "other", 50)):
        (folder / "notes.txt").write_text("a rack of stacks. " * count)
    ended = start(server, tmp_path, "--output", str(tmp_path / "run"), config=config, patch=ON_RANK_1 + patch)
    assert [each.code for each in ended] == [2, 2] and not (tmp_path / "run").exists(), ended
    assert f"rank 1 on {platform.node()} has another {item} than rank 0" in ended[0].err and ended[1].err == ""


REFUSED = {
    "declared": (["--set", "run.parallel.replicate=3"], 2, "run.parallel.replicate is 3"),
    "idle": (["--set", "data.accumulate=1"], 2, "data.accumulate"),
    "odd": (["--set", "run.parallel.shard=3"], 2, "multiple of 3"),
    "offloaded": (["--set", "run.parallel.offload=true"], 2, "run.parallel.offload"),
    "forward": (["--ranks", "2"], 2, "under torchrun"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shared_out_is_refused_before_anything_is_written(server: ForkServer, tmp_path: Path, case: str) -> None:
    more, code, words = REFUSED[case]
    ended = start(server, tmp_path, *more)
    assert [each.code for each in ended] == [code, code] and not (tmp_path / "run").exists()
    assert words in ended[0].err + ended[1].err


def test_processes_that_do_not_meet_say_where_they_were_to(server: ForkServer, tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for place, words in (({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, port), ({}, "MASTER_ADDR (not set)")):
            ended = server.stackwise("run", "exp.yaml", cwd=tmp_path, environment={"RANK": "0", "WORLD_SIZE": "2", **place})
            assert ended.code == 2 and words in ended.err and "rank 0 of 2" in ended.err, ended


KEEPS_A_STATE = """
import random, torch
from torch import nn
from stackwise import PhaseSchedule, TaskSpec, UserError
from stackwise.machine.machine import TrainingMachine
from stackwise.machine.settings import Settings
from stackwise.processes.ranks import joined

class Squares:
    def get_spec(self): return TaskSpec(batch={}, inputs={}, outputs={})
    def prepare(self, batch, moment, generator): return batch
    def loss(self, outputs, batch): return outputs.square().sum(), len(outputs), {}

class Stateful(Squares):
    def state_dict(self): return {"seen": 1}
    def load_state_dict(self, state): pass

class Net(nn.Module):
    def __init__(self, inner, draws=False):
        super().__init__()
        self.inner, self.last, self.draws = inner, nn.Linear(3, 1), draws
    def forward(self, batch):
        return self.last(self.inner(batch["x"])) * (random.random() if self.draws else 1.0)

def refusal(ranks, net, task):
    torch.manual_seed(0)
    batches = [{"x": torch.randn(4, 3)} for _ in range(3)]
    for part in net.parameters():
        part.data.fill_(0.3)
    machine = TrainingMachine(model=net, data=batches, task=task, optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        schedule=PhaseSchedule.single(steps=3), settings=Settings(ranks=ranks))
    try:
        list(machine.train())
    except UserError as error:
        return str(error)
    return "trained"

with joined() as ranks:
    found = [refusal(ranks, net, task) for net, task in (
        (Net(nn.LayerNorm(3)), Squares()), (Net(nn.BatchNorm1d(3)), Squares()), (Net(nn.Identity()), Stateful()))]
    all_of_them = ranks.gather(found)
    if ranks.is_first:
        open("found.txt", "w").write(repr(all_of_them))
    print(refusal(ranks, Net(nn.Identity(), draws=True), Squares()))  # found where the batch is; the others end with it
"""


def test_what_keeps_a_state_of_the_rows_it_saw_is_refused_by_name(server: ForkServer, tmp_path: Path) -> None:
    ended = server.together("--version", cwd=tmp_path, ranks=2, patch=KEEPS_A_STATE)
    assert "Python's own generator" in ended[0].out
    for plain, statistics, task in literal_eval((tmp_path / "found.txt").read_text()):
        assert plain == "trained"
        assert "rank 1" in statistics and "running_mean" in statistics and "step 0" in statistics
        assert "Stateful" in task


def test_parts_that_keep_a_state_are_found_before_the_first_step(server: ForkServer, tmp_path: Path) -> None:
    ended = start(server, tmp_path, config=CONFIG)
    assert [each.code for each in ended] == [2, 2] and not (tmp_path / "run").exists()
    words = ended[0].err + ended[1].err
    assert "phases.thawed" in words and "Backwards" in words and "data.transforms" in words and "Shift" in words
    planned = server.stackwise("plan", "exp.yaml", "--set", "run.parallel.replicate=2", cwd=tmp_path)
    assert planned.code == 2 and "Backwards" in planned.err


def test_one_process_is_held_to_the_declared_number(server: ForkServer, tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    ended = server.stackwise("run", "exp.yaml", "--output", "run", "--set", "run.parallel.replicate=2", cwd=tmp_path)
    assert ended.code == 2 and "--ranks 2" in ended.err and not (tmp_path / "run").exists()


def test_the_plan_prices_a_process_and_the_doctor_tells_what_each_sees(server: ForkServer, tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    planned = server.stackwise("plan", "exp.yaml", "--json", "--set", "run.parallel.replicate=4", cwd=tmp_path)
    phases = json.loads(planned.out)
    two = phases["phases"][1]
    cost = phases["parallel"]["phases"]["two"]
    assert two["parameters"] == two["trainable"] and two["optimizer_state_bytes"] >= 8 * two["trainable"]  # AdamW: two moments
    assert cost["bytes_a_process"] == 8 * two["parameters"] + two["optimizer_state_bytes"]
    assert cost["sent_bytes_a_step"] == 4 * two["trainable"] * 2 * 3 // 4  # a ring of four sends 3/4 of them twice
    told = server.together("doctor", "--json", cwd=tmp_path, ranks=2)
    assert [each.code for each in told] == [0, 0] and told[1].out == ""
    assert [each["rank"] for each in json.loads(told[0].out)["processes"]] == [0, 1]


@pytest.mark.rare
@pytest.mark.parametrize(("where", "call", "words"), [(STEP, 3, "(run.parallel.patience)"), (ENTER, 2, "in the boundary into phase 'two'")])
def test_a_process_that_hangs_is_named(server: ForkServer, tmp_path: Path, where: Place, call: int, words: str) -> None:
    hangs = dies(1, where, call).replace("os.kill(os.getpid(), 9)", "__import__('time').sleep(20)")
    ended = start(server, tmp_path, "--set", "run.parallel.patience=3s", patch=hangs)
    last = ended[0].err.splitlines()[-1]
    assert ended[0].code == 137 and f"rank 1 on {platform.node()} has not come" in last and last.endswith(words), ended


@pytest.mark.rare
@pytest.mark.parametrize("step", [0, 5, 6, 11])
def test_four_processes_killed_at_any_step_go_on_as_one_two_or_four(server: ForkServer, alone: Path, tmp_path: Path, step: int) -> None:
    ended = start(server, tmp_path, ranks=4, patch=ON_RANK_1 + KILLED_AT_STEP.format(step=step, signal="9"))
    assert [each.code for each in ended] == [137, -9, 137, 137]
    ranks = {0: 4, 5: 2, 6: 1, 11: 2}[step]
    if not (tmp_path / "run").exists():
        assert step == 0
        return
    more = server.together("resume", "run", cwd=tmp_path, ranks=ranks) if ranks > 1 else [server.stackwise("resume", "run", cwd=tmp_path)]
    assert {each.code for each in more} == {0}
    equal_but_for_sums(tmp_path / "run", alone)


@pytest.mark.rare
@pytest.mark.parametrize(("rank", "where", "call"), [(0, SAVE, 2), (0, ENTER, 4), (1, ENTER, 2), (0, STEP, 8)])
def test_any_process_killed_at_a_save_or_inside_a_transition_leaves_a_whole_checkpoint(
    server: ForkServer, alone: Path, tmp_path: Path, rank: int, where: Place, call: int
) -> None:
    ended = start(server, tmp_path, patch=dies(rank, where, call))
    assert (ended[rank].code, ended[1 - rank].code) == (-9, 137)
    assert f"rank {rank}" in ended[1 - rank].err.splitlines()[-1]
    assert [each.code for each in server.together("resume", "run", cwd=tmp_path, ranks=2)] == [0, 0]
    equal_but_for_sums(tmp_path / "run", alone)


def command(*arguments: str, cwd: Path, patch: str = "", launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own; `patch` runs in each process that trains."""
    (cwd / "sitecustomize.py").write_text(f"import os\n{patch}" if patch else "")
    environment = {**os.environ, "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *launcher, "-m", "stackwise", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.rare  # five starts of torch; the page for two GPUs is followed in every `make test`, and starts two
def test_one_command_starts_the_processes_and_starts_them_again(alone: Path, tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    dies = "if os.environ.get('RANK') == '1' and os.environ.get('STACKWISE_ATTEMPT') == '0':\n" + KILLED_AT_STEP.format(step=7, signal="9")
    ended = command("run", "exp.yaml", "--ranks", "2", "--max-restarts", "1", cwd=tmp_path, patch=dies)
    assert ended.returncode == 0, ended.stderr
    assert "rank 1 on" in ended.stderr and "rank 1 was ended by SIGKILL\n" in ended.stderr and "ChildFailedError" not in ended.stderr
    equal_but_for_sums(tmp_path / "runs" / "short-001", alone)


@pytest.mark.rare
def test_a_phase_that_stalls_ends_in_all_processes(server: ForkServer, tmp_path: Path) -> None:
    rule = "{until: {stalls: e.loss, patience: 1, least: 5, at_most: 50%}}"  # nothing gets better by 5: the second figure ends it
    config = SHORT.replace("one: {until: 50%}", f"one: {rule}").replace("every: 4 steps", "every: 2 steps")
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, config)
    assert server.stackwise("run", "exp.yaml", "--output", "run", cwd=one).code == 0
    ended = start(server, two, config=config)
    assert [each.code for each in ended] == [0, 0], ended
    entered = [[e["step"] for e in lines(folder / "run" / "events.jsonl") if e["event"] == "phase_entered"] for folder in (one, two)]
    assert entered == [[0, 4], [0, 4]]
    equal_but_for_sums(two / "run", one / "run")


@pytest.mark.rare
def test_losses_that_parts_add_have_the_denominator_of_the_whole_step(server: ForkServer, tmp_path: Path) -> None:
    experts = "experts: {count: 4, active: 1}, stacks: [{base: 1}]"
    config = SHORT.replace("stacks: [{base: 1}]", experts).replace("causal-lm}", "causal-lm, auxiliary: {rack.balance: 0.5, rack.z: 0.1}}")
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, config)
    assert server.stackwise("run", "exp.yaml", "--output", "run", cwd=one).code == 0
    ended = start(server, two, config=config, ranks=3)  # of four micro-batches: one process has two
    assert [each.code for each in ended] == [0, 0, 0], ended
    equal_but_for_sums(two / "run", one / "run")


@pytest.mark.rare
def test_rows_made_ahead_and_by_processes_are_shared_out_alike(server: ForkServer, alone: Path, tmp_path: Path) -> None:
    ended = start(server, tmp_path, "--set", "run.read_ahead=2", "--set", "run.workers=1", "--set", "run.checkpoint.asynchronous=true")
    assert [each.code for each in ended] == [0, 0], ended
    equal_but_for_sums(tmp_path / "run", alone)


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "several-processes.md"


def here(text: str) -> str:
    """A recipe of the page for two machines of eight processes each, as two machines of one each that are both this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for written, ours in (
        ("--nproc-per-node 8", "--nproc-per-node 1"),
        ("addr first ", "addr 127.0.0.1 "),
        ("29500", port),
        ("/shared/", ""),
    ):
        assert written in text or written == "addr first "
        text = text.replace(written, ours)
    return text


def in_a_shell(path: str = "") -> dict[str, str]:
    """Where commands of the page find torchrun."""
    places = [path, str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": os.pathsep.join(filter(None, places))}


@pytest.mark.rare
def test_two_machines_by_hand(alone: Path, tmp_path: Path) -> None:
    """Two groups of processes on the loopback, each with an agent of its own, as the page has it."""
    write(tmp_path, SHORT)
    lines = re.findall(r"^torchrun --nnodes 2 --node-rank \d .*$", PAGE.read_text("utf-8"), re.MULTILINE)
    commands = here("\n".join(lines)).splitlines()
    assert len(commands) == 2
    agents = [
        subprocess.Popen(line, shell=True, cwd=tmp_path, env=in_a_shell(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in commands
    ]
    told = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    equal_but_for_sums(tmp_path / "run", alone)


SLURM = {
    "srun": '#!/bin/sh\n"$@" & first=$!\n"$@" & second=$!\ntrap "kill -TERM $first $second" TERM\n'
    "wait $first; wait $first; one=$?; wait $second; exit $((one > $? ? one : $?))\n",
    "scontrol": '#!/bin/sh\ncase $1 in show) echo 127.0.0.1 ;; *) echo "$@" > requeued ;; esac\n',
}
"""Commands of a batch system for two machines that are both this one: the second sends SIGTERM on, as it does to the tasks of a job."""


@pytest.mark.rare
def test_the_job_of_the_page_goes_back_into_the_queue_and_on(alone: Path, tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in SLURM.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    script = re.search(r"```sh\n(#!/bin/sh\n#SBATCH.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert script is not None
    (tmp_path / "job.sh").write_text(here(script[1]))
    # the first process stops itself at a step, as by the signal that comes before the limit of time
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('RANK') == '0' and not os.path.exists('requeued'):\n"
        + KILLED_AT_STEP.format(step=7, signal=int(signal.SIGTERM)).replace("os.getpid()", "os.getppid()")
    )
    environment = in_a_shell(str(tools)) | {"PYTHONPATH": str(tmp_path), "SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": "2"}
    codes = []
    for attempt in "12":
        line = ["sh", "job.sh"]
        codes.append(subprocess.run(line, cwd=tmp_path, timeout=300, env={**environment, "SLURM_JOB_ID": f"7{attempt}"}).returncode)
        if attempt == "1":
            assert (tmp_path / "requeued").read_text().split() == ["requeue", "71"]
            assert status(tmp_path / "run")["status"] == "stopped by SIGTERM"
    assert codes[0] != 0 and codes[1] == 0
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "71"]  # once
    equal_but_for_sums(tmp_path / "run", alone)


@pytest.mark.rare
def test_plain_torchrun_does_the_same(alone: Path, tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = command("run", "exp.yaml", cwd=tmp_path, launcher=torchrun)
    assert ended.returncode == 0, ended.stderr
    equal_but_for_sums(tmp_path / "runs" / "short-001", alone)
