"""Run directories: one writer, nothing overwritten, and every way to go on, to change and to branch."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import pytest
import torch
from distributions import Site, run_python
from fork_server import Ended, ForkServer
from small_runs import GROWING, PARTS, write_config
from whole_runs import lines, losses, outcome, saved_steps, status

from stackwise.errors import UserError
from stackwise.storage.run_directory import RunDirectory
from stackwise_providers_data.text_blocks import stretches

CONFIG = (
    "run: {name: small, horizon: 20 steps, seed: 1, device: cpu, checkpoint: {every: 2 steps, keep_last: 20}}\n"
    + PARTS
    + "optimizer: {use: optim.adamw, lr: {wsd: {peak: 1e-2, warmup: 2 steps, decay: 20%}}}\n"
    + GROWING
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path, CONFIG)
    return tmp_path


def begin(server: ForkServer, folder: Path, *more: str, signals: dict[int, list[str]] | None = None) -> Ended:
    return server.stackwise("run", "exp.yaml", "--output", "run", *more, cwd=folder, signals=signals)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Another process holds the run directory; its pid."""
    code = "from pathlib import Path; from stackwise.storage.lock import RunLock; lock = RunLock(Path('run')); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield holder.pid
    finally:
        holder.communicate(b"\n")


COLD = "import sys; sys.modules['torch'] = None; from stackwise.cli import main; main(prog_name='stackwise')"
"""A command line in a process that cannot import torch, which takes longer than the second there is."""


def test_a_second_process_is_refused_at_once_by_pid_and_host(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={5: ["KILL"]}).code == -9
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.name not in ("lock", "writer.json")}
    with locked(folder) as pid:
        started = time.perf_counter()
        with pytest.raises(UserError, match=f"process {pid} on host {socket.gethostname()}"):
            RunDirectory.open(folder / "run")
        assert time.perf_counter() - started < 1
        for command in (("resume", "run"), ("run", "exp.yaml", "--output", "run", "--resume", "auto")):
            ended = server.stackwise(*command, cwd=folder)
            assert ended.code == 2 and f"process {pid} on host" in ended.err
            at_once = run_python(COLD, *command, folder=folder)
            assert at_once.returncode == 2 and f"process {pid} on host" in at_once.stderr, at_once.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.name not in ("lock", "writer.json")} == before
    assert server.stackwise("resume", "run", cwd=folder).code == 0


def test_an_existing_directory_is_not_written_over_and_no_run_is_no_run(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder).code == 0
    again = begin(server, folder)
    assert again.code == 2 and "exists already" in again.err and "stackwise resume" in again.err
    nothing = server.stackwise("resume", "nowhere", cwd=folder)
    assert nothing.code == 2 and "nowhere" in nothing.err
    (folder / "empty").mkdir()
    empty = server.stackwise("resume", "empty", cwd=folder)
    assert empty.code == 2 and "no config.yaml" in empty.err and not list((folder / "empty").iterdir())
    must = server.stackwise("run", "exp.yaml", "--output", "other", "--resume", "must", cwd=folder)
    assert must.code == 2 and "there is no run at other" in must.err and not (folder / "other").exists()


def entries(folder: Path) -> list[str]:
    """What lies there; the fork server's own files left out."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (".out", ".err", "witness.jsonl"))


FULL = """
import errno, stackwise.storage.run_directory as r
def full(*arguments): raise OSError(errno.ENOSPC, "No space left on device")
r.replace_file = full
"""
DIES = """
import os, stackwise.storage.run_directory as r
put, calls = r.replace_file, []
def dies(path, text):
    calls.append(path)
    if len(calls) == %d:
        os.kill(os.getpid(), 9)
    put(path, text)
