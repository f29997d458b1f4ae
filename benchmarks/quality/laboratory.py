"""The laboratory: timelines against static models at equal training FLOPs and at equal processor seconds of one thread.

Every side of a study has its size and learning rate chosen by the same rule on seed 1: five learning rates, and one more beyond the end of
the grid for as long as the best lies there. Finalists have five other seeds. `--planes` then adds one plane's timeline at a time (rows,
batches, averages, learning rates by depth, Muon) to the two finalists that no model was given to, rates chosen again by the same rule.
Everything is a sweep, so the same command goes on where it was stopped; the tables of docs/explanation/results.md are printed from the
runs.

Run: python benchmarks/quality/laboratory.py [--study first] [--study 3e12] [--planes] [--runs DIR] [--jobs N]; any budget in FLOPs is a
study. `--side NAME` keeps to some sides, `--plan` says what would run, `--table` what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stackwise.reports.comparison import Interval
from stackwise.reports.record import RunRecord, read_run

CONFIGS = Path(__file__).parent.resolve() / "laboratory"
FIRST = Path(__file__).parents[2].resolve() / "examples" / "first.yaml"
LADDER = (2e-4, 3.2e-4, 5e-4, 8e-4, 1.25e-3, 2e-3, 3.2e-3, 5e-3, 8e-3, 1.25e-2, 2e-2, 3.2e-2)
RATES = LADDER[4:9]
SEED, SEEDS = 1, (2, 3, 4, 5, 6)
ROWS = {"data.seq_len": {"piecewise": {"values": {"0%": 32, "15%": 64, "40%": 128}}}, "data.step_tokens": 1024, "data.batch_size": 32}
SHORT = {"data.seq_len": 64, "evaluate.heldout.seq_len": 128}
LOW = ["embedding", "rack.stacks.base.0"]
METRIC, RATE, HORIZON = "bits_per_byte", "optimizer.lr.wsd.peak", "run.horizon"
Keys = Mapping[str, Any]


class Side(NamedTuple):
    """One side of a study; of its candidates the best is the finalist."""

    name: str
    title: str
    config: Path
    candidates: Mapping[str, Keys]
    flops: float | None = None
    """Of every run; None where the config says it."""
    beside: str = ""
    """The side that it is compared with; none for the first."""
    chosen_by: str = ""
    """The side whose choice it takes over, where it has no trials of its own."""
    rates: tuple[float, ...] = RATES
    """The learning rates of its trials."""
    half: str = ""
    """A key that takes half of the learning rate."""


class Choice(NamedTuple):
    """What the trials of a side chose."""

    candidate: str
    rate: float


class Figures(NamedTuple):
    """What one finished run says."""

    candidate: str
    seed: int
    rate: float
    bits: float
    flops: float
    cpu_seconds: float | None
    """Of training, all threads; None in a run of a version that did not count them."""


def first_example() -> tuple[Side, ...]:
    """The timeline of `make run` beside its final model and the best small one, at its own budget, on the laboratory's held-out bytes."""
    flops, held_out = 3.38e11, {"evaluate.heldout.every": None, "evaluate.heldout.at": ["100%"], "evaluate.heldout.batches": 16}
    timeline = {"2-6x64": {"run.device": "cpu", "run.threads": 1, **held_out}}
    return (
        Side("timeline", "timeline, 2 → 6 blocks of width 64", FIRST, timeline),
        Side("static", "its final model, static", CONFIGS / "bytes.yaml", sizes("6x64"), flops, "timeline"),
        Side("small", "small, static", CONFIGS / "bytes.yaml", sizes("2x64", "1x64", "2x32"), flops, "timeline"),
    )


def budget(flops: float) -> tuple[Side, ...]:
    """Two questions at a budget: the final model is given (6 blocks, of width 128 and of 64), and nothing is given."""
    width = 64 if flops < 6e12 else 96
    around = sizes(f"2x{width}", f"1x{width}", f"3x{width}", f"2x{width * 3 // 4}", f"2x{width * 3 // 2}")
    small_timeline = {f"1-2-3x{width}": {"model.rack.width": width}}
    return (
        *given("given", 128, flops),
        Side("small-static", "small, static", CONFIGS / "bytes.yaml", around, flops, "given-static"),
        Side("small-grown", "small, timeline 1 → 2 → 3", CONFIGS / "grown-small.yaml", small_timeline, flops, "small-static"),
        *given("narrow", 64, flops),
    )


