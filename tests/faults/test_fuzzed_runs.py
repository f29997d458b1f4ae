"""Whatever a document of a run directory says: every command answers by exit code 0 or 2, and never goes on to another result in silence.

The digests of a checkpoint are made right after each change, so that only its content is wrong. A sample runs always, all of it rarely.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
import yaml
from click.testing import CliRunner
from damaged_documents import Damage, damaged_lines, damages, signed, signed_manifest
from small_runs import GROWING, PARTS, write_config

import stackwise
from stackwise.cli import main
from stackwise.cli.runs import _as_json, _lines, _read
from stackwise.errors import UserError
from stackwise.reports.comparison import compare
from stackwise.reports.page.render import render_page
from stackwise.reports.record import read_run, understood
from stackwise.runs.diagnosis import diagnose
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.lock import read_writer
from stackwise.storage.run_directory import final_weights

CONFIG = (
    "run: {name: small, horizon: 4 steps, seed: 1, device: cpu, checkpoint: {every: 1 steps, keep_last: 4}}\n"
    + PARTS
    + "optimizer: {use: optim.adamw, lr: {linear: {from: 1e-2, to: 0}}}\n"
    + "evaluate: {heldout: {every: 50%, batches: 1}}\n"
    + GROWING
)
NEWEST = "checkpoints/step-000000002"
"""The newest checkpoint of the interrupted run: the one before growth."""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "resume": ("resume", "run"),
    "resume finished": ("resume", "run"),
    "branch": ("branch", "run", "--at", "step 2", "--output", "other"),
    "export": ("export", "run", "exported"),
    "export a step": ("export", "run", "exported", "--step", "2"),
    "generate": ("generate", "run", "--ids", "--prompt", "1 2", "--tokens", "2"),
    "doctor": ("doctor", "run"),
    "plan": ("plan", "run/config.yaml"),
}
READERS: Mapping[str, tuple[str, ...]] = {
    "config.yaml": ("resume", "generate", "plan", "export"),
    "plan.json": ("resume",),
    "status.json": ("resume", "resume finished", "export", "generate", "doctor"),
    "writer.json": ("resume", "doctor"),
    "events.jsonl": ("resume", "resume finished"),
    "metrics.jsonl": ("resume", "resume finished"),
    "final/weights.json": ("export", "generate", "doctor"),
    f"{NEWEST}/manifest.json": ("resume", "branch", "export a step", "generate", "doctor"),
    f"{NEWEST}/state.json": ("resume", "branch", "export a step", "generate"),
}
"""Document → the commands that read it."""
OF_THE_FINISHED = {"resume finished", "export"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `finished`, and `interrupted`, which has two steps to go."""
    folder = tmp_path_factory.mktemp("runs")
    write_config(folder, CONFIG, tokens=100)
    done = CliRunner().invoke(main, ["run", str(folder / "exp.yaml"), "--output", str(folder / "finished")])
    assert done.exit_code == 0, done.output
    shutil.copytree(folder / "finished", folder / "interrupted")
    for step in (3, 4):
        shutil.rmtree(folder / "interrupted" / "checkpoints" / f"step-{step:09d}")
    shutil.rmtree(folder / "interrupted" / "final")
    (folder / "interrupted" / "status.json").write_text('{"status": "running", "steps": 2, "data": {}}')
    return folder


def every_damage(run: Path) -> Iterator[Damage]:
    """All damages of all documents of a finished run."""
    for name in READERS:
        text = (run / name).read_text()
        if name.endswith(".jsonl"):
            yield from damaged_lines(name, text)
        elif name.endswith("manifest.json"):
            yield from damages(name, json.loads(text), signed_manifest)
        else:
            yield from damages(name, yaml.safe_load(text))


def weights(run: Path) -> str:
    return sha256((run / "final" / "weights.safetensors").read_bytes()).hexdigest()


def try_all_readers(damage: Damage, runs: Path, here: Path) -> list[str]:
    """What went wrong when each command met the damage."""
    faults = []
    for command in READERS[damage.document]:
        finished = command in OF_THE_FINISHED or damage.document.startswith("final")
        for leftover in ("run", "other", "exported"):
            shutil.rmtree(here / leftover, ignore_errors=True)
        shutil.copytree(runs / ("finished" if finished else "interrupted"), here / "run")
        (here / "run" / damage.document).write_bytes(damage.content)
        if damage.document.endswith("state.json"):
            signed(here / "run" / NEWEST)
        done = CliRunner().invoke(main, list(COMMANDS[command]))
        told = done.output.strip()
        if done.exit_code not in (0, 2) or "Traceback" in told or (done.exit_code == 2 and not told):
            faults.append(f"{damage}: {command} exits {done.exit_code}: {told[-300:]} {done.exception!r}")
        written = {"resume": here / "run", "branch": here / "other"}.get(command)
        if done.exit_code == 0 and written is not None and weights(written) != weights(runs / "finished"):
            faults.append(f"{damage}: {command} goes on to another result")
    return faults