r.replace_file = dies
"""


@pytest.mark.parametrize(
    ("settings", "patch", "told"),
    [
        (("--set", "model.freeze=[nothing.*]"), "", "matches no parameter"),
        (("--set", "data.sources.a.arrays.tokens=[9, 9, 9, 9, 9, 9, 9, 9, 9, 9]"), "", "ids"),
        ((), FULL, "cannot be made: .*No space left on device"),
    ],
    ids=["no such parameter", "no such id", "full disk"],
)
def test_what_cannot_begin_leaves_nothing_behind(
    server: ForkServer, folder: Path, settings: tuple[str, ...], patch: str, told: str
) -> None:
    for output in (("--output", "run"), ()):
        ended = server.stackwise("run", "exp.yaml", *settings, *output, cwd=folder, patch=patch)
        assert ended.code == 2 and re.search(told, ended.err), ended.err
        (folder / "runs").rmdir() if (folder / "runs").exists() else None
        assert entries(folder) == ["exp.yaml"]


@pytest.mark.parametrize("at", [1, 2], ids=["before its config", "before its plan"])
def test_killed_while_its_directory_is_made_a_run_begins_anew(server: ForkServer, folder: Path, at: int) -> None:
    """A directory of that name would be in the way of every restart."""
    for output in (("--output", "run"), ()):
        auto = ("run", "exp.yaml", "--resume", "auto", *output)
        assert server.stackwise(*auto, cwd=folder, patch=DIES % at).code == -9
        assert not (folder / "run").exists() or not output
        ended = server.stackwise(*auto, cwd=folder)
        assert ended.code == 0 and "resume" not in ended.err, ended.err
    assert outcome(folder).state == outcome(folder, "runs/small-001").state


def test_a_branch_that_is_killed_while_it_is_made_is_no_run(server: ForkServer, folder: Path) -> None:
    """With a config and without its checkpoint it would begin from nothing when it is resumed."""
    assert begin(server, folder).code == 0
    branch = ("branch", "run", "--at", "50%", "--output", "other")
    for at in range(1, 5):  # config, plan, and the two logs
        assert server.stackwise(*branch, cwd=folder, patch=DIES % at).code == -9
        assert not (folder / "other").exists()
    saving = "import os, stackwise.storage.disk as d\nd.rename = lambda old, new: os.kill(os.getpid(), 9)"
    assert server.stackwise(*branch, cwd=folder, patch=saving).code == -9
    assert not (folder / "other").exists()
    assert server.stackwise(*branch, cwd=folder).code == 0


def test_what_has_not_changed_is_not_priced_again(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={7: ["KILL"]}).code == -9
    unpriced = "import stackwise.assembly.pricing as p\ndef price(*_, **__): raise RuntimeError('priced')\np.price = price"
    plan = (folder / "run" / "plan.json").read_text()
    assert server.stackwise("resume", "run", cwd=folder, signals={9: ["KILL"]}, patch=unpriced).code == -9
    changed = server.stackwise("resume", "run", "--set", "run.checkpoint.every=3 steps", cwd=folder, patch=unpriced)
    assert changed.code == 1 and "priced" in changed.err
    (folder / "run" / "plan.json").write_text(plan.replace('"sha256": "', '"sha256": "0'))  # as another file of a provider would have
    changed = server.stackwise("resume", "run", cwd=folder, patch=unpriced)
    assert changed.code == 1 and "priced" in changed.err
    assert server.stackwise("resume", "run", cwd=folder).code == 0
    assert (folder / "run" / "plan.json").read_text() == plan


def test_auto_begins_goes_on_and_says_when_it_is_over(server: ForkServer, folder: Path) -> None:
    auto = ("run", "exp.yaml", "--resume", "auto")
    assert server.stackwise(*auto, cwd=folder, signals={7: ["KILL"]}).code == -9
    second = server.stackwise(*auto, cwd=folder)
    assert second.code == 0 and "resume runs/small-001 at step 6 of 20" in second.err, second.err
    whole = begin(server, folder)
    assert whole.code == 0
    assert outcome(folder, "runs/small-001").state == outcome(folder).state
    third = server.stackwise(*auto, cwd=folder)
    assert third.code == 0 and "finished already, after 20 steps" in third.out
    fourth = server.stackwise("resume", "run", cwd=folder)
    assert fourth.code == 0 and "nothing is left to train" in fourth.out
    assert len(list((folder / "runs").iterdir())) == 1


def test_killed_before_any_checkpoint_it_starts_over_and_says_so(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={0: ["KILL"]}).code == -9
    told = server.stackwise("resume", "run", cwd=folder)
    assert told.code == 0 and "from the beginning, as there is no checkpoint" in told.err
    assert sorted(losses(folder / "run")) == list(range(20))


def test_damaged_checkpoints_are_passed_over_with_the_reason(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={12: ["KILL"]}).code == -9
    checkpoints = folder / "run" / "checkpoints"
    tensors = checkpoints / "step-000000012" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    (checkpoints / "step-000000010" / "manifest.json").unlink()
    told = server.stackwise("branch", "run", "--at", "50%", "--output", "branch", cwd=folder)
    assert told.code == 0 and "step-000000010 is passed over" in told.err and "at step 8 of 20" in told.err
    assert "step-000000012" not in told.err
    told = server.stackwise("resume", "run", cwd=folder)
    assert told.code == 0 and "at step 8 of 20" in told.err
    assert "step-000000012 is passed over" in told.err and "step-000000010 is passed over" in told.err
    assert sorted(losses(folder / "run")) == list(range(20))
    aside = sorted(path.name for path in checkpoints.glob("*.set-aside"))  # one that is mended later is of another course
    assert aside == ["step-000000010.set-aside", "step-000000012.set-aside"] and saved_steps(folder / "run") == list(range(2, 21, 2))


def test_a_run_without_one_whole_checkpoint_is_not_begun_anew_over_what_there_is(server: ForkServer, folder: Path) -> None:
    """What cannot be read here and now may be whole elsewhere: a disk that is not mounted, rights, another library."""
    assert begin(server, folder, signals={5: ["KILL"]}).code == -9
    for tensors in (folder / "run" / "checkpoints").rglob("tensors.safetensors"):
        tensors.write_bytes(tensors.read_bytes()[:-1])
    before = {
        path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file() and path.name not in ("lock", "writer.json")
    }
    for command in (("resume", "run"), ("run", "exp.yaml", "--output", "run", "--resume", "auto")):
        told = server.stackwise(*command, cwd=folder)
        assert (
            told.code == 2 and "none of its 2 checkpoints is whole" in told.err and "step-000000004: tensors.safetensors has" in told.err
        ), told.err
        assert "checkpoints" in told.err and {path: path.read_bytes() for path in before} == before
    rmtree(folder / "run" / "checkpoints")
    told = server.stackwise("resume", "run", cwd=folder)
    assert told.code == 0 and "from the beginning" in told.err


def test_a_log_that_a_crash_cut_short_is_mended(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={9: ["KILL"]}).code == -9
    for name in ("metrics.jsonl", "events.jsonl"):
        with (folder / "run" / name).open("a") as log:
            log.write('{"step": 8, "loss"')
    assert server.stackwise("resume", "run", cwd=folder).code == 0
    assert sorted(losses(folder / "run")) == list(range(20))
    assert [line["step"] for line in lines(folder / "run" / "events.jsonl") if line["event"] == "phase_entered"] == [0, 10]


def test_what_is_past_stays_and_what_is_to_come_may_change(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={13: ["KILL"]}).code == -9

    def refused(setting: str) -> str:
        ended = server.stackwise("resume", "run", "--set", setting, cwd=folder)
        assert ended.code == 2 and "Traceback" not in ended.err, (setting, ended.err)
        return ended.err

    files = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file() and path.name not in ("lock", "writer.json")}
    assert "every stream" in refused("run.seed=2")
    assert "has ended, at step 10" in refused("phases.one.until=40%")
    assert "was entered at step 10" in refused("phases.two.enter.growth.moments=reset")
    assert "it was 0.005 at step 1, which is done" in refused("optimizer.lr.wsd.warmup=1 steps")
    assert "has begun with it" in refused("phases.two.model.rack.width=16")
    assert "would have been 3" in refused("data.batch_size=3")
    assert "12 steps are done" in refused("run.horizon=11 steps")
    assert "did you mean" in refused("phases.two.optimzer.lr=1")
    assert {path: path.read_bytes() for path in files} == files

    told = server.stackwise("resume", "run", "--set", "optimizer.lr.wsd.decay=40%", "--set", "run.horizon=20 steps", cwd=folder)
    assert told.code == 0 and "optimizer.lr.wsd.decay: 20% → 40%" in told.err, told.err
    rates = {line["step"]: line["lr"] for line in lines(folder / "run" / "metrics.jsonl")}
    assert rates[11] == 1e-2 and rates[12] == 1e-2 and rates[13] == pytest.approx(1e-2 * 7 / 8)  # by hand: linear over steps 12..20
    changed = [line for line in lines(folder / "run" / "events.jsonl") if line["event"] == "config_changed"]
    told_of = [(line["step"], line["key"], line["before"], line["after"]) for line in changed]
    assert told_of == [(12, "optimizer.lr.wsd.decay", "20%", "40%")]


def test_a_longer_horizon_leaves_past_boundaries_where_they_were(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={13: ["KILL"]}).code == -9
    for horizon, kill in (("40 steps", 20), ("50 steps", None)):
        signals = {} if kill is None else {kill: ["KILL"]}
        told = server.stackwise("resume", "run", "--set", f"run.horizon={horizon}", cwd=folder, signals=signals)
        assert told.code == (0 if kill is None else -9), told.err
    entered = [(line["phase"], line["step"]) for line in lines(folder / "run" / "events.jsonl") if line["event"] == "phase_entered"]
    assert entered == [("one", 0), ("two", 10)]  # 50% of the first horizon; of the last one it would be 25
    assert sorted(losses(folder / "run")) == list(range(50))
    plan = json.loads((folder / "run" / "plan.json").read_text())
    assert [(phase["start"], phase["stop"]) for phase in plan["phases"]] == [(0, 10), (10, 50)]


def test_other_data_are_refused(server: ForkServer, folder: Path) -> None:
    text = (folder / "exp.yaml").read_text().replace("{use: transformer.token, vocab: 8}", "{use: transformer.token}")
    (folder / "exp.yaml").write_text(re.sub(r"use: data.memory.*?heldout: 0.2", "use: data.text-files, paths: [a.txt], heldout: 0", text))
    (folder / "a.txt").write_text("one two three four five six seven " * 20)
    assert begin(server, folder, signals={7: ["KILL"]}).code == -9
    before = {
        path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file() and path.name not in ("lock", "writer.json")
    }
    (folder / "a.txt").write_text("one two three four five six sevem " * 20)
    told = server.stackwise("resume", "run", cwd=folder)
    assert told.code == 2 and "the data changed since the checkpoint: source 'a'" in told.err, told.err
    assert {path: path.read_bytes() for path in before} == before
    (folder / "a.txt").write_text("one two three four five six seven " * 20)
    assert server.stackwise("resume", "run", cwd=folder).code == 0


def test_other_heldout_data_are_refused(server: ForkServer, folder: Path) -> None:
    """The text of a held-out block is not text of training, so training's fingerprint stays as it is."""
    text = CONFIG.replace("{use: transformer.token, vocab: 8}", "{use: transformer.token}")
    text = re.sub(r"use: data.memory.*?heldout: 0.2", "use: data.text-files, paths: [a.txt], heldout: 0.2", text)
    (folder / "exp.yaml").write_text(text + "evaluate: {held: {every: 5 steps, batches: 2}}\n")
    (folder / "a.txt").write_bytes(content := b"one two three four five six seven\n" * 40)
    start, stop = stretches(folder / "a.txt", len(content), 0.2, "heldout")[0]
    assert begin(server, folder, signals={7: ["KILL"]}).code == -9
    (folder / "a.txt").write_bytes(content[:start] + content[start:stop].replace(b"o", b"u") + content[stop:])
    told = server.stackwise("resume", "run", cwd=folder)
    assert told.code == 2 and "evaluation 'held'" in told.err and "source 'a'" in told.err, told.err
    renamed = ("--set", "evaluate.held=null", "--set", "evaluate.other={batches: 2}")
    assert server.stackwise("resume", "run", *renamed, cwd=folder).code == 0