def given(name: str, width: int, flops: float) -> tuple[Side, ...]:
    """A given final model: the static run of it, and the timeline that grows into it for a half and a quarter of the FLOPs."""
    static, model = f"{name}-static", f"6 blocks of width {width}"
    grown: dict[str, Keys] = {f"1-3-6x{width}": {"model.rack.width": width}}
    half, quarter = f"{model}, timeline 1 → 3 → 6, half the FLOPs", f"{model}, timeline, a quarter of the FLOPs"
    return (
        Side(static, f"{model}, static", CONFIGS / "bytes.yaml", sizes(f"6x{width}"), flops, "" if name == "given" else "given-static"),
        Side(f"{name}-grown", half, CONFIGS / "grown.yaml", grown, flops / 2, static),
        Side(f"{name}-quarter", quarter, CONFIGS / "grown.yaml", grown, flops / 4, static, f"{name}-grown"),
    )


def with_planes(side: Side, choice: Choice) -> Iterator[Side]:
    """A side with the timeline of one plane more, and smaller batches and rows without one, which a timeline of them has to beat.

    Rates are the side's own and the next ones, Muon's a grid of its own.
    """
    at = LADDER.index(choice.rate)
    near = LADDER[max(at - 1, 0) : at + 2]
    peaks = {"wsd": {"peak": choice.rate, "warmup": "2%", "decay": "30%"}}
    muon = {"use": "optim.muon", "lr": peaks, "adamw_lr": peaks, "weight_decay": 0.1, "clip": 1.0}
    planes: dict[str, tuple[Keys, tuple[float, ...]]] = {
        "rows of 32, 64 from 15 %, 128 from 40 %": (ROWS, near),
        "batches of 2, 4 from 20 %, 8 from 50 %": ({"data.batch_size": {"piecewise": {"values": {"0%": 2, "20%": 4, "50%": 8}}}}, near),
        "weights averaged, decay 0.99": ({"optimizer.ema": {"decay": 0.99}, "evaluate.heldout.weights": "ema"}, near),
        "embedding and first block at half the rate": ({"optimizer.groups": {"low": {"select": LOW, "lr": peaks}}}, near),
        "Muon": ({"optimizer": muon}, LADDER[6:11]),
        "batches of 4 throughout (no timeline)": ({"data.batch_size": 4}, near),
        "batches of 2 throughout (no timeline)": ({"data.batch_size": 2}, near),
        "rows and batches together": (ROWS | {"data.step_tokens": {"piecewise": {"values": {"0%": 256, "20%": 512, "50%": 1024}}}}, near),
        "rows of 64, batches of 8 throughout (no timeline)": (SHORT, near),
        "rows of 64, batches of 4 throughout (no timeline)": ({**SHORT, "data.batch_size": 4}, near),
    }
    for number, (title, (keys, rates)) in enumerate(planes.items(), start=1):
        own = {choice.candidate: {**side.candidates[choice.candidate], **keys}}
        half = "optimizer.groups.low.lr.wsd.peak" if "optimizer.groups" in keys else ""
        yield Side(f"{side.name}-plane{number}", f"+ {title}", side.config, own, side.flops, side.name, rates=rates, half=half)


def sizes(*names: str) -> dict[str, Keys]:
    """`2x64`: two blocks of width 64."""
    split = {name: name.split("x") for name in names}
    return {name: {"model.rack.width": int(width), "model.rack.stacks": [{"base": int(blocks)}]} for name, (blocks, width) in split.items()}