CHANGES_THE_COURSE = ("about.config.", "about.trains_elsewhere", "state.")
"""What a checkpoint may say otherwise without a contradiction: whoever writes it with a right digest decides it."""


def sampled(run: Path, count: int, seed: int) -> list[Damage]:
    """So many damages of each document."""
    by_document: dict[str, list[Damage]] = {}
    for damage in every_damage(run):
        by_document.setdefault(damage.document, []).append(damage)
    return [damage for damages in by_document.values() for damage in Random(seed).sample(damages, min(count, len(damages)))]


def judged(faults: list[str]) -> list[str]:
    """Without the other results of states whose numbers somebody wrote with a right digest."""
    return [
        fault for fault in faults if not (fault.endswith("another result") and any(f"state.json {p}" in fault for p in CHANGES_THE_COURSE))
    ]


def test_a_sample_of_damaged_documents(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    faults = [fault for damage in sampled(runs / "finished", 1, seed=0) for fault in try_all_readers(damage, runs, tmp_path)]
    assert judged(faults) == []


def page(run: Path) -> None:
    with understood([run]):
        records = [read_run(run), read_run(run.parent / "finished")]
        compare(records)
        render_page(records[:1])


def line_of_the_list(run: Path) -> None:
    _lines([each := _read(run)])
    json.dumps(_as_json(each))


def newest(run: Path) -> None:
    found, _ = CheckpointStore(run / "checkpoints").newest(up_to=2)
    if found is not None and found.step == 2:
        found.load_state()


SHOWN: Mapping[str, tuple[Callable[[Path], object], ...]] = {
    "config.yaml": (line_of_the_list, page),
    "plan.json": (line_of_the_list, page),
    "status.json": (line_of_the_list, page, final_weights),
    "writer.json": (read_writer, diagnose),
    "events.jsonl": (line_of_the_list, page),
    "metrics.jsonl": (line_of_the_list, page),
    "final/weights.json": (lambda run: stackwise.load_exported(run / "final"),),
    f"{NEWEST}/manifest.json": (newest,),
}
"""Document → what reads it alone, in this process."""


def try_what_reads(damages: Iterable[Damage], runs: Path, here: Path) -> list[str]:
    """What went wrong when each reader met each damage; what it refuses is a `UserError`."""
    shutil.copytree(runs / "finished", here / "damaged")
    shutil.copytree(runs / "finished", here / "finished")
    faults = []
    for damage in damages:
        document = here / "damaged" / damage.document
        whole = document.read_bytes()
        document.write_bytes(damage.content)
        for read in SHOWN.get(damage.document, ()):
            try:
                read(here / "damaged")
            except UserError:
                pass
            except Exception as error:
                faults.append(f"{damage}: {error!r}")
        document.write_bytes(whole)
    return faults


def test_a_sample_of_damages_meets_what_reads_them(runs: Path, tmp_path: Path) -> None:
    assert try_what_reads(sampled(runs / "finished", 3, seed=9), runs, tmp_path) == []


@pytest.mark.rare
@pytest.mark.timeout(7200)
def test_every_damage_meets_what_reads_it(runs: Path, tmp_path: Path) -> None:
    assert try_what_reads(every_damage(runs / "finished"), runs, tmp_path) == []


FOUND = ("plan.json phases.1.step_flops: unknown mark", "status.json peak_bytes.one: 10**400")
"""Damages that once were called a bug of StackWise."""


def test_damages_that_were_found(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    damages = [damage for damage in every_damage(runs / "finished") if str(damage) in FOUND]
    assert len(damages) == len(FOUND)
    assert [fault for damage in damages for fault in try_all_readers(damage, runs, tmp_path)] == []


@pytest.mark.rare
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_many_damaged_documents(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.chdir(tmp_path)
    faults = [fault for damage in sampled(runs / "finished", 150, seed=1 + seed) for fault in try_all_readers(damage, runs, tmp_path)]
    assert judged(faults) == []