KEEP = """
from attrs import frozen
from stackwise import Component, hookimpl

@frozen(kw_only=True)
class Options:
    pass

def build(options, context):
    return lambda batch, moment, generator: batch

@hookimpl
def stackwise_transforms():
    return [Component(name="as-it-is", options=__name__ + ":Options", factory=__name__ + ":build")]
"""


def installed(place: Path, version: str, code: str = KEEP) -> str:
    """Python that puts a distribution `fake-keep` of this version on the path."""
    if not place.exists():
        place.mkdir()
        Site(place).install("keep", code, version=version)
    return f"import sys; sys.path.insert(0, {str(place)!r})"


@pytest.mark.parametrize(
    ("saved", "now", "refused"), [("1.2", "1.9", False), ("0.3.1", "0.3.9", False), ("1.2", "2.0", True), ("0.3", "0.4", True)]
)
def test_a_provider_of_another_version_is_told_and_an_incompatible_one_refused(
    server: ForkServer, folder: Path, saved: str, now: str, refused: bool
) -> None:
    text = (folder / "exp.yaml").read_text().replace("  batch_size: 2", "  transforms: [{use: keep.as-it-is}]\n  batch_size: 2")
    (folder / "exp.yaml").write_text(text)
    command = ("run", "exp.yaml", "--output", "run")
    first = server.stackwise(*command, cwd=folder, patch=installed(folder / "first", saved), signals={7: ["KILL"]})
    assert first.code == -9, first.err
    before = {
        path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file() and path.name not in ("lock", "writer.json")
    }
    told = server.stackwise("resume", "run", cwd=folder, patch=installed(folder / "second", now))
    if refused:
        assert told.code == 2 and f"incompatible versions (fake-keep {saved} → {now})" in told.err, told.err
        assert {path: path.read_bytes() for path in before} == before
        gone = server.stackwise("resume", "run", cwd=folder)
        assert gone.code == 2 and "keep" in gone.err and "Traceback" not in gone.err, gone.err
        told = server.stackwise("resume", "run", cwd=folder, patch=installed(folder / "first", saved))
        assert told.code == 0 and "equal to the bit" not in told.err
    else:
        assert told.code == 0 and f"fake-keep {saved} → {now}: the rest need not be equal to the bit" in told.err, told.err