class Laboratory:
    """The sweeps of one study below one directory."""

    def __init__(self, study: str, runs: Path, jobs: int, *, only: str = "", names: Sequence[str] = ()) -> None:
        """`only` is `plan` or `table`, where nothing is to be trained; `names` keeps to some sides."""
        self.directory, self.jobs, self.only = runs / study, jobs, only
        sides = first_example() if study == "first" else budget(float(study))
        self.sides = tuple(side for side in sides if not names or side.name in names)
        self.planes = [name for name in names if "-plane" in name]
        """Of the planes on top only these; empty for all."""
        self.choices: dict[str, Choice] = {}

    def work(self, *, planes: bool) -> None:
        """Train what is left: trials and finalists, every side for as many processor seconds as the one beside it, planes on top."""
        for side in self.sides:
            self.finals(side)
        for side in self.sides:
            if side.beside and side.name in self.choices and not side.chosen_by and (flops := self.flops_of_equal_seconds(side)):
                self.train(side, f"{side.name}-seconds", self.settings(side, [self.choices[side.name]], flops), SEEDS)
        for side in self.with_planes() if planes else ():
            self.finals(side)

    def finals(self, side: Side) -> None:
        """The trials of a side, and its finalist."""
        if (choice := self.chosen(side)) is not None:
            self.choices[side.name] = choice
            self.train(side, f"{side.name}-final", self.settings(side, [choice], side.flops), SEEDS)

    def with_planes(self) -> list[Side]:
        """One plane more for each side that no model was given to; none before their own trials."""
        chosen = [(side, self.choices[side.name]) for side in self.sides if side.name.startswith("small") and side.name in self.choices]
        planes = [plane for side, choice in chosen for plane in with_planes(side, choice)]
        return [plane for plane in planes if not self.planes or plane.name in self.planes]

    def chosen(self, side: Side) -> Choice | None:
        """The best candidate at the best rate; the grid grows while that lies at its end."""
        if side.chosen_by:
            return self.choices.get(side.chosen_by)
        trials = [Choice(candidate, rate) for candidate in side.candidates for rate in side.rates]
        trials += [each for each in self.tried(side) if each not in trials]
        while True:
            self.train(side, side.name, self.settings(side, trials, side.flops), (SEED,))
            found = self.finished(side.name)
            if not found:
                return None
            best = min(found, key=lambda each: each.bits)
            beyond = next_rate(best.rate, [each.rate for each in found if each.candidate == best.candidate])
            if beyond is None or self.only:
                return Choice(best.candidate, best.rate)
            trials.append(Choice(best.candidate, beyond))

    def tried(self, side: Side) -> list[Choice]:
        """The trials of an earlier call, those beyond the end of the grid too."""
        names = [config.parent.name.split(",") for config in sorted((self.directory / side.name).glob("*/config.yaml"))]
        return [Choice(name[0], float(name[1].removeprefix("peak="))) for name in names]

    def settings(self, side: Side, choices: Sequence[Choice], flops: float | None) -> dict[str, Keys]:
        """The settings of a sweep."""
        horizon = {} if flops is None else {HORIZON: f"{flops:.3g} flops".replace("e+", "e")}
        named = {f"{each.candidate},peak={each.rate:g}": each for each in choices}
        keys = {name: {**horizon, **side.candidates[each.candidate], RATE: each.rate} for name, each in named.items()}
        return {name: {**each, side.half: float(each[RATE]) / 2} if side.half else each for name, each in keys.items()}

    def train(self, side: Side, name: str, settings: Mapping[str, Keys], seeds: Sequence[int]) -> None:
        """Train what is left of a sweep; it says itself what it does."""
        if self.only == "table":
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"{name}.yaml"
        content = {"config": str(side.config), "settings": dict(settings), "seeds": list(seeds)}
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")
        call = "from stackwise.cli import main; main(prog_name='stackwise')"
        how = ["--plan"] if self.only else ["--output", str(self.directory / name), "--jobs", str(self.jobs)]
        command = [sys.executable, "-c", call, "sweep", str(file), *how]
        shown = None if self.only else subprocess.DEVNULL
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=shown)

    def finished(self, name: str) -> list[Figures]:
        """The figures of the finished runs of a sweep."""
        records = (read_run(config.parent) for config in sorted((self.directory / name).glob("*/config.yaml")))
        return [figures(record) for record in records if record.status == "finished"]

    def flops_of_equal_seconds(self, side: Side) -> float | None:
        """FLOPs in which a side takes as many processor seconds as the one beside it, two digits; None where they are not known."""
        reference, own = (self.finished(f"{name}-final") for name in (side.beside, side.name))
        times = [mean([each.cpu_seconds or 0.0 for each in found]) if found else 0.0 for found in (reference, own)]
        return float(f"{own[0].flops * times[0] / times[1]:.2g}") if all(times) else None

    def tables(self) -> Iterator[str]:
        """The tables, as they stand in docs/explanation/results.md."""
        sides = [*self.sides, *self.with_planes()]
        yield from self._trials(sides)
        for stage, title in (("final", "equal FLOPs"), ("seconds", "as many processor seconds of one thread as the side beside it")):
            yield from self._finalists(sides, stage, title)
        yield from self._factors()

    def _trials(self, sides: Sequence[Side]) -> Iterator[str]:
        rows = [(side, candidate) for side in sides if not side.chosen_by for candidate in side.candidates]
        found = {(side.name, each.candidate, each.rate): each for side, _ in rows for each in self.finished(side.name)}
        rates = sorted({rate for _, _, rate in found})
        yield f"\n| bits a byte, seed {SEED}, at learning rate | {' | '.join(f'{rate:g}' for rate in rates)} |"
        yield f"|{'---|' * (len(rates) + 1)}"
        for side, candidate in rows:
            cells = [found.get((side.name, candidate, rate)) for rate in rates]
            best = min((each.bits for each in cells if each), default=None)
            texts = ["" if each is None else f"**{each.bits:.3f}**" if each.bits == best else f"{each.bits:.3f}" for each in cells]
            if best is not None:
                yield f"| {side.title}: {candidate} | {' | '.join(texts)} |"

    def _finalists(self, sides: Sequence[Side], stage: str, title: str) -> Iterator[str]:
        titles = {side.name: side.title for side in sides}
        yield f"\n| {title} | FLOPs | seeds | bits a byte, each seed | mean, 95 % | beside | difference by seed | CPU seconds |"
        yield f"|{'---|' * 8}"
        for side in sides:
            if found := sorted(self.finished(f"{side.name}-{stage}"), key=lambda each: each.seed):
                other = {each.seed: each.bits for each in self.finished(f"{side.beside}-final")} if side.beside else {}
                pairs = [each.bits - other[each.seed] for each in found if each.seed in other]
                beside = [titles.get(side.beside, side.beside), str(Interval.of(pairs))] if pairs else ["–", "–"]
                times = [each.cpu_seconds for each in found if each.cpu_seconds is not None]
                name = f"{side.title}: {found[0].candidate}, {found[0].rate:g}"
                figures = [f"{mean([each.flops for each in found]):.2e}", seeds_of(found), " ".join(f"{each.bits:.3f}" for each in found)]
                cells = [name, *figures, str(Interval.of([each.bits for each in found])), *beside, f"{mean(times):.0f}" if times else "–"]
                yield f"| {' | '.join(cells)} |"

    def _factors(self) -> Iterator[str]:
        """How many times fewer FLOPs a timeline needs to the loss of the static run of its seed, on the line between its two budgets."""
        for model, width in (("given", 128), ("narrow", 64)):
            sides = [{each.seed: each for each in self.finished(f"{model}-{name}-final")} for name in ("static", "grown", "quarter")]
            factors = []
            for seed in sorted(set.intersection(*map(set, sides))):
                static, low, high = (side[seed] for side in sides)
                share = (high.bits - static.bits) / (high.bits - low.bits)  # in log FLOPs
                factors.append(static.flops / (high.flops * (low.flops / high.flops) ** share))
            if factors:
                yield f"\nWidth {width}: FLOPs of the static run over those of the timeline at its loss, by seed: {Interval.of(factors)}"


