"""Many runs in processes of their own at the price of one start: a server imports everything once and forks a child for each.

A child runs the command line as it is. Around it stand only a witness of the data (the digest of every step's batches, appended to
`witness.jsonl` in its working directory) and signals it sends to itself when a step is done. A run that nothing is patched in takes the
price of its plan from the first child that asked for that of the same config, as pricing is a third of what such a run costs.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import frozen


@frozen
class Ended:
    """How a child ended: its exit code, or minus the signal that ended it."""

    code: int
    out: str
    err: str


class ForkServer:
    """A context; `stackwise` runs one command line to its end.

    Args:
        sites: folders in front of the path.
    """

    def __init__(self, sites: Sequence[Path] = ()) -> None:
        path = os.pathsep.join([*map(str, sites), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()

    def stackwise(
        self,
        *arguments: str,
        cwd: Path,
        signals: Mapping[int, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
        patch: str = "",
        kill_after_s: float | None = None,
    ) -> Ended:
        """`stackwise ARGUMENTS` in a forked child.

        Args:
            arguments: the command line.
            cwd: its working directory.
            signals: step → signals that the child sends to itself when that step has been logged.
            environment: variables set in the child.
            patch: Python that the child executes first, to make something fail.
            kill_after_s: when the server sends it SIGKILL, wherever it is.
        """
        asked = {
            "argv": arguments,
            "cwd": str(cwd),
            "signals": {str(k): list(v) for k, v in (signals or {}).items()},
            "environment": [dict(environment or {})],
            "patch": patch,
            "kill_after_s": kill_after_s,
        }
        return self._ask(asked)[0]

    def together(
        self,
        *arguments: str,
        cwd: Path,
        ranks: int,
        signals: Mapping[int, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
        patch: str = "",
    ) -> list[Ended]:
        """`stackwise ARGUMENTS` in several forked children that know of each other as torchrun's do; how each ended, by rank.

        Args:
            arguments: the command line.
            cwd: the working directory of all.
            ranks: how many.
            signals: step → signals that the first one sends to itself when that step has been logged.
            environment: variables set in all of them.
            patch: Python that each executes first; `os.environ["RANK"]` says which one it is.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **(environment or {})}
        asked = {
            "argv": arguments,
            "cwd": str(cwd),
            "signals": {str(k): list(v) for k, v in (signals or {}).items()},
            "environment": [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)],
            "patch": patch,
            "kill_after_s": None,
        }
        return self._ask(asked)

    def _ask(self, asked: Mapping[str, Any]) -> list[Ended]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        codes, folder = json.loads(self._process.stdout.readline()), Path(asked["cwd"])
        places = [[folder / f"{name}{rank or ''}" for name in (".out", ".err")] for rank in range(len(codes))]
        return [Ended(code, *[file.read_text("utf-8", "replace") for file in files]) for code, files in zip(codes, places, strict=True)]


IMPORTED_ONCE = (
    "torch._dynamo",  # what torch imports when the first optimizer is made, and for half of a short run's time
    "torch.utils.flop_counter",
    "stackwise.runs.run",
    "stackwise.cli.run",
    "stackwise.cli.resume",
    "stackwise_providers_optim.adamw",
    "stackwise_providers_optim.plateau",
    "stackwise_providers_data.memory",
    "stackwise_providers_data.transforms",
    "stackwise_providers_transformer.causal_lm",
    "stackwise_providers_transformer.decoder",
    "stackwise_providers_transformer.depth_growth",
    "stackwise_providers_transformer.lora",
)


def serve() -> None:
    """Fork a child for each line of standard input; print how it ended."""
    for module in IMPORTED_ONCE:
        import_module(module)
    with tempfile.TemporaryDirectory() as prices:
        answer(Path(prices))


def answer(prices: Path) -> None:
    """What `serve` does for each line; what plans cost is kept in a folder."""
    for line in sys.stdin:
        asked = json.loads(line)
        pids = []
        for rank in range(len(asked["environment"])):
            if not (pid := os.fork()):
                code = 99
                try:
                    code = child(asked, rank, prices)
                except BaseException:
                    os.write(2, traceback.format_exc().encode())
                finally:  # whatever happens, a child does not leave through the server's own `with`, which would remove the prices
                    os._exit(code)
            pids.append(pid)
        if asked["kill_after_s"] is not None:
            time.sleep(asked["kill_after_s"])
            os.kill(pids[0], signal.SIGKILL)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


def child(asked: Mapping[str, Any], rank: int, prices: Path) -> int:
    """Run one command line; its exit code."""
    os.chdir(asked["cwd"])
    for number, name in ((0, os.devnull), (1, f".out{rank or ''}"), (2, f".err{rank or ''}")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags), number)
    os.environ.update(asked["environment"][rank])
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115  # for good
    exec(asked["patch"], {"os": os})
    if asked["argv"][0] == "run" and not asked["patch"]:
        price_once(asked["argv"], prices)
    if not rank:
        witness_data()
    signal_at(asked["signals"])
    from stackwise.cli import main

    try:
        main(asked["argv"], prog_name="stackwise")
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError):
                stream.flush()
    return 0


def price_once(argv: Sequence[str], prices: Path) -> None:
    """Price the plan of a command only if no child before has priced that of the same text and settings; files of data may differ."""
    from stackwise.assembly import pricing

    with suppress(OSError):
        text = Path(argv[1]).read_text("utf-8")
        settings = [value for name, value in pairwise(argv) if name == "--set"]
        kept = prices / sha256(json.dumps([text, settings]).encode()).hexdigest()
        price = pricing.price

        def priced(plan: Any, **how: Any) -> Any:
            if not kept.exists():
                made = prices / str(os.getpid())
                made.write_bytes(pickle.dumps(price(plan, **how)))
                made.rename(kept)
            return pickle.loads(kept.read_bytes())

        if "data.text-files" not in text:
            pricing.price = priced


def witness_data() -> None:
    """Write down the digest of every training step's batches, past every buffer."""
    from stackwise.planes.data.plane import DataPlane

    deliver, handle = DataPlane.batches, os.open("witness.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def batches(plane: Any, moment: Any) -> Any:
        made = deliver(plane, moment)
        if plane._asked_for_training:
            digest = sha256()
            for batch in made:
                for name, tensor in batch.items():
                    digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode() + tensor.contiguous().numpy().tobytes())
            os.write(handle, (json.dumps([moment.step, digest.hexdigest()]) + "\n").encode())
        return made

    make = DataPlane.open

    def open_for_training(plane: Any, moments: Any) -> None:
        plane._asked_for_training = True
        make(plane, moments)

    DataPlane._asked_for_training = False  # type: ignore[attr-defined]  # evaluations have planes of their own, which are not opened
    DataPlane.batches, DataPlane.open = batches, open_for_training  # type: ignore[method-assign]  # in a child of a test


def signal_at(wanted: Mapping[str, Sequence[str]]) -> None:
    """Send signals to this process when a step has been logged."""
    from stackwise.contracts.events import StepDone
    from stackwise.storage.run_directory import RunDirectory

    log, left = RunDirectory.__call__, {int(step): list(names) for step, names in wanted.items()}

    def logged(directory: Any, event: Any) -> None:
        log(directory, event)
        if isinstance(event, StepDone):
            for name in left.pop(event.step, ()):
                os.kill(os.getpid(), getattr(signal, f"SIG{name}"))

    RunDirectory.__call__ = logged  # type: ignore[method-assign]  # in a child of a test


if __name__ == "__main__":
    serve()