CHANGES_ITSELF = KEEP.replace(
    "    return lambda batch, moment, generator: batch",
    """
    def change(batch, moment, generator):
        if moment.step == 3:
            from pathlib import Path
            here = Path(__file__)
            here.write_text(here.read_text() + "# edited")
        return batch
    return change""",
)


def test_a_provider_that_is_edited_in_mid_run_is_told_as_such_by_the_next(server: ForkServer, folder: Path) -> None:
    """The code that trained is the one that was loaded, whatever the files say by the time of a checkpoint."""
    text = (folder / "exp.yaml").read_text().replace("  batch_size: 2", "  transforms: [{use: keep.as-it-is}]\n  batch_size: 2")
    (folder / "exp.yaml").write_text(text)
    patch = installed(folder / "site", "1.2", CHANGES_ITSELF)
    first = server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder, patch=patch, signals={7: ["KILL"]})
    assert first.code == -9, first.err
    told = server.stackwise("resume", "run", cwd=folder, patch=patch)
    assert told.code == 0 and told.err.count("provider 'keep' (fake-keep 1.2) has other files than at the checkpoint") == 1, told.err


def test_another_torch_is_told(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={7: ["KILL"]}).code == -9
    told = server.stackwise("resume", "run", cwd=folder, patch="import torch; torch.__version__ = '9.9.9'")
    assert told.code == 0 and "torch" in told.err and "→ 9.9.9: the rest need not be equal to the bit" in told.err, told.err