def next_rate(best: float, tried: Sequence[float]) -> float | None:
    """The rate beyond the end of the grid that the best lies at; None where it lies inside, or the ladder ends."""
    at = LADDER.index(best)
    beyond = at + 1 if best == max(tried) else at - 1 if best == min(tried) else -1
    return LADDER[beyond] if 0 <= beyond < len(LADDER) else None


def figures(record: RunRecord) -> Figures:
    """What a run says."""
    done = next(record.of_kind("run_finished"))
    return Figures(
        record.name.split(",")[0],
        int(record.config["run.seed"]),
        float(record.config[RATE]),
        float(record.evaluations[-1]["metrics"][METRIC]),
        sum(float(phase["training_flops"]) for phase in record.phases),
        done.get("cpu_seconds"),
    )


def seeds_of(found: Sequence[Figures]) -> str:
    """`2–5`."""
    seeds = sorted(each.seed for each in found)
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)


def main() -> None:
    """Train what is left, and print the tables."""
    parser = argparse.ArgumentParser(description=re.sub(r"\n(?!\n)", " ", __doc__ or ""))
    parser.add_argument("--study", action="append", help="`first`, or a budget in FLOPs such as 1e13  [default: first and 3e12]")
    parser.add_argument("--runs", type=Path, default=Path("laboratory"), help="where the sweeps are")
    parser.add_argument(
        "--side", action="append", default=[], help="a side of the study, or a plane on top such as small-static-plane8  [default: all]"
    )
    parser.add_argument("--planes", action="store_true", help="then add the planes, one at a time, where no model is given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plan", dest="only", action="store_const", const="plan", default="", help="say what the trials would run")
    only.add_argument("--table", dest="only", action="store_const", const="table", help="print what is there")
    arguments = parser.parse_args()
    for study in arguments.study or ("first", "3e12"):
        laboratory = Laboratory(study, arguments.runs, arguments.jobs, only=arguments.only, names=arguments.side)
        laboratory.work(planes=arguments.planes)
        if arguments.only != "plan":
            print(f"\n{study}", *laboratory.tables(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
