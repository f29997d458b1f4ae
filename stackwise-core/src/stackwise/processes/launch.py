"""Start the processes of a run on this machine with torchrun's own agent, and return their exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stackwise.processes.place import ATTEMPT, JOB

STOP_S = 660
"""How long the processes may take to finish their step and save it after a signal; they give up on a step themselves before that."""

ENDS_FOR_GOOD = {0, 2, 3, 4, 5, 129, 130, 143}
"""Exit codes after which another attempt would end in the same way, or is not wanted."""


def launch(command: Sequence[str], ranks: int, max_restarts: int = 0) -> int:
    """Run `python -m stackwise COMMAND` in several processes.

    Args:
        command: arguments of the command line, without those about processes.
        ranks: how many processes.
        max_restarts: how often to start all of them again after one was killed, or failed by a bug in StackWise.

    Returns:
        The exit code of the process that failed first, as a shell reports it.
    """
    logging.disable(logging.ERROR)  # silences the agent: the processes themselves say which one failed, and why
    os.environ[JOB] = uuid.uuid4().hex
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    code = 0
    for attempt in range(max_restarts + 1):
        os.environ[ATTEMPT] = str(attempt)
        code = _attempt(command, ranks)
        if code in ENDS_FOR_GOOD:
            break
        if attempt < max_restarts:
            print(f"start {ranks} processes again, attempt {attempt + 2} of {max_restarts + 1}", file=sys.stderr, flush=True)
    return code


def _attempt(command: Sequence[str], ranks: int) -> int:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=STOP_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "stackwise", *command)
    except ChildFailedError as error:
        rank, first = min(error.failures.items(), key=lambda item: item[1].timestamp)
        if first.exitcode > 0:
            return first.exitcode
        if (code := 128 - first.exitcode) not in ENDS_FOR_GOOD:  # it could not say so itself, and while it starts nobody else can
            print(f"rank {rank} was ended by {signal.Signals(-first.exitcode).name}", file=sys.stderr, flush=True)
        return code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