def test_branches_share_a_trunk_and_part_where_they_are_told_to(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder).code == 0
    for name, settings in {"same": (), "early": ("--set", "optimizer.lr.wsd.decay=40%")}.items():
        told = server.stackwise("branch", "run", "--at", "65%", *settings, "--output", name, cwd=folder)
        assert told.code == 0 and "at step 12 of 20" in told.err, told.err
    trunk, same, early = (lines(folder / name / "metrics.jsonl") for name in ("run", "same", "early"))
    strip = [[{**line, "seconds": 0} for line in run] for run in (trunk, same, early)]
    assert strip[0] == strip[1] and strip[0][:12] == strip[2][:12] and strip[0][14:] != strip[2][14:]
    assert outcome(folder, "same").state == outcome(folder).state
    parent = status(folder / "early")["parent"]
    assert (parent["run"], parent["step"]) == ("run", 12) and len(parent["sha256"]) == 64
    assert saved_steps(folder / "early")[0] == 12
    assert "parent" not in status(folder / "run")
    for at, complaint in {
        "step 13": "no checkpoint of step 13",
        "5%": "has no whole checkpoint up to step 1",
        "soon": "is not a duration",
    }.items():
        told = server.stackwise("branch", "run", "--at", at, "--output", "other", cwd=folder)
        assert told.code == 2 and complaint in told.err and not (folder / "other").exists(), told.err


def test_a_branch_with_another_mixture_reads_by_it_from_there(server: ForkServer, folder: Path) -> None:
    tokens = torch.randint(8, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    text = (folder / "exp.yaml").read_text().replace("  batch_size: 2", "  mix: {a: 1, b: 1}\n  batch_size: 2")
    source = f"  sources: {{b: {{use: data.memory, arrays: {{tokens: {tokens}}}, heldout: 0.2}}, a:"
    text = text.replace("  sources: {a:", source)
    (folder / "exp.yaml").write_text(text + "  three: {}\n".replace("{}", "{data: {mix: {a: 1, b: 1}}}"))
    (folder / "exp.yaml").write_text((folder / "exp.yaml").read_text().replace("  two: {", "  two: {until: 80%, "))
    assert begin(server, folder).code == 0
    branch = ("branch", "run", "--at", "step 16", "--set", "phases.three.data.mix.b=3", "--output")
    told = server.stackwise(*branch, "other", cwd=folder)
    assert told.code == 0 and "phases.three.data.mix.b: 1 → 3" in told.err, told.err
    rows = {name: {source: read["rows"] for source, read in status(folder / name)["data"].items()} for name in ("run", "other")}
    assert rows == {"run": {"a": 20, "b": 20}, "other": {"a": 18, "b": 22}}  # by hand: 16 and 16 rows, then 8 at 1:1 or at 1:3
    assert losses(folder / "run")[15] == losses(folder / "other")[15] and losses(folder / "run")[19] != losses(folder / "other")[19]
    refused = server.stackwise("branch", "run", "--at", "step 18", "--set", "phases.three.data.mix.b=3", "--output", "late", cwd=folder)
    assert refused.code == 2 and not (folder / "late").exists(), refused.err


def test_a_branch_that_is_killed_goes_on_and_remembers_where_it_is_from(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder).code == 0
    branch = ("branch", "run", "--at", "step-000000012", "--set", "optimizer.lr.wsd.decay=40%", "--output")
    assert server.stackwise(*branch, "whole", cwd=folder).code == 0
    assert server.stackwise(*branch, "cut", cwd=folder, signals={13: ["KILL"]}).code == -9
    assert server.stackwise("resume", "cut", cwd=folder).code == 0
    assert outcome(folder, "cut").state == outcome(folder, "whole").state
    assert status(folder / "cut")["parent"] == status(folder / "whole")["parent"]


def test_no_run_lies_in_the_directory_of_another(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder).code == 0
    before = sorted(path.name for path in (folder / "run").iterdir())
    for command in (("run", "exp.yaml"), ("branch", "run", "--at", "50%")):
        ended = server.stackwise(*command, "--output", "run/checkpoints/x", cwd=folder)
        assert ended.code == 2 and "directory of another run" in ended.err, ended.err
    assert sorted(path.name for path in (folder / "run").iterdir()) == before


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "", "a\\0b", "n" * 300])
def test_names_that_are_no_names_of_runs(server: ForkServer, folder: Path, name: str) -> None:
    before = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    ended = server.stackwise("run", "exp.yaml", "--set", f'run.name="{name}"', cwd=folder)
    assert ended.code == 2 and "run.name" in ended.err and "Traceback" not in ended.err
    after = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert [each for each in after if each != "witness.jsonl"] == before


@pytest.mark.parametrize(
    "environment",
    [
        {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"},
        {"COLUMNS": "20", "NO_COLOR": "1"},
    ],
    ids=["plain text", "no home", "twenty columns"],
)
def test_poor_surroundings_are_no_reason_to_fail(server: ForkServer, folder: Path, environment: dict[str, str]) -> None:
    assert server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder, signals={7: ["TERM"]}, environment=environment).code == 143
    ended = server.stackwise("resume", "run", cwd=folder, environment=environment)
    assert ended.code == 0 and "Error" not in ended.err and "Traceback" not in ended.err, ended.err


def test_a_reader_that_leaves_is_no_reason_to_complain(folder: Path) -> None:
    """`stackwise run … | head -1`: the run is done when its summary finds nobody left to read it."""
    (folder / "command.py").write_text("from stackwise.cli import main; main(prog_name='stackwise')")
    command = f"set -o pipefail; {sys.executable} command.py run exp.yaml --output run | head -1 > first"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 141) and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert len((folder / "first").read_text().splitlines()) == 1
    assert status(folder / "run")["status"] == "finished"


FULL_DISK = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), {0}); sys.{1} = open({0}, 'w')"
NO_READER = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, {0}); sys.{1} = open({0}, 'w')"
NO_STREAMS = "import sys; sys.stdout = sys.stderr = None"
OUT, ERR = (1, "stdout"), (2, "stderr")


@pytest.mark.parametrize(
    ("patch", "code"),
    [(FULL_DISK.format(*ERR), 0), (NO_READER.format(*ERR), 0), (NO_STREAMS, 0), (FULL_DISK.format(*OUT), 2), (NO_READER.format(*OUT), 141)],
    ids=["full disk behind errors", "nobody reads errors", "no streams", "full disk behind output", "nobody reads output"],
)
def test_whoever_does_not_listen_stops_no_run(server: ForkServer, folder: Path, patch: str, code: int) -> None:
    ended = server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder, patch=patch)
    assert ended.code == code and "bug" not in ended.err and "Traceback" not in ended.err, ended
    assert status(folder / "run")["status"] == "finished" and sorted(losses(folder / "run")) == list(range(20))


FULL_LOGS = """
import errno, stackwise.storage.run_directory as r
lines_of, left = r.lines_of, [%d]
def full(*arguments): raise OSError(errno.ENOSPC, "No space left on device")
def lines(event):
    left[0] -= 1
    if left[0] < 0:
        r.replace_file = full
        full()
    return lines_of(event)
r.lines_of = lines
"""


def test_a_disk_that_is_full_for_the_logs_is_named_and_the_run_goes_on_later(server: ForkServer, folder: Path) -> None:
    ended = server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder, patch=FULL_LOGS % 25)
    assert ended.code == 2 and "disk error: run could not be written: No space left on device" in ended.err, ended.err
    assert "bug" not in ended.err and status(folder / "run")["status"] == "running"
    assert server.stackwise("resume", "run", cwd=folder).code == 0
    whole = server.stackwise("run", "exp.yaml", "--output", "whole", cwd=folder)
    assert whole.code == 0 and outcome(folder).weights == outcome(folder, "whole").weights


def test_final_weights_that_the_disk_refuses_are_written_by_the_next_try(server: ForkServer, folder: Path) -> None:
    full = """
import errno, stackwise.storage.weights as w
def full(*arguments): raise OSError(errno.ENOSPC, "No space left on device")
w.write_tensors = full
"""
    ended = server.stackwise("run", "exp.yaml", "--output", "run", cwd=folder, patch=full)
    assert ended.code == 2 and "disk error: run/final could not be written: No space left" in ended.err, ended.err
    assert status(folder / "run")["status"].startswith("failed: disk error") and not list((folder / "run").glob("*final*"))
    assert not list((folder / "run").glob(".final*"))
    assert server.stackwise("resume", "run", cwd=folder).code == 0
    assert outcome(folder).weights


FULL_DURING_A_SAVE = """
import errno, threading, stackwise.storage.run_directory as r
from pathlib import Path
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.lock import RunLock
save, release, free = CheckpointStore._save, RunLock.release, threading.Event()
def slow(self, *arguments):
    late = free.wait(0.5)
    save(self, *arguments)
    with Path("saves").open("a") as file:
        print("behind the lock" if late else "in time", file=file)
def let_go(self):
    release(self)
    free.set()
CheckpointStore._save, RunLock.release = slow, let_go
lines_of = r.lines_of
def full(*arguments): raise OSError(errno.ENOSPC, "No space left on device")
def lines(event):
    if type(event).__name__ == "CheckpointSaved":
        r.replace_file = full
        full()
    return lines_of(event)
r.lines_of = lines
"""


def test_a_full_disk_lets_nobody_in_before_the_save_in_flight_has_ended(server: ForkServer, folder: Path) -> None:
    command = ("run", "exp.yaml", "--output", "run", "--set", "run.checkpoint.asynchronous=true")
    ended = server.stackwise(*command, cwd=folder, patch=FULL_DURING_A_SAVE)
    assert ended.code == 2 and "No space left on device" in ended.err, ended.err
    assert (folder / "saves").read_text() == "in time\n"


def test_a_checkpoint_that_is_gone_is_told_with_those_that_there_are(server: ForkServer, folder: Path) -> None:
    assert begin(server, folder, signals={5: ["TERM"]}).code == 143
    told = server.stackwise("branch", "run", "--at", "step-000000003", "--output", "other", cwd=folder)
    assert told.code == 2 and "no checkpoint of step 3 (there: step-000000002, " in told.err, told.err


def test_data_of_training_that_are_gone_are_told_at_their_own_key(server: ForkServer, folder: Path) -> None:
    text = CONFIG.replace("{use: transformer.token, vocab: 8}", "{use: transformer.token}")
    text = re.sub(r"use: data.memory.*?heldout: 0.2", "use: data.text-files, paths: [a.txt], heldout: 0.2", text)
    (folder / "exp.yaml").write_text(text + "evaluate: {held: {batches: 2}}\n")
    (folder / "a.txt").write_bytes(b"one two three four five six seven\n" * 40)
    assert begin(server, folder).code == 0
    (folder / "a.txt").rename(folder / "b.txt")
    for command in (("evaluate", "run"), ("resume", "run", "--set", "run.horizon=24 steps")):
        told = server.stackwise(*command, cwd=folder)
        assert told.code == 2 and "data.sources.a: paths: no file matches 'a.txt'" in told.err, told.err
    assert server.stackwise("generate", "run", "--prompt", "a", "--tokens", "2", cwd=folder).code == 0
